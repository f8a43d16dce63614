"""Rounds: together the whole pool, none twice, one after another."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from trisense.data.batches import Batch
from trisense.data.rounds import disjoint, one_after_another


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.data(), st.integers(0, 9))
def test_subsets_are_the_pool_and_share_nothing(pool: set[int], data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, len(pool)))
    parts = disjoint(sorted(pool), count, seed)
    assert len(parts) == count
    assert sorted(one for part in parts for one in part) == sorted(pool)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == disjoint(sorted(pool), count, seed)


def test_another_seed_splits_otherwise() -> None:
    assert disjoint(range(40), 2, 1) != disjoint(range(40), 2, 2)
    assert disjoint(range(40), 2, 1)[0] != list(range(0, 40, 2)), "drawn, not dealt"


def test_a_round_counts_its_own_batches_from_0_and_the_last_one_has_no_end() -> None:
    rounds = [lambda number, own=own: Batch({"x": torch.tensor([own, number])}, 1) for own in range(3)]
    batch_at = one_after_another(rounds, [0, 4, 6])
    seen = [tuple(batch_at(number).inputs["x"].tolist()) for number in (0, 3, 4, 5, 6, 99, 3)]
    assert seen == [(0, 0), (0, 3), (1, 0), (1, 1), (2, 0), (2, 93), (0, 3)]
