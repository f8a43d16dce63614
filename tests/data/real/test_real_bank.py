"""Real media as arrays: names and words as they are learned, and sentences spoken by the small world's synthesiser."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tiny_pack
from PIL import Image

from trisense.data.real.bank import RealBank, name_of, named_pictures, recorded, sentences, spoken, spoken_words
from trisense.data.real.pack import Pack
from trisense.errors import BadInput
from trisense.media import load_audio
from trisense.preprocess import AudioProcessor

SOUNDS = AudioProcessor(chunk_seconds=None, frames_per_token=8)


def test_names_have_no_article_and_no_point() -> None:
    for text, name in (
        ("A duck.", "duck"),
        ("the Old  House", "old house"),
        ("An apple!", "apple"),
        ("A large brown dog that barks at night.", None),
        ("theatre", "theatre"),
    ):
        assert name_of({"text": text, "source": "owner/x"}) == name
    grocery = {"source": "marcusklasson/x", "label": "Apple"}
    assert name_of({**grocery, "text": "Golden Delicious"}) == "golden delicious apple"
    assert name_of({**grocery, "text": "Pink Apple"}) == "pink apple"


def test_words_are_spelled_as_they_are_spoken() -> None:
    assert spoken_words("It's 5 o'clock, Mike!") == "it's five o'clock mike"
    assert spoken_words("He paid 1,250 for 40 of them") == ""


def test_what_a_pack_names_and_says(pack: Pack) -> None:
    named = {(ref.file, name) for ref, name in named_pictures(pack, "train")}
    assert ("pictures/noto72", "red apple") in named
    assert ("pictures/grocery", "royal apple1") in named
    assert ("pictures/easy_vqa_images", "teal circle") in named
    said = {(ref.file, words) for ref, words in recorded(pack, "train")}
    assert {("speech/fsdd", "zero"), ("speech/speechocean762_train_1", "i see the bed")} <= said
    assert {("sounds/instruments", "(flute)"), ("sounds/esc10_baby_dog", "(dog barking)")} <= said
    assert "she went to the window and looked out" in sentences(pack, "train")
    assert all(3 <= len(one.split()) <= 12 for one in sentences(pack, "train"))


def test_half_of_what_is_spoken_names_pictures_as_joined_questions_do(pack: Pack) -> None:
    said = [one.words for one in spoken(pack, "train", 200, 0)]
    naming = [words for words in said if words.startswith(("this is a", "i see a", "is this a")) or " or " in words]
    assert {"this is a red apple", "is this a pear"} < set(naming) and any(" or " in words for words in naming)
    assert 0.4 < len(naming) / 200 < 0.65 and "she went to the window and looked out" in said
    assert said == [one.words for one in spoken(pack, "train", 200, 0)]
    assert list(spoken(pack, "train", 0, 0)) == []


def test_a_bank_holds_pictures_and_log_mels(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trisense.data.real.bank.SHARD", 7)  # several files of each kind
    bank = RealBank(tmp_path, pack, "train", 24, SOUNDS, 3, 0)
    first = Image.open(io.BytesIO(tiny_pack.picture(0))).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(bank.picture(0), np.asarray(first)) and bank.names[0] == "red apple"
    assert len(bank.files[0]) == len(bank.names) and len(bank.files[1]) == len(bank.words) == bank.recorded + 3
    place = bank.files[1].index("speech/fsdd")
    mel, words = bank.sound(place)
    assert words == "zero" and np.allclose(mel, SOUNDS(load_audio(tiny_pack.sound(0))).T, atol=2e-3)
    assert bank.words[-3:] == [one.words for one in spoken(pack, "train", 3, 0)] and bank.files[1][-3:] == [""] * 3

    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = RealBank(tmp_path, pack, "train", 24, SOUNDS, 3, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made, "nothing is made twice"
    assert np.array_equal(again.mels, bank.mels) and again.words == bank.words
    with pytest.raises(BadInput, match=r"bank\.json: this bank was made with other options"):
        RealBank(tmp_path, pack, "dev", 24, SOUNDS, 3, 0)
