"""Pictures and utterances of the small world, drawn and spoken once, kept on disk as arrays.

Questions are not stored: they are made from the facts whenever a batch needs them, so a bank of some ten thousand media
serves any number of different conversations.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from trisense.data.world.contexts import make_scene, make_utterance
from trisense.data.world.draw import draw
from trisense.data.world.facts import Scene, Split, Topic, Utterance
from trisense.data.world.speech import speak
from trisense.errors import BadInput
from trisense.preprocess import AudioProcessor

SHARD = 2000
TOPICS: dict[Topic, float] = {"thing": 0.35, "number": 0.1, "person": 0.15, "list": 0.2, "has": 0.2}

# Letters: P pictures, U utterances, F frames of all utterances one after the other, M mel bins.


def scene_at(seed: int, split: Split, index: int) -> Scene:
    return make_scene(random.Random(f"{seed}/{split}/scene/{index}"), split)


def utterance_at(seed: int, split: Split, index: int) -> Utterance:
    rng = random.Random(f"{seed}/{split}/utterance/{index}")
    return make_utterance(rng, rng.choices(list(TOPICS), list(TOPICS.values()))[0], {}, split)


class Bank:
    """Pictures uint8 [P, S, S, 3], mapped from disk, and `mels` float16 [F, M], in memory, with their `scenes` and
    `utterances`.

    The sound of utterance i is `mels[offsets[i] : offsets[i + 1]]`, its log-mel `input_features` transposed.
    """

    def __init__(self, folder: Path, pictures: int, utterances: int, seed: int, size: int, sounds: AudioProcessor):
        """Opens the bank in `folder`, drawing and speaking what is missing, in as many processes as there are cores.

        Raises BadInput when the folder holds a bank made otherwise.
        """
        self.seed = seed
        made = {
            "pictures": pictures, "utterances": utterances, "seed": seed, "size": size, "sounds": sounds.model_dump(),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "bank.json"
        if not card.exists():
            write_aside(card, lambda aside: aside.write_text(json.dumps(made)))
        elif _read(card) != made:
            raise BadInput(f"{card}: this bank was made with other options; name another folder or remove it")
        jobs = [
            (_draw_shard, folder / f"pictures-{start}.npy", (start, min(start + SHARD, pictures), seed, size))
            for start in range(0, pictures, SHARD)
        ]
        jobs += [
            (_speak_shard, folder / f"mels-{start}.npz", (start, min(start + SHARD, utterances), seed, sounds))
            for start in range(0, utterances, SHARD)
        ]
        make_shards(jobs)
        shards = [np.load(path, mmap_mode="r") for make, path, _ in jobs if make is _draw_shard]
        self.pictures = shards
        mels, lengths = [], []
        for make, path, _ in jobs:
            if make is _speak_shard:
                shard = np.load(path)
                mels.append(shard["mels"])
                lengths.append(shard["lengths"])
        self.mels = np.concatenate(mels)  # [F, M]
        self.offsets = np.concatenate([[0], np.concatenate(lengths).cumsum()])  # [U + 1]
        self.scenes = [scene_at(seed, "train", i) for i in range(pictures)]
        self.utterances = [utterance_at(seed, "train", i) for i in range(utterances)]

    def picture(self, index: int) -> np.ndarray:
        """uint8 [S, S, 3]."""
        return self.pictures[index // SHARD][index % SHARD]

    def mel(self, index: int) -> np.ndarray:
        """float16 [F, M] of one utterance."""
        return self.mels[self.offsets[index] : self.offsets[index + 1]]

    def sound(self, index: int) -> tuple[np.ndarray, str]:
        """Its log-mel [frames, M] and its words."""
        return self.mel(index), self.utterances[index].words

    @cached_property
    def _found(self) -> dict[tuple[str | None, ...], list[int]]:
        found: dict[tuple[str | None, ...], list[int]] = defaultdict(list)
        for index, u in enumerate(self.utterances):
            found[(u.topic,)].append(index)
            for key in {*u.kinds, *u.people, u.number} - {""}:
                found[(u.topic, key)].append(index)
            if u.topic == "thing":
                found[("thing", u.kinds[0], u.colours[0] if u.colours else "")].append(index)
        return dict(found)

    def utter(self, rng: random.Random, topic: Topic, wish: dict) -> int:
        """The index of an utterance of a topic that comes as near to the wish as the bank has one."""
        key = wish.get("kind") or wish.get("number") or wish.get("person") or ""
        for wanted in ((topic, key, wish.get("colour")), (topic, key), (topic,)):
            if candidates := self._found.get(wanted):
                return rng.choice(candidates)
        raise BadInput(f"the bank has no utterance of the topic {topic!r}; raise world.utterances")


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Writes aside and renames, so that a kill never leaves half a file."""
    aside = path.with_name(f"{path.stem}.part{path.suffix}")
    write(aside)
    os.replace(aside, path)


def _read(card: Path) -> object:
    try:
        return json.loads(card.read_text())
    except ValueError:
        raise BadInput(f"{card}: not the card of a bank; name another folder or remove it") from None


def make_shards(jobs: Iterable[tuple[Callable[..., None], Path, tuple[Any, ...]]]) -> None:
    """Has `make(path, *arguments)` write every file that is missing, in as many processes as there are cores."""
    todo = [job for job in jobs if not job[1].exists()]
    if not todo:
        return
    # One process a core, each with one thread: threads of a matrix product that wait for a core cost more than the
    # product.
    with (
        patch.dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
        ProcessPoolExecutor(os.cpu_count() or 1, mp_context=get_context("spawn")) as pool,
    ):
        list(pool.map(_make_shard, *zip(*todo, strict=True)))


def _make_shard(make: Callable[..., None], path: Path, arguments: tuple[Any, ...]) -> None:
    write_aside(path, lambda aside: make(aside, *arguments))


def _draw_shard(path: Path, start: int, stop: int, seed: int, size: int) -> None:
    np.save(path, np.stack([np.asarray(draw(scene_at(seed, "train", i), size)[0]) for i in range(start, stop)]))


def _speak_shard(path: Path, start: int, stop: int, seed: int, sounds: AudioProcessor) -> None:
    mels = [sounds(speak(utterance_at(seed, "train", i))).T.astype(np.float16) for i in range(start, stop)]
    np.savez(path, mels=np.concatenate(mels), lengths=np.array([len(mel) for mel in mels]))
