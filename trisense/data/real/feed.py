"""Questions about real media with frozen features -> training conversations, any of them by its number."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trisense.chat import Audio, Image, Part, Text
from trisense.data.real.sample import Medium, Sample, is_picture
from trisense.data.world.feed import converse
from trisense.data.world.single import Question
from trisense.prompt import Processor, Prompt, fan, featured


class Conversations(Protocol):
    """Training conversations without end; the same for the same number, whatever was asked before."""

    def prompt(self, number: int, processor: Processor) -> Prompt: ...
    def questions(self, number: int) -> list[Question]: ...


@dataclass(frozen=True)
class RealFeed:
    """features: of each picture and sound of the samples, [S, E] of one view or several, of which a conversation takes
    one by chance."""

    samples: Sequence[Sample]
    features: Mapping[Medium, Sequence[np.ndarray]]
    seed: int

    def sample(self, number: int) -> Sample:
        return random.Random(f"{self.seed}/real/{number}").choice(self.samples)

    def prompt(self, number: int, processor: Processor) -> Prompt:
        """Conversation `number`, rendered; `values` are features in place of pixels and mels."""
        sample, rng = self.sample(number), random.Random(f"{self.seed}/views/{number}")
        parts: list[Part] = []
        for given in sample.given:
            if isinstance(given, str):
                parts.append(Text(text=given))
                continue
            values = rng.choice(self.features[given])
            parts.append(Image(image=values) if is_picture(given) else Audio(audio=values))
        return fan([featured(converse(tuple(parts), self.questions(number)), processor)])

    def questions(self, number: int) -> list[Question]:
        """The question of conversation `number`; its task stands where one about the world has its senses."""
        sample = self.sample(number)
        return [Question(sample.question, sample.answer, (sample.task,), sample.task)]


@dataclass(frozen=True)
class Mixed:
    """Conversations of `first` and, in the share `share` of all numbers, of `second`."""

    first: Conversations
    second: Conversations
    share: float
    seed: int

    def prompt(self, number: int, processor: Processor) -> Prompt:
        return self._of(number).prompt(number, processor)

    def questions(self, number: int) -> list[Question]:
        return self._of(number).questions(number)

    def _of(self, number: int) -> Conversations:
        return self.second if random.Random(f"{self.seed}/mixed/{number}").random() < self.share else self.first
