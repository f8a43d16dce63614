"""Strict loading: every weight, no other, and one line about what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from trisense.errors import BadInput
from trisense.model.checkpoint import load_model

FIRST = "language_model.model.layers.0.mlp.up_proj.weight"


def weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN = {
    "a weight is missing": (lambda f: weights(f, lambda t: t.pop(FIRST)), rf"lack {FIRST} \(1 such\)"),
    "one key too many": (
        lambda f: weights(f, lambda t: t.update(extra=torch.zeros(2))),
        r"one too many: extra \(1 such\)",
    ),
    "another shape": (lambda f: weights(f, lambda t: t.update({FIRST: torch.zeros(3, 3)})), f"wrong shape for {FIRST}"),
    "the weights were cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]),
        "weights cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights cannot be read"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config is not json": (lambda f: (f / "config.json").write_text("{"), "config.json: not a config"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: "),
    "another kind of model": (lambda f: edit(f, model_type="llava"), "model_type is 'llava'"),
    "an unknown sense option": (
        lambda f: edit(f, senses={"image": {"width": 16, "colour": 1}, "audio": {"width": 16}}),
        "senses.image: unknown key 'colour'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(case: str, tmp_path: Path, capfd):
    broken, expected = BROKEN[case]
    folder = copytree(tiny_models.folder(), tmp_path / "model")
    broken(folder)
    with pytest.raises(BadInput, match=expected) as refusal:
        load_model(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)
    assert capfd.readouterr().err == ""


def test_a_whole_folder_loads_every_weight(capfd):
    model = load_model(tiny_models.folder())
    stored = load_file(tiny_models.folder() / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in stored:
            assert torch.equal(tensor, stored[name]), name
    assert set(stored) <= set(model.state_dict())
    assert capfd.readouterr().err == ""


def test_dtype():
    assert load_model(tiny_models.folder(), torch.bfloat16).dtype == torch.bfloat16
    assert load_model(tiny_models.folder()).dtype == torch.float32
