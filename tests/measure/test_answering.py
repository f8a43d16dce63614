"""`trisense bench spark` on a tiny model: both sides answer from the same weights, and the table says what it must."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models

from trisense.cli import main
from trisense.measure import answering
from trisense.measure.answering import Speed


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """An export with the weights that it was made of, as spark is kept."""
    folder = tmp_path / "both"
    shutil.copytree(tiny_models.exported(), folder)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_models.folder() / name, folder)
    return folder


@pytest.mark.slow
def test_both_sides_are_timed(both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(answering, "WORDS", 10)  # the tiny model reads 512 tokens
    monkeypatch.setattr(answering, "TOKENS", 20)
    assert main(["bench", "spark", "--model", str(both), "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(0 < value < 600 for key in ("cold", "first_token") for value in found[key])
    assert all(value > 0 for value in found["tokens_per_second"]) and found["threads"] >= 1


def test_ratios_say_how_many_times_faster_this_package_is() -> None:
    table = str(Speed("spark", 2, 0.5, (0.5, 6.0), (0.1, 0.3), (400.0, 100.0)))
    assert "| shell to first word, s | 0.50 | 6.00 | 12.0 |" in table
    assert "| first token, loaded, s | 0.100 | 0.300 | 3.0 |" in table
    assert "| tokens/s | 400 | 100 | 4.0 |" in table


def test_an_export_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "spark", "--model", str(tmp_path)]) == 2
    assert "expected a folder with an export (export.json) and the weights" in capsys.readouterr().err
