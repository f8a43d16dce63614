"""A time for a run: read from the command line, shared by stages, kept for a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import toy

from trisense.errors import BadInput
from trisense.train import budget
from trisense.train.budget import seconds_of, step_seconds, within
from trisense.train.processes import join_processes


def test_times_are_read_with_their_unit() -> None:
    assert [seconds_of(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for wrong in ("30", "m", "0m", "-3h", "1d", "half an hour"):
        with pytest.raises(BadInput, match=r"expected a time such as 30m, 1\.5h or 90s"):
            seconds_of(wrong)


def test_a_stage_gets_the_steps_that_fit_and_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "step_seconds", lambda *_: 0.25)
    stage = toy.stage(steps=1000, warmup_steps=200, evaluate_every=500)
    model, processes = toy.toy(), join_processes("cpu")
    short = within(25, model, toy.batch_at, stage, tmp_path, processes)
    assert (short.steps, short.warmup_steps, short.evaluate_every) == (100, 10, 50)
    monkeypatch.setattr(budget, "step_seconds", lambda *_: 1.0)
    assert within(25, model, toy.batch_at, stage, tmp_path, processes) == short, "a run that goes on measures nothing"
    assert json.loads((tmp_path / "steps.json").read_text()) == {"steps": 100, "seconds_a_step": 0.25, "of": 1000}
    assert within(0.1, model, toy.batch_at, stage, tmp_path / "least", processes).steps == 1


def test_timing_leaves_the_learner_as_it_is() -> None:
    model = toy.toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert step_seconds(model, toy.batch_at, toy.stage(steps=10), torch.device("cpu")) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
