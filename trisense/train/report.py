"""What a run says: a progress bar, `log.jsonl`, `speed.jsonl` and trackers; at the end a card with a plot."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.stage import Stage
from trisense.train.card import CARD, write_card
from trisense.train.disk import full_disk, write_text
from trisense.train.plot import Font, line_plot, save_plot
from trisense.train.processes import Processes
from trisense.train.speed import counting, memory, peak
from trisense.train.trackers import Tracker, open_trackers

# What was learned, the same for a run that was killed; and how fast, which never is.
LOG, SPEED = "log.jsonl", "speed.jsonl"
# Pixels of a sample's picture in TensorBoard.
SHOWN = 256


@dataclass(frozen=True)
class Answer:
    """What a model said to a held-back question, beside the truth. picture: uint8 [H, W, 3] that it was shown."""

    question: str
    said: str
    truth: str
    picture: np.ndarray | None = None

    def __str__(self) -> str:
        asked = f"{self.question} -> " if self.question else ""
        return f"{asked}{self.said} | {self.truth}"


@dataclass
class Report:
    """The report of a run in `out`. Every process counts; the main one writes and speaks.

    where: the processes in words. about: what its card says of where it comes from, by name. From `window` on:
    what has been counted, which checkpoints keep.
    """

    out: Path
    stage: Stage
    processes: Processes
    where: str
    about: Mapping[str, str] = field(default_factory=dict)
    tracker: str | None = None
    # Losses of the steps since the last line of the log.
    window: list[float] = field(default_factory=list)
    total: float = 0.0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    # Floating-point operations per token, or per sample, as those of the run's first step.
    operations: float = 0.0

    def __post_init__(self) -> None:
        self._trackers: list[Tracker] = []
        self._bar: tqdm | None = None
        self._since = (0, 0, 0.0)  # samples, tokens, seconds at the last line

    def counted(self) -> dict[str, Any]:
        return {
            "window": list(self.window), "total": self.total, "samples": self.samples, "tokens": self.tokens,
            "seconds": self.seconds, "operations": self.operations,
        }  # fmt: skip

    def begin(self, done: int, model: nn.Module) -> None:
        """Goes on from step `done`, and says on what and with what."""
        self._since = (self.samples, self.tokens, self.seconds)
        if not self.processes.main:
            return
        (self.out / CARD).unlink(missing_ok=True)
        for file in (LOG, SPEED):
            forget_after(self.out / file, done)
        self._trackers = open_trackers(self.out, self.tracker, self.stage.model_dump(mode="json"), done)
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in model.parameters())
        goes_on = f", goes on after step {done}" if done else ""
        tqdm.write(f"{self.out.name}: {self.where}; {learning:,} of {every:,} parameters learn{goes_on}", sys.stderr)
        self._bar = tqdm(total=self.stage.steps, initial=done, desc=self.out.name, mininterval=5)

    @contextmanager
    def step(self, model: nn.Module, batches: Sequence[Batch]) -> Iterator[None]:
        """Around forward and backward of a step: takes its time and, the first time, counts its operations."""
        began = time.perf_counter()
        if self.operations:
            yield
        else:
            with counting(model, sum(batch.items for batch in batches)) as operations:
                yield
            self.operations = operations.count / max(1, sum(map(work_of, batches)))
        self.seconds += time.perf_counter() - began

    def stepped(self, done: int, loss: float, norm: float, lr: float, samples: int, tokens: int) -> None:
        """After a step: its loss; samples and tokens of all processes."""
        self.window.append(loss)
        self.total += loss
        self.samples += samples
        self.tokens += tokens
        if self._bar is not None:
            self._bar.update()
        if done % self.stage.log_every and done != self.stage.steps:
            return
        values = {
            "loss": math.fsum(self.window) / len(self.window),
            "loss_cumulative": self.total / done,
            "grad_norm": norm,
            "lr": lr,
        }
        self.window.clear()
        speed = self._speed()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {values['loss']:.3f}, {_said(speed)}")
            self._write(LOG, done, values)
            self._write(SPEED, done, speed)
            for tracker in self._trackers:
                tracker.scalars(done, {**values, **{f"speed/{name}": value for name, value in speed.items()}})

    def evaluated(self, done: int, values: Mapping[str, float], answers: Sequence[Answer]) -> None:
        if self._bar is None:
            return
        self._write(LOG, done, values)
        text = "".join(f"\n  {answer}" for answer in answers)
        pictures = {f"samples/{i}": captioned(a) for i, a in enumerate(answers) if a.picture is not None}
        for tracker in self._trackers:
            tracker.scalars(done, values)
            if answers:
                tracker.samples(done, text, pictures)
        if answers:
            shown = [{key: getattr(answer, key) for key in ("question", "said", "truth")} for answer in answers]
            record = json.dumps({"step": done, "answers": shown}, ensure_ascii=False)
            write_text(self.out / "samples.json", f"{record}\n")
        said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        tqdm.write(f"{self.out.name} step {done}: {said}{text}")

    def finish(self) -> None:
        """Draws the curve and writes the card, where there is none yet."""
        if not self.processes.main or (self.out / CARD).exists():
            return
        rows = read_log(self.out / LOG)
        curve = [row for row in rows if "loss" in row]
        steps = [row["step"] for row in curve]
        lines = {
            f"mean of the last {self.stage.log_every} steps": (steps, [row["loss"] for row in curve]),
            "cumulative: mean since step 1": (steps, [row["loss_cumulative"] for row in curve]),
        }
        save_plot(line_plot(lines, self.out.name, "step", "loss"), self.out / "loss.png")
        speed = f"{_said(read_log(self.out / SPEED)[-1])}, of {self._peak()[0] / 1e9:,.0f} GFLOP/s ({self._peak()[1]})"
        about = {**self.about, "speed at the end": speed}
        write_card(self.out, self.stage, self.processes, self.where, about, rows, self.counted())

    def close(self) -> None:
        """Ends what is open; a disk that is full while an error is under way is not said again."""
        if self._bar is not None:
            self._bar.close()
        failing = sys.exc_info()[0] is not None
        for tracker in self._trackers:
            try:
                tracker.close()
            except Exception:
                if not failing:
                    raise

    def _speed(self) -> dict[str, float]:
        """Of all processes, since the last line: training alone, without evaluating and saving."""
        samples, tokens, seconds = self.samples - self._since[0], self.tokens - self._since[1], 0.0
        seconds = max(self.seconds - self._since[2], 1e-9)
        self._since = (self.samples, self.tokens, self.seconds)
        able = self._peak()[0]
        operations = self.operations * (tokens or samples)
        values = {"samples_per_second": samples / seconds}
        if tokens:
            values["tokens_per_second"] = tokens / seconds
        return {
            **values,
            "mfu": operations / seconds / able,
            "memory_gb": memory(self.processes.device) / 1e9,
            "seconds": self.seconds,
        }

    def _peak(self) -> tuple[float, str]:
        """That of all processes, and whether it is known or measured."""
        dtype = torch.bfloat16 if self.stage.precision == "bf16" else torch.float32
        able, how = peak(self.processes.device, dtype)
        return able * self.processes.world, how

    def _write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        line = json.dumps({"step": step, **values}) + "\n"
        with full_disk(self.out / name, len(line)), (self.out / name).open("a", encoding="utf-8") as file:
            file.write(line)


def samples_of(batch: Batch) -> int:
    """Rows of the batch; of packed rows what is packed in them, each branch of a fan for itself."""
    if "segments" not in batch.inputs:
        return next((len(tensor) for tensor in batch.inputs.values() if tensor.dim()), 0)
    count = 0
    for segments, branches in zip(batch.inputs["segments"], batch.inputs["branches"], strict=True):
        real = segments >= 0
        found = set(zip(segments[real].tolist(), branches[real].tolist(), strict=True))
        fans = {segment for segment, branch in found if branch > 0}
        count += sum(branch > 0 or segment not in fans for segment, branch in found)
    return count


def tokens_of(batch: Batch) -> int:
    """Real tokens, padding aside; 0 where the batch holds none."""
    ids, mask = batch.inputs.get("input_ids"), batch.inputs.get("attention_mask")
    if ids is None:
        return 0
    if "segments" in batch.inputs:
        return int((batch.inputs["segments"] >= 0).sum())
    if mask is None:
        return ids.numel()
    if mask.dim() == 4:  # [B, 1, T, T]: padding is seen by padding alone, what is real sees itself
        return int(mask.diagonal(dim1=2, dim2=3).sum())
    return int(mask.sum())


def work_of(batch: Batch) -> int:
    """What its operations grow with."""
    return tokens_of(batch) or samples_of(batch)


def captioned(answer: Answer) -> np.ndarray:
    """Its picture with what was asked, said and true below: uint8 [H, SHOWN, 3]."""
    assert answer.picture is not None
    picture = Image.fromarray(answer.picture).convert("RGB")
    picture.thumbnail((SHOWN, SHOWN))
    font = ImageFont.load_default(12)
    texts = (answer.question, f"said: {answer.said}", f"true: {answer.truth}")
    lines = [line for text in texts if text for line in _wrapped(text, font)]
    canvas = Image.new("RGB", (SHOWN, picture.height + 16 * len(lines) + 6), "white")
    canvas.paste(picture, ((SHOWN - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((3, picture.height + 3 + 16 * number), line, "black", font)
    return np.asarray(canvas)


def _wrapped(text: str, font: Font) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > SHOWN - 6 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _said(speed: Mapping[str, float]) -> str:
    tokens = f"{speed['tokens_per_second']:,.0f} tokens/s, " if "tokens_per_second" in speed else ""
    return f"{tokens}{speed['samples_per_second']:,.1f} samples/s, {speed['memory_gb']:.2f} GB, MFU {speed['mfu']:.0%}"


def read_log(log: Path) -> list[dict[str, float]]:
    """Its lines; one that a kill has cut short is left out."""
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def forget_after(log: Path, step: int) -> None:
    """Drops the lines of steps that a killed run had logged but not saved: they are about to be done again."""
    if log.exists():
        write_text(log, "".join(json.dumps(row) + "\n" for row in read_log(log) if row["step"] <= step))
