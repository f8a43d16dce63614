"""Questions about real media with frozen features -> training conversations, any of them by its number."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from trisense.chat import Audio, Image, Part, Text
from trisense.data.real.sample import Medium, Sample, is_picture
from trisense.data.real.tasks import CANNOT_TELL, NAME
from trisense.data.world.feed import converse
from trisense.data.world.single import Question
from trisense.prompt import Processor, Prompt, fan, featured

Misnamed = Mapping[Medium, Set[int]]


class Conversations(Protocol):
    """Training conversations without end; the same for the same number, whatever was asked before."""

    def prompt(self, number: int, processor: Processor) -> Prompt: ...
    def questions(self, number: int) -> list[Question]: ...


@dataclass(frozen=True)
class RealFeed:
    """features: of each picture and sound of the samples, [S, E] of one view or several, of which a conversation takes
    one by chance. misnamed: views of pictures in which the encoder does not recognise what they show; the answer to
    what that is, is then that one cannot tell (R-Tuning, Zhang et al. 2024, arXiv:2311.09677: a model that learns to
    answer what it does not know learns to invent). whole: where nothing but text is given, every token is learned, not
    the answer's alone: a question says words of its text again, so to find them is learned from it too. With
    features of media the answers are then learned worse (docs/log.md)."""

    samples: Sequence[Sample]
    features: Mapping[Medium, Sequence[np.ndarray]]
    seed: int
    misnamed: Misnamed = field(default_factory=dict)
    whole: bool = False

    def sample(self, number: int) -> Sample:
        return random.Random(f"{self.seed}/real/{number}").choice(self.samples)

    def prompt(self, number: int, processor: Processor) -> Prompt:
        """Conversation `number`, rendered; `values` are features in place of pixels and mels."""
        sample, views = self.sample(number), self._views(number)
        parts: list[Part] = []
        for given, view in zip(sample.given, views, strict=True):
            if isinstance(given, str):
                parts.append(Text(text=given))
                continue
            values = self.features[given][view]
            parts.append(Image(image=values) if is_picture(given) else Audio(audio=values))
        prompt = fan([featured(converse(tuple(parts), [self._question(sample, views)]), processor)])
        return replace(prompt, mask=np.ones_like(prompt.mask)) if self.whole and not prompt.media else prompt

    def questions(self, number: int) -> list[Question]:
        """The question of conversation `number`; its task stands where one about the world has its senses."""
        return [self._question(self.sample(number), self._views(number))]

    def _question(self, sample: Sample, views: Sequence[int]) -> Question:
        viewed = [(one, view) for one, view in zip(sample.given, views, strict=True) if not isinstance(one, str)]
        unknown = sample.question in NAME and any(view in self.misnamed.get(one, ()) for one, view in viewed)
        return Question(sample.question, CANNOT_TELL if unknown else sample.answer, (sample.task,), sample.task)

    def _views(self, number: int) -> list[int]:
        """Which view of each thing given in conversation `number`."""
        rng = random.Random(f"{self.seed}/views/{number}")
        given = self.sample(number).given
        return [0 if isinstance(one, str) else rng.randrange(len(self.features[one])) for one in given]


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
