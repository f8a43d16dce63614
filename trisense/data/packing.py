"""Samples for packed rows: those about one picture gathered, rows of a fixed budget of tokens filled.

What a row costs is its tokens, so nothing is padded; what is shared is computed once (`trisense.prompt.fan`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

from trisense.data.batches import Batch, pack
from trisense.prompt import Prompt, fan

# So many rows are being filled at once.
OPEN_ROWS = 16


class Bundles:
    """Samples that go into a row together, the beginnings they share once. lengths: of each bundle, in tokens."""

    def __init__(self, members: Sequence[Sequence[int]], lengths: Sequence[int]):
        self.members = [tuple(one) for one in members]
        self.lengths = list(lengths)

    @classmethod
    def of(
        cls, samples: Iterable[int], prompt_of: Callable[[int], Prompt], about: Callable[[int], object], tokens: int
    ) -> Bundles:
        """Bundles of at most `tokens` tokens, one sample at least, of samples that can share a beginning.

        prompt_of: the prompt of a sample; about: what it is about (its media), None where it shares nothing. Only
        samples with equal prompts up to the end of their media can share. What the media hold is not read.
        """
        groups: dict[object, list[tuple[int, Prompt]]] = {}
        for sample in samples:
            prompt = prompt_of(sample)
            stripped = Prompt(prompt.ids, prompt.mask, prompt.media, ())
            end = max((slot.start + slot.length for slot in prompt.media), default=0)
            key = about(sample)
            alone = key is None or not end or prompt.mask[:end].any()
            group = ("alone", sample) if alone else (key, prompt.ids[:end].tobytes())
            groups.setdefault(group, []).append((sample, stripped))
        members, lengths = [], []
        for group in groups.values():
            for part in _parts(group, tokens):
                members.append([sample for sample, _ in part])
                lengths.append(_length([prompt for _, prompt in part]))
        return cls(members, lengths)


def packed(
    bundles: Bundles, prompts_of: Callable[[Sequence[int]], list[Prompt]], tokens: int, seed: int
) -> Callable[[int], Batch]:
    """Batches of one row of at most `tokens` tokens: batch n of no end.

    prompts_of: the prompts of a bundle's samples, with the same arrays where they are about the same media. Every
    sample comes once before any comes again, each time in another order and company. A batch depends on its number and
    the seed alone.
    """
    ends: list[int] = []  # the number of the first batch after each round

    @lru_cache(maxsize=2)
    def rows_of(turn: int) -> list[list[int]]:
        rng = np.random.default_rng((seed, turn))
        rows = _fill([(i, bundles.lengths[i]) for i in rng.permutation(len(bundles.lengths)).tolist()], tokens)
        return [rows[i] for i in rng.permutation(len(rows))]

    def batch_at(number: int) -> Batch:
        while not ends or number >= ends[-1]:
            ends.append((ends[-1] if ends else 0) + len(rows_of(len(ends))))
        turn = int(np.searchsorted(ends, number, side="right"))
        row = rows_of(turn)[number - (ends[turn - 1] if turn else 0)]
        prompts = [prompts_of(bundles.members[i]) for i in row]
        return pack([[one[0] if len(one) == 1 else fan(one) for one in prompts]])

    return batch_at


def _fill(sized: Iterable[tuple[int, int]], tokens: int) -> list[list[int]]:
    """Rows of at most `tokens`, filled in the given order: each bundle goes into the fullest open row that has room."""
    done: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []  # how much is in it, and what
    for bundle, length in sized:
        fitting = [i for i, (used, _) in enumerate(open_rows) if used + length <= tokens]
        if fitting:
            best = max(fitting, key=lambda i: open_rows[i][0])
            used, row = open_rows.pop(best)
            open_rows.append((used + length, [*row, bundle]))
            continue
        if len(open_rows) == OPEN_ROWS:
            done.append(open_rows.pop(max(range(OPEN_ROWS), key=lambda i: open_rows[i][0]))[1])
        open_rows.append((length, [bundle]))
    return done + [row for _, row in open_rows]


def _parts(group: list[tuple[int, Prompt]], tokens: int) -> list[list[tuple[int, Prompt]]]:
    """A group cut where its fan would become longer than `tokens`."""
    parts: list[list[tuple[int, Prompt]]] = []
    for one in group:
        if parts and _length([prompt for _, prompt in (*parts[-1], one)]) <= tokens:
            parts[-1].append(one)
        else:
            parts.append([one])
    return parts


def _length(prompts: list[Prompt]) -> int:
    """Tokens of prompts as a row has them."""
    return len(prompts[0].ids) if len(prompts) == 1 else len(fan(prompts).ids)
