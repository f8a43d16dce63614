"""A time for a whole run, shared out to its stages: how many steps each of them can make."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.stage import Stage
from trisense.train.disk import write_text
from trisense.train.optim import make_optimizer
from trisense.train.processes import Processes

UNITS = {"s": 1, "m": 60, "h": 3600}
# Batches that are timed, after the first few, and their numbers, which no stage comes to.
PROBED, BEFORE, NUMBER = 8, 3, 1 << 41
FILE = "steps.json"
# The share of a stage's time that evaluating it may take, but for the evaluation at its end.
EVALUATING = 0.1

Evaluate = Callable[[Any], dict[str, float]]


def seconds_of(time: str) -> float:
    """`30m`, `1.5h` or `90s` in seconds. Raises BadInput for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", time)
    if not match or not float(match[1]):
        raise BadInput(f"--budget {time}: expected a time such as 30m, 1.5h or 90s")
    return float(match[1]) * UNITS[match[2]]


def within(
    seconds: float,
    learner: nn.Module,
    batch_at: Callable[[int], Batch],
    evaluate: Evaluate,
    stage: Stage,
    out: Path,
    processes: Processes,
) -> Stage:
    """The stage with as many steps as it can make in `seconds` beside its evaluations: as many of those as the stage
    has, or fewer where they would take more than `EVALUATING` of the time. It is warmed up in proportion.

    The first time a few steps and one evaluation are timed, on a copy of the learner, and what fits is kept in
    `out/steps.json`, so that a run that goes on has the same. The main process decides for all.
    """
    file = out / FILE
    if processes.main and not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        each = step_seconds(learner, batch_at, stage, processes.device)
        once = evaluation_seconds(learner, evaluate, processes.device)
        evaluations = max(1, min(stage.steps // stage.evaluate_every, int(EVALUATING * seconds / once)))
        steps = max(1, int((seconds - evaluations * once) / each))
        timed = {"seconds_a_step": each, "seconds_an_evaluation": once, "of": stage.steps}
        write_text(file, json.dumps({"steps": steps, "evaluations": min(evaluations, steps), **timed}))
    processes.wait()
    found = json.loads(file.read_text(encoding="utf-8"))
    steps, evaluations = found["steps"], found["evaluations"]
    if processes.main:
        share = f"{100 * steps / stage.steps:.0f} % of the recipe's own"
        tqdm.write(f"{out.name}: {steps:,} steps in {seconds / 60:.1f} min, {share}; evaluations: {evaluations}")
    changes = {"steps": steps, "warmup_steps": min(stage.warmup_steps, steps // 10)}
    return stage.model_copy(update={**changes, "evaluate_every": -(-steps // evaluations)})


def step_seconds(learner: nn.Module, batch_at: Callable[[int], Batch], stage: Stage, device: torch.device) -> float:
    """What one step of a stage takes, the median of a few; the learner itself is left as it is."""
    model = deepcopy(learner).to(device).train()
    optimizer, times = make_optimizer(model, stage), []
    for number in range(BEFORE + PROBED):
        began = time.perf_counter()
        for part in range(stage.accumulate):
            batch = batch_at(NUMBER + number * stage.accumulate + part).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
                items = torch.tensor(float(batch.items), device=device)
                model(**batch.inputs, num_items_in_batch=items).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times[BEFORE:])


@torch.inference_mode()
def evaluation_seconds(learner: nn.Module, evaluate: Evaluate, device: torch.device) -> float:
    """What it takes to evaluate the learner once."""
    model = deepcopy(learner).to(device).eval()
    began = time.perf_counter()
    evaluate(model)
    return time.perf_counter() - began
