"""Samples for packed rows: those about one picture gathered, rows of a fixed budget of tokens filled.

What a row costs is its tokens, so nothing is padded; what is shared is computed once (`trisense.prompt.fan`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from tqdm import tqdm

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
        groups: dict[object, list[int]] = {}
        for sample in samples:
            key = about(sample)
            groups.setdefault(("alone", sample) if key is None else ("about", key), []).append(sample)
        members, lengths = [], []
        for group in tqdm(groups.values(), desc="packing", mininterval=5, delay=5):
            for part in _parts({sample: _stripped(prompt_of(sample)) for sample in group}, tokens):
                members.append(list(part))
                lengths.append(_length(list(part.values())))
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


def _stripped(prompt: Prompt) -> Prompt:
    return Prompt(prompt.ids, prompt.mask, prompt.media, ())


def _parts(group: Mapping[int, Prompt], tokens: int) -> list[dict[int, Prompt]]:
    """Samples about the same media, cut where they cannot share those and where their fan would be too long."""
    parts: dict[object, list[dict[int, Prompt]]] = {}
    for sample, prompt in group.items():
        end = max((slot.start + slot.length for slot in prompt.media), default=0)
        shares = end and not prompt.mask[:end].any()
        like = parts.setdefault(prompt.ids[:end].tobytes() if shares else sample, [])
        if like and _length([*like[-1].values(), prompt]) <= tokens:
            like[-1][sample] = prompt
        else:
            like.append({sample: prompt})
    return [part for like in parts.values() for part in like]


def _length(prompts: list[Prompt]) -> int:
    """Tokens of prompts as a row has them."""
    return len(prompts[0].ids) if len(prompts) == 1 else len(fan(prompts).ids)
