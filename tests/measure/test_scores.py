"""Measures, each against its definition or published examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trisense.data.real.sample import edit_distance
from trisense.measure.scores import Change, Ratio, is_any_of, names_all, normal, refuses, word_f1


def test_answers_are_right_but_for_case_punctuation_and_articles() -> None:
    assert normal("  The  Red Cup. ") == "red cup"
    assert is_any_of("A pear!", ["apple", "pear"]) and not is_any_of("pears", ["pear"])


def test_f1_is_squads() -> None:
    """By the definition of the official script: words in common, against the best truth."""
    assert word_f1("the Denver Broncos", ["Denver Broncos"]) == 1
    assert word_f1("Broncos", ["Denver Broncos"]) == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert word_f1("Carolina Panthers", ["Denver Broncos"]) == 0
    assert word_f1("in the year 1924", ["1924", "the year 1924"]) == pytest.approx(0.8)  # precision 2/3, recall 1
    assert word_f1("", ["word"]) == 0


def test_both_names_have_to_stand_in_the_answer() -> None:
    assert names_all("no: the picture shows pear, the speaker says old house", ["pear", "old house"])
    assert not names_all("no: the picture shows pear", ["pear", "old house"])
    assert not names_all("pearl and house", ["pear"])


def test_refusals_are_what_training_refuses_with() -> None:
    assert refuses("There is no picture.") and refuses("the text does not say that") and refuses("I can't tell")
    assert not refuses("There is no picture of a cat") and not refuses("no")


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_the_distance_is_the_least_of_all_ways(said: list[str], truth: list[str]) -> None:
    """Against the definition, which tries every way."""

    def naive(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(naive(a[1:], b) + 1, naive(a, b[1:]) + 1, naive(a[1:], b[1:]) + (a[0] != b[0]))

    assert edit_distance(said, truth) == naive(tuple(said), tuple(truth))


def test_a_ratio_is_of_sums_and_its_interval_holds_the_mean() -> None:
    rng = np.random.default_rng(0)
    wholes = rng.integers(3, 12, 400)
    ratio = Ratio(tuple(rng.binomial(wholes, 0.3).astype(float)), tuple(wholes.astype(float)))
    assert ratio.value == pytest.approx(sum(ratio.parts) / sum(ratio.wholes))
    low, high = ratio.interval
    assert low < 0.3 < high and high - low == pytest.approx(2 * 1.96 * (0.3 * 0.7 / wholes.sum()) ** 0.5, rel=0.25)
    assert str(Ratio((1.0, 0.0), (1.0, 1.0))) == " 50.0 % (of 2, 0.0-100.0)"


def test_a_change_is_of_the_same_answers() -> None:
    """Paired: where every answer moves alike, nothing is left to chance, however much the answers differ."""
    before = Ratio(tuple(float(i % 2) for i in range(50)), (1.0,) * 50)
    worse = Ratio(tuple(part - 0.25 for part in before.parts), (1.0,) * 50)
    change = Change(before, worse)
    assert change.value == pytest.approx(-0.25) and change.interval == pytest.approx((-0.25, -0.25))
    assert str(change) == "-25.0 (-25.0 to -25.0)"
    half = Ratio(tuple(0.0 if i < 10 else part for i, part in enumerate(before.parts)), (1.0,) * 50)
    low, high = Change(before, half).interval
    assert Change(before, half).value == pytest.approx(-0.1) and -0.2 < low < -0.1 < high < 0
