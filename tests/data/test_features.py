"""Features of pictures and sounds, computed once."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image as Pictures
from transformers import CLIPVisionConfig

from trisense.data.features import BATCH, frozen_features
from trisense.errors import BadInput
from trisense.media import load_audio, load_image
from trisense.model.configuration import SenseOptions
from trisense.model.senses import Sense
from trisense.preprocess import AudioProcessor, ImageProcessor

PROCESSOR = ImageProcessor(height=32, width=32, tokens=4)


@pytest.fixture(scope="module")
def sense() -> Sense:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return Sense("image", SenseOptions(width=16, select="patches"), config, 24).eval()


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


def test_what_a_killed_process_had_made_is_not_made_again(
    sense: Sense, pictures: list[str], encoded: list[int], tmp_path: Path
):
    whole = frozen_features(sense, PROCESSOR, pictures, tmp_path / "whole", "a")
    folder = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", folder)
    # As a kill may leave them: vectors that nothing counts yet, and half a number.
    counts = (folder / "image.counts").read_bytes()
    (folder / "image.counts").write_bytes(counts[: 8 * BATCH + 3])
    with (folder / "image.f16").open("r+b") as vectors:
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
    with pytest.raises(BadInput, match=r"002\.png: could not be read when features were computed; it can now: remove"):
        frozen_features(sense, PROCESSOR, pictures, tmp_path / "features", "a")


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
