"""What a frozen encoder makes of pictures and sounds, computed once and mapped into memory from then on."""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trisense.data.team import ALONE, Team
from trisense.errors import BadInput
from trisense.media import load_audio, load_image
from trisense.model.senses import Sense
from trisense.preprocess import AudioProcessor, ImageProcessor

# Media that go through the encoder at once.
BATCH = 32
FLOAT16 = 2  # bytes
# Into so many blocks at least the media are split, where there are as many batches of them: each is computed by one
# process, and other processes than those that began shall find about the same work for each of them.
BLOCKS = 16
# Batches between two times at which the processes hear of each other.
ROUND = 8

# Letters: N media, S feature vectors of one medium, E width of the features, M mel bins, F log-mel frames.


class Features(Mapping[Any, np.ndarray]):
    """features[medium] -> float16 [S, E] of that picture or sound."""

    def __init__(self, blocks: Sequence[_Block], width: int):
        """blocks: all of whose media are done."""
        self._places = {medium: place for place, medium in enumerate(one for block in blocks for one in block.media)}
        self._firsts = [block.first for block in blocks]
        self._mapped = [block.mapped(width) for block in blocks]

    def __getitem__(self, medium: Any) -> np.ndarray:
        place = self._places[medium]
        number = bisect_right(self._firsts, place) - 1
        values, offsets = self._mapped[number]
        return values[offsets[place - self._firsts[number]] : offsets[place - self._firsts[number] + 1]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class _Block:
    """Media that follow each other, the first of them number `first` of all, and the files of their features.

    values: vectors one after the other, float16. counts: int64, how many of them each medium has. What is written in
    both is done.
    """

    first: int
    media: Sequence[Any]
    values: Path
    counts: Path

    def done(self) -> np.ndarray:
        """int64 [media that are done]; a number that a kill cut in half is not one."""
        written = self.counts.read_bytes() if self.counts.exists() else b""
        return np.frombuffer(written[: len(written) // 8 * 8], np.int64)

    def mapped(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """All vectors [.., E], and where those of each medium begin, and the last end, int64 [N + 1]."""
        offsets = np.concatenate([[0], self.done().cumsum()])
        if not offsets[-1]:  # an empty file cannot be mapped
            return np.zeros((0, width), np.float16), offsets
        return np.memmap(self.values, np.float16, "r", shape=(int(offsets[-1]), width)), offsets


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
    team: Team = ALONE,
) -> Features:
    """The chosen features of pictures or sounds, computed by `sense` where `folder` does not hold them.

    media: paths, or what else `load_image` or `load_audio` reads and is equal where its name is; they are read in this
    order. what: whatever decides about the features (encoder, layer, preprocessing); for other ones all is made anew.
    What a killed process had made is not made again. unreadable: called with each medium that cannot be read, as soon
    as that is known, and each time that features without it are opened; unless it raises, it has no feature vectors.
    team: the processes that share the work, each of which makes this call, with the same folder; they may be others
    than those that began. All of them learn of every medium that cannot be read, in the same order.
    Raises BadInput for a disk without room for all of them, before the first is made, and in all processes for what one
    of them raises it for.
    """
    unique = list(dict.fromkeys(media))
    note = folder / f"{sense.name}.json"
    card = json.loads(json.dumps({"what": what, "media": unique}, default=str))
    team.told(lambda: _begin(note, card, team.world))
    count = team.together(lambda: _agreed(note, card))[team.rank]
    blocks = list(_blocks(note, unique, count))
    done, unread = team.told(lambda: _made(processor, blocks))
    for place, error in unread.items():
        unreadable(unique[place], error)
    if missing := len(unique) - sum(done):
        team.told(lambda: _check_room(processor, missing, sense.options.width, folder, sense.name))
        unfinished = [block for block, so_far in zip(blocks, done, strict=True) if so_far < len(block.media)]
        _compute(sense, processor, unique, unfinished, missing, unreadable, team)
    return Features(blocks, sense.options.width)


def _begin(note: Path, card: dict[str, Any], processes: int) -> None:
    """Leaves in the folder a card for what is asked for, and no features of anything else."""
    if _count(note, card) is not None:
        return
    note.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    for old in note.parent.glob(f"{note.stem}.*"):
        old.unlink()
    batches = -(-len(card["media"]) // BATCH)
    count = min(batches, processes * -(-BLOCKS // processes))
    aside = note.with_suffix(".part")
    aside.write_text(json.dumps({"blocks": count, **card}), encoding="utf-8")
    os.replace(aside, note)


def _count(note: Path, card: dict[str, Any]) -> int | None:
    """How many blocks the media were split into when their features were begun; None where other ones were, or none."""
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the second after a power cut
        return None
    count = stored.pop("blocks", None)
    return count if stored == card else None


def _agreed(note: Path, card: dict[str, Any]) -> int:
    """The same, as any process finds it after the main one has begun."""
    if (count := _count(note, card)) is None:
        raise BadInput(
            f"{note}: a process does not find there what the main one wrote; --out has to be one folder for all "
            "processes, and --data, --media and the design the same"
        )
    return count


def _blocks(note: Path, media: Sequence[Any], count: int) -> Iterator[_Block]:
    """Cut between batches: so the same media go through the encoder at once, however many processes there are."""
    batches = -(-len(media) // BATCH)
    for number in range(count):
        first, end = (batches * one // count * BATCH for one in (number, number + 1))
        yield _Block(first, media[first:end], *(note.with_suffix(f".{number}.{kind}") for kind in ("f16", "counts")))


def _made(
    processor: ImageProcessor | AudioProcessor, blocks: Sequence[_Block]
) -> tuple[list[int], dict[int, BadInput]]:
    """How many media of each block are done, and by their places those among them that could not be read."""
    done = [block.done() for block in blocks]
    unread = {
        block.first + place: _still_unreadable(processor, block, place)
        for block, counts in zip(blocks, done, strict=True)
        for place in np.flatnonzero(counts == 0).tolist()
    }
    return [len(counts) for counts in done], unread


def _still_unreadable(processor: ImageProcessor | AudioProcessor, block: _Block, place: int) -> BadInput:
    medium = block.media[place]
    if isinstance(found := _read(processor, medium), BadInput):
        return found
    return BadInput(
        f"{medium}: could not be read when features were computed; it can now: remove {block.counts} for that"
    )


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
    unfinished: Sequence[_Block],
    missing: int,
    unreadable: Callable[[Any, BadInput], None],
    team: Team,
) -> None:
    """Each process computes blocks that follow each other. Now and then they tell each other how far they are, which
    media cannot be read, and what has failed."""
    first, end = (len(unfinished) * one // team.world for one in (team.rank, team.rank + 1))
    own = _batches(sense, processor, unfinished[first:end])

    def some() -> tuple[int, dict[int, BadInput]]:
        seen = 0
        for size, unread in islice(own, ROUND):
            seen += size
            if unread:
                return seen, unread
        return seen, {}

    bar = tqdm(total=len(media), initial=len(media) - missing, desc="features", mininterval=5, disable=not team.main)
    with closing(own), bar:
        for found in iter(lambda: team.together(some), [(0, {})] * team.world):
            for place, error in (one for _, unread in found for one in unread.items()):
                unreadable(media[place], error)
            bar.update(sum(seen for seen, _ in found))


def _batches(
    sense: Sense, processor: ImageProcessor | AudioProcessor, blocks: Sequence[_Block]
) -> Generator[tuple[int, dict[int, BadInput]]]:
    """Of each batch how many media it has, and by their places those that cannot be read. It is written, and they are
    done without a feature, when the next one is asked for."""
    with ThreadPoolExecutor(4) as readers:
        for block in blocks:
            done = block.done()
            with block.values.open("ab") as vectors, block.counts.open("ab") as numbers:
                vectors.truncate(int(done.sum()) * sense.options.width * FLOAT16)
                numbers.truncate(8 * len(done))
                for start in range(len(done), len(block.media), BATCH):
                    part = block.media[start : start + BATCH]
                    found = list(readers.map(lambda medium: _read(processor, medium), part))
                    first = block.first + start
                    yield len(part), {first + i: one for i, one in enumerate(found) if isinstance(one, BadInput)}
                    there = {i: one for i, one in enumerate(found) if not isinstance(one, BadInput)}
                    made = _encoded(sense, processor, list(there.values())) if there else []
                    vectors.write(b"".join(one.astype(np.float16).tobytes() for one in made))
                    vectors.flush()
                    os.fsync(vectors.fileno())  # the vectors are there before anything says so
                    lengths = np.zeros(len(part), np.int64)
                    lengths[list(there)] = [len(one) for one in made]
                    numbers.write(lengths.tobytes())
                    numbers.flush()


def _read(processor: ImageProcessor | AudioProcessor, medium: Any) -> np.ndarray | BadInput:
    """pixel_values [3, H, W] of a picture or input_features [M, F] of a sound; why, where it cannot be read."""
    try:
        if isinstance(processor, ImageProcessor):
            return processor(load_image(medium))
        return processor(load_audio(medium, sampling_rate=processor.sampling_rate))
    except BadInput as error:
        return BadInput(str(error))  # of a class that pickles, for other processes


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
