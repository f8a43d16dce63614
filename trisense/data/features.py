"""What a frozen encoder makes of pictures and sounds, computed once and mapped into memory from then on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from trisense.errors import BadInput
from trisense.media import load_audio, load_image
from trisense.model.senses import Sense
from trisense.preprocess import AudioProcessor, ImageProcessor

# Media that go through the encoder at once.
BATCH = 32
FLOAT16 = 2  # bytes

# Letters: N media, S feature vectors of one medium, E width of the features, M mel bins, F log-mel frames.


class Features(Mapping[str, np.ndarray]):
    """features[path] -> float16 [S, E] of that picture or sound."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray, places: dict[str, int]):
        self._values, self._offsets, self._places = values, offsets, places

    def __getitem__(self, path: str) -> np.ndarray:
        place = self._places[path]
        return self._values[self._offsets[place] : self._offsets[place + 1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@torch.inference_mode()
def frozen_features(
    sense: Sense, processor: ImageProcessor | AudioProcessor, paths: Sequence[str], folder: Path, what: object
) -> Features:
    """The chosen features of the pictures or sounds at `paths`, computed by `sense` where `folder` does not hold them.

    what: whatever decides about the features (encoder, layer, preprocessing); for other ones all is made anew. What a
    killed process had made is not made again. Raises BadInput for a medium that cannot be read, by its name, and for a
    disk without room for all of them, before the first is made.
    """
    unique = sorted(set(paths))
    card = json.dumps({"what": what, "media": unique}, sort_keys=True, default=str)
    # Vectors one after the other, and how many of them each medium has; what is written in both is done.
    note, values, counts = (folder / f"{sense.name}.{kind}" for kind in ("json", "f16", "counts"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (note.exists() and note.read_text(encoding="utf-8") == card):
        for old in (note, values, counts):
            old.unlink(missing_ok=True)
        aside = note.with_suffix(".part")
        aside.write_text(card, encoding="utf-8")
        os.replace(aside, note)
    done = _read_counts(counts)
    width = sense.options.width
    if len(done) < len(unique):
        _check_room(processor, len(unique) - len(done), width, folder, sense.name)
        _compute(sense, processor, unique, values, counts, done)
        done = _read_counts(counts)
    offsets = np.concatenate([[0], done.cumsum()])
    mapped = np.memmap(values, np.float16, "r", shape=(int(offsets[-1]), width)) if unique else np.zeros((0, width))
    return Features(mapped, offsets, {path: place for place, path in enumerate(unique)})


def _read_counts(counts: Path) -> np.ndarray:
    """int64 [media that are done]; a number that a kill cut in half is not one."""
    written = counts.read_bytes() if counts.exists() else b""
    return np.frombuffer(written[: len(written) // 8 * 8], np.int64)


def _check_room(processor: ImageProcessor | AudioProcessor, count: int, width: int, folder: Path, name: str) -> None:
    """Says what disk the features will take, where that is known before, and refuses what does not fit."""
    if isinstance(processor, ImageProcessor):
        each = processor.tokens
    elif processor.chunk_seconds is not None:
        each = processor.num_tokens(round(processor.chunk_seconds * processor.sampling_rate) // processor.hop_length)
    else:
        tqdm.write(f"features of {count:,} {name}s, in {folder}")
        return
    need, free = count * each * width * FLOAT16, shutil.disk_usage(folder).free
    tqdm.write(f"features of {count:,} {name}s take {need / 1e6:,.1f} MB in {folder}")
    if need > free:
        raise BadInput(
            f"{folder}: the features of {count:,} {name}s take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; "
            "name a folder on another disk (--out)"
        )


def _compute(
    sense: Sense,
    processor: ImageProcessor | AudioProcessor,
    paths: Sequence[str],
    values: Path,
    counts: Path,
    done: np.ndarray,
) -> None:
    with (
        values.open("ab") as vectors,
        counts.open("ab") as numbers,
        ThreadPoolExecutor(4) as readers,
        tqdm(total=len(paths), initial=len(done), desc="features", mininterval=5) as bar,
    ):
        vectors.truncate(int(done.sum()) * sense.options.width * FLOAT16)
        numbers.truncate(8 * len(done))
        for start in range(len(done), len(paths), BATCH):
            part = paths[start : start + BATCH]
            made = _encoded(sense, processor, list(readers.map(lambda path: _read(processor, path), part)))
            vectors.write(np.concatenate(made).astype(np.float16).tobytes())
            vectors.flush()
            os.fsync(vectors.fileno())  # the vectors are there before anything says so
            numbers.write(np.array([len(one) for one in made], np.int64).tobytes())
            numbers.flush()
            bar.update(len(part))


def _read(processor: ImageProcessor | AudioProcessor, path: str) -> np.ndarray:
    """pixel_values [3, H, W] of a picture or input_features [M, F] of a sound."""
    if isinstance(processor, ImageProcessor):
        return processor(load_image(path))
    return processor(load_audio(path, sampling_rate=processor.sampling_rate))


def _encoded(sense: Sense, processor: ImageProcessor | AudioProcessor, media: list[np.ndarray]) -> list[np.ndarray]:
    """The features [S, E] of each medium. Raises BadInput when they are not as many or as wide as the design says."""
    device = next(sense.encoder.parameters()).device
    longest = max(one.shape[-1] for one in media)
    padded = np.stack([np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, longest - one.shape[-1])]) for one in media])
    mask = None
    if isinstance(processor, AudioProcessor):
        frames = torch.tensor([one.shape[-1] for one in media])
        mask = (torch.arange(longest) < frames[:, None]).to(device)  # [N, F]
        expected = [processor.num_tokens(one.shape[-1]) for one in media]
    else:
        expected = [processor.tokens] * len(media)
    features = sense.encode(torch.from_numpy(padded).to(device), mask)  # [N, S, E]
    lengths = sense.lengths(features, mask).tolist()
    if lengths != expected or features.shape[2] != sense.options.width or max(lengths) > features.shape[1]:
        raise BadInput(
            f"design: {sense.name}s become {lengths[0]} features of width {features.shape[2]}, expected {expected[0]} "
            f"of {sense.options.width}"
        )
    return [one[:length].float().cpu().numpy() for one, length in zip(features, lengths, strict=True)]
