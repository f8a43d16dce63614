"""A run over numbered samples, each process noting which it learned: `python counted.py OUT KIND [accumulate=2]...`

KIND: `like_length` or `by_answer`, how its batches are put together.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from trisense.data.batches import by_answer, like_length
from trisense.prompt import Prompt
from trisense.stage import WarmupStage
from trisense.train.loop import train

SAMPLES = 40
# Steps of two batches after which every sample was learned ROUNDS times: five windows of 8 batches of 2; twice 17
# batches of 2 or 4, so that the first round ends in the middle of a step.
STEPS, ROUNDS = {"like_length": 20, "by_answer": 17}, 2
BUCKETS = {3: 4, 9: 2}


def length(sample: int) -> int:
    return 2 + sample % 7


def prompt(sample: int) -> Prompt:
    ids = np.full(length(sample), sample, np.int64)
    return Prompt(ids=ids, mask=np.arange(len(ids)) > 0, media=(), values=())


def drawn(number: int) -> int:
    turn, place = divmod(number, SAMPLES)
    return int(np.random.default_rng((3, turn)).permutation(SAMPLES)[place])


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SAMPLES, 4)
        self.head = nn.Linear(4, SAMPLES)
        self.seen: list[int] = []

    def forward(self, input_ids, attention_mask, labels, num_items_in_batch) -> CausalLMOutput:
        self.seen += input_ids[:, 0].tolist()
        logits = self.head(self.embedding(input_ids[:, :-1]))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return CausalLMOutput(loss=loss / num_items_in_batch)


def main() -> None:
    out, kind, *options = sys.argv[1:]
    if kind == "like_length":
        batch_at = like_length(lambda number: prompt(drawn(number)), 2, seed=5)
    else:
        batch_at = by_answer(prompt, {sample: length(sample) for sample in range(SAMPLES)}, BUCKETS, seed=5)
    short = {"learns": "see", "log_every": 1, "warmup_steps": 2, "lr": 0.05, "steps": STEPS[kind]}
    stage = WarmupStage.model_validate({**short, **dict(option.split("=") for option in options)})
    torch.manual_seed(5)
    model = train(Counted(), batch_at, stage, Path(out), device="cpu", seed=7)
    (Path(out) / f"seen-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(model.seen))


if __name__ == "__main__":
    main()
