"""The bank: made once, the same however often it was interrupted, and honest about what it is."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checker import pairs

from trisense.data.world import bank as module
from trisense.data.world.bank import TOPICS, Bank, scene_at, utterance_at
from trisense.data.world.draw import draw
from trisense.data.world.facts import HELD_OUT
from trisense.data.world.speech import speak
from trisense.errors import BadInput
from trisense.preprocess import AudioProcessor

SOUNDS = AudioProcessor(chunk_seconds=None, frames_per_token=8)


def open_bank(folder: Path, pictures: int = 5, utterances: int = 6, seed: int = 3, size: int = 48) -> Bank:
    return Bank(folder, pictures, utterances, seed, size, SOUNDS)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD", 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two shards of pictures and two of sounds."""
    folder = tmp_path_factory.mktemp("bank")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD", 3)
        open_bank(folder)
    return folder


def contents(folder: Path) -> dict[str, list[np.ndarray]]:
    """The arrays of every file; an npz file also holds the time of its writing."""
    found = {}
    for path in sorted(folder.glob("*.np*")):
        stored = np.load(path)
        found[path.name] = [stored] if path.suffix == ".npy" else [stored[name] for name in sorted(stored.files)]
    return found


def assert_same(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name, arrays in first.items():
        assert all(np.array_equal(a, b) for a, b in zip(arrays, second[name], strict=True)), name


def test_it_holds_what_drawing_and_speaking_give(made: Path) -> None:
    bank = open_bank(made)
    assert len(bank.scenes) == 5 and len(bank.utterances) == 6
    for index in (0, 2, 3, 4):  # on both sides of the shards' border
        assert bank.scenes[index] == scene_at(3, "train", index)
        assert np.array_equal(bank.picture(index), np.asarray(draw(bank.scenes[index], 48)[0]))
    for index in (0, 3, 5):
        assert bank.utterances[index] == utterance_at(3, "train", index)
        assert np.allclose(bank.mel(index), SOUNDS(speak(bank.utterances[index])).T, atol=2e-3), "but for 16 bits"
    assert bank.mel(0).shape[1] == SOUNDS.mel_bins
    assert bank.offsets[-1] == len(bank.mels)


def test_a_bank_made_half_way_is_completed_to_the_same(made: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(made, half)
    (half / "pictures-3.npy").unlink()
    (half / "mels-0.npz").rename(half / "mels-0.part.npz")  # killed before it got its name
    kept = (half / "pictures-0.npy").stat().st_mtime_ns
    open_bank(half)
    assert_same(half, made)
    assert (half / "pictures-0.npy").stat().st_mtime_ns == kept, "what is there is not made again"
    assert not list(half.glob("*.part*"))


@pytest.mark.slow
def test_a_bank_whose_making_was_killed_is_completed_to_the_same(made: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from trisense.data.world import bank\n"
        "from trisense.preprocess import AudioProcessor\n"
        "class Killed(bank.ProcessPoolExecutor):\n"
        "    def map(self, make, *jobs):\n"
        "        list(super().map(make, *(column[:3] for column in jobs)))\n"
        "        os.killpg(0, signal.SIGKILL)\n"  # with its worker processes
        "bank.SHARD, bank.ProcessPoolExecutor = 3, Killed\n"
        "bank.Bank(Path(sys.argv[1]), 5, 6, 3, 48, AudioProcessor(chunk_seconds=None, frames_per_token=8))\n"
    )
    folder = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        start_new_session=True,
    )
    assert killed.returncode == -signal.SIGKILL
    assert set(contents(folder)) == {"pictures-0.npy", "pictures-3.npy", "mels-0.npz"}
    open_bank(folder)
    assert_same(folder, made)


@pytest.mark.parametrize("options", [{"pictures": 6}, {"utterances": 7}, {"seed": 4}, {"size": 64}])
def test_other_options_are_refused(made: Path, options: dict[str, int]) -> None:
    before = (made / "bank.json").read_bytes()
    with pytest.raises(BadInput, match="other options") as refusal:
        open_bank(made, **options)
    assert str(made / "bank.json") in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (made / "bank.json").read_bytes() == before


def test_a_card_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bank.json").write_text('{"pictures": 5')
    with pytest.raises(BadInput, match="not the card of a bank"):
        open_bank(tmp_path)


def test_the_card_says_how_it_was_made(made: Path) -> None:
    card = json.loads((made / "bank.json").read_text())
    assert card == {"pictures": 5, "utterances": 6, "seed": 3, "size": 48, "sounds": SOUNDS.model_dump()}


def test_facts_depend_on_seed_split_and_index_alone() -> None:
    assert scene_at(0, "train", 7) == scene_at(0, "train", 7)
    assert len({scene_at(0, "train", 7), scene_at(1, "train", 7), scene_at(0, "test", 7), scene_at(0, "train", 8)}) == 4
    assert utterance_at(0, "train", 7) == utterance_at(0, "train", 7)
    assert utterance_at(0, "train", 7) != utterance_at(1, "train", 7)


def test_no_medium_of_a_bank_holds_a_held_out_pair() -> None:
    for index in range(3000):
        utterance = utterance_at(0, "train", index)
        assert not pairs(scene_at(0, "train", index), utterance.words, "") & HELD_OUT


def without_media(utterances: int) -> Bank:
    """The facts of a bank, for what needs neither pixels nor sound."""
    bank = object.__new__(Bank)
    bank.utterances = [utterance_at(0, "train", i) for i in range(utterances)]
    return bank


def test_an_utterance_comes_as_near_to_the_wish_as_there_is_one() -> None:
    bank, rng = without_media(2000), random.Random(0)
    for topic in TOPICS:
        assert bank.utterances[bank.utter(rng, topic, {})].topic == topic
    for wish in ({"kind": "cup", "colour": "red"}, {"kind": "cup", "colour": ""}, {"kind": "cup"}):
        found = bank.utterances[bank.utter(rng, "thing", wish)]
        assert found.kinds == ("cup",)
        assert "colour" not in wish or found.colours == tuple(filter(None, [wish["colour"]]))
    assert bank.utterances[bank.utter(rng, "number", {"number": "five"})].number == "five"
    assert "key" in bank.utterances[bank.utter(rng, "list", {"kind": "key", "kinds": ("key", "hat")})].kinds
    # No voice of the bank says the pair that is kept for testing: then the kind, in another color.
    assert bank.utterances[bank.utter(rng, "thing", {"kind": "cup", "colour": "blue"})].kinds == ("cup",)


def test_a_bank_without_a_topic_says_so() -> None:
    bank = without_media(1)
    absent = next(topic for topic in TOPICS if topic != bank.utterances[0].topic)
    with pytest.raises(BadInput, match=r"no utterance of the topic .* raise world\.utterances"):
        bank.utter(random.Random(0), absent, {})
