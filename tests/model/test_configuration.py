"""The config: what it keeps, and what it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import AutoConfig, LlamaConfig, ParakeetEncoderConfig, ResNetConfig

from trisense.errors import BadInput
from trisense.model import SenseOptions, TrisenseConfig


def parts(**changes: Any) -> dict[str, Any]:
    """The arguments of a config with both senses, with a few of them changed."""
    config = tiny_models.config("spark")
    names = ("text_config", "vision_config", "audio_config", "senses", "placeholders")
    return {name: getattr(config, name) for name in names} | changes


def senses(name: str, **changes: Any) -> dict[str, Any]:
    good = parts()["senses"]
    return {**good, name: good[name] | changes}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (
        {"senses": senses("image", colour=1)},
        "senses.image: unknown key 'colour'; expected classes, frames_per_token, layer, names, "
        "projector, select, stack, summary, time_first, width",
    ),
    "vectors of pictures joined": (
        {"senses": senses("image", stack=2)},
        "senses.image.stack: 2; only vectors of sound are joined, and frames_per_token (2) counts the frames of all",
    ),
    "frames that are no multiple": (
        {"senses": senses("audio", stack=3)},
        "senses.audio.stack: 3; only vectors of sound are joined, and frames_per_token (8) counts",
    ),
    "no width": (
        {"senses": {"image": {"layer": -2}}},
        "senses.image: the key 'width' (the features' width) is missing",
    ),
    "a width of nothing": (
        {"senses": senses("image", width=0)},
        "senses.image.width: 0; expected a whole number above 0",
    ),
    "a width in words": ({"senses": senses("image", width="16")}, "senses.image.width: '16'; expected a whole number"),
    "half a layer": ({"senses": senses("image", layer=-1.5)}, "senses.image.layer: -1.5; expected a whole number"),
    "an unknown choice of features": (
        {"senses": senses("image", select="cls")},
        "senses.image.select: 'cls' is unknown; expected patches, all, pooled, projected",
    ),
    "an unknown projector": (
        {"senses": senses("audio", projector="q-former")},
        "senses.audio.projector: 'q-former' is unknown; expected linear, residual, norm-mlp, mlp, naming",
    ),
    "patches of a sound": (
        {"senses": senses("audio", select="patches")},
        "senses.audio.select: 'patches' is for pictures; expected 'all'",
    ),
    "naming without classes": (
        {"senses": senses("image", projector="naming")},
        "senses.image.classes: []; expected the sizes of the groups of classes for the projector 'naming', and none",
    ),
    "classes that nothing names": (
        {"senses": senses("audio", classes=[3])},
        "senses.audio.classes: [3]; expected the sizes of the groups",
    ),
    "a group of no classes": (
        {"senses": senses("image", projector="naming", classes=[3, 0])},
        "senses.image.classes: [3, 0]; expected the sizes of the groups",
    ),
    "a group of half a class": (
        {"senses": senses("image", projector="naming", classes=[3, 1.5])},
        "senses.image.classes: [3, 1.5]; expected the sizes of the groups",
    ),
    "a summary of patches": (
        {"senses": senses("image", select="patches", summary=2, names=3)},
        "senses.image.summary: 2; only a picture with select: all has a summary",
    ),
    "a summary of half a vector": (
        {"senses": senses("image", summary=0.5, names=3)},
        "senses.image.summary: 0.5; expected a whole number",
    ),
    "names without a summary": (
        {"senses": senses("image", names=3)},
        "senses.image.names: 3; a summary has names, and names have a summary",
    ),
    "a summary without names": (
        {"senses": senses("image", select="all", summary=2)},
        "senses.image.names: 0; a summary has names, and names have a summary",
    ),
    "a summary of a sound": (
        {"senses": senses("audio", summary=2, names=3)},
        "senses.audio.summary: 2; only a picture with select: all has a summary",
    ),
    "a summary below nothing": (
        {"senses": senses("image", summary=-1)},
        "senses.image.summary: -1; expected a whole number",
    ),
    "no frames for a token": (
        {"senses": senses("audio", frames_per_token=0)},
        "senses.audio.frames_per_token: 0; expected a whole number above 0",
    ),
    "a sixth sense": ({"senses": {"smell": {"width": 4}}}, "senses.smell: no such sense; expected image or audio"),
    "a sense without an encoder": ({"vision_config": None}, "senses.image: no encoder; vision_config is missing"),
    "options that are none": ({"senses": {"image": 16}}, "senses.image: 16; expected a mapping of options"),
    "a placeholder outside the vocabulary": (
        {"placeholders": {"image": 264, "audio": 257}},
        "placeholders.image: 264 is not a row of the 264 embeddings",
    ),
    "a placeholder below it": (
        {"placeholders": {"image": 256, "audio": -1}},
        "placeholders.audio: -1 is not a row of the 264 embeddings",
    ),
    "no placeholder": ({"placeholders": {"image": 256}}, "placeholders.audio: None is not a row of the 264 embeddings"),
    "one token for two senses": (
        {"placeholders": {"image": 256, "audio": 256}},
        "placeholders: two senses share one token",
    ),
    "a model of another house": (
        {"text_config": {"model_type": "hal9000"}},
        "text_config: model_type 'hal9000' is not one that transformers knows",
    ),
    "a nameless encoder": ({"vision_config": {"width": 3}}, "vision_config: model_type None is not one"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused_in_one_line(case: str):
    changes, expected = BROKEN[case]
    with pytest.raises(BadInput) as refusal:
        TrisenseConfig(**parts(**changes))
    assert str(refusal.value).startswith(expected)
    assert "\n" not in str(refusal.value)


def test_options_have_defaults_and_types():
    assert SenseOptions.parse("image", {"width": 8}) == SenseOptions(width=8, layer=-1, select="all", projector="mlp")
    config = TrisenseConfig(**parts())
    assert config.options("audio").time_first
    assert config.options("image").to_dict() == {
        "width": 16,
        "layer": -1,
        "select": "all",
        "projector": "norm-mlp",
        "time_first": False,
        "frames_per_token": 2,
        "stack": 1,
        "classes": (),
        "summary": 0,
        "names": 0,
    }


def test_what_a_picture_is_named_by_is_kept(tmp_path: Path):
    naming = {"projector": "naming", "classes": [3, 4], "select": "all", "summary": 2, "names": 5}
    TrisenseConfig(**parts(senses=senses("image", **naming))).save_pretrained(tmp_path)
    read: Any = AutoConfig.from_pretrained(tmp_path)
    options = read.options("image")
    assert (options.projector, options.classes, options.summary, options.names) == ("naming", (3, 4), 2, 5)


def test_json_keeps_every_part_and_its_class(tmp_path: Path):
    config = tiny_models.config("spark")
    config.save_pretrained(tmp_path)
    read: Any = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(read.text_config, LlamaConfig)
    assert isinstance(read.vision_config, ResNetConfig)
    assert isinstance(read.audio_config, ParakeetEncoderConfig)
    read.save_pretrained(tmp_path / "again")
    first, again = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    assert first == again
    assert first["senses"] == config.senses and first["model_type"] == "trisense"


def test_placeholders_may_lie_beyond_the_tokenizer():
    """Phi-2's and Phi-3.5's embeddings have more rows than their tokenizers: 50,295 of 51,200 and 32,011 of 32,064."""
    text = AutoConfig.for_model("phi", vocab_size=51_200)
    vision, options = parts()["vision_config"], {"image": {"width": 16}}
    config = TrisenseConfig(text_config=text, vision_config=vision, senses=options, placeholders={"image": 51_199})
    assert config.placeholders == {"image": 51_199}


def test_what_generate_asks_for_is_the_language_models_own():
    text = LlamaConfig(bos_token_id=5, eos_token_id=6, pad_token_id=7, tie_word_embeddings=True)
    config = TrisenseConfig(text_config=text)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)
    assert config.tie_word_embeddings
    assert config.get_text_config(decoder=True) is text
    own = parts(text_config=text, senses={}, placeholders={}, eos_token_id=9)
    assert TrisenseConfig(**own).eos_token_id == 9
