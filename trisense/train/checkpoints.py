"""All that a run goes on from, in one file: parameters, optimiser, schedule, random generators, what was counted."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trisense.errors import BadInput
from trisense.train.disk import write_text, write_whole
from trisense.train.processes import Processes, gathered, scattered

CHECKPOINT = "checkpoint.pt"
# What may differ between a run and its continuation: it changes when something is written, not what is learned.
FREE = ("log_every", "evaluate_every", "save_every")
# How a step's batches are split; only their product decides what is learned.
SPLIT = ("processes", "accumulate")


@dataclass
class Checkpoint:
    """The file `path` of a run with these `options`, and the objects whose state it holds."""

    path: Path
    options: dict[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    processes: Processes

    def save(self, step: int, counted: dict[str, Any]) -> None:
        """counted: what the report has counted so far. Every process calls it; the main one writes.

        Sharded parameters are gathered, so the file is the same whatever wrote it. Raises BadInput on a full disk; the
        checkpoint before is then still there.
        """
        kept = self.processes.main
        state = {
            "model": gathered(self.model.state_dict(), kept),
            "optimizer": gathered(self.optimizer.state_dict(), kept),
            "scheduler": self.scheduler.state_dict(),
            "random": self.processes.gather(random_state()),
            "stage": self.options,
            "counted": counted,
            "step": step,
        }
        if kept:
            size = sum(tensor.nbytes for tensor in tensors({"model": state["model"], "optimizer": state["optimizer"]}))
            write_whole(self.path, lambda file: torch.save(state, file), size)

    def load(self) -> tuple[int, dict[str, Any]]:
        """The steps already done and what was counted; (0, {}) where there is no checkpoint.

        Another number of processes is fine where `processes x accumulate` is the same: the batches of a step and the
        parameters are then the same, the random numbers of dropout are not. Raises BadInput for a file that is no
        checkpoint, and for one of other options or of another model.
        """
        if not self.path.exists():
            return 0, {}
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            before, counted = state["stage"], state["counted"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError):
            raise BadInput(
                f"{self.path}: not a checkpoint of a training run; remove it or name another folder"
            ) from None
        self._compare(before)
        try:
            self.model.load_state_dict(scattered(state["model"], self.model.state_dict()))
            self.optimizer.load_state_dict(_optimizer_state(state["optimizer"], self.optimizer))
        except (RuntimeError, ValueError, KeyError):
            raise BadInput(f"{self.path}: holds another model; give the same design or another folder") from None
        self.scheduler.load_state_dict(state["scheduler"])
        generators = state["random"]
        if len(generators) == self.processes.world:
            set_random_state(generators[self.processes.rank])
        return state["step"], counted

    def _compare(self, before: Mapping[str, Any]) -> None:
        for key, value in self.options.items():
            if key not in (*FREE, *SPLIT) and before.get(key, value) != value:
                raise BadInput(
                    f"{self.path}: was trained with {key}={before[key]}, now {value}; give the same options or another "
                    "folder"
                )
        then, now = ((o.get("processes", 1), o["accumulate"]) for o in (before, self.options))
        if then[0] * then[1] != now[0] * now[1]:
            raise BadInput(
                f"{self.path}: was trained with {then[0]} processes x accumulate={then[1]}, now {now[0]} x {now[1]}; "
                f"their product says what one step learns from, so keep it {then[0] * then[1]} or name another folder"
            )


def _optimizer_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of a file, sharded as the optimiser's parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sharded = {
        index: {
            key: scattered(value, parameters[index])
            if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape
            else value
            for key, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": sharded}


def tensors(tree: Any) -> Iterable[torch.Tensor]:
    """Those in dicts and lists within each other."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors(inner)


def seed_all(seed: int) -> None:
    """Sets every random generator that training may draw from: Python's, numpy's, torch's on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Where these generators stand, as what `torch.load(weights_only=True)` reads."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, following = random.getstate()
    return {
        "python": (version, list(words), following),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), place, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    version, words, following = state["python"]
    random.setstate((version, tuple(words), following))
    kind, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def same_run(card: Path, run: Mapping[str, Any], compared: Iterable[str]) -> None:
    """Keeps in the file `card` what the checkpoints of a run do not hold.

    Raises BadInput where the file is there already and one of the keys `compared` is another: going on would mix two
    runs without a word.
    """
    if card.exists():
        before = json.loads(card.read_text(encoding="utf-8"))
        for key in compared:
            if before.get(key) != run[key]:
                raise BadInput(f"{card}: this run began with another {key}; give the same or name another folder")
    card.parent.mkdir(parents=True, exist_ok=True)
    write_text(card, json.dumps(run, indent=1) + "\n")
