"""Which engine opens a model, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models

from trisense import engines
from trisense.engines import open_engine
from trisense.errors import BadInput


def test_a_folder_opens_with_the_engine_it_is_made_for():
    onnx, local = open_engine(tiny_models.exported()), open_engine(str(tiny_models.folder()))
    assert (type(onnx).__name__, type(local).__name__) == ("OnnxEngine", "LocalEngine")
    assert (onnx.name, local.name) == ("spark-float32", "spark")


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
