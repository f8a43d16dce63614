"""What a frozen encoder makes of pictures, computed once and mapped into memory from then on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from trisense.errors import BadInput
from trisense.media import load_image
from trisense.model.senses import Sense
from trisense.preprocess import ImageProcessor

# Pictures that go through the encoder at once.
BATCH = 32


class PictureFeatures:
    """features[path] -> float16 [S, E] of that picture."""

    def __init__(self, values: np.ndarray, places: dict[str, int]):
        self._values, self._places = values, places

    def __getitem__(self, path: str) -> np.ndarray:
        return self._values[self._places[path]]


@torch.inference_mode()
def picture_features(
    sense: Sense, processor: ImageProcessor, paths: Sequence[str], folder: Path, what: object
) -> PictureFeatures:
    """The chosen features of the pictures at `paths`, computed by `sense` where `folder` does not hold them yet.

    what: whatever decides about the features (encoder, layer, preprocessing); other features are made anew. The file is
    written aside and renamed. Raises BadInput for a picture that cannot be read, before anything else is lost.
    """
    unique = sorted(set(paths))
    card = json.dumps({"what": what, "pictures": unique}, sort_keys=True, default=str)
    file, note = folder / "pictures.npy", folder / "pictures.json"
    if not (file.exists() and note.exists() and note.read_text(encoding="utf-8") == card):
        folder.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        _compute(sense, processor, unique, file)
        aside = note.with_suffix(".part")
        aside.write_text(card, encoding="utf-8")
        os.replace(aside, note)
    return PictureFeatures(np.load(file, mmap_mode="r"), {path: place for place, path in enumerate(unique)})


def _compute(sense: Sense, processor: ImageProcessor, paths: Sequence[str], file: Path) -> None:
    aside = file.with_suffix(".part")
    shape = (len(paths), processor.tokens, sense.options.width)
    values = open_memmap(aside, mode="w+", dtype=np.float16, shape=shape)
    device = next(sense.encoder.parameters()).device
    with ThreadPoolExecutor(4) as readers, tqdm(total=len(paths), desc="features", mininterval=5) as bar:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            pixels = np.stack(list(readers.map(lambda path: processor(load_image(path)), part)))  # [N, 3, H, W]
            features = sense.encode(torch.from_numpy(pixels).to(device)).float().cpu().numpy()  # [N, S, E]
            if features.shape[1:] != shape[1:]:
                raise BadInput(f"design: pictures become {features.shape[1:]} features, expected {shape[1:]}")
            values[start : start + len(part)] = features
            bar.update(len(part))
    values.flush()
    del values
    os.replace(aside, file)
