"""Data sets by their published counts, for planning and measuring without them: samples in the lengths of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trisense.chat import Image, Slot
from trisense.prompt import Prompt
from trisense.recipe import Design
from trisense.stage import FileStage

Kind = Literal["align", "instruct"]
# LLaVA-Instruct-150K (Liu et al. 2023, arXiv:2304.08485): pictures with a conversation of 4.5 questions on average,
# with a description, with a question that takes reasoning; every question with its answer is a sample.
LLAVA_PICTURES, CONVERSATIONS, DESCRIPTIONS, REASONING = 81_479, 56_681, 23_240, 76_643
# Characters of a token, where there is no tokenizer to count with.
CHARACTERS = 4


@dataclass(frozen=True)
class Published:
    """pictures, samples: how many. kind: whose lengths its samples have."""

    title: str
    pictures: int
    samples: int
    kind: Kind


PUBLISHED = {
    "coco": Published("COCO captions, train2017", 118_287, 591_753, "align"),
    "llava": Published(
        "LLaVA-Instruct-150K", LLAVA_PICTURES, round(4.5 * CONVERSATIONS) + DESCRIPTIONS + REASONING, "instruct"
    ),
}


def lengths(kind: Kind, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Tokens of question and answer of each sample about one picture.

    `align`: COCO's five captions of about 12 tokens. `instruct`: LLaVA-Instruct's by its counts; lengths are drawn
    lognormal around 19, 105 and 120 tokens an answer, which is our estimate.
    """

    def about(median: float, spread: float, most: int) -> int:
        return int(np.clip(rng.lognormal(np.log(median), spread), 2, most))

    if kind == "align":
        return [(0, about(11.5, 0.2, 20)) for _ in range(5)]
    found = []
    if rng.random() < CONVERSATIONS / LLAVA_PICTURES:
        found += [(about(10, 0.3, 40) + 4, about(19, 0.6, 120)) for _ in range(int(rng.integers(2, 8)))]
    if rng.random() < DESCRIPTIONS / LLAVA_PICTURES:
        found.append((about(12, 0.2, 40) + 4, about(105, 0.25, 300)))
    if not found or rng.random() < REASONING / LLAVA_PICTURES:
        found.append((about(16, 0.25, 40) + 4, about(120, 0.3, 300)))
    return found


class Drawn:
    """Random samples in the lengths of a published data set, as `trisense.train.samples.batches_of` wants samples.

    count: how many were drawn, those too that the stage leaves out.
    """

    def __init__(self, kind: Kind, design: Design, stage: FileStage, pictures: int, seed: int):
        assert design.pictures
        self.stage, self.seed, self.count = stage, seed, 0
        rng = np.random.default_rng(seed)
        tokens, width = design.pictures.tokens, design.senses["image"]["width"]
        beside = -(-sum(map(len, (stage.layout or design.layout).strings())) // CHARACTERS)
        shown = np.broadcast_to(np.float16(0), (tokens, width))
        self._prompts: list[tuple[int, Prompt]] = []
        for picture in range(pictures):
            for asked, said in lengths(kind, rng):
                limits = [stage.answers.longest_tokens, max(stage.buckets or [0]) or None]
                limits.append(stage.answers.longest and stage.answers.longest // CHARACTERS)
                self.count += 1
                if any(limit is not None and said > limit for limit in limits):
                    continue
                before = tokens + beside + asked
                ids = np.concatenate([np.zeros(tokens + beside, np.int64), rng.integers(1, 99, asked + said + 1)])
                mask = np.arange(len(ids)) >= before
                slot = Slot("image", 0, tokens, Image(image=b""))
                self._prompts.append((picture, Prompt(ids, mask, (slot,), (shown,))))
        self.pool = list(range(len(self._prompts)))
        self.lengths = {index: int(self._prompts[index][1].mask.sum()) - 1 for index in self.pool}

    def learned(self, number: int) -> int:
        return number % len(self.pool)

    def about(self, index: int) -> object:
        return self._prompts[index][0]

    def prompt(self, index: int, features: Mapping[str, Any]) -> Prompt:
        return self._prompts[index][1]

    def prompts(self, indices: Sequence[int], features: Mapping[str, Any]) -> list[Prompt]:
        return [self._prompts[index][1] for index in indices]
