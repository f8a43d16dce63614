"""`trisense bench train`: this package's training step beside what a user would take instead."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from trisense.data.batches import Batch
from trisense.data.packing import Bundles, packed
from trisense.measure.floor import floor_of, timed, work_of
from trisense.measure.sides import BATCH, Kind, Ours, Shapes, Task, Theirs, TokenByToken, make_task, shapes_of
from trisense.prompt import Prompt

# Pictures that rows are made of.
PICTURES = 64
# Losses a token of two sides may differ by so much: float32 rounds less than that, bfloat16 on a GPU does not.
AGREE = {"cpu": 1e-4, "cuda": 5e-2}
# Samples whose tokens are learned one forward each, at a time: that is slow.
LOOPED = 2 * BATCH
TITLES = {"align": "align (projector)", "instruct": "instruct (LoRA)"}


@dataclass(frozen=True)
class Result:
    """One stage. samples_per_second: medians, of this package (`ours`), of transformers' LLaVA (`llava`) and of one
    forward per token (`token_loop`, `align` only). ratio: ours to LLaVA's. floor_share: of our step's time, what its
    matrix products alone would take. mfu: useful operations a second of this package by the peak. peak_memory: bytes
    that training took beyond what was there before, of each side in a process of its own. loss: a token, and how far
    the sides differ in it. features_per_second: pictures through the encoder, once."""

    samples_per_second: dict[str, float]
    ratio: float
    token_loop_ratio: float | None
    floor_share: float
    mfu: float
    peak_memory: dict[str, int]
    memory_ratio: float
    loss: float
    loss_difference: float
    tokens_per_second: float
    features_per_second: float


@dataclass(frozen=True)
class Report:
    """Results by stage. peak: floating-point operations a second that `mfu` is measured by. load: of the machine, as it
    was on average in the minute before the measurement ended, this program's own work included."""

    size: str
    device: str
    threads: int
    parameters: int
    peak: float
    load: float
    results: dict[Kind, Result]

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        """Markdown, as the README shows it."""
        found = list(self.results.values())
        where = f"{self.threads} threads, load {self.load:.1f}" if self.device == "cpu" else self.device
        rows = [
            (
                f"language model of {self.parameters / 1e6:,.0f} M, {where}",
                [TITLES[kind] for kind in self.results],
            ),
            ("---", ["---"] * len(found)),
            ("transformers' LLaVA, samples/s", [f"{one.samples_per_second['llava']:.2f}" for one in found]),
            ("this package, samples/s", [f"{one.samples_per_second['ours']:.2f}" for one in found]),
            ("ratio", [f"{one.ratio:.2f}" for one in found]),
            ("ratio to one forward per token", [f"{one.token_loop_ratio or float('nan'):.1f}" for one in found]),
            ("share of the matrix-multiply floor", [f"{100 * one.floor_share:.0f} %" for one in found]),
            (f"useful operations, of {self.peak / 1e9:,.0f} G/s", [f"{100 * one.mfu:.0f} %" for one in found]),
            ("peak memory of LLaVA, MB", [f"{one.peak_memory['llava'] / 1e6:,.0f}" for one in found]),
            ("peak memory of this package, MB", [f"{one.peak_memory['ours'] / 1e6:,.0f}" for one in found]),
            ("memory ratio", [f"{one.memory_ratio:.2f}" for one in found]),
            ("loss a token, difference", [f"{one.loss:.4f}, {one.loss_difference:.1e}" for one in found]),
        ]
        return "\n".join(f"| {title} | {' | '.join(cells)} |" for title, cells in rows).replace("nan", "-")


class Rows:
    """Packed rows of a task's samples, and which samples are in each."""

    def __init__(self, task: Task, features: np.ndarray, tokens: int, seed: int):
        self._members: list[int] = []
        count = range(len(task.prompts))
        bundles = Bundles.of(count, lambda i: task.prompts[i], lambda i: task.about[i], tokens)

        def prompts_of(members: Sequence[int]) -> list[Prompt]:
            self._members += members
            shown = (features[task.about[members[0]]],)
            return [replace(task.prompts[i], values=shown) for i in members]

        self._batch_at = packed(bundles, prompts_of, tokens, seed)

    def __call__(self, number: int) -> tuple[Batch, list[int]]:
        self._members = []
        return self._batch_at(number), self._members


def bench_train(
    kinds: Sequence[Kind] = ("align", "instruct"),
    size: str = "small",
    *,
    device: str = "cpu",
    tokens: int = 1024,
    rounds: int = 5,
    seed: int = 0,
    peak: float | None = None,
    pictures: int = PICTURES,
) -> Report:
    """Measures both sides in turns and gives medians.

    One turn is a packed row of at most `tokens` tokens on our side, and the very same samples, in random order and
    batches of two, on the other; each side then makes one step of its optimiser. peak: operations a second that the
    device can do at most; default: the fastest of the matrix products that were measured.
    Raises RuntimeError where the sides' losses do not agree: then they do not compute the same, and no ratio means
    anything.
    """
    shapes = shapes_of(size)
    results, parameters, fastest = {}, 0, peak or 0.0
    for kind in kinds:
        memory = {side: in_a_process(side, kind, size, device, tokens, pictures, seed) for side in ("ours", "llava")}
        results[kind], parameters, best = _measure(kind, shapes, device, tokens, rounds, seed, pictures, memory)
        fastest = fastest if peak else max(fastest, best)
    # Until now `mfu` holds operations a second.
    results = {kind: replace(one, mfu=one.mfu / fastest) for kind, one in results.items()}
    name = torch.cuda.get_device_name() if device == "cuda" else device
    return Report(size, name, torch.get_num_threads(), parameters, fastest, os.getloadavg()[0], results)


def _measure(
    kind: Kind,
    shapes: Shapes,
    device: str,
    tokens: int,
    rounds: int,
    seed: int,
    pictures: int,
    memory: dict[str, int],
) -> tuple[Result, int, float]:
    """A result but for its `mfu`, which is operations a second; parameters of the language model; the best operations a
    second of a matrix product."""
    where = torch.device(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    task = make_task(kind, shapes, pictures, seed)
    ours, theirs = Ours(shapes, kind, device), Theirs(shapes, kind, device)
    theirs.copy(ours)
    loop = TokenByToken(theirs)
    found: dict[str, np.ndarray] = {}
    encoding = timed(lambda: found.update(features=ours.features(task.pixels)), where)
    rows = Rows(task, found["features"], tokens, seed)
    loss, difference = _agree(ours, theirs, loop, task, *rows(0), AGREE[device])

    def our_step(number: int) -> None:
        ours.gradient(rows(number)[0])
        ours.optimizer.step()
        ours.optimizer.zero_grad()

    def their_step(members: list[int], items: int) -> None:
        theirs.gradient(task, members, items)
        theirs.optimizer.step()
        theirs.optimizer.zero_grad()

    for number in (0, 1):  # memory is fetched and libraries are warmed up once
        our_step(number)
    their_step(rows(0)[1][:BATCH], 1)
    speeds: dict[str, list[float]] = {"ours": [], "llava": [], "token_loop": []}
    shares, useful, best, throughput = [], [], 0.0, []
    for number in range(rounds):
        batch, members = rows(number)
        work = work_of(ours.model, batch)
        shuffled = np.random.default_rng((seed, number)).permutation(members).tolist()
        before = timed(lambda n=number: our_step(n), where)
        floor, fast = floor_of(work, where, dtype)
        their_seconds = timed(lambda m=shuffled, i=batch.items: their_step(m, i), where)
        seconds = (before + timed(lambda n=number: our_step(n), where)) / 2
        speeds["ours"].append(len(members) / seconds)
        speeds["llava"].append(len(members) / their_seconds)
        if kind == "align":
            few = shuffled[:LOOPED]
            speeds["token_loop"].append(len(few) / timed(lambda m=few: loop.gradient(task, m, 1), where))
            theirs.optimizer.zero_grad()
        shares.append(floor / seconds)
        useful.append(work.flops / seconds)
        throughput.append(batch.inputs["input_ids"].numel() / seconds)
        best = max(best, fast)
    medians = {side: median(values) for side, values in speeds.items() if values}
    result = Result(
        samples_per_second=medians,
        ratio=medians["ours"] / medians["llava"],
        token_loop_ratio=medians["ours"] / medians["token_loop"] if "token_loop" in medians else None,
        floor_share=median(shares),
        mfu=median(useful),
        peak_memory=memory,
        memory_ratio=memory["ours"] / memory["llava"],
        loss=loss,
        loss_difference=difference,
        tokens_per_second=median(throughput),
        features_per_second=len(task.pixels) / encoding,
    )
    return result, sum(p.numel() for n, p in ours.model.language_model.named_parameters() if ".lora_" not in n), best


def _agree(
    ours: Ours, theirs: Theirs, loop: TokenByToken, task: Task, batch: Batch, members: list[int], within: float
) -> tuple[float, float]:
    """The mean loss a token, and how far LLaVA's differs on the same samples; the loop over tokens is held against
    LLaVA's on a few of them. Raises RuntimeError where one differs by more than `within`."""
    own = ours.gradient(batch) / batch.items
    difference = abs(theirs.gradient(task, members, batch.items) / batch.items - own)
    few = members[:LOOPED]
    items = sum(int(task.prompts[i].mask.sum()) for i in few)
    looped = abs(loop.gradient(task, few, items) - theirs.gradient(task, few, items)) / items
    for side in (ours, theirs):
        side.optimizer.zero_grad()
    if not max(difference, looped) <= within:
        raise RuntimeError(f"the sides do not compute the same: losses differ by {max(difference, looped)}")
    return own, difference


def in_a_process(
    side: str, kind: Kind, size: str, device: str, tokens: int, pictures: int, seed: int, **options: Any
) -> int:
    """`peak_memory` in a process of its own."""
    arguments = (side, kind, size, device, tokens, pictures, seed, torch.get_num_threads())
    code = f"from trisense.measure.bench import peak_memory; print(peak_memory(*{arguments!r}, **{options!r}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak_memory(
    side: str, kind: Kind, size: str, device: str, tokens: int, pictures: int, seed: int, threads: int, **options: Any
) -> int:
    """Bytes that a side takes at most in two steps of its training, its model and optimiser with it: beyond what this
    process had before, on a GPU what was allocated there. options: of the stage, on this package's side."""
    torch.set_num_threads(threads)
    _train_twice(side, kind, device, *samples_of(kind, "tiny", tokens, pictures, seed), options)  # loads the libraries
    samples = samples_of(kind, size, tokens, pictures, seed)
    before = resident(peak=False)
    _train_twice(side, kind, device, *samples, options)
    return torch.cuda.max_memory_allocated() if device == "cuda" else resident(peak=True) - before


def samples_of(kind: Kind, size: str, tokens: int, pictures: int, seed: int) -> tuple[Shapes, Task, Rows]:
    """Samples in packed rows, about pictures whose features are random too."""
    shapes = shapes_of(size)
    task = make_task(kind, shapes, pictures, seed)
    shape = (pictures, shapes.tokens, shapes.vision["hidden_size"])
    return shapes, task, Rows(task, np.random.default_rng(seed).standard_normal(shape, np.float32), tokens, seed)


def _train_twice(
    side: str, kind: Kind, device: str, shapes: Shapes, task: Task, rows: Rows, options: dict[str, Any]
) -> None:
    one = Ours(shapes, kind, device, encoder=False, **options) if side == "ours" else Theirs(shapes, kind, device)
    _forget_peak(device)
    for number in (0, 1):
        batch, members = rows(number)
        if isinstance(one, Ours):
            one.gradient(batch)
        else:
            one.gradient(task, members, batch.items)
        one.optimizer.step()
        one.optimizer.zero_grad()


def _forget_peak(device: str) -> None:
    """What building a model took for a moment is not what training takes."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (counter := Path("/proc/self/clear_refs")).exists():
        counter.write_text("5")  # Linux: the most that was resident is what is resident now


def resident(peak: bool) -> int:
    """Bytes in memory, now or at most so far. Linux tells both of a process; elsewhere only the most is known."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
