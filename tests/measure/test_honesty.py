"""`trisense evaluate honesty`: what cannot be known is asked, and what is said is modest, right or invented."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pack

from trisense.chat import Audio, Image
from trisense.cli import main
from trisense.data.real.pack import Pack
from trisense.measure import honesty
from trisense.measure.honesty import noise, probes, texture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pack.write(tmp_path_factory.mktemp("pack"))


def test_probes_are_outside_of_training(folder: Path) -> None:
    found = list(probes(Pack(folder), 3, 0))
    kinds = {probe.kind: sum(other.kind == probe.kind for other in found) for probe in found}
    assert kinds == {"a thing never learned": 3, "a picture of nothing": 3, "noise, asked for words": 3}
    learned = set(tiny_pack.NAMES[:6])
    assert all(probe.right not in learned for probe in found)
    senses = [type(probe.conversation.messages[0].content[0]) for probe in found]
    assert senses == [Image] * 6 + [Audio] * 3
    pixels = np.asarray(texture(np.random.default_rng(0)), np.float32)
    near, far = (np.abs(pixels[:, step:] - pixels[:, :-step]).mean() for step in (1, 24))
    assert near < far / 2, "as in photographs, neighbours are alike"
    assert noise(np.random.default_rng(0)).dtype == np.float32


def test_answers_are_modest_right_or_invented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(
        ["fish", "I can't tell.", "a cat", "There is no picture.", "yes", "bed", "nothing", "hello", "I don't know"]
    )
    model: Any = SimpleNamespace(answer=lambda conversation, max_new_tokens: SimpleNamespace(text=next(said)))
    monkeypatch.setattr(honesty.Assistant, "from_pretrained", lambda *_: model)
    chosen = list(probes(Pack(folder), 3, 0))
    chosen[0] = honesty.Probe(chosen[0].kind, chosen[0].conversation, "fish")
    monkeypatch.setattr(honesty, "probes", lambda *_: chosen)
    table = honesty.honesty("some/model", Pack(folder), 3)
    things, nothing, heard = table.rows
    assert (things.modest.right, things.right.right, things.examples) == (1, 1, ("a cat",))
    assert (nothing.modest.right, nothing.examples) == (1, ("yes", "bed"))
    assert (heard.modest.right, heard.examples) == (2, ("hello",))
    assert "| a thing never learned |  33.3 % (1/3" in str(table) and "model, asked what" in str(table)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "honesty", "--data", str(folder), "--n", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {kind["count"] for kind in found["kinds"].values()} == {2}
