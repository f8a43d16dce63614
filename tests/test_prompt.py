from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_models import picture, processor, sound
from trisense.chat import Conversation, Image, Layout, Markers, Message, Text
from trisense.errors import BadInput
from trisense.media import Limits, load_audio, load_image
from trisense.preprocess import AudioProcessor
from trisense.prompt import Processor

SPARK = processor()


def test_a_prompt_holds_ids_slots_and_what_the_encoders_read(samples: Path) -> None:
    prompt = SPARK.prompt(
        Conversation.ask(
            "Is it red?", images=[samples / "picture.png"], audios=[str(samples / "voice.wav")], texts=["A note."]
        )
    )
    assert SPARK.image is not None
    assert SPARK.audio is not None
    image, audio = prompt.media
    pixel_values, input_features = prompt.values  # [3, H, W], [M, F]
    assert pixel_values.shape == (3, 32, 32)
    np.testing.assert_array_equal(pixel_values, SPARK.image(load_image(samples / "picture.png")))
    np.testing.assert_array_equal(input_features, SPARK.audio(load_audio(samples / "voice.wav")))
    assert (image.sense, image.start, image.length) == ("image", 0, 16)
    # Half a second is 50 frames of 10 ms, eight frames a token.
    assert input_features.shape == (80, 50)
    assert (audio.sense, audio.start, audio.length) == ("audio", 16, 7)
    assert prompt.ids.tolist() == [256] * 16 + [257] * 7 + SPARK.tokenizer.plain("A note.") + [
        258,
        *SPARK.tokenizer.plain("Is it red?"),
        259,
    ]
    assert not prompt.mask.any()


shown = st.lists(st.sampled_from(["image", "long sound", "short sound", "text"]), max_size=4)


@settings(max_examples=30)
@given(st.lists(shown, min_size=1, max_size=3))
def test_any_number_and_order_of_media(turns: list[list[str]]) -> None:
    make = {
        "image": lambda: {"type": "image", "image": picture(0)},
        "long sound": lambda: {"type": "audio", "audio": sound(0, 0.3)},
        "short sound": lambda: {"type": "audio", "audio": sound(1, 0.1)},
        "text": lambda: {"type": "text", "text": "<image> <audio>"},
    }
    lengths = {"image": 16, "long sound": 4, "short sound": 2}
    messages: list[Message] = []
    for turn in turns:
        messages.append(Message.model_validate({"role": "user", "content": [make[kind]() for kind in turn]}))
        messages.append(Message(role="assistant", content=(Text(text="yes"),)))
    prompt = SPARK.prompt(Conversation(messages=tuple(messages)))
    expected = [lengths[kind] for turn in turns for kind in turn if kind != "text"]
    assert [slot.length for slot in prompt.media] == expected
    assert len(prompt.values) == len(expected)
    for slot, values in zip(prompt.media, prompt.values, strict=True):
        placeholder = SPARK.placeholders[slot.sense]
        assert set(prompt.ids[slot.start : slot.start + slot.length].tolist()) == {placeholder}
        assert values.ndim == (3 if slot.sense == "image" else 2)
    assert int(np.isin(prompt.ids, [256, 257]).sum()) == sum(expected)
    assert int(prompt.mask.sum()) == 4 * len(turns)  # y, e, s and the end token


def test_one_part_shown_twice_is_read_once(samples: Path) -> None:
    with (samples / "picture.png").open("rb") as file:  # at its end after one reading
        part = Image(image=file)
        prompt = SPARK.prompt(Conversation(messages=(Message(role="user", content=(part, part)),)))
    assert prompt.values[0] is prompt.values[1]


def test_the_ids_that_end_an_answer() -> None:
    assert SPARK.end_ids == {260}
    assert dataclasses.replace(SPARK, layout=Layout()).end_ids == frozenset()
    assert dataclasses.replace(SPARK, layout=Layout(answer=Markers("", "\n<|user|><|end|>"))).end_ids == {260}


def test_a_model_without_a_sense_says_so() -> None:
    blind = dataclasses.replace(SPARK, image=None, placeholders={"audio": 257})
    with pytest.raises(BadInput, match="no eyes"):
        blind.prompt(Conversation.ask("What is it?", images=[picture(0)]))
    deaf = dataclasses.replace(SPARK, audio=None, placeholders={"image": 256})
    with pytest.raises(BadInput, match="no ears"):
        deaf.prompt(Conversation.ask("What is it?", audios=[sound(0)]))
    assert blind.prompt(Conversation.ask("Hello?")).media == ()


def test_limits_hold_for_every_medium() -> None:
    strict = dataclasses.replace(SPARK, limits=Limits(max_pixels=100, max_seconds=0.1))
    for conversation in (Conversation.ask("?", images=[picture(0)]), Conversation.ask("?", audios=[sound(0)])):
        SPARK.prompt(conversation)
        with pytest.raises(BadInput):
            strict.prompt(conversation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"placeholders": {"image": 256}}, "expected one for each of .*audio"),
        ({"placeholders": {"image": 256, "audio": 257, "smell": 262}}, "smell"),
        ({"placeholders": {"image": 256, "audio": 256}}, "share an id"),
        ({"placeholders": {"image": 256, "audio": 65}}, r"placeholders\.audio: 65 is an ordinary token"),
        ({"placeholders": {"image": -1, "audio": 257}}, r"placeholders\.image: -1"),
        ({"layout": Layout(image=Markers("<image>", ""))}, "contains the placeholder of image"),
        ({"layout": Layout(answer=Markers("", "</s>"))}, "does not end in a special token"),
    ],
)
def test_a_processor_that_cannot_be_right_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(SPARK, **change)


def test_placeholders_may_lie_above_the_tokenizer() -> None:
    above = dataclasses.replace(SPARK, placeholders={"image": 5000, "audio": 5001})
    prompt = above.prompt(Conversation.ask("?", images=[picture(0)]))
    assert prompt.ids[:16].tolist() == [5000] * 16


def test_a_folder_gives_back_the_same_processor(tmp_path: Path) -> None:
    files = SPARK.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in files) == ["processor_config.json", "tokenizer.json"]
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["processor_config.json", "tokenizer.json"]
    again = Processor.from_folder(files[0].parent)
    assert (again.layout, again.image, again.audio) == (SPARK.layout, SPARK.image, SPARK.audio)
    conversation = Conversation.ask("é <image>?", images=[picture(0)], audios=[sound(0)]).answered("yes")
    before, after = SPARK.prompt(conversation), again.prompt(conversation)
    np.testing.assert_array_equal(before.ids, after.ids)
    np.testing.assert_array_equal(before.mask, after.mask)
    for one, other in zip(before.values, after.values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_saving_over_a_folder_never_leaves_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SPARK.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text[:10].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        dataclasses.replace(SPARK, audio=AudioProcessor(mel_bins=40)).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def edited(folder: Path, edit: Any) -> Path:
    SPARK.save(folder)
    path = folder / "processor_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    edit(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(sound={}), r"processor_config\.json: unknown key 'sound'"),
        (lambda c: c["layout"].update(quesion=["", ""]), r"unknown key 'layout\.quesion'"),
        (lambda c: c["image"].update(hight=3), r"unknown key 'image\.hight'"),
        (lambda c: c.pop("layout"), r"the key 'layout' is missing"),
        (lambda c: c["layout"].update(start=3), r"layout\.start"),
        (lambda c: c["audio"].update(mel_bins=0), r"audio\.mel_bins"),
        (lambda c: c.update(processor_class="LlavaProcessor"), r"processor_class is 'LlavaProcessor'"),
        (lambda c: c["placeholders"].update(image=1), r"processor_config\.json: placeholders\.image: 1 is an ordinary"),
    ],
)
def test_a_folder_that_is_wrong_is_refused_by_name(tmp_path: Path, edit: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refusal:
        Processor.from_folder(edited(tmp_path, edit))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, name: str) -> None:
    SPARK.save(tmp_path)
    (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match=name):
        Processor.from_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BadInput, match=f"{name}: no such file"):
        Processor.from_folder(tmp_path)
    with pytest.raises(BadInput, match="no such folder"):
        Processor.from_folder(tmp_path / "elsewhere")


def test_workers_can_be_given_a_processor() -> None:
    again = pickle.loads(pickle.dumps(SPARK))
    assert again.tokenizer.plain("<image>") == SPARK.tokenizer.plain("<image>")
    assert again.end_ids == SPARK.end_ids
