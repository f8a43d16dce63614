"""Rounds: a pool in disjoint subsets, and batches that come from one after the other."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence

from trisense.data.batches import Batch


def disjoint(pool: Sequence[int], count: int, seed: int) -> list[list[int]]:
    """The pool in `count` subsets drawn with `seed`, as large as each other or one larger, each sorted."""
    if count == 1:
        return [list(pool)]
    drawn = list(pool)
    random.Random(f"{seed}/rounds").shuffle(drawn)
    return [sorted(drawn[number::count]) for number in range(count)]


def one_after_another(rounds: Sequence[Callable[[int], Batch]], starts: Sequence[int]) -> Callable[[int], Batch]:
    """Batches of the first of `rounds`, from the number `starts[1]` on of the second, and so on; a round counts its own
    from 0. A batch depends on its number alone."""

    def batch_at(number: int) -> Batch:
        turn = bisect_right(starts, number) - 1
        return rounds[turn](number - starts[turn])

    return batch_at
