"""`trisense bench train --options`: what options of a stage are worth, each beside the stage without it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from trisense.data.batches import Batch
from trisense.measure.bench import PICTURES, TITLES, in_a_process, samples_of
from trisense.measure.floor import timed
from trisense.measure.sides import Kind, Ours

OPTIONS: dict[str, dict[str, Any]] = {
    "precision: bf16": {"precision": "bf16"},
    "gradient_checkpointing: true": {"gradient_checkpointing": True},
    "optimizer: adamw-fused": {"optimizer": "adamw-fused"},
    "compile: true": {"compile": True},
}
# Steps that build kernels and fetch memory, and are not counted.
WARMING = 2


@dataclass(frozen=True)
class Worth:
    """One option. speed: how many times as fast a step is, the median of pairs; memory: how many times as much it takes
    at most, in a process of its own. first_step: seconds of the first step, in which kernels are built.
    loss_difference: a token's, in the first step."""

    speed: float
    memory: float
    first_step: float
    loss_difference: float


@dataclass(frozen=True)
class OptionsReport:
    """By stage and option. seconds, memory: of a step without any option, medians, and its bytes at most."""

    size: str
    device: str
    threads: int
    load: float
    seconds: dict[Kind, float]
    memory: dict[Kind, int]
    worth: dict[Kind, dict[str, Worth]]

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        """Markdown, as the README shows it."""
        where = f"{self.threads} threads, load {self.load:.1f}" if self.device == "cpu" else self.device
        lines = []
        for kind, found in self.worth.items():
            plain = f"{TITLES[kind]}: {self.seconds[kind]:.2f} s a step, {self.memory[kind] / 1e6:,.0f} MB"
            lines += [
                f"| {plain}, {where} | speed | memory | first step | loss differs by |",
                "|---|---|---|---|---|",
                *(
                    f"| `{name}` | x {one.speed:.2f} | x {one.memory:.2f} | {one.first_step:.1f} s | "
                    f"{one.loss_difference:.1e} |"
                    for name, one in found.items()
                ),
                "",
            ]
        return "\n".join(lines).strip()


def bench_options(
    kinds: tuple[Kind, ...] = ("align", "instruct"),
    size: str = "small",
    *,
    device: str = "cpu",
    tokens: int = 640,
    rounds: int = 5,
    seed: int = 0,
    pictures: int = PICTURES,
) -> OptionsReport:
    """Measures each option beside the stage without it, on the same packed rows and in turns; on a GPU a stage computes
    in bf16 anyway. Raises BadInput where an option cannot be had here."""
    report = OptionsReport(size, device, torch.get_num_threads(), 0.0, {}, {}, {})
    options = {name: one for name, one in OPTIONS.items() if device == "cpu" or "precision" not in one}
    for kind in kinds:
        shapes, _, rows = samples_of(kind, size, tokens, pictures, seed)
        every = {"": {}, **options}
        sides = {name: Ours(shapes, kind, device, encoder=False, **one) for name, one in every.items()}
        steps = _in_turns(sides, [rows(number)[0] for number in range(WARMING + rounds)])
        memory = {
            name: in_a_process("ours", kind, size, device, tokens, pictures, seed, **one) for name, one in every.items()
        }
        plain = steps[""]
        report.seconds[kind], report.memory[kind] = median(s for s, _ in plain[WARMING:]), memory[""]
        report.worth[kind] = {
            name: Worth(
                speed=median(a / b for (a, _), (b, _) in list(zip(plain, steps[name], strict=True))[WARMING:]),
                memory=memory[name] / memory[""],
                first_step=steps[name][0][0],
                loss_difference=abs(steps[name][0][1] - plain[0][1]),
            )
            for name in options
        }
    where = torch.cuda.get_device_name() if device == "cuda" else device
    return replace(report, device=where, load=os.getloadavg()[0])


def _in_turns(sides: dict[str, Ours], batches: list[Batch]) -> dict[str, list[tuple[float, float]]]:
    """Of each side the seconds of its steps, and a token's mean loss before each."""
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    losses: list[float] = []
    for batch in batches:
        for name, side in sides.items():
            seconds = timed(lambda s=side, b=batch: losses.append(_step(s, b)), side.device)
            steps[name].append((seconds, losses[-1]))
    return steps


def _step(side: Ours, batch: Batch) -> float:
    loss = side.gradient(batch) / batch.items
    side.optimizer.step()
    side.optimizer.zero_grad()
    return loss
