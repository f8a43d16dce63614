"""Samples: the same arguments give the same bytes, and a group's questions need what the group says."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from checker import REFUSALS, Checker, pairs
from PIL import Image as Picture

from trisense.chat import Audio, Image, Text
from trisense.data.sources import open_source
from trisense.data.world import samples as module
from trisense.data.world.facts import HELD_OUT, Split
from trisense.data.world.samples import GROUPS, Group, Sample, samples, write
from trisense.data.world.speech import Voice, voices


def contents(sample: Sample) -> tuple[str, str, bytes, bytes]:
    return (
        sample.question.text,
        sample.question.answer,
        sample.picture.tobytes() if sample.picture else b"",
        sample.sound.tobytes() if sample.sound is not None else b"",
    )


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> list[Voice | None]:
    """Neither draws nor speaks, so that hundreds of samples cost nothing; collects the voices that were asked for."""
    asked: list[Voice | None] = []

    def speak(utterance: object, voice: Voice | None) -> np.ndarray:
        asked.append(voice)
        return np.zeros(1, np.float32)

    monkeypatch.setattr(module, "speak", speak)
    monkeypatch.setattr(module, "draw", lambda scene: (Picture.new("RGB", (1, 1)), []))
    return asked


def test_the_same_arguments_give_the_same_bytes_and_others_give_others() -> None:
    first = [contents(sample) for sample in samples("three senses", 3, seed=4)]
    assert first == [contents(sample) for sample in samples("three senses", 3, seed=4)]
    assert first[:2] == [contents(sample) for sample in samples("three senses", 2, seed=4)], "not of the count"
    other = [contents(sample) for sample in samples("three senses", 3, seed=5)]
    for one, two in zip(first, other, strict=True):
        assert one[2] and one[3] and two[2] and two[3]
        assert one[2] != two[2]
        assert one[3] != two[3]
    assert len(set(first)) == 3


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("split", ["train", "test", "unseen"])
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_asks_what_it_says(group: Group, split: Split) -> None:
    missing = 0
    for sample in samples(group, 120, 0, split):
        context, question = sample.context, sample.question
        naive = Checker(
            context.scene,
            context.utterance.words if context.utterance else "",
            context.note.text if context.note else "",
        )
        assert bool(pairs(naive.scene, naive.words, naive.text) & HELD_OUT) == (split == "unseen")
        assert sample.group == group
        assert (sample.picture is None, sample.sound is None) == (context.scene is None, context.utterance is None)
        if group == "no sense":
            absent = {sense for sense, (no, _) in REFUSALS.items() if no == question.answer}
            missing += bool(absent)
            assert question.senses == ()
            assert not absent & set(context.senses)
            assert absent or naive.solve(question.text) == question.answer
        else:
            assert question.senses in GROUPS[group]
            assert set(question.senses) <= set(context.senses)
            assert naive.solve(question.text) == question.answer
    assert (20 < missing < 70) == (group == "no sense")


def test_unheard_voices_are_none_of_the_training(silent: list[Voice | None]) -> None:
    list(samples("sound", 40, 0, heard=False))
    assert set(silent) <= set(voices(heard=False))
    assert len(set(silent)) > 1
    silent.clear()
    list(samples("sound", 10, 0))
    assert set(silent) == {None}, "left to the utterance's style, as in training"


def test_the_conversation_holds_what_the_sample_shows() -> None:
    sample = next(samples("three senses", 1, seed=2))
    assert sample.context.note and sample.sound is not None
    image, audio, note, question = sample.conversation.messages[0].content
    assert isinstance(image, Image) and image.image is sample.picture
    assert isinstance(audio, Audio) and audio.audio is sample.sound
    assert isinstance(note, Text) and note.text == sample.context.note.text
    assert isinstance(question, Text) and question.text == sample.question.text
    assert sample.picture and sample.picture.size == (96, 96)
    assert sample.sound.dtype == np.float32 and sample.sound.ndim == 1
    assert len(sample.conversation.messages) == 1
    bare = next(sample for sample in samples("text", 20, seed=2) if sample.context.senses == ("text",))
    assert [type(part) for part in bare.conversation.messages[0].content] == [Text, Text]


def test_written_samples_can_be_looked_at_and_listened_to(tmp_path: Path) -> None:
    write(tmp_path, 7, seed=3)
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [record["group"] for record in records] == [*GROUPS, "picture"]
    files = {path.name for path in tmp_path.iterdir()}
    named = {record[key] for record in records for key in ("image", "audio") if key in record}
    assert files == {*named, "samples.jsonl", "captions.jsonl"}
    learned = open_source(tmp_path / "samples.jsonl")
    assert len(learned) == 7
    for record, conversation in zip(records, learned, strict=True):
        asked, answered = conversation.messages
        assert answered.content == (Text(text=record["answer"]),)
        assert asked.content[-1] == Text(text=record["question"])
        shown = {part.type: part for part in asked.content[:-1]}
        assert {"image": "image" in record, "audio": "audio" in record, "text": "text" in record} == {
            sense: sense in shown for sense in ("image", "audio", "text")
        }
    captions = open_source(tmp_path / "captions.jsonl")
    pictured = [record for record in records if "image" in record]
    assert len(captions) == len(pictured)
    for record, caption in zip(pictured, captions, strict=True):
        picture, said = (message.content[0] for message in caption.messages)
        assert isinstance(picture, Image) and picture.image == str(tmp_path / record["image"])
        assert isinstance(said, Text)
        for thing in record["things"]:
            assert thing["name"] in said.text or thing["name"].isdigit()
    for record in records:
        for sense, key in (("image", "image"), ("audio", "audio"), ("text", "text")):
            assert sense not in record["senses"] or key in record
        if "image" in record:
            picture = Picture.open(tmp_path / record["image"])
            assert picture.size == (96, 96)
            for thing in record["things"]:
                left, top, right, bottom = thing["box"]
                assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
        if "audio" in record:
            with wave.open(str(tmp_path / record["audio"])) as sound:
                assert (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, 16000)
                loud = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            assert np.abs(loud).max() > 3000
            assert record["said"] == record["said"].lower()
    again = tmp_path / "again"
    write(again, 7, seed=3)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        name: (tmp_path / name).read_bytes() for name in files
    }


def test_no_group_is_a_part_of_another() -> None:
    """Every set of senses belongs to one row of the table, and none is left out."""
    rows = [senses for group, all_senses in GROUPS.items() if group != "no sense" for senses in all_senses]
    assert len(rows) == len(set(rows)) == 7
    assert set(rows) == set(GROUPS["no sense"])
