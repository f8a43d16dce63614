"""Pretrained parts put together: frozen but for new projectors, an adapter beside them, in 4 bits where wished."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionModelWithProjection, Phi3ForCausalLM

from trisense.chat import Conversation
from trisense.data.batches import collate
from trisense.errors import BadInput
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.prompt import featured
from trisense.recipe import Design, Quantisation, read


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.pretrained(tmp_path_factory.mktemp("parts"))


def tiny(parts: Path, **changes: Any) -> Design:
    design = read("eden", tiny_models.pretrained_overrides("eden", parts)).design
    return design.model_copy(update=changes)


def inputs(processor: Any) -> dict[str, torch.Tensor]:
    """One question and answer about a picture whose features are at hand."""
    features = torch.arange(12.0)[None].numpy() / 12
    conversation = Conversation.ask("Which?", images=[features]).answered("red")
    return collate([featured(conversation, processor)]).inputs


def test_everything_is_as_it_was_and_only_the_projector_learns(parts: Path):
    model, _ = load_design(tiny(parts))
    language = dict(Phi3ForCausalLM.from_pretrained(parts / "phi3").named_parameters())
    for name, parameter in model.language_model.named_parameters():
        assert torch.equal(parameter, language[name])
    sense = model.senses["image"]
    assert isinstance(sense, Sense)
    clip = dict(CLIPVisionModelWithProjection.from_pretrained(parts / "clip").named_parameters())
    for name, parameter in sense.encoder.named_parameters():
        assert torch.equal(parameter, clip[name])
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {f"senses.image.projector.{name}" for name, _ in sense.projector.named_parameters()}


def test_an_adapter_begins_as_nothing_and_can_be_switched_off(parts: Path):
    """As peft does it: the same matrices beside the same layers."""
    model, processor = load_design(tiny(parts))
    given = inputs(processor)
    with torch.inference_mode():
        before = model(**given).logits
        add_adapter(model, tiny(parts))
        assert torch.equal(model(**given).logits, before)
    adapter = tiny(parts).adapter
    assert adapter
    reference = get_peft_model(
        Phi3ForCausalLM.from_pretrained(parts / "phi3"),
        LoraConfig(r=adapter.r, lora_alpha=adapter.alpha, target_modules=list(adapter.targets)),
    )
    expected = {
        name.removeprefix("base_model.model."): p.shape for name, p in reference.named_parameters() if "lora" in name
    }
    assert {name: p.shape for name, p in model.language_model.named_parameters() if "lora" in name} == expected
    with torch.inference_mode():
        for name, parameter in model.language_model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        assert not torch.allclose(model(**given).logits, before, atol=1e-3)
        model.language_model.disable_adapters()
        assert torch.equal(model(**given).logits, before), "the very base model"


def test_four_bits(parts: Path):
    """nf4 of bitsandbytes: as the numbers that its codes stand for, and an adapter beside them learns."""
    four = pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this machine")
    whole, processor = load_design(tiny(parts))
    model, _ = load_design(tiny(parts, quantisation=Quantisation(compute="float32")))
    given = inputs(processor)
    model.senses.load_state_dict(whole.senses.state_dict())
    packed = {n: m for n, m in model.language_model.named_modules() if isinstance(m, four.nn.Linear4bit)}
    assert len(packed) == 2 * 4, "the four matrices of both layers, and not the head"
    with torch.no_grad():
        for name, module in packed.items():
            weight = whole.language_model.get_submodule(name).weight
            meant = four.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert 0 < (meant - weight).norm() / weight.norm() < 0.12
            weight.copy_(meant)
        assert torch.allclose(whole(**given).logits, model(**given).logits, atol=1e-3)
    add_adapter(model, tiny(parts))
    model.train()
    torch.manual_seed(1)  # of the adapter's dropout
    model(**given).loss.backward()
    learning = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert any("lora_B" in name for name in learning)
    assert all(grad is not None for grad in learning.values())
    before = {name: cast(torch.Tensor, grad).clone() for name, grad in learning.items()}
    with torch.no_grad():
        model.eval()(**given)  # as the loop evaluates between steps
    model.zero_grad()
    torch.manual_seed(1)
    model.train()(**given).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, before[name])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": {"model_type": "llama"}}, "design.text: begins from nothing; this needs a pretrained part"),
        ({"vision": {"model_type": "clip_vision_model"}}, "design.vision: begins from nothing"),
        ({"vision": None}, "senses.image: no encoder; vision_config is missing"),
        ({"placeholders": {"image": "<|image|>"}}, "placeholders.image: '<|image|>' is not a token of the tokenizer"),
        ({"placeholders": {"image": 65}}, "placeholders.image: 65 is an ordinary token"),
        ({"adapter": None}, "design.adapter is missing"),
    ],
)
def test_what_cannot_be_put_together_is_said(parts: Path, changes: dict[str, Any], expected: str):
    design = tiny(parts, **changes)
    with pytest.raises(BadInput) as refused:
        add_adapter(load_design(design)[0], design)
    assert expected in str(refused.value)


def test_a_part_that_lacks_a_weight_is_named(parts: Path, tmp_path: Path):
    model = Phi3ForCausalLM.from_pretrained(parts / "phi3")
    weights = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.down_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    (tmp_path / "tokenizer.json").write_bytes((parts / "phi3" / "tokenizer.json").read_bytes())
    with pytest.raises(
        BadInput, match=r"design\.text\.pretrained: .* lacks the weight model\.layers\.1\.mlp\.down_proj"
    ):
        load_design(tiny(parts, text={"pretrained": str(tmp_path)}))
