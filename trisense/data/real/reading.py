"""Questions that rules make from texts: facts of a quiz told as sentences, and words that are missing from a passage.

The thousand questions about passages are few enough to be known by heart; how a question is looked up in a text, and
that a text may not say it, is learned from these.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from trisense.data.real.pack import Pack, Split
from trisense.data.real.tasks import Asked, Measuring, Task, mended, phrase
from trisense.data.world.single import NOT_WRITTEN

# Texts of so many facts, and passages of so many words, of which so many are missing. Some that are learned from are
# shorter: to find words again is learned from little text first.
FACTS, FEWEST = (3, 6), 1
PASSAGE, SHORTEST = 70, 20
MISSING = (1, 4)
# Words of a passage that stand on either side of those that are missing.
AROUND = 6


class Fact(NamedTuple):
    """The sentence that tells it, the question that it answers, and the answer as it stands in the sentence."""

    sentence: str
    question: str
    answer: str


BE = "is|was|are|were"
PLACED = "When|Where|In (?:what|which) (?:year|city|country|state|century)"
# A question whose answer begins its sentence; what follows is said of it, so it does not begin with a name (`What year
# was Pete Rose born`).
WHO = re.compile(r"Who (?!(?:did|do|does|am|s)\b)(\w+ .+)")
WHICH = re.compile(
    rf"(?:What|Which)(?: [\w'-]+){{1,4}}? ((?:{BE}|has|had|won|made|became|wrote|played|sang) (?![A-Z]).+)"
)
# Questions whose answer ends it.
WHAT = re.compile(rf"What ({BE}) (.+)")
WHEN = re.compile(rf"(?:{PLACED}) (was|were) (.+) (\w+(?:ed|en|rn|lt|ld|de|nd))")
# Answers that stand for other choices, or for none; questions about the choices.
NOT_TOLD = re.compile(r"\b(?:these|those|above|none|all|both|neither|true|false|yes|no)\b", re.IGNORECASE)
ABOUT_CHOICES = re.compile(r"\b(?:following|these|NOT|not)\b")


def told(question: str, answer: str) -> Fact | None:
    """A question of a quiz and its answer as a fact; None where no rule fits: `What is the capital of Peru?`, `Lima` ->
    `The capital of Peru is Lima.`"""
    asked, answer = question.strip().rstrip("?. "), answer.strip().rstrip(".")
    plain = not (NOT_TOLD.search(answer) or ABOUT_CHOICES.search(asked) or ". " in asked)
    if not plain or not 0 < len(answer.split()) <= 6 or len(asked.split()) > 24:
        return None
    if found := WHAT.fullmatch(asked):
        sentence = f"{found[2]} {found[1]} {answer}"
    elif found := WHEN.fullmatch(asked):
        sentence = f"{found[2]} {found[1]} {found[3]} {answer}"
    elif found := WHO.fullmatch(asked) or WHICH.fullmatch(asked):
        sentence = f"{answer} {found[1]}"
    else:
        return None
    return Fact(f"{sentence[0].upper()}{sentence[1:]}.", f"{asked}?", answer)


def _facts(pack: Pack, split: Split) -> list[tuple[Fact, Sequence[Fact]]]:
    """Every fact of a quiz with all of its category."""
    of: dict[str, list[Fact]] = defaultdict(list)
    for _, row in pack.rows("text/trivia", split):
        if row["answer"] in row["choices"] and (fact := told(mended(row["question"]), mended(row["answer"]))):
            of[row["label"]].append(fact)
    return [(fact, facts) for facts in of.values() if len(facts) > FACTS[1] for fact in facts]


def _text(rng: random.Random, facts: Sequence[Fact], first: Fact | None = None, without: Fact | None = None) -> str:
    """Some facts as a text, `first` among them."""
    count = rng.randint(FACTS[0] if isinstance(rng, Measuring) else FEWEST, FACTS[1])
    chosen = [fact for fact in rng.sample(facts, count) if fact not in (first, without)]
    chosen += [first] if first else []
    rng.shuffle(chosen)
    return " ".join(fact.sentence for fact in chosen)


def _as_typed(rng: random.Random, question: str) -> str:
    """Half of the questions in small letters, as people type them."""
    return question if isinstance(rng, Measuring) or rng.random() < 0.5 else question.capitalize()


def _found(rng: random.Random, subject: tuple[Fact, Sequence[Fact]]) -> Asked:
    fact, facts = subject
    return Asked((_text(rng, facts, first=fact),), _as_typed(rng, fact.question), fact.answer)


def _not_found(rng: random.Random, subject: tuple[Fact, Sequence[Fact]]) -> Asked:
    """A question about the same matters that the text says nothing of."""
    fact, facts = subject
    return Asked((_text(rng, facts, without=fact),), _as_typed(rng, fact.question), NOT_WRITTEN)


def _passages(pack: Pack, split: Split) -> list[list[str]]:
    """The words of paragraphs that are long enough to miss some."""
    texts = [row["text"] for file in ("text/qed", "text/gutenberg") for _, row in pack.rows(file, split)]
    return [words for words in map(str.split, texts) if len(words) > 2 * AROUND + MISSING[1]]


def _missing(rng: random.Random, words: list[str]) -> Asked:
    """What stands between some words of a passage and others."""
    length = PASSAGE if isinstance(rng, Measuring) else rng.randint(SHORTEST, PASSAGE)
    start = rng.randrange(max(1, len(words) - length))
    part = words[start : start + length]
    count = rng.randint(*MISSING)
    place = rng.randrange(AROUND, len(part) - AROUND - count + 1)
    before, gap, after = part[place - AROUND : place], part[place : place + count], part[place + count :][:AROUND]
    asked = phrase(rng, ("Which words are missing: {} ... {}?", "What stands between: {} ... {}?"))
    return Asked((" ".join(part),), asked.format(" ".join(before), " ".join(after)), " ".join(gap))


READING: dict[str, Task] = {
    "fact in a text": Task(_facts, _found),
    "fact not in a text": Task(_facts, _not_found, "refuses"),
    "missing words": Task(_passages, _missing, "f1"),
}
