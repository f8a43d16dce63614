"""Single samples of the world, each with its own picture, sound and note: for evaluation, and to look at."""

from __future__ import annotations

import json
import random
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Picture

from trisense.chat import Conversation, Image, Message
from trisense.data.world.contexts import SENSES, Context, make_context, make_utterance
from trisense.data.world.draw import Box, draw
from trisense.data.world.facts import HELD_OUT, Split
from trisense.data.world.questions import QUESTIONS, ask_any, ask_missing_sense
from trisense.data.world.single import Question, in_words
from trisense.data.world.speech import SAMPLING_RATE, Voice, speak, voices

Group = Literal["picture", "sound", "text", "two senses", "three senses", "no sense"]
# The senses that the answers of a group's questions need; "no sense": the answer is in none, and that is to be said.
GROUPS: dict[Group, list[tuple[str, ...]]] = {
    "picture": [("image",)],
    "sound": [("audio",)],
    "text": [("text",)],
    "two senses": [("image", "audio"), ("image", "text"), ("audio", "text")],
    "three senses": [SENSES],
    "no sense": list(QUESTIONS),
}


@dataclass(frozen=True)
class Sample:
    """One question about a context.

    `picture` is 96 x 96 RGB, `sound` float32 [T] at 16 kHz; `boxes` hold the picture's things.
    """

    context: Context
    question: Question
    group: Group
    picture: Picture.Image | None
    sound: np.ndarray | None
    boxes: list[Box]

    @property
    def conversation(self) -> Conversation:
        """The question with its context, not yet answered."""
        return Conversation.ask(
            self.question.text,
            images=[] if self.picture is None else [self.picture],
            audios=[] if self.sound is None else [self.sound],
            texts=[self.context.note.text] if self.context.note else [],
        )


def samples(group: Group, count: int, seed: int, split: Split = "test", heard: bool = True) -> Iterator[Sample]:
    """`count` samples of a group; the same for the same arguments, byte for byte.

    split: `train` and `test` show the same pairs of colour and kind, `unseen` has in every context a pair that training
    never has. heard: with voices of the training; False: with voices it never hears.
    """
    rng = random.Random(f"{seed}/{split}/{group}/{heard}")
    for _ in range(count):
        yield _sample(rng, group, split, heard)


def _sample(rng: random.Random, group: Group, split: Split, heard: bool) -> Sample:
    # Of what is in no sense, a third asks about a sense that was not given, the rest about a fact that it lacks.
    missing = group == "no sense" and rng.random() < 1 / 3
    while True:
        needed = rng.choice(GROUPS[group])
        # A sense that the answer does not need is there three times in ten: it must not distract.
        given = [sense for sense in SENSES if sense in needed or rng.random() < 0.3]
        context = make_context(rng, split, lambda r, topic, wish: make_utterance(r, topic, wish, split), given)
        if split == "unseen" and not _pairs(context) & HELD_OUT:
            continue
        question = ask_missing_sense(rng, context) if missing else ask_any(rng, context, needed)
        if question is None or bool(question.senses) == (group == "no sense"):
            continue
        picture, boxes = draw(context.scene) if context.scene else (None, [])
        voice: Voice | None = None if heard else rng.choice(voices(heard=False))
        sound = speak(context.utterance, voice) if context.utterance else None
        return Sample(context, question, group, picture, sound, boxes)


def _pairs(context: Context) -> set[tuple[str, str]]:
    pairs = {(thing.colour, thing.kind) for thing in context.scene.things} if context.scene else set()
    for fact in (context.utterance, context.note):
        if fact and fact.colours:
            pairs |= set(zip(fact.colours, fact.kinds, strict=True))
    return pairs


def write(out: Path, count: int, seed: int, split: Split = "train") -> None:
    """Writes `count` samples, the groups in turn, as png and wav files and one `samples.jsonl` that names them; and
    `captions.jsonl`, what every picture shows.

    A line holds the conversation as `messages`, ready to be learned from (`trisense.data.sources`), and what it is made
    of: the question, its answer, the senses the answer needs, the note, the transcript and the things with their boxes
    in pixels.
    """
    out.mkdir(parents=True, exist_ok=True)
    streams = {group: samples(group, count, seed, split) for group in GROUPS}
    with (out / "samples.jsonl").open("w") as lines, (out / "captions.jsonl").open("w") as captions:
        for number, group in zip(range(count), list(GROUPS) * (count // len(GROUPS) + 1), strict=False):
            sample = next(streams[group])
            record: dict[str, object] = {
                "group": group,
                "question": sample.question.text,
                "answer": sample.question.answer,
                "senses": sample.question.senses,
            }
            if sample.context.note:
                record["text"] = sample.context.note.text
            if sample.picture:
                record["image"] = f"{number:05}.png"
                sample.picture.save(out / f"{number:05}.png")
                record["things"] = [
                    {"name": box.thing.text or box.thing.name, "box": [round(edge, 1) for edge in box[1:]]}
                    for box in sample.boxes
                ]
            if sample.sound is not None and sample.context.utterance:
                record["audio"], record["said"] = f"{number:05}.wav", sample.context.utterance.words
                with wave.open(str(out / f"{number:05}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(SAMPLING_RATE)
                    file.writeframes((sample.sound * 32767).astype("<i2").tobytes())
            given = {key: [record[key]] if key in record else [] for key in ("image", "audio", "text")}
            asked = Conversation.ask(sample.question.text, given["image"], given["audio"], map(str, given["text"]))
            record |= asked.answered(sample.question.answer).to_dict()
            lines.write(json.dumps(record) + "\n")
            if sample.context.scene:
                shown = Message(role="user", content=(Image(image=record["image"]),))
                caption = Conversation(messages=(shown,)).answered(in_words(sample.context.scene))
                captions.write(json.dumps(caption.to_dict()) + "\n")
