"""How an answer is held against the truth, and what many answers are worth, with 95 % intervals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np

from trisense.data.real.tasks import CANNOT_TELL
from trisense.data.world.questions import NOT_GIVEN
from trisense.data.world.single import NOT_SAID, NOT_SHOWN, NOT_WRITTEN

# Draws of the bootstrap.
DRAWS = 1000
REFUSALS = (NOT_SHOWN, NOT_SAID, NOT_WRITTEN, *NOT_GIVEN.values(), CANNOT_TELL)


class Value(Protocol):
    """A measure over many answers; `str` gives it in percent with its count and interval."""

    @property
    def value(self) -> float: ...
    @property
    def count(self) -> int: ...
    @property
    def interval(self) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Share:
    """`right` of `count`, with Wilson's 95 % interval."""

    right: int
    count: int

    @property
    def value(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end, 0 to 1 (Wilson 1927), which stays sensible near 0 and 1 where a normal one does not."""
        z, n, p = 1.959964, self.count, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:5.1f} % ({self.right}/{self.count}, {100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class Ratio:
    """The sum of `parts` by that of `wholes`, such as errors by words, with an interval over answers drawn with
    replacement (bootstrap, Efron 1979)."""

    parts: tuple[float, ...]
    wholes: tuple[float, ...]

    @property
    def value(self) -> float:
        return sum(self.parts) / sum(self.wholes)

    @property
    def count(self) -> int:
        return len(self.parts)

    @property
    def interval(self) -> tuple[float, float]:
        low, high = np.quantile(self.drawn, [0.025, 0.975])
        return float(low), float(high)

    @property
    def drawn(self) -> np.ndarray:
        """The values of DRAWS draws, float64 [DRAWS]: the same draws for the same count."""
        drawn = np.random.default_rng(0).integers(0, self.count, (DRAWS, self.count))
        return np.array(self.parts)[drawn].sum(1) / np.array(self.wholes)[drawn].sum(1)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:5.1f} % (of {self.count}, {100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class Change:
    """How far a measure moves from `before` to `after` over the same questions, with an interval over questions drawn
    with replacement."""

    before: Ratio
    after: Ratio

    @property
    def value(self) -> float:
        return self.after.value - self.before.value

    @property
    def interval(self) -> tuple[float, float]:
        low, high = np.quantile(self.after.drawn - self.before.drawn, [0.025, 0.975])
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def normal(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words, as SQuAD's script does it (Rajpurkar et
    al. 2016, arXiv:1606.05250)."""
    text = re.sub(r"[^\w\s]", "", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def is_any_of(said: str, answers: Sequence[str]) -> bool:
    """Whether the whole answer is one of those that are right, but for case, punctuation and articles."""
    return normal(said) in {normal(answer) for answer in answers}


def word_f1(said: str, answers: Sequence[str]) -> float:
    """SQuAD's F1: the words that an answer shares with the truth, against the best of several truths."""

    def one(truth: list[str], words: list[str]) -> float:
        if not truth or not words:
            return float(truth == words)
        shared = sum((Counter(truth) & Counter(words)).values())
        return 2 * shared / (len(truth) + len(words))

    return max(one(normal(answer).split(), normal(said).split()) for answer in answers)


def names_all(said: str, names: Sequence[str]) -> bool:
    """Whether every name stands in the answer."""
    return all(f" {normal(name)} " in f" {normal(said)} " for name in names)


def refuses(said: str) -> bool:
    """Whether it says that what is asked is in nothing that was given, in one of the world's sentences."""
    return is_any_of(said, REFUSALS)
