"""Trained parts saved apart from the pretrained ones, and put beside them again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import PhiForCausalLM

from trisense.chat import Markers
from trisense.errors import BadInput
from trisense.model import trained
from trisense.model.fingerprint import fingerprints
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.trained import load_trained, put_trained, read_recipe, save_trained
from trisense.recipe import Recipe, read


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.pretrained(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def recipe(parts: Path) -> Recipe:
    return read("jnana", tiny_models.pretrained_overrides("jnana", parts))


def learned(recipe: Recipe, adapter: bool = True) -> TrisenseForConditionalGeneration:
    """A model whose trainable parts are not what they began as."""
    model, _ = load_design(recipe.design)
    if adapter:
        add_adapter(model, recipe.design)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape))
    return model.eval()


def same(a: TrisenseForConditionalGeneration, b: TrisenseForConditionalGeneration) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return set(ours) == set(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("adapter", [True, False])
def test_what_is_saved_is_what_was_trained(recipe: Recipe, tmp_path: Path, adapter: bool):
    model = learned(recipe, adapter)
    folder = tmp_path / "trained"
    save_trained(model, recipe, "align", folder)
    assert (folder / "adapter").exists() == adapter
    again, processor = load_trained(folder)
    assert same(model, again)
    assert not again.training
    assert read_recipe(folder) == (recipe, "align")
    assert processor.layout.image.after == "caption image:", "the layout of the stage"
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    assert size < 5 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 40_000, "nothing that is frozen"


def test_peft_reads_the_adapter(recipe: Recipe, tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = learned(recipe)
    save_trained(model, recipe, "instruct", tmp_path / "trained")
    base = AutoModelForCausalLM.from_pretrained(recipe.design.text["pretrained"])
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "trained" / "adapter")).eval()
    ids = torch.arange(1, 9)[None]
    with torch.inference_mode():
        torch.testing.assert_close(theirs(input_ids=ids).logits, model.language_model(input_ids=ids).logits)


def test_a_kill_leaves_the_old_parts_or_the_new(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, folder = learned(recipe), tmp_path / "trained"
    save_trained(model, recipe, "align", folder)

    def full(*arguments: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(trained, "save_file", full)
        save_trained(learned(recipe, adapter=False), recipe, "instruct", folder)
    assert read_recipe(folder)[1] == "align"
    assert same(model, load_trained(folder)[0])
    save_trained(model, recipe, "instruct", folder)
    assert read_recipe(folder)[1] == "instruct"
    assert [path.name for path in tmp_path.iterdir()] == ["trained"], "nothing is left aside"


def test_what_does_not_belong_together_is_refused_by_its_name(recipe: Recipe, tmp_path: Path):
    folder = tmp_path / "trained"
    save_trained(learned(recipe), recipe, "instruct", folder)

    def refusal(recipe: Recipe = recipe) -> str:
        with pytest.raises(BadInput) as refused:
            put_trained(load_design(recipe.design)[0], recipe, folder)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    design = recipe.design
    shallow = design.model_copy(update={"senses": {"image": {**design.senses["image"], "layer": -2}}})
    assert "trained with design.senses.image.layer=None, now -2" in refusal(
        recipe.model_copy(update={"design": shallow})
    )
    asked = design.layout.model_copy(update={"question": Markers("Q: ", "")})
    other = {"instruct": recipe.stages["instruct"].model_copy(update={"layout": asked})}
    assert "trained with the layout of instruct.question=['', 'end of question:'], now ['Q: ', '']" in refusal(
        recipe.model_copy(update={"stages": other})
    )
    (folder / "projector" / "image.safetensors").write_bytes(b"no weights")
    assert "image.safetensors: not the projector of this design" in refusal()
    save_trained(learned(recipe), recipe, "instruct", folder)
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter: cannot be read" in refusal()
    save_trained(learned(recipe), recipe, "instruct", folder)
    record = json.loads((folder / "recipe.json").read_text())
    record["recipe"]["design"]["adapter"]["targets"] = ["q_proj"]
    (folder / "recipe.json").write_text(json.dumps(record))
    assert "beside other layers than design.adapter says" in refusal()
    for content, expected in (("{", "not what a stage writes"), ('{"stage": "x", "recipe": {}}', "is missing")):
        (folder / "recipe.json").write_text(content)
        assert expected in refusal()
    (folder / "recipe.json").unlink()
    assert "recipe.json: cannot be read (No such file or directory)" in refusal()


def test_weights_count_and_not_the_name_of_their_folder(parts: Path, recipe: Recipe, tmp_path: Path):
    folder, moved = tmp_path / "trained", tmp_path / "moved"
    save_trained(learned(recipe), recipe, "instruct", folder)
    shutil.copytree(parts / "phi", moved)
    design = recipe.design.model_copy(update={"text": {"pretrained": str(moved)}})
    there = recipe.model_copy(update={"design": design})
    put_trained(load_design(design)[0], there, folder)
    model = PhiForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        model.model.layers[1].mlp.fc2.weight.mul_(1.01)
    model.save_pretrained(moved)
    with pytest.raises(BadInput, match=r"trained with design.text.pretrained=\S+phi \(weights \w{8}\), now \S+moved"):
        put_trained(load_design(design)[0], there, folder)
    # The same in pieces is another fingerprint of the same kind.
    model.save_pretrained(moved, max_shard_size="100KB")
    (moved / "model.safetensors").unlink(missing_ok=True)
    sharded = fingerprints(design)
    assert set(sharded) == {"text", "vision"}
    assert sharded["vision"] == fingerprints(recipe.design)["vision"]
    assert sharded["text"] != fingerprints(recipe.design)["text"]
