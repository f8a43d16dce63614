"""The feed: any conversation by its number, with the features of the very media that it speaks about."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny_models
from checker import REFUSALS, Checker, pairs

from trisense.chat import Audio, Conversation, Image, Text
from trisense.data.world.bank import Bank, scene_at, utterance_at
from trisense.data.world.facts import HELD_OUT
from trisense.data.world.feed import Features, Feed, converse
from trisense.data.world.single import Question
from trisense.prompt import featured
from trisense.stage import Contexts

PICTURES, UTTERANCES, WIDTH = 40, 300, 3


def feed(seed: int = 0, **contexts) -> Feed:
    """A feed over facts without media: picture i has features of i, sound i has 1 + i % 4 vectors of i."""
    bank = object.__new__(Bank)
    bank.scenes = [scene_at(0, "train", i) for i in range(PICTURES)]
    bank.utterances = [utterance_at(0, "train", i) for i in range(UTTERANCES)]
    lengths = [1 + i % 4 for i in range(UTTERANCES)]
    features = Features(
        np.broadcast_to(np.arange(PICTURES, dtype=np.float16)[:, None, None], (PICTURES, 16, WIDTH)),
        np.repeat(np.arange(UTTERANCES, dtype=np.float16), lengths)[:, None].repeat(WIDTH, 1),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    return Feed(bank, features, Contexts(**contexts), seed)


def said(conversation: Conversation) -> list[tuple[str, object]]:
    """Roles and contents, arrays as bytes."""
    values = []
    for message in conversation.messages:
        for part in message.content:
            value = part.text if isinstance(part, Text) else part.image if isinstance(part, Image) else part.audio
            values.append((message.role, value.tobytes() if isinstance(value, np.ndarray) else value))
    return values


def all_said(source: Feed, number: int) -> list[list[tuple[str, object]]]:
    return [said(conversation) for conversation, _ in source.conversations(number)]


def test_conversations_are_the_same_in_any_order() -> None:
    there, back = feed(), feed()
    forward = [all_said(there, number) for number in range(30)]
    backward = [all_said(back, number) for number in reversed(range(30))]
    assert forward == backward[::-1]
    assert all_said(there, 7) == forward[7]
    assert len({str(one) for one in forward}) == 30
    assert forward != [all_said(feed(seed=1), number) for number in range(30)]


def test_a_context_has_at_most_so_many_senses() -> None:
    for most in (1, 2, 3):
        some = feed(senses=most)
        seen = set()
        for number in range(60):
            for conversation, questions in some.conversations(number):
                *context, _ = conversation.messages[0].content
                seen.add(tuple(type(part).__name__ for part in context))
                assert all(len(question.senses) <= most for question in questions)
        assert {len(senses) for senses in seen} == set(range(1, most + 1))
        assert {one for senses in seen for one in senses} == {"Image", "Audio", "Text"}


def test_joined_contexts_are_asked_about_all_their_senses() -> None:
    """With the same senses as without, and nearly all of them have such a question; without, not half of them."""

    def shares(joined: bool) -> tuple[list[int], float]:
        source = feed(joined=joined)
        given, whole = [], []
        for number in range(100):
            conversations = source.conversations(number)
            if conversations:
                *context, _ = conversations[0][0].messages[0].content
                given.append(len(context))
                whole.append(any(len(q.senses) == len(context) for _, questions in conversations for q in questions))
        return given, sum(whole) / len(whole)

    (senses, plain), (same_senses, joined) = shares(False), shares(True)
    assert sorted(set(senses)) == [1, 2, 3] and senses == same_senses
    assert joined > 0.95 and joined > plain + 0.2


def test_the_recipe_says_whether_answers_say_the_step_between() -> None:
    """The same questions about the same contexts, so that a stage may begin with the short answers."""
    long, short = feed(joined=True), feed(joined=True, steps=False)
    for number in range(60):
        asked = long.questions(number)
        assert short.questions(number) == [question.without_step() for question in asked]
        answers = [message.content[0].text for c, _ in short.conversations(number) for message in c.messages[1::2]]
        assert answers == [question.answer for question in short.questions(number)]
    steps = [question for number in range(60) for question in long.questions(number) if question.step]
    assert len(steps) > 20
    assert all(question.answer.startswith(f"{question.step}: ") for question in steps if question.senses)


def test_answers_are_true_of_the_media_that_are_given() -> None:
    """From the parts alone: the features tell which picture and which voice of the bank they are."""
    source, questions_seen = feed(), 0
    for number in range(400):
        for conversation, questions in source.conversations(number):
            naive = Checker()
            *context, _ = conversation.messages[0].content
            for part in context:
                if isinstance(part, Image):
                    naive.scene = source.bank.scenes[int(part.image[0, 0])]
                elif isinstance(part, Audio):
                    naive.words = source.bank.utterances[int(part.audio[0, 0])].words
                    assert len(part.audio) == 1 + int(part.audio[0, 0]) % 4
                else:
                    naive.text = part.text
            assert not pairs(naive.scene, naive.words, naive.text) & HELD_OUT
            absent = {no for no, _ in REFUSALS.values()}
            asked = conversation.messages[::2]
            for message, reply, question in zip(asked, conversation.messages[1::2], questions, strict=True):
                *_, text = message.content
                (answer,) = reply.content
                assert isinstance(text, Text) and isinstance(answer, Text)
                assert (message.role, reply.role) == ("user", "assistant")
                assert (text.text, answer.text) == (question.text, question.answer)
                assert answer.text in absent or naive.solve(text.text) == answer.text
                questions_seen += 1
            assert all(len(message.content) == 1 for message in asked[1:]), "the context stands before the first"
    assert questions_seen > 2000


@pytest.mark.parametrize(
    ("present", "kinds"),
    [
        ({"image": 1, "audio": 1, "text": 1}, [Image, Audio, Text]),
        ({"text": 1}, [Text]),
        ({"audio": 1}, [Audio]),
        ({}, [Image]),
        ({"image": 0, "audio": 0, "text": 0}, [Image]),
    ],
)
def test_the_recipe_says_which_senses_are_given(present: dict, kinds: list[type]) -> None:
    source = feed(present=present)
    for number in range(20):
        for conversation, _ in source.conversations(number):
            *context, _ = conversation.messages[0].content
            assert [type(part) for part in context] == kinds


@pytest.mark.parametrize("turns", [1, 3, 12])
def test_the_recipe_says_how_many_questions_are_asked(turns: int) -> None:
    """More are never asked, and all are different; fewer where the context serves no more that are easily found."""
    source = feed(present={"image": 1, "audio": 1, "text": 1}, turns=turns)
    asked = [[question.text for question in source.questions(number)] for number in range(40)]
    assert max(map(len, asked)) == turns
    assert all(len(set(one)) == len(one) for one in asked)


@pytest.mark.parametrize(("follow_up", "longest"), [(0.0, 1), (1.0, 8), (0.3, 8)])
def test_the_recipe_says_how_many_questions_follow_others(follow_up: float, longest: int) -> None:
    source = feed(follow_up=follow_up)
    lengths = [len(questions) for number in range(60) for _, questions in source.conversations(number)]
    assert max(lengths) <= longest
    following = sum(lengths) - len(lengths)
    assert following / (sum(lengths) - 60) == pytest.approx(follow_up, abs=0.07)


def test_a_prompt_holds_features_in_place_of_pixels_and_mels() -> None:
    source, processor = feed(present={"image": 1, "audio": 1, "text": 1}), tiny_models.processor()
    prompt = source.prompt(3, processor)
    assert [slot.sense for slot in prompt.media] == ["image", "audio"]
    for slot, values in zip(prompt.media, prompt.values, strict=True):
        assert slot.length == len(values)
        placed = prompt.ids[slot.start : slot.start + slot.length]
        assert (placed == processor.placeholders[slot.sense]).all()
    supervised = processor.tokenizer.decode(prompt.ids[prompt.mask], skip_special=False)
    assert supervised == "".join(f"{question.answer}<|end|>" for question in source.questions(3))


def test_converse_and_featured_are_plain_functions_of_their_arguments() -> None:
    rng = random.Random(0)
    picture = np.full((16, WIDTH), rng.random(), np.float32)
    questions = [Question("Where?", "here", ("image",)), Question("Who?", "Anna", ("text",))]
    conversation = converse((Image(image=picture), Text(text="Anna is here.")), questions)
    assert [message.role for message in conversation.messages] == ["user", "assistant", "user", "assistant"]
    prompt = featured(conversation, tiny_models.processor())
    assert prompt.values[0] is picture
    assert int((prompt.ids == 256).sum()) == 16
