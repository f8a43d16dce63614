"""The learning rate range test (Smith 2017, arXiv:1506.01186; 2018, arXiv:1803.09820): which rates a stage learns at.

Batches of two samples differ more from each other than learning changes them in a hundred steps. So every loss is taken
against what the untouched model gives for the same batch, and what is left is what the steps have done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.stage import Stage
from trisense.train.disk import write_text
from trisense.train.optim import make_optimizer
from trisense.train.plot import line_plot, save_plot
from trisense.train.processes import launched

# A loss so many times the lowest, and as far above the first as the lowest is below it, has left what can be learned.
DIVERGED = 4.0
# What the running mean, by which a loss is judged while the test goes on, keeps of itself at each step.
KEPT = 0.9
# Width of the bell by which losses are smoothed afterwards, as a share of all steps. It looks both ways, because a
# running mean lags, and where the rate doubles every few steps it would point at rates several times too high.
BELL = 0.03
# Of the first losses, that say where the fall began.
FIRST = 5
# So many deviations of that mean, and this share of where it began, a fall is to be deep.
CLEAR = 4.0
LEAST = 1e-3
NAME = "lr_find"
SIZE = (960, 600)


@dataclass(frozen=True)
class RangeTest:
    """What was seen: rates and, at each, the loss of a batch before its step.

    untouched: of the same batches by the model as it was. even: losses, less how far their batches are from the mean of
    these; smoothed: those, smoothed. steepest: the rate at which the smoothed loss falls fastest. tenth: a tenth of the
    rate where it is lowest. Both are None where it does not fall beyond its own noise. diverged: whether the test ended
    because the loss left all bounds.
    """

    rates: list[float]
    losses: list[float]
    untouched: list[float]
    even: list[float]
    smoothed: list[float]
    diverged: bool
    steepest: float | None
    tenth: float | None


def range_test(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    stage: Stage,
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    steps: int = 100,
    device: str = "auto",
    seed: int = 0,
) -> RangeTest:
    """Trains for at most `steps` steps while the rate grows from `start_lr` to `end_lr` by the same factor each, and
    ends when the loss diverges. Then the model is what it was, wherever it stood.

    Args:
        model, batch_at: as `trisense.train.loop.train` takes them.
        stage: its optimiser, batches, clipping and precision are used; parts with rates of their own keep the ratio to
            `lr`.

    Raises:
        BadInput: rates that do not grow, fewer than 10 steps, several processes, nothing that learns, or a loss that is
            no number to begin with.
    """
    if not 0 < start_lr < end_lr:
        raise BadInput(f"--start-lr {start_lr:g}, --end-lr {end_lr:g}: expected two rates above 0, the second higher")
    if steps < 2 * FIRST:
        raise BadInput(f"--steps {steps}: too few to see a fall; expected {2 * FIRST} at least")
    if launched() > 1:
        raise BadInput("the range test runs in one process; start it without torchrun")
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    place = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.to(place)
            untouched = _untouched(model, batch_at, stage, steps, place)
            schedule = [start_lr * (end_lr / start_lr) ** (step / (steps - 1)) for step in range(steps)]
            losses, diverged = _climb(model, batch_at, stage, schedule, untouched, place)
        finally:
            model.zero_grad()
            model.load_state_dict(before)
            model.eval()
    if not losses or not np.isfinite(untouched).all():
        raise BadInput("the loss is no number before the first step: look at the data, not at the rate")
    return judge(schedule[: len(losses)], losses, untouched[: len(losses)], diverged, steps)


def _loss(
    model: nn.Module, batches: list[Batch], stage: Stage, device: torch.device, use: Callable[[torch.Tensor], None]
) -> float:
    """The loss of one step; `use` gets that of each of its batches, which add up to it."""
    batches = [batch.to(device) for batch in batches]
    items = torch.tensor(float(sum(batch.items for batch in batches)), device=device)
    total = 0.0
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16"):
            loss = model(**batch.inputs, num_items_in_batch=items).loss
        use(loss)
        total += float(loss.detach())
    return total


@torch.no_grad()
def _untouched(
    model: nn.Module, batch_at: Callable[[int], Batch], stage: Stage, steps: int, device: torch.device
) -> list[float]:
    model.eval()
    return [
        _loss(model, _batches(batch_at, stage, step), stage, device, lambda loss: None)
        for step in tqdm(range(steps), desc="before", mininterval=5)
    ]


def _climb(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    stage: Stage,
    schedule: list[float],
    untouched: list[float],
    device: torch.device,
) -> tuple[list[float], bool]:
    """(losses, whether the last of them diverged)"""
    optimizer = make_optimizer(model, stage)
    ratios = [group["lr"] / stage.lr for group in optimizer.param_groups]
    losses: list[float] = []
    first = lowest = float(np.mean(untouched))
    running = 0.0
    model.train()
    for step, rate in enumerate(tqdm(schedule, desc="range test", mininterval=5)):
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] = rate * ratio
        loss = _loss(model, _batches(batch_at, stage, step), stage, device, torch.Tensor.backward)
        if not np.isfinite(loss):
            return losses, True
        losses.append(loss)
        running = KEPT * running + (1 - KEPT) * (loss - untouched[step] + first)
        mean = running / (1 - KEPT ** (step + 1))
        lowest = min(lowest, mean)
        if mean > max(DIVERGED * lowest, 2 * first - lowest):
            return losses, True
        nn.utils.clip_grad_norm_(model.parameters(), stage.clip)
        optimizer.step()
        optimizer.zero_grad()
    return losses, False


def _batches(batch_at: Callable[[int], Batch], stage: Stage, step: int) -> list[Batch]:
    return [batch_at(step * stage.accumulate + place) for place in range(stage.accumulate)]


def judge(rates: list[float], losses: list[float], untouched: list[float], diverged: bool, steps: int) -> RangeTest:
    """The test of so many steps whose rates and losses are these."""
    first = float(np.mean(untouched))
    even = np.array(losses) - untouched + first
    values = np.minimum(even, 2 * first - even.min())  # or a loss that diverged would hide the others
    places = np.arange(len(values))
    bell = np.exp(-0.5 * ((places[:, None] - places) / max(1.0, BELL * steps)) ** 2)
    smoothed = bell @ values / bell.sum(1)
    bottom = int(smoothed.argmin())
    steepest = tenth = None
    # How far one loss is from the next says how much they differ by chance; the median, so that neither the fall nor a
    # divergence counts.
    rough = float(np.median(np.abs(np.diff(values)))) / (0.6745 * 2**0.5)
    fall = values[:FIRST].mean() - smoothed[bottom]
    if bottom >= FIRST and fall > max(CLEAR * rough / FIRST**0.5, LEAST * abs(first)):
        slope = np.gradient(smoothed, np.log(rates))
        steepest, tenth = rates[int(slope[: bottom + 1].argmin())], rates[bottom] / 10
    return RangeTest(rates, losses, untouched, even.tolist(), smoothed.tolist(), diverged, steepest, tenth)


def save_range_test(test: RangeTest, title: str, folder: Path) -> tuple[Path, Path]:
    """Writes `lr_find.json` and its plot `lr_find.png`, each whole or not at all; nothing else there changes."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers, picture = folder / f"{NAME}.json", folder / f"{NAME}.png"
    write_text(numbers, json.dumps({"title": title, **asdict(test)}, indent=1) + "\n")
    save_plot(drawn(test, title), picture)
    return numbers, picture


def drawn(test: RangeTest, title: str) -> Image.Image:
    """Losses over rates, smoothed and single, with what is suggested. What lies far above the start, where a test
    diverged, is cut off, so that the fall can be seen."""
    first, lowest = test.smoothed[0], min(test.smoothed)
    suggested = {"steepest descent": test.steepest, "a tenth of the lowest's": test.tenth}
    return line_plot(
        {"smoothed": (test.rates, test.smoothed)},
        title,
        "learning rate",
        "loss",
        log_x=True,
        marks={name: rate for name, rate in suggested.items() if rate is not None},
        dots=(test.rates, test.even),
        highest=first + max(first - lowest, 0.05 * abs(first)),
        size=SIZE,
    )
