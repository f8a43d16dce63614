"""What a frozen encoder makes of pictures and sounds, computed once and mapped into memory from then on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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


class Features(Mapping[Any, np.ndarray]):
    """features[medium] -> float16 [S, E] of that picture or sound."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray, places: dict[Any, int]):
        self._values, self._offsets, self._places = values, offsets, places

    def __getitem__(self, medium: Any) -> np.ndarray:
        place = self._places[medium]
        return self._values[self._offsets[place] : self._offsets[place + 1]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def refuse(medium: Any, error: BadInput) -> None:
    """What happens to media that cannot be read, unless something else is wished."""
    raise error


@torch.inference_mode()
def frozen_features(
    sense: Sense,
    processor: ImageProcessor | AudioProcessor,
    media: Sequence[Any],
    folder: Path,
    what: object,
    unreadable: Callable[[Any, BadInput], None] = refuse,
) -> Features:
    """The chosen features of pictures or sounds, computed by `sense` where `folder` does not hold them.

    media: paths, or what else `load_image` or `load_audio` reads and is equal where its name is; they are read in this
    order. what: whatever decides about the features (encoder, layer, preprocessing); for other ones all is made anew.
    What a killed process had made is not made again. unreadable: called with each medium that cannot be read, as soon
    as that is known, and each time that features without it are opened; unless it raises, it has no feature vectors.
    Raises BadInput for a disk without room for all of them, before the first is made.
    """
    unique = list(dict.fromkeys(media))
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
    for place in np.flatnonzero(done[: len(unique)] == 0).tolist():
        unreadable(unique[place], _still_unreadable(processor, unique[place], values))
    width = sense.options.width
    if len(done) < len(unique):
        _check_room(processor, len(unique) - len(done), width, folder, sense.name)
        _compute(sense, processor, unique, values, counts, done, unreadable)
        done = _read_counts(counts)
    offsets = np.concatenate([[0], done.cumsum()])
    mapped = np.memmap(values, np.float16, "r", shape=(int(offsets[-1]), width)) if unique else np.zeros((0, width))
    return Features(mapped, offsets, {medium: place for place, medium in enumerate(unique)})


def _still_unreadable(processor: ImageProcessor | AudioProcessor, medium: Any, values: Path) -> BadInput:
    try:
        _read(processor, medium)
    except BadInput as error:
        return error
    return BadInput(f"{medium}: could not be read when features were computed; it can now: remove {values} for that")


def _read_counts(counts: Path) -> np.ndarray:
    """int64 [media that are done]; a number that a kill cut in half is not one."""
    written = counts.read_bytes() if counts.exists() else b""
    return np.frombuffer(written[: len(written) // 8 * 8], np.int64)


def vectors_of(processor: ImageProcessor | AudioProcessor) -> int | None:
    """Feature vectors of one picture or sound; None for sounds that have as many as they are long."""
    if isinstance(processor, ImageProcessor):
        return processor.tokens
    if processor.chunk_seconds is None:
        return None
    return processor.num_tokens(round(processor.chunk_seconds * processor.sampling_rate) // processor.hop_length)


def _check_room(processor: ImageProcessor | AudioProcessor, count: int, width: int, folder: Path, name: str) -> None:
    """Says what disk the features will take, where that is known before, and refuses what does not fit."""
    if (each := vectors_of(processor)) is None:
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
    media: Sequence[Any],
    values: Path,
    counts: Path,
    done: np.ndarray,
    unreadable: Callable[[Any, BadInput], None],
) -> None:
    def read(medium: Any) -> np.ndarray | BadInput:
        try:
            return _read(processor, medium)
        except BadInput as error:
            return error

    with (
        values.open("ab") as vectors,
        counts.open("ab") as numbers,
        ThreadPoolExecutor(4) as readers,
        tqdm(total=len(media), initial=len(done), desc="features", mininterval=5) as bar,
    ):
        vectors.truncate(int(done.sum()) * sense.options.width * FLOAT16)
        numbers.truncate(8 * len(done))
        for start in range(len(done), len(media), BATCH):
            part = media[start : start + BATCH]
            found = list(readers.map(read, part))
            for medium, one in zip(part, found, strict=True):
                if isinstance(one, BadInput):
                    unreadable(medium, one)
            there = {place: one for place, one in enumerate(found) if not isinstance(one, BadInput)}
            made = _encoded(sense, processor, list(there.values())) if there else []
            vectors.write(b"".join(one.astype(np.float16).tobytes() for one in made))
            vectors.flush()
            os.fsync(vectors.fileno())  # the vectors are there before anything says so
            lengths = np.zeros(len(part), np.int64)
            lengths[list(there)] = [len(one) for one in made]
            numbers.write(lengths.tobytes())
            numbers.flush()
            bar.update(len(part))


def _read(processor: ImageProcessor | AudioProcessor, medium: Any) -> np.ndarray:
    """pixel_values [3, H, W] of a picture or input_features [M, F] of a sound."""
    if isinstance(processor, ImageProcessor):
        return processor(load_image(medium))
    return processor(load_audio(medium, sampling_rate=processor.sampling_rate))


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
