"""A model that learns in milliseconds, and a run of it as a process: `python toy.py OUT [kill_at=STEP] [lr=1e-3]...`

kill_at: it kills itself in that step. full_at: from that step on no file may grow over 8,000 bytes, as if the disk were
full. parallel: of `train`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.stage import WarmupStage
from trisense.train.loop import train


class Toy(nn.Module):
    """A regression whose rows with a positive first value go through a part of their own, as some samples have a sound;
    one matrix is never used, as the projector in a warm-up."""

    def __init__(self, dropout: float = 0.0, width: int = 8):
        super().__init__()
        self.first = nn.Linear(4, width)
        self.dropout = nn.Dropout(dropout)
        self.extra = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)
        self.spare = nn.Linear(2, 2)
        self.steps = 0

    def forward(self, x: torch.Tensor, y: torch.Tensor, num_items_in_batch: torch.Tensor) -> CausalLMOutput:
        """x [N, 4], y [N]."""
        hidden = self.dropout(torch.tanh(self.first(x)))
        some = x[:, 0] > 0
        if some.any():
            hidden = hidden.index_add(0, some.nonzero()[:, 0], self.extra(hidden[some]))
        loss = ((self.last(hidden)[:, 0] - y) ** 2).sum() / num_items_in_batch
        self.steps += 1
        self.after_forward()
        return CausalLMOutput(loss=loss)

    def after_forward(self) -> None:
        """For tests to break in."""


def toy(dropout: float = 0.0, width: int = 8) -> Toy:
    torch.manual_seed(5)
    return Toy(dropout, width)


def batch_at(number: int) -> Batch:
    """Two to six rows, so that batches weigh differently."""
    rng = np.random.default_rng(number)
    count = int(rng.integers(2, 7))
    x = torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32))
    if number % 3 == 0:
        x[:, 0] = -x[:, 0].abs()  # nothing for `extra` to do
    return Batch({"x": x, "y": x.sum(1).sin()}, count)


def joined_at(number: int, width: int = 2) -> Batch:
    """Batches `width * number` and those after it as one."""
    parts = [batch_at(width * number + i) for i in range(width)]
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in ("x", "y")}
    return Batch(inputs, sum(part.items for part in parts))


def stage(**options) -> WarmupStage:
    short = {"steps": 6, "log_every": 4, "save_every": 3, "evaluate_every": 2, "warmup_steps": 2, "lr": 0.05}
    return WarmupStage.model_validate({"learns": "see", **short, **options})


def evaluate(model: Toy) -> dict[str, float]:
    assert not model.training
    batch = batch_at(1000)
    return {"error": float(model(**batch.inputs, num_items_in_batch=torch.tensor(1.0)).loss.detach())}


def main() -> None:
    out, *options = sys.argv[1:]
    given = dict(option.split("=") for option in options)
    kill_at, full_at = (int(given.pop(name, -1)) for name in ("kill_at", "full_at"))
    dropout, parallel = float(given.pop("dropout", 0)), given.pop("parallel", "ddp")

    class Killed(Toy):
        def after_forward(self) -> None:
            if self.training and self.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.training and self.steps == full_at:
                resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))

    rank = os.environ.get("RANK", "0")
    torch.manual_seed(5 + int(rank))  # what processes begin with differs until they agree
    model = train(
        Killed(dropout, width=int(given.pop("width", 8))),
        batch_at,
        stage(**given),
        Path(out),
        device="cpu",
        parallel=parallel,
        seed=7,
        evaluate=evaluate,
    )
    torch.save(model.state_dict(), Path(out) / f"final-{rank}.pt")
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    (Path(out) / f"world-{rank}.json").write_text(json.dumps(world))


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"BadInput: {error}")
