"""Questions that rules make from texts: what they tell is so, what they ask stands there, or does not."""

from __future__ import annotations

from random import Random

import pytest

from trisense.data.real.mixture import Mixture
from trisense.data.real.pack import Pack
from trisense.data.real.reading import READING, told

FACTS = {
    ("What is the capital of Peru?", "Lima"): "The capital of Peru is Lima.",
    ("Who painted the Night Watch", "Rembrandt"): "Rembrandt painted the Night Watch.",
    ("Which planet is closest to the sun?", "Mercury."): "Mercury is closest to the sun.",
    ("When was the Eiffel Tower opened?", "in 1889"): "The Eiffel Tower was opened in 1889.",
    ("In which city was the composer born?", "Salzburg"): "The composer was born Salzburg.",
    ("Who did Hamlet love?", "Ophelia"): None,  # no rule for what takes `did`
    ("What year was Pete Rose born?", "1941"): None,  # `1941 was Pete Rose born`
    ("Which of the following is a fish?", "a pike"): None,
    ("What is a pike?", "All of these"): None,
}


@pytest.mark.parametrize(("asked", "sentence"), FACTS.items())
def test_a_question_and_its_answer_become_a_sentence(asked: tuple[str, str], sentence: str | None) -> None:
    fact = told(*asked)
    assert (fact and fact.sentence) == sentence
    if fact:
        assert fact.question == asked[0].rstrip("?") + "?" and fact.answer.lower() in fact.sentence.lower()


def test_a_text_tells_what_it_is_asked_or_does_not(pack: Pack) -> None:
    mixture = Mixture(pack, "train", 0)
    for asked, missing in zip(mixture.every("fact in a text"), mixture.every("fact not in a text"), strict=True):
        answer, town = asked.answer, asked.question.removeprefix("Who built ").rstrip("?")
        assert f"{answer} built {town}." in str(asked.given[0])
        assert missing.question == asked.question and missing.answer == "The text does not say that."
        assert f"{town}." not in str(missing.given[0]) and missing.score == "refuses"


def test_training_asks_as_people_type(pack: Pack) -> None:
    mixture = Mixture(pack, "train", 0)
    samples = [s for s in map(mixture.sample, range(2000)) if s.task == "fact in a text"]
    small = [s for s in samples if s.question == s.question.capitalize()]
    assert samples and small
    assert len({s.given for s in samples}) > 20, "texts without end"


def test_missing_words_stand_between_those_that_are_asked_about(pack: Pack) -> None:
    (words, *_), lengths = Mixture(pack, "train", 0).subjects("missing words"), set()
    for seed in range(60):
        asked = READING["missing words"].ask(Random(seed), words)
        question = asked.question.partition(": ")[2].removesuffix("?")
        before, after = question.split(" ... ")
        assert f"{before} {asked.answer} {after}" in str(asked.given[0])
        lengths.add(len(asked.answer.split()))
    assert lengths == {1, 2, 3, 4}


def test_little_text_is_learned_from_too_but_never_measured_with(pack: Pack) -> None:
    mixture = Mixture(pack, "train", 0)
    words: list[str] = mixture.subjects("missing words")[0]
    learned = [READING["missing words"].ask(Random(seed), words) for seed in range(40)]
    lengths = {len(str(asked.given[0]).split()) for asked in learned}
    assert min(lengths) < 35 and max(lengths) <= 70
    assert {len(str(one.given[0]).split()) for one in mixture.every("missing words")} == {min(70, len(words))}
    facts = [READING["fact in a text"].ask(Random(seed), mixture.subjects("fact in a text")[0]) for seed in range(40)]
    assert min(str(asked.given[0]).count(".") for asked in facts) < 3
    assert min(str(one.given[0]).count(".") for one in mixture.every("fact in a text")) >= 3


def test_what_is_measured_is_the_same_each_time(pack: Pack) -> None:
    for task in ("fact in a text", "fact not in a text", "missing words"):
        assert list(Mixture(pack, "train", 0).every(task)) == list(Mixture(pack, "train", 0).every(task)) != []
