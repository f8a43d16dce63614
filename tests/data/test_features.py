"""Features of pictures, computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from transformers import CLIPVisionConfig

from trisense.data.features import BATCH, picture_features
from trisense.errors import BadInput
from trisense.media import load_image
from trisense.model.configuration import SenseOptions
from trisense.model.senses import Sense
from trisense.preprocess import ImageProcessor

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


def test_they_are_what_the_encoder_gives(sense: Sense, pictures: list[str], tmp_path: Path):
    found = picture_features(sense, PROCESSOR, [*pictures, pictures[0]], tmp_path / "features", "a")
    for path in pictures[:: BATCH // 4]:
        pixels = torch.from_numpy(PROCESSOR(load_image(path)))[None]
        with torch.no_grad():
            expected = sense.encode(pixels)[0].half().numpy()
        np.testing.assert_allclose(found[path], expected, atol=2e-3)
    assert found[pictures[0]].shape == (4, 16)
    assert found[pictures[0]].dtype == np.float16


def test_once_unless_something_they_depend_on_changes(sense: Sense, pictures: list[str], tmp_path: Path):
    runs = 0

    def encode(values: Any, mask: Any = None) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return Sense.encode(sense, values, mask)

    def found(paths: list[str], what: str) -> int:
        before = runs
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sense, "encode", encode)
            picture_features(sense, PROCESSOR, paths, tmp_path / "features", what)
        return runs - before

    assert found(pictures[:3], "a") == 1
    assert found(pictures[:3], "a") == 0
    assert found(pictures[:3], "b") == 1, "another encoder or layer"
    assert found(pictures[:4], "b") == 1, "another set of pictures"
    (tmp_path / "features" / "pictures.json").unlink()
    assert found(pictures[:4], "b") == 1, "killed before they were whole"


def test_a_picture_that_cannot_be_read_is_named(sense: Sense, pictures: list[str], tmp_path: Path):
    Path(pictures[2]).write_text("no picture")
    with pytest.raises(BadInput, match=r"002\.png"):
        picture_features(sense, PROCESSOR, pictures[:4], tmp_path / "features", "a")
    assert not (tmp_path / "features" / "pictures.npy").exists()
