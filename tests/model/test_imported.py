"""What the five projects published, as their own descriptions say it was built, read into our parts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import copytree

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trisense.errors import BadInput
from trisense.model.imported import import_parts
from trisense.model.merge import merge
from trisense.model.trained import load_trained, read_recipe
from trisense.recipe import Recipe, read


class VisionProjector(nn.Module):
    """As `context-gpt` describes its own."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class SimpleResBlock(nn.Module):
    """LLaVA's, which `jnana` put behind a linear layer."""

    def __init__(self, width: int):
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pre_norm(x)
        return x + self.proj(x)


def projection_block(width: int, hidden: int) -> nn.Sequential:
    """Of `eden`, and of `ft35`."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))


def recipe(name: str) -> Recipe:
    return read(name, tiny_models.pretrained_overrides(name, tiny_models.parts()))


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return module


def same(folder: Path, published: nn.Module, width: int) -> bool:
    """Whether our projector gives what the published one gives."""
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0))
    model, _ = load_trained(folder)
    with torch.no_grad():
        return torch.equal(model.senses["image"].projector(x), published(x))


@pytest.mark.parametrize(
    ("name", "published", "width"),
    [
        ("context-gpt", VisionProjector(16, 64), 16),
        ("tinyclip-phi2", nn.Linear(16, 64), 16),
        ("tinyclip-phi2", nn.ModuleDict({"projection": nn.Linear(16, 64)}), 16),
        ("jnana", nn.Sequential(nn.Linear(16, 64), SimpleResBlock(64)), 16),
        ("ft35", projection_block(12, 64), 12),
        ("eden", nn.Sequential(projection_block(12, 64)), 12),
    ],
)
@pytest.mark.parametrize("file", ["projector.pt", "projector.safetensors"])
def test_a_published_projector_becomes_ours(name: str, published: nn.Module, width: int, file: str, tmp_path: Path):
    weights = drawn(published).state_dict()
    if file.endswith(".pt"):
        torch.save(weights, tmp_path / file)
    else:
        save_file(weights, tmp_path / file)
    import_parts([tmp_path / file], recipe(name), tmp_path / "out")
    forward = published["projection"] if isinstance(published, nn.ModuleDict) else published
    assert same(tmp_path / "out", forward, width)
    first = next(key for key, stage in recipe(name).stages.items() if stage)
    assert read_recipe(tmp_path / "out") == (recipe(name), first)


def test_two_files_and_a_checkpoint_with_its_optimiser(tmp_path: Path):
    linear, block = drawn(nn.Linear(16, 64)), drawn(SimpleResBlock(64))
    optimizer = torch.optim.Adam(block.parameters())
    block(torch.randn(1, 64)).sum().backward()
    optimizer.step()
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    checkpoint = {"step": 100, "model_state_dict": block.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(checkpoint, tmp_path / "block.bin")
    import_parts([tmp_path / "block.bin", tmp_path / "linear.pth"], recipe("jnana"), tmp_path / "out")
    assert same(tmp_path / "out", nn.Sequential(linear, block), 16)


@pytest.mark.parametrize("binary", [False, True])
def test_an_adapter_of_peft_comes_along(binary: bool, tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    wanted = recipe("eden").design.adapter
    assert wanted
    base = AutoModelForCausalLM.from_pretrained(tiny_models.parts() / "phi3", dtype=torch.float32)
    config = LoraConfig(r=wanted.r, lora_alpha=wanted.alpha, target_modules=list(wanted.targets), task_type="CAUSAL_LM")
    theirs = drawn_adapter(get_peft_model(base, config))
    theirs.save_pretrained(str(tmp_path / "adapter"))
    if binary:
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    published = drawn(projection_block(12, 64))
    torch.save(published.state_dict(), tmp_path / "projector.pt")
    import_parts([tmp_path / "projector.pt"], recipe("eden"), tmp_path / "out", tmp_path / "adapter")
    assert same(tmp_path / "out", published, 12)
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        ours = load_trained(tmp_path / "out")[0].language_model(input_ids=ids).logits
        torch.testing.assert_close(ours, theirs.eval()(input_ids=ids).logits)
    merge(tmp_path / "out", tmp_path / "merged")


def drawn_adapter(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def test_the_stage_says_the_layout(tmp_path: Path):
    torch.save(drawn(nn.Linear(16, 64)).state_dict(), tmp_path / "a.pt")
    import_parts([tmp_path / "a.pt"], recipe("tinyclip-phi2"), tmp_path / "out", stage="instruct")
    assert read_recipe(tmp_path / "out")[1] == "instruct"
    adapter = tiny_models.trained("tinyclip-phi2") / "adapter"
    import_parts([tmp_path / "a.pt"], recipe("tinyclip-phi2"), tmp_path / "with-adapter", adapter)
    assert read_recipe(tmp_path / "with-adapter")[1] == "instruct"


class Strange:
    """What only running code could bring back."""


def test_what_does_not_fit_is_refused_by_what_differs(tmp_path: Path):
    def saved(name: str, content: object) -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    def changed(**settings: object) -> Path:
        folder = copytree(tiny_models.trained("jnana") / "adapter", tmp_path / "adapter", dirs_exist_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | settings))
        return folder

    def refusal(files: list[Path], adapter: Path | None = None, name: str = "jnana", **options: str) -> str:
        with pytest.raises(BadInput) as refused:
            import_parts(files, recipe(name), tmp_path / "out", adapter, **options)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "out").exists()
        return str(refused.value)

    good = saved("good.pt", nn.Sequential(nn.Linear(16, 64), SimpleResBlock(64)).state_dict())
    narrow = saved("narrow.pt", {f"projection.{k}": v for k, v in nn.Linear(12, 64).state_dict().items()})
    message = refusal([narrow], name="tinyclip-phi2")
    assert "narrow.pt: no layer '0' weight [64, 16] bias [64] for the linear projector of this design" in message
    assert message.endswith("left are layer 'projection' weight [64, 12] bias [64]")
    assert "the linear projector of this design has no place for layer '1.pre_norm' weight [64] bias [64]" in refusal(
        [good], name="tinyclip-phi2"
    )
    assert refusal([saved("half.pt", nn.Linear(16, 64).state_dict())]).endswith("left are none")
    bare = saved("bare.pt", nn.Sequential(nn.Linear(16, 64, bias=False)).state_dict())
    assert refusal([bare], name="tinyclip-phi2").endswith("left are layer '0' weight [64, 16]")
    assert "cannot be read as tensors" in refusal([saved("module.pt", Strange())])
    assert "holds no state dicts; expected one" in refusal([saved("numbers.pt", {"step": 3})])
    assert "holds 2 state dicts; expected one" in refusal(
        [saved("two.pt", {"clip": nn.Linear(1, 1).state_dict(), "phi": nn.Linear(1, 1).state_dict()})]
    )
    assert re.search(r"nothing.pt: cannot be read as tensors \(No such file", refusal([tmp_path / "nothing.pt"]))

    assert "adapter_config.json: r is 16, but design.adapter says 8" in refusal([good], changed(r=16))
    assert "lora_alpha is 32, but design.adapter says 16" in refusal([good], changed(lora_alpha=32))
    assert "target_modules is ['q_proj'], but" in refusal([good], changed(target_modules=["q_proj"]))
    assert "use_dora is True, which this package does not do" in refusal([good], changed(use_dora=True))
    assert "peft_type is LOHA, but design.adapter says LORA" in refusal([good], changed(peft_type="LOHA"))
    weights = load_file(changed() / "adapter_model.safetensors")
    name = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert f"lacks {name.removeprefix('base_model.model.')}" in refusal([good], tmp_path / "adapter")
    save_file(weights | {name: torch.zeros(8, 3)}, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "is [8, 3]; this design's is [8, 64]" in refusal([good], tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "not the settings of an adapter of peft" in refusal([good], tmp_path / "adapter")
    assert "adapter_config.json: cannot be read (No such file" in refusal([good], tmp_path / "no-adapter")
    with pytest.raises(BadInput, match="recipe spark has no stage None of trained parts; it has none"):
        import_parts([good], read("spark"), tmp_path / "out")
    assert "has no stage 'sleep' of trained parts; it has align, instruct" in refusal([good], stage="sleep")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(BadInput, match="not an earlier export"):
        import_parts([good], recipe("jnana"), tmp_path / "notes")
