"""Parts of a design counted on meta tensors, against published numbers and against models that are really there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from trisense.errors import BadInput
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.model.parts import Part, count_parts
from trisense.model.senses import Sense
from trisense.recipe import Adapter, Design, read

# Parameters: the language models' and CLIP's as their cards give them, projectors and adapters as the five systems do.
PHI2, PHI35 = 2_779_683_840, 3_821_079_552
CLIP, PROJECTED_CLIP = 87_456_000, 87_849_216
PUBLISHED = {
    "context-gpt": (CLIP, 1_968_640, PHI2, 94_371_840),
    "tinyclip-phi2": (61_083_520, 1_640_960, PHI2, 94_371_840),
    "jnana": (CLIP, 15_086_080, PHI2, 94_371_840),
    "ft35": (PROJECTED_CLIP, 11_017_216, PHI35, 111_680_512 - 11_017_216),
    "eden": (PROJECTED_CLIP, 11_017_216, PHI35, 77_594_624),
}
TOKENS = {"context-gpt": 49, "tinyclip-phi2": 49, "jnana": 49, "ft35": 1, "eden": 1}


def counted(design: Design) -> dict[str, Part]:
    return {part.name: part for part in count_parts(design)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipes_parts_have_their_published_sizes(name: str):
    parts = counted(read(name).design)
    found = [parts[part].parameters for part in ("image encoder", "image projector", "language model", "adapter")]
    assert tuple(found) == PUBLISHED[name]
    learning = parts["image projector"].parameters + parts["adapter"].parameters
    assert parts["optimiser"].parameters == 2 * learning
    assert parts["optimiser"].size == 8 * learning
    assert parts["gradients"].size == 4 * learning


def test_adam_in_8_bits_takes_a_quarter():
    """`tinyclip-phi2` keeps Adam's moments in 8 bits in both stages, the others in 32."""
    assert {name for name in PUBLISHED if read(name).optimizer == "adamw8bit"} == {"tinyclip-phi2"}
    parts = {part.name: part for part in count_parts(read("tinyclip-phi2").design, "adamw8bit")}
    learning = parts["image projector"].parameters + parts["adapter"].parameters
    optimiser = parts["optimiser"]
    assert (optimiser.parameters, optimiser.kept) == (2 * learning, "8 bits")
    assert optimiser.size == 2 * (learning + learning // 256 * 4)
    mixed = read("tinyclip-phi2", ["stages.align.optimizer=adamw"])
    assert mixed.optimizer == "adamw", "what the heaviest stage needs"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipes_design_is_the_one_described(name: str):
    design = read(name).design
    assert design.pictures and design.pictures.tokens == TOKENS[name]
    assert design.adapter and (design.adapter.r, design.adapter.alpha, design.adapter.dropout) == (64, 16, 0.1)
    assert design.quantisation and design.quantisation.weights == "nf4"
    assert design.quantisation.compute == ("bfloat16" if name in ("ft35", "eden") else "float16")
    # The placeholder lies in the spare rows above what the tokenizers of phi-2 (50,295) and Phi-3.5 (32,011) use.
    rows, used = (51_200, 50_295) if "phi-2" in design.text["pretrained"] else (32_064, 32_011)
    placeholder = design.placeholders["image"]
    assert isinstance(placeholder, int) and used <= placeholder < rows


def test_four_bits_of_phi_2():
    """32 layers of four 2560 x 2560 and two 2560 x 10240 matrices in nf4: 4 bits each and one float32 in 64."""
    matrices = 32 * (4 * 2560 * 2560 + 2 * 2560 * 10240)
    expected = matrices // 2 + matrices // 64 * 4 + 2 * (PHI2 - matrices)
    part = counted(read("jnana").design)["language model"]
    assert (part.size, part.kept) == (expected, "nf4")
    whole = counted(read("jnana", ["design.quantisation=null"]).design)["language model"]
    assert (whole.size, whole.kept) == (2 * PHI2, "16 bits")


def tiny(folder: Path, **changes: Any) -> Design:
    """A design whose parts are two small folders."""
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, pad_token_id=0
    )
    vision.save_pretrained(folder / "clip")
    text.save_pretrained(folder / "llama")
    values = {
        "text": {"pretrained": str(folder / "llama")},
        "vision": {"pretrained": str(folder / "clip")},
        "senses": {"image": {"width": 8, "select": "patches", "projector": "linear"}},
        "placeholders": {"image": 49},
        "pictures": {"height": 32, "width": 32, "tokens": 4},
    }
    return Design.model_validate({**values, **changes})


def test_folders_are_counted_by_their_own_config(tmp_path: Path):
    design = tiny(tmp_path)
    parts = counted(design)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path / "llama"))
    assert parts["language model"].parameters == sum(p.numel() for p in model.parameters())
    assert parts["image projector"].parameters == 8 * 16 + 16
    assert "adapter" not in parts


def test_an_adapter_is_two_thin_matrices_beside_each_of_its_layers(tmp_path: Path):
    design = tiny(tmp_path).model_copy(update={"adapter": Adapter(r=3, targets=("q_proj", "down_proj"))})
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path / "llama"))
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("q_proj", "down_proj"))
    ]
    assert len(layers) == 4
    expected = sum(3 * (layer.in_features + layer.out_features) for layer in layers)
    assert counted(design)["adapter"].parameters == expected


def test_what_begins_from_nothing_learns_whole():
    """spark, against the model that its recipe builds."""
    design = read("spark").design
    processor = build_processor(design, train_tokenizer(["a red cup"], design))
    model = build_model(design, processor)
    parts = counted(design)
    for name, sense in model.senses.items():
        assert isinstance(sense, Sense)
        beside = sum(p.numel() for p in sense.summary.parameters()) if sense.summary else 0
        assert bool(beside) == (name == "image")
        assert parts[f"{name} encoder"].parameters == sum(p.numel() for p in sense.encoder.parameters()) + beside
        assert parts[f"{name} projector"].parameters == sum(p.numel() for p in sense.projector.parameters())
    more = (design.vocabulary - processor.tokenizer.size) * design.text["hidden_size"]
    assert parts["language model"].parameters == sum(p.numel() for p in model.language_model.parameters()) + more
    whole = sum(part.parameters for name, part in parts.items() if name.endswith(("coder", "projector", "model")))
    assert whole == sum(p.numel() for p in model.parameters()) + more, "nothing of it is forgotten"
    assert {part.kept for part in parts.values()} == {"float32"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text": {"pretrained": "nobody/nothing"}}, "design.text.pretrained: 'nobody/nothing' is neither a folder"),
        ({"text": {"pretrained": "x", "hidden_size": 3}}, "design.text: expected only pretrained"),
        ({"pictures": None}, "design.pictures is missing"),
        (
            {"pictures": {"height": 32, "width": 32, "tokens": 5}},
            "design.pictures.tokens: makes 5 tokens of a picture, but this",
        ),
        ({"senses": {"image": {"width": 9, "select": "patches"}}}, "design.senses.image.width: 9, but this encoder's"),
        ({"senses": {"image": {"width": 8, "layer": -9}}}, "senses.image.layer: -9 is not one of the 3 hidden states"),
        (
            {"senses": {"image": {"width": 8, "layer": -2, "select": "pooled"}}},
            "-2, but 'pooled' is of no layer",
        ),
        ({"senses": {"image": {"width": 8, "projector": "lin"}}}, "senses.image.projector: 'lin' is unknown"),
        ({"placeholders": {"image": 50}}, "placeholders.image: 50 is not a row of the 50 embeddings"),
        ({"adapter": {"targets": ["q_prj"]}}, "design.adapter.targets: no linear layer is called 'q_prj'; there are "),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput) as refused:
        count_parts(tiny(tmp_path, **changes))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_pretrained_part_is_not_built_from_nothing():
    with pytest.raises(BadInput, match=r"design\.text: is pretrained"):
        build_model(read("eden").design, tiny_models.processor())


def test_a_design_that_hears_counts_its_ears():
    """Whisper small's encoder by its published shape, without its decoder; eight vectors go into the projector."""
    parts = counted(read("jnana", ["audio=embed"]).design)
    layer = 4 * 768 * 768 + 3 * 768 + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    assert (
        parts["audio encoder"].parameters == 80 * 768 * 3 + 768 * 768 * 3 + 2 * 768 + 1500 * 768 + 12 * layer + 2 * 768
    )
    assert parts["audio projector"].parameters == 2 * 6144 + 6144 * 2560 + 2560 * 2560 + 2 * 2560
    assert parts["image encoder"].parameters == CLIP
    with pytest.raises(BadInput, match=r"design\.senses\.audio\.width: 99, but this encoder's features have 6144"):
        count_parts(read("jnana", ["audio=embed", "ears.sense.width=99"]).design)
    with pytest.raises(
        BadInput, match=r"sounds\.frames_per_token: makes 1500 tokens of a sound, but this encoder gives 188"
    ):
        count_parts(read("jnana", ["audio=embed", "ears.sounds.frames_per_token=2"]).design)
