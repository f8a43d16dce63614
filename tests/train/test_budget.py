"""A time for a run: read from the command line, shared by stages, kept for a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import toy

from trisense.errors import BadInput
from trisense.train import budget
from trisense.train.budget import evaluation_seconds, seconds_of, step_seconds, within
from trisense.train.processes import join_processes


def test_times_are_read_with_their_unit() -> None:
    assert [seconds_of(text) for text in ("90s", "30m", "1.5h")] == [90, 1800, 5400]
    for wrong in ("30", "m", "0m", "-3h", "1d", "half an hour"):
        with pytest.raises(BadInput, match=r"expected a time such as 30m, 1\.5h or 90s"):
            seconds_of(wrong)


def nothing(model: torch.nn.Module) -> dict[str, float]:
    return {}


@pytest.mark.parametrize(
    ("once", "steps", "every"),
    [
        (0.25, 198, 99),  # both of the stage's own evaluations, half a second together
        (4.0, 184, 184),  # a tenth of 50 s holds one
        (30.0, 80, 80),  # and one there is
        (60.0, 1, 1),
    ],
)
def test_a_stage_gets_the_steps_that_fit_and_keeps_them(
    once: float, steps: int, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "step_seconds", lambda *_: 0.25)
    monkeypatch.setattr(budget, "evaluation_seconds", lambda *_: once)
    stage = toy.stage(steps=1000, warmup_steps=200, evaluate_every=500)
    model, processes = toy.toy(), join_processes("cpu")
    short = within(50, model, toy.batch_at, nothing, stage, tmp_path, processes)
    assert (short.steps, short.warmup_steps, short.evaluate_every) == (steps, steps // 10, every)
    monkeypatch.setattr(budget, "step_seconds", lambda *_: 1.0)
    again = within(50, model, toy.batch_at, nothing, stage, tmp_path, processes)
    assert again == short, "a run that goes on measures nothing"
    kept = {"seconds_a_step": 0.25, "seconds_an_evaluation": once, "of": 1000}
    assert kept.items() <= json.loads((tmp_path / "steps.json").read_text()).items()


def test_timing_leaves_the_learner_as_it_is() -> None:
    model = toy.toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert step_seconds(model, toy.batch_at, toy.stage(steps=10), torch.device("cpu")) > 0
    modes: list[bool] = []

    def evaluate(copy: torch.nn.Module) -> dict[str, float]:
        modes.append(copy.training)
        with torch.no_grad():
            for parameter in copy.parameters():
                parameter.zero_()
        return {}

    assert evaluation_seconds(model, evaluate, torch.device("cpu")) > 0 and modes == [False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
