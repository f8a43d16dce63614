"""Answers as the five systems prepare them, and really so in what is trained on."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trisense.chat import Conversation
from trisense.data.answers import STOP_WORDS, prepare, prepared
from trisense.recipe import read
from trisense.stage import Answers, FileStage

BARE = Answers(punctuation=False, stop_words=False)


@pytest.mark.parametrize(
    ("answers", "text", "expected"),
    [
        (Answers(), "The cat's on the mat,  isn't it?", "The cat's on the mat,  isn't it?"),
        (Answers(punctuation=False), "The cat's on the mat, isn't it?", "The cats on the mat isnt it"),
        (Answers(stop_words=False), "The cat is on the red mat.", "cat red mat."),
        (BARE, "There are two people, and a dog (brown).", "two people dog brown"),
        (BARE, "It is.", ""),
    ],
)
def test_by_hand(answers: Answers, text: str, expected: str):
    assert prepared(text, answers) == expected


@given(st.text(max_size=60))
def test_nothing_that_was_to_go_is_left_and_no_word_is_made_up(text: str):
    words = prepared(text, BARE).split()
    assert not any(word.lower() in STOP_WORDS for word in words)
    assert not any(letter in string.punctuation for word in words for letter in word)
    without = text.replace("'", "")
    for letter in string.punctuation:
        without = without.replace(letter, " ")
    assert [word for word in without.split() if word.lower() not in STOP_WORDS] == words


def test_questions_stay_as_they_are_and_too_long_answers_are_left_out():
    asked = Conversation.ask("What is it, then?").answered("It is a cat.")
    kept = prepare(asked, BARE)
    assert kept == Conversation.ask("What is it, then?").answered("cat")
    assert prepare(asked, Answers(longest=12)) == asked
    assert prepare(asked, Answers(longest=11)) is None
    assert prepare(Conversation.ask("Is it?").answered("It is."), BARE) is None, "nothing would be left to learn"


def test_which_recipes_prepare_what():
    found = {}
    for name in ("context-gpt", "tinyclip-phi2", "jnana", "ft35", "eden"):
        stage = read(name).stages["instruct"]
        assert isinstance(stage, FileStage)
        found[name] = stage.answers
    assert found == {
        "context-gpt": Answers(),
        "tinyclip-phi2": Answers(longest=100),
        "jnana": Answers(),
        "ft35": BARE,
        "eden": Answers(),
    }
