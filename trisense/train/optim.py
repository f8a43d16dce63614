"""Optimisers and what they do at each step: which parameters, at which rate, with which momentum."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import nn

from trisense.errors import BadInput
from trisense.stage import FileStage, OneCycle, PartName, Stage

# How the names of a model's parameters tell its parts, the first that fits. An adapter stands inside the language
# model, and a language model may have an encoder of its own.
PARTS: dict[PartName, str] = {
    "adapter": ".lora_",
    "projector": ".projector.",
    "language_model": ".language_model.",
    "encoder": ".encoder.",
}
# The share of the highest rate that `cosine` and `linear` end at.
LAST = 0.01


def learning_rate(stage: Stage, step: int) -> float:
    """The factor on `stage.lr` at a step, counted from 0.

    Linear warm-up to 1, then `cosine` or `linear` down to 1 % at the last step, or `constant`; or `one-cycle`. Every
    round of a stage in rounds has the whole schedule.
    """
    step, steps = _in_round(stage, step)
    if stage.schedule == "one-cycle":
        return _cycle(stage.one_cycle, steps, step)[0]
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
    if stage.schedule == "cosine":
        return LAST + (1 - LAST) * (1 + math.cos(math.pi * done)) / 2
    return LAST + (1 - LAST) * (1 - done) if stage.schedule == "linear" else 1.0


def momentum(stage: Stage, step: int) -> float:
    """The first of Adam's betas at a step: another at each in a cycle that cycles it."""
    if stage.schedule != "one-cycle" or not stage.one_cycle.cycle_momentum:
        return stage.betas[0]
    step, steps = _in_round(stage, step)
    return _cycle(stage.one_cycle, steps, step)[1]


def round_starts(stage: Stage) -> list[int]:
    """The first step of each round; of a stage without rounds, 0."""
    rounds = stage.rounds if isinstance(stage, FileStage) else 1
    return [stage.steps * number // rounds for number in range(rounds)]


def _in_round(stage: Stage, step: int) -> tuple[int, int]:
    """(step since its round began, steps of that round)."""
    starts = [*round_starts(stage), stage.steps]
    number = min(bisect_right(starts, step), len(starts) - 1)
    return step - starts[number - 1], starts[number] - starts[number - 1]


def _cycle(options: OneCycle, steps: int, step: int) -> tuple[float, float]:
    """(factor on the highest rate, momentum) at a step of one cycle, as torch's `OneCycleLR` has them."""
    first = 1 / options.div_factor
    low, high = options.base_momentum, options.max_momentum
    rise = options.pct_start * steps - 1
    phases = [(rise, (first, 1.0), (high, low))]
    if options.three_phase:
        phases.append((2 * options.pct_start * steps - 2, (1.0, first), (low, high)))
        phases.append((steps - 1, (first, first / options.final_div_factor), (high, high)))
    else:
        phases.append((steps - 1, (1.0, first / options.final_div_factor), (low, high)))
    number = next((i for i, (end, _, _) in enumerate(phases) if step <= end), len(phases) - 1)
    start = phases[number - 1][0] if number else 0.0
    end, rates, momenta = phases[number]
    done = min(1.0, (step - start) / (end - start)) if end > start else 1.0
    if options.anneal_strategy == "cos":
        done = (1 - math.cos(math.pi * done)) / 2
    return rates[0] + (rates[1] - rates[0]) * done, momenta[0] + (momenta[1] - momenta[0]) * done


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """Sets the rates, and the momentum where it cycles, that a stage has at each step."""

    def __init__(self, optimizer: torch.optim.Optimizer, stage: Stage) -> None:
        self._momentum = lambda step: momentum(stage, step)
        super().__init__(optimizer, lambda step: learning_rate(stage, step))

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            group["betas"] = (self._momentum(self.last_epoch), group["betas"][1])

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().state_dict().items() if key != "_momentum"}


def part_of(name: str) -> PartName | None:
    """The part that a parameter belongs to, by its name in the model; None for one of no part, such as a head."""
    return next((part for part, sign in PARTS.items() if sign in f".{name}"), None)


def parameter_groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """What learns, in groups: matrices decay, vectors (norms, biases) do not; parts that `stage.lrs` names have rates
    of their own. Raises BadInput where nothing learns, or nothing of a part that `stage.lrs` names."""
    learning = [(part_of(name), p) for name, p in model.named_parameters() if p.requires_grad]
    if not learning:
        raise BadInput("nothing learns: every parameter of this stage is frozen")
    parts = {part for part, _ in learning}
    for part in stage.lrs:
        if part not in parts:
            known = ", ".join(sorted(str(one) for one in parts if one)) or "none of the parts"
            raise BadInput(f"lrs.{part}: nothing of that part learns in this stage, but {known}")
    groups: list[dict[str, Any]] = []
    owners: list[PartName | None] = [None, *(part for part in PARTS if part in stage.lrs)]
    for own in owners:
        chosen = [p for part, p in learning if (part if part in stage.lrs else None) == own]
        lr = {"lr": stage.lrs[own]} if own else {}
        groups.append({"params": [p for p in chosen if p.dim() > 1], "weight_decay": stage.weight_decay, **lr})
        groups.append({"params": [p for p in chosen if p.dim() < 2], "weight_decay": 0.0, **lr})
    return groups


def make_optimizer(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused or not, its moments in float32 or, as `tinyclip-phi2` keeps them, in
    8 bits (Dettmers et al. 2022, arXiv:2110.02861). Raises BadInput as `parameter_groups`, and where bitsandbytes,
    which has the latter, is not installed."""
    groups = parameter_groups(model, stage)
    options = {"lr": stage.lr, "betas": stage.betas, "eps": stage.eps}
    if stage.optimizer != "adamw8bit":
        return torch.optim.AdamW(groups, fused=stage.optimizer == "adamw-fused" or None, **options)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ModuleNotFoundError:
        raise BadInput(
            "optimizer: adamw8bit needs bitsandbytes: pip install 'trisense[qlora]', or give adamw"
        ) from None
    return AdamW8bit(groups, **options)
