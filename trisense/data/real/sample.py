"""One question about real media: what the mixture is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trisense.data.real.pack import Ref
from trisense.data.world.facts import Scene

# How an answer is held against the truth: whole and exact, word error rate, overlap of words, all names in it,
# whether it says that nothing given answers.
Score = Literal["exact", "wer", "f1", "names", "refuses"]


@dataclass(frozen=True)
class Spoken:
    """Words that a synthesiser says, with everything that decides about the sound in `style` (as the small world's)."""

    words: str
    style: int


# Pictures and sounds of a pack, spoken words, drawn numbers and words.
Medium = Ref | Spoken | Scene
# The same, and texts.
Given = Medium | str


def is_picture(medium: Medium) -> bool:
    return isinstance(medium, Scene) or (isinstance(medium, Ref) and medium.sense == "image")


@dataclass(frozen=True)
class Sample:
    """A question about what is `given`, in this order.

    task: which task of the mixture made it. answer: what training learns. accepted: other answers that are right too.
    score: how it is measured.
    """

    task: str
    given: tuple[Given, ...]
    question: str
    answer: str
    accepted: tuple[str, ...] = ()
    score: Score = "exact"


def edit_distance(said: Sequence[str], truth: Sequence[str]) -> int:
    """Fewest words to put in, leave out or exchange (Levenshtein 1966)."""
    row = list(range(len(truth) + 1))
    for word in said:
        above, row = row, [row[0] + 1]
        for column, other in enumerate(truth):
            row.append(min(above[column] + (word != other), above[column + 1] + 1, row[-1] + 1))
    return row[-1]
