"""Every answer is true, needs the senses it says it needs, and no training context holds a pair kept for testing."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from checker import REFUSALS, Absent, Checker, listen, pairs, read

from trisense.data.world.contexts import SENSES, Context, make_context, make_utterance
from trisense.data.world.facts import HELD_OUT, Note, Scene, Split, Thing, Utterance
from trisense.data.world.questions import QUESTIONS, ask_any, ask_many, ask_missing_sense
from trisense.data.world.single import Question

NO_ANSWER = {text for texts in REFUSALS.values() for text in texts}


def contexts(count: int, split: Split = "train", seed: int = 0) -> list[Context]:
    made = []
    for index in range(count):
        rng = random.Random(f"{seed}/{split}/{index}")
        given = [sense for sense in SENSES if rng.random() < 0.75] or ["text"]
        made.append(make_context(rng, split, lambda r, topic, wish: make_utterance(r, topic, wish, split), given))
    return made


def checker(context: Context, *, without: str = "") -> Checker:
    return Checker(
        None if without == "image" else context.scene,
        context.utterance.words if context.utterance and without != "audio" else "",
        context.note.text if context.note and without != "text" else "",
    )


@pytest.fixture(scope="module", params=["train", "test", "unseen"])
def asked(request: pytest.FixtureRequest) -> list[tuple[Context, Question]]:
    """Some thousand questions about contexts of one split."""
    return [
        (context, question)
        for number, context in enumerate(contexts(900, request.param))
        for question in ask_many(random.Random(number), context, 8)
    ]


def test_every_answer_is_what_naive_logic_gives(asked: list[tuple[Context, Question]]) -> None:
    assert len(asked) > 4000
    for context, question in asked:
        naive = checker(context)
        if question.task == "missing sense":
            with pytest.raises(Absent) as missing:
                naive.solve(question.text)
            assert question.answer == REFUSALS[str(missing.value)][0]
        else:
            assert naive.solve(question.text) == question.answer, (context, question)


def test_every_kind_of_question_is_asked(asked: list[tuple[Context, Question]]) -> None:
    tasks = Counter(question.task for _, question in asked)
    assert len(tasks) >= 37, sorted(tasks)
    senses = Counter(question.senses for _, question in asked)
    assert set(senses) == {*QUESTIONS, ()}
    yes_and_no = Counter(question.answer.split(": ")[-1] for _, question in asked)
    assert 0.6 < yes_and_no["yes"] / yes_and_no["no"] < 1.7, "guessing one of them must not pay"


def test_a_question_names_the_senses_that_hold_its_answer(asked: list[tuple[Context, Question]]) -> None:
    for context, question in asked:
        if question.answer.endswith(tuple(NO_ANSWER)):
            assert question.senses == ()
            continue
        naive = checker(context)
        naive.solve(question.text)
        assert naive.used == set(question.senses), question
        for sense in question.senses:
            with pytest.raises(Absent, match=sense):
                checker(context, without=sense).solve(question.text)


def test_each_of_its_senses_decides_the_answer(asked: list[tuple[Context, Question]]) -> None:
    """With another picture, voice or note in place of its own, a question often has another answer, or none."""
    others = contexts(60, seed=9)
    changed: Counter[tuple[tuple[str, ...], str]] = Counter()
    tried: Counter[tuple[tuple[str, ...], str]] = Counter()
    for number, (context, question) in enumerate(asked):
        for sense in question.senses:
            other = checker(others[number % len(others)])
            swapped = checker(context)
            name = {"image": "scene", "audio": "words", "text": "text"}[sense]
            if not getattr(other, name):
                continue
            setattr(swapped, name, getattr(other, name))
            tried[question.senses, sense] += 1
            try:
                changed[question.senses, sense] += swapped.solve(question.text) != question.answer
            except (AssertionError, ValueError, IndexError):  # the question does not fit the other picture at all
                changed[question.senses, sense] += 1
    assert set(tried) == {(senses, sense) for senses in QUESTIONS for sense in senses}
    for key, count in tried.items():
        assert changed[key] / count > 0.25, key


def test_training_never_shows_says_or_writes_a_held_out_pair() -> None:
    for split in ("train", "test"):
        for context in contexts(3000, split):
            naive = checker(context)
            assert not pairs(naive.scene, naive.words, naive.text) & HELD_OUT
    unseen = [checker(context) for context in contexts(300, "unseen")]
    found = set().union(*(pairs(naive.scene, naive.words, naive.text) for naive in unseen))
    assert found >= HELD_OUT


def test_facts_and_words_are_the_same() -> None:
    """The fields beside an utterance's words and a note's text say what the words say."""
    for context in contexts(2000):
        if u := context.utterance:
            heard = listen(u.words)
            assert heard.kinds == list(u.kinds)
            assert heard.number == u.number
            said = heard.owners[0] if heard.owners else (heard.person, *(heard.thing or ("", "")))
            assert said[0] == (u.people[0] if u.people else "")
            assert said[1] == (u.colours[0] if u.colours else "")
        if n := context.note:
            found = read(n.text)
            assert found.kinds == list(n.kinds)
            assert [owner for owner, _, _ in found.owners] == list(n.people)
            assert [colour for _, colour, _ in found.owners if colour] == list(n.colours)
            assert len(set(n.kinds)) == len(n.kinds)
            assert len(set(n.people)) == len(n.people)


def test_things_stand_in_cells_of_their_own() -> None:
    counts = set()
    for context in contexts(500):
        if context.scene:
            things = context.scene.things
            counts.add(len(things))
            assert len({(thing.row, thing.column) for thing in things}) == len(things)
            assert len({(thing.name, thing.text) for thing in things}) == len(things)
    assert counts == {1, 2, 3, 4, 5, 6, 7}, "up to six things and, now and then, something drawn"


CUP, STAR = Thing("cup", "red", "small", 0, 0), Thing("star", "blue", "large", 2, 1)
SCENE = Scene((CUP, STAR))


def asked_of(context: Context, senses: tuple[str, ...]) -> dict[str, Question]:
    rng = random.Random(0)
    found = (ask_any(rng, context, senses) for _ in range(600))
    return {question.text: question for question in found if question}


def test_by_hand_one_two_and_three_senses() -> None:
    """A picture of a red cup at the top left and a blue star at the bottom, a voice and a note, read by a person."""
    note = Note("Anna has the cup. Ben has the star.", "has", ("Anna", "Ben"), (), ("cup", "star"))
    context = Context(SCENE, Utterance("this is ben", "person", people=("Ben",)), note)
    shown = asked_of(context, ("image",))
    assert shown["What color is the cup?"].answer == "red"
    assert shown["Where is the star?"].answer == "bottom center"
    assert shown["How many things are in the picture?"].answer == "two"
    assert shown["Is the cup above the star?"].answer == "yes"
    assert shown["Is the cup right of the star?"].answer == "no"
    assert asked_of(context, ("text",))["Whose is the star?"].answer == "Ben"
    at = asked_of(context, ("image", "text"))["Who has the thing at the top left?"]
    assert (at.answer, at.without_step().answer) == ("The red cup is there: Anna", "Anna")
    assert asked_of(context, ("audio", "text"))["What does the named person have?"].answer == "star"
    joined = asked_of(context, SENSES)
    assert joined["Where is the thing that the named person has?"].answer == "Ben has the star: bottom center"
    assert joined["What size is the thing that the named person has?"].answer == "Ben has the star: large"
    assert joined["Is the thing that the named person has in the picture?"].answer == "Ben has the star: yes"
    named = Context(SCENE, Utterance("the star", "thing", kinds=("star",)), None)
    heard = asked_of(named, ("image", "audio"))
    assert heard["Where is the named thing?"].answer == "bottom center"
    assert heard["Is the named thing left of the cup?"].answer == "no"


def test_an_answer_without_the_step_between_is_the_rest_of_it() -> None:
    found = Question("Where?", "Ben has the star: bottom center", SENSES, "three: where", "Ben has the star")
    assert found.without_step() == Question("Where?", "bottom center", SENSES, "three: where")
    lost = Question("Where?", "Ben has the hat. The picture does not show that.", (), "three: where", "Ben has the hat")
    assert lost.without_step().answer == "The picture does not show that."
    assert found.without_step().without_step() == found.without_step()


def test_what_is_in_no_sense_is_said() -> None:
    nowhere = Context(SCENE, Utterance("the hat", "thing", kinds=("hat",)), None)
    questions = asked_of(nowhere, ("image", "audio"))
    assert questions["Where is the named thing?"] == Question(
        "Where is the named thing?", "The picture does not show that.", (), "named, where"
    )
    rng = random.Random(0)
    missing = {question.answer for _ in range(50) if (question := ask_missing_sense(rng, nowhere))}
    assert missing == {"There is no text."}
    whole = contexts(50)
    assert all(ask_missing_sense(rng, c) is None for c in whole if len(c.senses) == 3)


def test_many_questions_are_different_and_join_when_they_can() -> None:
    whole = [c for c in contexts(200) if len(c.senses) == 3]
    asked = [ask_many(random.Random(1), context, 8) for context in whole]
    assert all(len({question.text for question in questions}) == len(questions) <= 8 for questions in asked)
    assert sum(map(len, asked)) > 6 * len(asked)
    assert sum(any(len(q.senses) == 3 for q in questions) for questions in asked) > len(asked) / 4
    alone = next(c for c in contexts(200) if c.senses == ("text",))
    assert all(set(q.senses) <= {"text"} for q in ask_many(random.Random(1), alone, 8))


def test_the_same_seed_asks_the_same_in_every_process() -> None:
    """Whatever Python's hash seed: sets of strings come in another order in every process."""
    program = (
        "import random\n"
        "from trisense.data.world.contexts import SENSES, make_context, make_utterance\n"
        "from trisense.data.world.questions import ask_many\n"
        "for seed in range(40):\n"
        "    rng = random.Random(seed)\n"
        "    utter = lambda r, topic, wish: make_utterance(r, topic, wish, 'unseen')\n"
        "    context = make_context(rng, 'unseen', utter, SENSES)\n"
        "    print(context, ask_many(rng, context, 8))\n"
    )
    root = Path(__file__).parents[3]
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert hashlib.sha256(said[0]).digest() == hashlib.sha256(said[1]).digest()
    assert len(said[0]) > 10_000
