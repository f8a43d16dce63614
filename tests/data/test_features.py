"""Features of pictures and sounds, computed once."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from children import FEATURED, TWO, finished, process
from featured import PROCESSOR, tiny_sense
from PIL import Image as Pictures
from test_team import in_team

from trisense.data import features
from trisense.data.features import BATCH, frozen_features
from trisense.data.team import Team
from trisense.errors import BadInput
from trisense.media import load_audio, load_image
from trisense.model.configuration import SenseOptions
from trisense.model.senses import Sense
from trisense.preprocess import AudioProcessor


@pytest.fixture(scope="module")
def sense() -> Sense:
    return tiny_sense()


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{index:03}.png") for index in range(BATCH + 5)]
    for index, path in enumerate(paths):
        Pictures.new("RGB", (40, 50), (5 * index % 255, 90, 200)).save(path)
    return paths


@pytest.fixture
def encoded(sense: Sense, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many media went through the encoder, pass by pass."""
    passes: list[int] = []

    def encode(values: torch.Tensor, mask: Any = None) -> torch.Tensor:
        passes.append(len(values))
        return Sense.encode(sense, values, mask)

    monkeypatch.setattr(sense, "encode", encode)
    return passes


def test_they_are_what_the_encoder_gives(sense: Sense, pictures: list[str], tmp_path: Path):
    found = frozen_features(sense, PROCESSOR, [*pictures, pictures[0]], tmp_path / "features", "a")
    assert len(found) == len(pictures), "each once"
    for path in pictures[:: BATCH // 4]:
        pixels = torch.from_numpy(PROCESSOR(load_image(path)))[None]
        with torch.no_grad():
            expected = sense.encode(pixels)[0].half().numpy()
        np.testing.assert_allclose(found[path], expected, atol=2e-3)
    assert found[pictures[0]].shape == (4, 16)
    assert found[pictures[0]].dtype == np.float16


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
def test_sounds_of_any_length_are_what_the_encoder_gives_for_each_alone(design: str, tmp_path: Path):
    """Parakeet's of every length beside each other, Whisper's in windows of one length."""
    torch.manual_seed(0)
    config, processor = tiny_models.config(design), tiny_models.processor(design).audio
    assert processor
    options = config.options("audio").to_dict() | {"stack": 2, "width": 32}
    options["frames_per_token"] *= 2
    processor = processor.model_copy(update={"frames_per_token": options["frames_per_token"]})
    sense = Sense("audio", SenseOptions(**options), config.audio_config, 24).eval()
    paths = [tiny_models.sound_file(tmp_path / f"{i}.wav", i, seconds) for i, seconds in enumerate((0.2, 0.7, 0.45))]
    found = frozen_features(sense, processor, paths, tmp_path / "features", "a")
    for path in paths:
        mels = processor(load_audio(path))  # [M, F]
        with torch.no_grad():
            expected = sense.encode(torch.from_numpy(mels)[None])[0].numpy()  # [S, E]
        assert found[path].shape == (processor.num_tokens(mels.shape[1]), 32)
        np.testing.assert_allclose(found[path], expected, atol=5e-3)


def test_once_unless_something_they_depend_on_changes(
    sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path
):
    def made(paths: list[str], what: str) -> int:
        encoded.clear()
        frozen_features(sense, PROCESSOR, paths, tmp_path / "features", what)
        return sum(encoded)

    assert made(pictures[:3], "a") == 3
    assert made(pictures[:3], "a") == 0
    assert made(pictures[:3], "b") == 3, "another encoder or layer"
    assert made(pictures[:4], "b") == 4, "another set of pictures"
    (tmp_path / "features" / "image.json").write_text("")
    assert made(pictures[:4], "b") == 4, "a power cut has emptied the card"


def test_what_a_killed_process_had_made_is_not_made_again(
    sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(features, "BLOCKS", 1)
    whole = frozen_features(sense, PROCESSOR, pictures, tmp_path / "whole", "a")
    folder = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", folder)
    # As a kill may leave them: vectors that nothing counts yet, and half a number.
    counts = (folder / "image.0.counts").read_bytes()
    (folder / "image.0.counts").write_bytes(counts[: 8 * BATCH + 3])
    with (folder / "image.0.f16").open("r+b") as vectors:
        vectors.truncate(BATCH * 4 * 16 * 2 + 77)
    encoded.clear()
    again = frozen_features(sense, PROCESSOR, pictures, folder, "a")
    assert encoded == [5]
    assert all(np.array_equal(again[path], whole[path]) for path in pictures)


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_kept(
    sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path
):
    good = Path(pictures[BATCH + 1]).read_bytes()
    Path(pictures[BATCH + 1]).write_text("no picture")
    with pytest.raises(BadInput, match=r"033\.png"):
        frozen_features(sense, PROCESSOR, pictures, tmp_path / "features", "a")
    Path(pictures[BATCH + 1]).write_bytes(good)
    encoded.clear()
    frozen_features(sense, PROCESSOR, pictures, tmp_path / "features", "a")
    assert encoded == [5]


def test_pictures_that_cannot_be_read_are_told_and_have_no_features(
    sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path
):
    """In the middle of a batch and a whole batch of them."""
    bad = [pictures[2], *pictures[BATCH:]]
    good = Path(bad[0]).read_bytes()
    for path in bad:
        Path(path).write_text("no picture")
    told: list[str] = []

    def found() -> Any:
        told.clear()
        return frozen_features(
            sense, PROCESSOR, pictures, tmp_path / "features", "a", lambda path, error: told.append(f"{path} {error}")
        )

    first = found()
    assert [one.split(" ")[0] for one in told] == bad and all("found text; expected PNG" in one for one in told)
    assert [path for path in pictures if len(first[path]) == 0] == bad
    encoded.clear()
    assert found() and len(told) == len(bad) and not encoded, "told again, and nothing is made again"
    expected = frozen_features(sense, PROCESSOR, [pictures[3]], tmp_path / "alone", "a")[pictures[3]]
    np.testing.assert_allclose(first[pictures[3]], expected, atol=2e-3)
    Path(bad[0]).write_bytes(good)
    counts = tmp_path / "features" / "image.0.counts"
    with pytest.raises(
        BadInput, match=f"002.png: could not be .* it can now: remove {re.escape(str(counts))} for that"
    ):
        frozen_features(sense, PROCESSOR, pictures, tmp_path / "features", "a")
    counts.unlink()
    assert len(found()[bad[0]]) == 4


def test_the_disk_is_looked_at_first(
    sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(4_000))
    with pytest.raises(BadInput, match=r"the features of 37 images take 0\.0 GB, and 0\.0 GB are free; name a folder"):
        frozen_features(sense, PROCESSOR, pictures, tmp_path / "features", "a")
    assert not encoded
    frozen_features(sense, PROCESSOR, pictures[:2], tmp_path / "features", "a")
    assert "features of 2 images take 0.0 MB in " in capsys.readouterr().out


def test_an_encoder_that_gives_other_features_than_the_design_says_is_refused(
    sense: Sense, pictures: list[str], tmp_path: Path
):
    wrong = PROCESSOR.model_copy(update={"tokens": 5})
    with pytest.raises(BadInput, match="images become 4 features of width 16, expected 5 of 16"):
        frozen_features(sense, wrong, pictures, tmp_path / "features", "a")
    eight = AudioProcessor(chunk_seconds=1.0, frames_per_token=8)
    config = tiny_models.config("clip-whisper").audio_config
    ear = Sense("audio", SenseOptions(width=16), config, 24).eval()
    with pytest.raises(BadInput, match="audios become 50 features of width 16, expected 13 of 16"):
        path = tiny_models.sound_file(tmp_path / "a.wav", 0, 0.5)
        frozen_features(ear, eight, [path], tmp_path / "sounds", "a")


# --- several processes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four batches of pictures, the last of them shorter."""
    folder = tmp_path_factory.mktemp("many")
    for index in range(3 * BATCH + 4):
        Pictures.new("RGB", (40, 50), (5 * index % 255, 90, 200)).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process makes of them."""
    folder = tmp_path_factory.mktemp("whole")
    finished(FEATURED, many, folder)
    return contents(folder)


def accounts(folder: Path) -> list[dict[str, Any]]:
    """What featured.py leaves of its processes, once."""
    files = sorted(folder.glob("rank-*.json"))
    found = [json.loads(file.read_text()) for file in files]
    for file in files:
        file.unlink()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("image.*")}


@pytest.mark.slow
def test_two_processes_make_what_one_makes(many: Path, whole: dict[str, bytes], tmp_path: Path):
    finished(*TWO, FEATURED, many, tmp_path)
    assert [one["passes"] for one in accounts(tmp_path)] == [[BATCH, BATCH], [BATCH, 4]], "each its half"
    assert contents(tmp_path) == whole, "to the bit: the batches are the same"


@pytest.mark.slow
@pytest.mark.parametrize(("begun", "goes_on"), [(TWO, ()), ((), TWO)])
def test_what_was_begun_goes_on_with_another_number_of_processes(
    begun: tuple[str, ...], goes_on: tuple[str, ...], many: Path, whole: dict[str, bytes], tmp_path: Path
):
    """The last of the processes is killed in its second pass."""
    assert process(*begun, FEATURED, many, tmp_path, f"kill_rank={int(begun == TWO)}", "kill_at=2").returncode != 0
    done = sum(file.stat().st_size // 8 for file in tmp_path.glob("image.*.counts"))
    assert BATCH <= done < 3 * BATCH + 4
    accounts(tmp_path)
    finished(*goes_on, FEATURED, many, tmp_path)
    assert sum(sum(one["passes"]) for one in accounts(tmp_path)) == 3 * BATCH + 4 - done, "nothing is made again"
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_all_processes_know_of_every_picture_that_cannot_be_read(many: Path, tmp_path: Path):
    bad = ["000.png", f"{BATCH + 1:03}.png", f"{3 * BATCH:03}.png"]
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(many, pictures)
    for name in bad:
        (pictures / name).write_text("no picture")
    finished(*TWO, FEATURED, pictures, out, "skip=2")
    one, other = accounts(out)
    assert one["error"] == other["error"] and "found text; expected PNG" in one["error"]
    assert one["told"] == other["told"] and sorted(one["told"]) == bad
    finished(*TWO, FEATURED, pictures, out, "skip=3")
    one, other = accounts(out)
    assert one["error"] is other["error"] is None
    assert one["told"] == other["told"] and sorted(one["told"]) == bad


def test_what_ends_one_process_ends_the_others(sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path):
    """Two that do not share the folder; a disk without room; a fault."""

    def apart(team: Team) -> Any:
        return frozen_features(sense, PROCESSOR, pictures, tmp_path / str(team.rank), "a", team=team)

    for error in in_team(apart):
        assert isinstance(error, BadInput) and "--out has to be one folder for all processes" in str(error)

    def together(team: Team) -> Any:
        return frozen_features(sense, PROCESSOR, pictures, tmp_path / "features", "a", team=team)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "free")(4_000))
        assert ["name a folder on another disk" in str(error) for error in in_team(together)] == [True, True]
    assert not encoded

    def faulty(values: torch.Tensor, mask: Any = None) -> torch.Tensor:
        if len(values) < BATCH:
            raise ZeroDivisionError("here")
        return Sense.encode(sense, values, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sense, "encode", faulty)
        one, other = in_team(together)
    assert isinstance(other, ZeroDivisionError)
    assert isinstance(one, RuntimeError) and str(one) == "process 1 failed: ZeroDivisionError: here"
    encoded.clear()
    assert all(len(found) == len(pictures) for found in in_team(together))
    assert encoded == [5], "what the first had made is kept"
