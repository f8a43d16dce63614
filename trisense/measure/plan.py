"""What a stage on files will take before it runs: memory, the batch that fits, time and disk."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from trisense.data.batches import WINDOW, Batch
from trisense.data.features import FLOAT16, vectors_of
from trisense.data.sources import Source, open_source
from trisense.errors import BadInput
from trisense.measure.memory import Costs, Memory
from trisense.measure.published import PUBLISHED, Drawn
from trisense.model.pretrained import load_processor
from trisense.model.trained import staged
from trisense.recipe import Recipe
from trisense.stage import FileStage, Packing
from trisense.train.report import samples_of
from trisense.train.samples import HELD_BACK, Learned, Samples, Shown, batches_of, media_in
from trisense.train.speed import MEMORIES, PEAKS, peak

# Samples of a file that are looked at, spread over it; pictures that are drawn of a published data set.
LOOKED_AT, DRAWN = 1000, 300
# Share of a device's peak that training reaches: assumptions.
MFU = {"cuda": 0.3, "cpu": 0.5}
# Seconds that an operation of torch takes at least, however little it computes: small batches wait for Python.
CALL = {"cuda": 1e-5, "cpu": 0.0}
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Data:
    """What a stage learns from. samples, pictures: of all of it. some: those that are looked at;
    held: as many as are evaluated with."""

    title: str
    samples: int
    pictures: int
    some: Learned
    held: Sequence[int]
    features: Shown | None = None

    def batches(self, stage: FileStage) -> list[Batch]:
        """The first batches of a stage: all of one round of the samples that are looked at, or of all its steps."""
        some = copy.copy(self.some)
        some.stage = stage
        batch_at = batches_of(some, self.features or {})
        found, count, steps = [], 0, stage.steps * stage.accumulate
        # Batches of like length come in windows, each of which has long ones and short ones.
        while len(found) < steps and (count < len(some.pool) or len(found) % WINDOW):
            found.append(batch_at(len(found)))
            count += samples_of(found[-1])
        return found

    def supervised(self, size: int) -> int:
        """The most tokens that are evaluated at once, `size` samples at a time."""
        lengths = [self.some.lengths[index] + 1 for index in self.held]
        return max(sum(lengths[start : start + size]) for start in range(0, len(lengths), size))


@dataclass(frozen=True)
class Fit:
    """What fits into the memory there is. key: the setting that says how large a batch is; now, most: its value in the
    recipe and the largest that fits."""

    key: str
    now: Any
    most: Any


@dataclass(frozen=True)
class Plan:
    """One stage.

    memory: of one device, at most. rows, tokens: of its largest batch. operations: floating-point operations of a mean
    step on one device; calls: operations of torch. passes: how often every sample is learned. disk: bytes by what is
    kept.
    """

    stage: str
    learns: str
    device: str
    gpus: int
    memory: Memory
    rows: int
    tokens: int
    room: int | None
    fit: Fit | None
    steps: int
    samples_per_step: float
    passes: float
    operations: float
    calls: float
    speed: float
    mfu: float
    disk: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        memory = {"parts": self.memory.parts, "total": self.memory.total, "where": self.memory.where}
        return vars(self) | {
            "memory": memory,
            "fit": self.fit and vars(self.fit),
            "hours": self.hours,
            "steps_per_day": self.steps_per_day,
        }

    def __str__(self) -> str:
        """What `trisense plan` prints of a stage."""
        per_day = self.samples_per_step * self.steps_per_day
        of = f" of {self.room / 1e9:.1f}" if self.room else ""
        where = "GPU" if self.device == "cuda" else "process"
        rows = [
            (f"memory of a {where}", f"{self.memory.total / 1e9:.2f}{of} GB, at most in {self.memory.where}"),
            *((f"  {name}", f"{size / 1e9:.2f} GB") for name, size in self.memory.parts.items()),
            ("largest batch", f"{self.rows} x {self.tokens} tokens{self._fitting()}"),
            ("time", f"{self.hours:,.1f} h for {self.steps:,} steps, {self.steps_per_day:,.0f} steps a day"),
            ("", f"{per_day:,.0f} samples a day; all steps are {self.passes:.2g} times through the data"),
            (
                "",
                f"{self.operations / 1e9:,.0f} GFLOP a step, at {self.mfu:.0%} of {self.speed / 1e12:,.3g} TFLOP/s",
            ),
            ("disk", f"{sum(self.disk.values()) / 1e9:.2f} GB"),
            *((f"  {name}", f"{size / 1e9:.2f} GB") for name, size in self.disk.items()),
        ]
        return "\n".join([f"{self.stage} ({self.learns})", *(f"  {name:<44}{said}" for name, said in rows)])

    def _fitting(self) -> str:
        if self.fit is None:
            return ""
        key = f"stages.{self.stage}.{self.fit.key}"
        fits = self.memory.total <= cast(int, self.room)
        most = str(self.fit.most).replace("'", "")
        return f"; {key} fits up to {most}" if fits else f", which does NOT fit; give {key}={most.replace(' ', '')}"

    @property
    def steps_per_day(self) -> float:
        return 86400 / max(self.operations / (self.speed * self.mfu), self.calls * CALL[self.device])

    @property
    def hours(self) -> float:
        return 24 * self.steps / self.steps_per_day


def plan_stage(
    recipe: Recipe,
    name: str,
    data: Data,
    *,
    device: str = "cuda",
    room: int | None = None,
    gpus: int = 1,
    speed: float | None = None,
    mfu: float | None = None,
) -> Plan:
    """Predicts a stage on files; nothing is loaded but configurations and a tokenizer.

    device: `cuda` or `cpu`. room: bytes of one device; the largest batch is looked for where it is given. speed:
    floating-point operations a second that a device can do; default: of the slowest known GPU with so much memory, of a
    CPU as measured here. mfu: the share of it that is reached.
    """
    stage = cast(FileStage, recipe.stages[name])
    design = staged(recipe, name)
    every = data.batches(stage)
    largest = max(every, key=_size)
    costs = Costs.of(design, stage, device, gpus)
    memory = costs.memory(stage, largest, data.supervised(stage.batch_size))
    share = float(np.mean([_size(batch) for batch in every])) / _size(largest)
    samples = float(np.mean([samples_of(batch) for batch in every])) * stage.accumulate * gpus
    return Plan(
        stage=name,
        learns=stage.learns,
        device=device,
        gpus=gpus,
        memory=memory,
        rows=largest.inputs["input_ids"].shape[0],
        tokens=largest.inputs["input_ids"].shape[1],
        room=room,
        fit=None if room is None else _fit(costs, stage, data, room, memory.total),
        steps=stage.steps,
        samples_per_step=samples,
        passes=samples * stage.steps / data.samples,
        operations=memory.step.operations * share * stage.accumulate,
        calls=memory.step.calls * stage.accumulate,
        speed=speed or (peak(torch.device("cpu"), torch.float32)[0] if device == "cpu" else slowest(room)),
        mfu=mfu or MFU[device],
        disk=_disk(costs, stage, data.pictures),
    )


def look_at(recipe: Recipe, name: str, data: str | os.PathLike[str], media: Path | None = None, seed: int = 0) -> Data:
    """What a stage would learn from. data: `coco` or `llava`, for which published counts stand, or what `open_source`
    takes. Raises BadInput for a stage that does not learn from conversations, for data that is neither, and whatever
    `open_source`, `load_processor` and `Samples.of` refuse."""
    stage = recipe.stages.get(name)
    if not isinstance(stage, FileStage):
        known = ", ".join(key for key, one in recipe.stages.items() if isinstance(one, FileStage)) or "none"
        raise BadInput(f"recipe {recipe.name} has no stage {name!r} that learns from conversations; it has {known}")
    design = staged(recipe, name)
    if (known := PUBLISHED.get(str(data))) is not None:
        if design.pictures is None or "image" not in design.senses:
            raise BadInput(f"--data {data}: shows pictures, and the design of {recipe.name} has no eyes")
        drawn = Drawn(known.kind, design, stage, DRAWN, seed)
        if not drawn.pool:
            raise BadInput(f"--data {data}: stages.{name}.answers leaves no sample of it")
        count = round(known.samples * len(drawn.pool) / drawn.count)
        return Data(known.title, count, known.pictures, drawn, drawn.pool[:HELD_BACK])
    if re.fullmatch(r"\w+", str(data)) and not Path(data).exists():
        raise BadInput(f"--data {data}: neither {' nor '.join(PUBLISHED)}, whose counts are known, nor a file")
    source = open_source(data, media, turns=stage.turns, pictures=design.pictures)
    source.check_media()
    processor = load_processor(design)
    samples = Samples.of(_Some(source), stage, processor, seed, context=1 << 30)
    reads = {"image": processor.image, "audio": processor.audio}
    features = {
        name: _Blank(vectors_of(one) or 1, design.senses[name]["width"])
        for name, one in reads.items()
        if one is not None and name in design.senses
    }
    share = len(source) / len(samples.source)
    pictures = len(set(map(str, media_in(map(samples.conversation, samples.pool))["image"])))
    counts = round(len(samples.pool) * share), round(pictures * share)
    return Data(Path(data).name, *counts, samples, samples.held, cast(Any, features))


def bytes_of(text: str) -> int:
    """Bytes of an amount of memory such as `24GB` or `80GiB`. Raises BadInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Z]+)", text.strip().upper())
    if match is None or match[2] not in UNITS or not float(match[1]):
        like = f"{text.strip()}GB" if re.fullmatch(r"[1-9]\d*", text.strip()) else "24GB"
        raise BadInput(f"--gpu {text}: expected the memory of one GPU with its unit, such as {like}")
    return round(float(match[1]) * UNITS[match[2]])


def slowest(room: int | None) -> float:
    """Operations a second of the slowest GPU of `PEAKS` among the smallest that have so many bytes of memory."""
    sizes = sorted(size for size in set(MEMORIES.values()) if room is None or size * UNITS["GIB"] >= room)
    size = sizes[0] if sizes else max(MEMORIES.values())
    return min(value for card, value in PEAKS.items() if MEMORIES[card] == size)


class _Some(Source):
    """Samples of a source, spread over it."""

    def __init__(self, source: Source):
        self._source = source
        self._places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(np.int64)).tolist()
        self.name, self.fingerprint, self.store, self.left_out = source.name, source.fingerprint, source.store, {}

    def __len__(self) -> int:
        return len(self._places)

    def where(self, index: int) -> str:
        return self._source.where(self._places[index])

    def _make(self, index: int) -> Any:
        return self._source[self._places[index]]


class _Blank(Mapping[Any, np.ndarray]):
    """Features [S, E] of any medium, which take no memory."""

    def __init__(self, vectors: int, width: int):
        self._values = np.broadcast_to(np.float16(0), (vectors, width))

    def __getitem__(self, medium: Any) -> np.ndarray:
        return self._values

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def _size(batch: Batch) -> int:
    return batch.inputs["input_ids"].numel()


def _fit(costs: Costs, stage: FileStage, data: Data, room: int, now: int) -> Fit:
    """From the recipe's batch, one of twice its size and one of one sample: memory grows evenly with the batch."""

    def takes(one: FileStage) -> int:
        batch = max(data.batches(one), key=_size)
        return costs.memory(one, batch, data.supervised(one.batch_size)).total

    least = takes(_scaled(stage, 0))
    twice = takes(_scaled(stage, 2))
    key, value = _setting(stage)
    if least > room:
        raise BadInput(_too_small(costs, stage, least, room))
    times = 1 + (room - now) / max(twice - now, 1)
    if now > room:
        times = (room - least) / (now - least)
    return Fit(key, value, _setting(_scaled(stage, times))[1])


def _too_small(costs: Costs, stage: FileStage, least: int, room: int) -> str:
    ways = []
    if costs.design.quantisation is None:
        ways.append("keep the language model in 4 bits with design.quantisation={}")
    if not stage.gradient_checkpointing:
        ways.append("give gradient_checkpointing=true to the stage")
    if stage.optimizer != "adamw8bit":
        ways.append("give it optimizer=adamw8bit")
    return (
        f"--gpu: the stage takes {least / 1e9:.2f} GB with one sample a batch, {(least - room) / 1e9:.2f} GB more than "
        f"there are; {', '.join([*ways, 'take a GPU with more memory or a smaller language model'])}"
    )


def _setting(stage: FileStage) -> tuple[str, Any]:
    if stage.packing:
        return "packing.tokens", stage.packing.tokens
    return ("buckets", stage.buckets) if stage.buckets else ("batch_size", stage.batch_size)


def _scaled(stage: FileStage, times: float) -> FileStage:
    """The stage with batches so many times as large, of one sample at least."""
    if stage.packing:
        tokens = max(1, int(stage.packing.tokens * times))
        return stage.model_copy(update={"packing": Packing(tokens=tokens, share=stage.packing.share)})
    if stage.buckets:
        sizes = {longest: max(1, int(size * times)) for longest, size in stage.buckets.items()}
        return stage.model_copy(update={"buckets": sizes})
    return stage.model_copy(update={"batch_size": max(1, int(stage.batch_size * times))})


def _disk(costs: Costs, stage: FileStage, pictures: int) -> dict[str, int]:
    """A checkpoint is written aside and renamed, so there are two for a moment."""
    found, design = {}, costs.design
    if design.pictures and "image" in design.senses:
        each = design.pictures.tokens * design.senses["image"]["width"] * FLOAT16
        found[f"features of {pictures:,} pictures"] = pictures * each
    moments = 8 if stage.optimizer != "adamw8bit" else 2
    found["checkpoint, twice while one is written"] = 2 * costs.learned(stage) * (4 + moments)
    found["trained parts"] = 4 * (costs.projectors + costs.adapter)
    return found
