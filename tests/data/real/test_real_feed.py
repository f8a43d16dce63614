"""Features in place of media: which view a conversation takes, and how two feeds are mixed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import tiny_models

from trisense.data.real.feed import Mixed, RealFeed
from trisense.data.real.pack import Ref
from trisense.data.real.sample import Sample, Spoken
from trisense.prompt import Processor

PICTURE, VOICE = Ref("image", "pictures/noto72", 0), Spoken("a cup", 1)
SAMPLES = [
    Sample("see", (PICTURE,), "What is this?", "cup"),
    Sample("both", (PICTURE, VOICE, "A note."), "Where?", "here"),
]


def feed() -> RealFeed:
    views = {PICTURE: [np.full((3, 4), view, np.float16) for view in range(4)], VOICE: [np.ones((2, 4), np.float16)]}
    return RealFeed(SAMPLES, views, 0)  # pyright: ignore[reportArgumentType]


def test_a_conversation_holds_one_view_and_its_answer() -> None:
    processor, seen = Processor.from_folder(tiny_models.folder()), set()
    for number in range(40):
        prompt = feed().prompt(number, processor)
        sample = feed().sample(number)
        assert len(prompt.values) == 1 + (sample.task == "both")
        seen.add(float(prompt.values[0][0, 0]))
        answer = processor.tokenizer.decode(prompt.ids[prompt.mask].tolist())
        assert answer.strip() == sample.answer
        (question,) = feed().questions(number)
        assert (question.text, question.senses) == (sample.question, (sample.task,))
        again = feed().prompt(number, processor)
        assert np.array_equal(prompt.ids, again.ids) and np.array_equal(prompt.values[0], again.values[0])
    assert seen == {0, 1, 2, 3}


def test_of_a_view_in_which_a_picture_is_not_recognised_one_cannot_tell() -> None:
    """But only when asked what it is; other questions keep their answers."""
    processor, plain, told = Processor.from_folder(tiny_models.folder()), feed(), Counter[tuple[str, bool, str]]()
    unsure = dataclasses.replace(plain, misnamed={PICTURE: {1, 3}})
    for number in range(60):
        prompt = unsure.prompt(number, processor)
        (question,) = unsure.questions(number)
        assert processor.tokenizer.decode(prompt.ids[prompt.mask].tolist()).strip() == question.answer
        assert np.array_equal(prompt.values[0], plain.prompt(number, processor).values[0]), "the same views as ever"
        told[plain.sample(number).task, prompt.values[0][0, 0] in (1, 3), question.answer] += 1
    assert set(told) == {
        ("see", True, "I can't tell."),
        ("see", False, "cup"),
        ("both", True, "here"),
        ("both", False, "here"),
    }


def test_of_texts_alone_every_token_is_learned() -> None:
    processor = Processor.from_folder(tiny_models.folder())
    text = Sample("read", ("Ben has the cup.",), "Who has the cup?", "Ben")
    plain = dataclasses.replace(feed(), samples=[*SAMPLES, text])
    whole, told = dataclasses.replace(plain, whole=True), Counter[tuple[str, bool]]()
    for number in range(40):
        prompt, answer = whole.prompt(number, processor), plain.prompt(number, processor)
        assert np.array_equal(prompt.ids, answer.ids) and not answer.mask.all()
        if not prompt.mask.all():
            assert np.array_equal(prompt.mask, answer.mask)
        told[plain.sample(number).task, bool(prompt.mask.all())] += 1
    assert set(told) == {("see", False), ("both", False), ("read", True)}


def test_feeds_are_mixed_by_their_share() -> None:
    class Named:
        def __init__(self, name: str):
            self.name = name

        def questions(self, number: int) -> list[Any]:
            return [self.name]

    first, second = Named("world"), Named("real")
    mixed = Mixed(first, second, 0.25, 0)  # pyright: ignore[reportArgumentType]
    asked = [mixed.questions(number)[0] for number in range(1000)]
    assert 200 < asked.count("real") < 300
    assert asked == [mixed.questions(number)[0] for number in range(1000)]
