"""What is said in a file's sounds is written down once."""

from __future__ import annotations

from pathlib import Path
from shutil import copy

import pytest

from trisense.data import transcripts as module
from trisense.data.transcripts import transcripts
from trisense.errors import BadInput
from trisense.recipe import Speech

VOICE = Path(__file__).resolve().parents[2] / "examples" / "voice.wav"
SPARK = Speech(pretrained="spark")


@pytest.fixture
def sounds(tmp_path: Path) -> list[str]:
    return [str(copy(VOICE, tmp_path / f"{number}.wav")) for number in range(3)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recognisers that were opened."""
    models: list[str] = []
    real = module.open_recogniser

    def watched(model: str, device: str | None = None):
        models.append(model)
        return real(model, device)

    monkeypatch.setattr(module, "open_recogniser", watched)
    return models


def test_each_sound_once_also_after_a_kill(sounds: list[str], opened: list[str], tmp_path: Path):
    first = transcripts([*sounds, sounds[0]], SPARK, "cpu", tmp_path / "run")
    assert {path: one.text for path, one in first.items()} == dict.fromkeys(sounds, "ben")
    assert transcripts(sounds, SPARK, "cpu", tmp_path / "run") == first
    assert opened == ["spark"], "the second time nobody listens"
    file = tmp_path / "run" / "transcripts.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) - 40])  # the last line cut
    assert transcripts(sounds, SPARK, "cpu", tmp_path / "run") == first
    assert file.read_text() == whole
    file.write_text(whole.replace("ben", "BEN"))
    other = transcripts(sounds, SPARK.model_copy(update={"first_seconds": 0.5}), "cpu", tmp_path / "run")
    assert all(one.heard == (0.0, 0.5) and one.text != "BEN" for one in other.values()), "other options, all anew"


def test_nothing_to_hear_opens_nobody(opened: list[str], tmp_path: Path):
    assert transcripts([], Speech(pretrained="none/such"), "cpu", tmp_path) == {}
    assert not opened and not list(tmp_path.iterdir())


def test_a_sound_that_cannot_be_read_is_named(sounds: list[str], tmp_path: Path):
    Path(sounds[1]).write_text("no sound")
    told: list[str] = []
    found = transcripts(sounds, SPARK, "cpu", tmp_path / "told", lambda sound, error: told.append(sound))
    assert told == [sounds[1]] and isinstance(found[sounds[1]], BadInput)
    assert [isinstance(found[sound], BadInput) for sound in sounds] == [False, True, False]
    with pytest.raises(BadInput, match=r"1\.wav"):
        transcripts(sounds, SPARK, "cpu", tmp_path / "run")
