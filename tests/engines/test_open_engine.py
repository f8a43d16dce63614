"""Which engine opens a model, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import tiny_foreign
import tiny_models

from trisense import engines
from trisense.engines import open_engine
from trisense.errors import BadInput


def test_a_folder_opens_with_the_engine_it_is_made_for():
    onnx, local = open_engine(tiny_models.exported()), open_engine(str(tiny_models.folder()))
    assert (type(onnx).__name__, type(local).__name__) == ("OnnxEngine", "LocalEngine")
    assert (onnx.name, local.name) == ("spark-float32", "spark")


def test_the_config_says_whose_model_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither the name of a folder nor that of a Hub id does, nor somebody's ONNX parts beside the weights."""
    foreign = copytree(tiny_foreign.folder("llava"), tmp_path / "trisense")
    (foreign / "onnx").mkdir()
    hub = {"a/spark": foreign, "a/llava": tiny_models.folder()}
    monkeypatch.setattr(engines, "download", lambda name, _: hub[name])
    opened = [open_engine(model) for model in (tmp_path / "trisense", "a/spark", "a/llava")]
    assert [type(engine).__name__ for engine in opened] == ["ForeignEngine", "ForeignEngine", "LocalEngine"]
    assert [engine.name for engine in opened] == ["trisense", "a/spark", "a/llava"]


def test_engines_say_which_senses_their_models_have():
    models = [tiny_models.exported(), tiny_models.folder(), tiny_foreign.folder("llava"), tiny_foreign.folder("llama")]
    senses = [(engine.sees, engine.hears) for engine in map(open_engine, models)]
    assert senses == [(True, True), (True, True), (True, False), (False, False)]


def test_a_package_without_its_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines, "PACKAGED", tmp_path / "spark")
    with pytest.raises(BadInput, match="does not contain the model"):
        open_engine("spark")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no/such/folder", "no such folder"),
        ("sprak", "no such folder"),
        ("./owner", "no such folder"),
        ("owner/no-such-model", "not to be had from the Hub"),
        (str(Path(__file__)), "a file; expected a model folder"),
        (str(Path(__file__).parent), "not a model folder"),
    ],
)
def test_no_such_model_is_one_line(name: str, expected: str):
    with pytest.raises(BadInput, match=expected) as refusal:
        open_engine(name)
    assert "\n" not in str(refusal.value)
    assert "folder" in str(refusal.value)


def test_without_torch_a_torch_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "trisense.engines.local", None)
    with pytest.raises(BadInput, match=r"install 'trisense\[train\]'"):
        open_engine(tiny_models.folder())
