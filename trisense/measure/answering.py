"""`trisense bench spark`: how fast a small model answers, beside transformers' generate on the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import wave
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image as Picture
from transformers.generation.streamers import BaseStreamer

from trisense.chat import Conversation
from trisense.engines import PACKAGED
from trisense.engines.onnx import OnnxEngine
from trisense.errors import BadInput
from trisense.model.checkpoint import is_model_folder, load_model
from trisense.model.processing import TrisenseProcessor

SECONDS, WORDS, TOKENS = 5.0, 100, 200
QUESTION = "What is in the picture?"
# What a user of transformers would run: the same files, question and folder.
THEIRS = """
import sys
import trisense.model
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, image, audio, text, question = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
parts = [("image", image), ("audio", audio), ("text", open(text).read()), ("text", question)]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": kind, kind: value} for kind, value in parts]}], return_tensors="pt"
)
print(model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
"""


@dataclass(frozen=True)
class Speed:
    """Medians. cold: seconds from the shell to the first word of `trisense ask` and of the same by transformers.
    first_token: seconds from a picture, 5 s of sound and 100 words in memory to the first token of the answer.
    tokens_per_second: of an answer of 200 tokens. Each of this package and of transformers. load: of the machine."""

    model: str
    threads: int
    load: float
    cold: tuple[float, float]
    first_token: tuple[float, float]
    tokens_per_second: tuple[float, float]

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        """Markdown, as the README shows it."""
        (cold, their_cold), (first, their_first), (rate, their_rate) = (
            self.cold,
            self.first_token,
            self.tokens_per_second,
        )
        rows = [
            ("shell to first word, s", f"{cold:.2f}", f"{their_cold:.2f}", their_cold / cold),
            ("first token, loaded, s", f"{first:.3f}", f"{their_first:.3f}", their_first / first),
            ("tokens/s", f"{rate:,.0f}", f"{their_rate:,.0f}", rate / their_rate),
        ]
        title = f"{self.model}, {self.threads} threads, load {self.load:.1f}"
        lines = [f"| {title} | this package | transformers | ratio |", "| --- | --- | --- | --- |"]
        lines += [f"| {name} | {ours} | {theirs} | {ratio:.1f} |" for name, ours, theirs, ratio in rows]
        return "\n".join(lines)


def bench_spark(model: str = "spark", rounds: int = 5) -> Speed:
    """Measures an exported model that has its torch weights beside it, as `spark` has; both sides in turn.

    Raises BadInput for another model.
    """
    folder = PACKAGED if model == "spark" else Path(model)
    if not is_model_folder(folder) or not (folder / "export.json").is_file():
        raise BadInput(f"{model}: expected a folder with an export (export.json) and the weights that it was made of")
    cold, first, rates = [], [], []
    with TemporaryDirectory(prefix="trisense-bench-") as place:
        files = _write(Path(place), *_given(0))
        asked = ["--image", files[0], "--audio", files[1], "--text-file", files[2], QUESTION]
        ours = [sys.executable, "-m", "trisense", "ask", "--model", model, *asked]
        theirs = [sys.executable, "-c", THEIRS, str(folder), *files, QUESTION]
        for turn in range(rounds + 1):  # the first only fills the file cache
            times = _first_word(ours), _first_word(theirs)
            cold += [times] if turn else []
    sides = _Ours(folder), _Theirs(folder)
    for turn in range(rounds + 1):
        conversation = _asked(turn)  # another one each time: nothing that was read before can be used
        times = [side.answer(conversation, TOKENS + 1) for side in sides]
        if turn:
            first.append([to_first for to_first, _ in times])
            rates.append([TOKENS / rest for _, rest in times])
    return Speed(model, torch.get_num_threads(), os.getloadavg()[0], _medians(cold), _medians(first), _medians(rates))


class _Ours:
    def __init__(self, folder: Path):
        self.engine = OnnxEngine(folder)
        self.processor = self.engine.processor
        # No token ends an answer, so that it may have any length.
        endless = self.processor.layout.answer._replace(after="")
        layout = self.processor.layout.model_copy(update={"answer": endless})
        self.engine.processor = replace(self.processor, layout=layout)

    def answer(self, conversation: Conversation, tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and from it to the last."""
        began = time.perf_counter()
        state = self.engine.prefill(self.processor.prompt(conversation))
        times = [time.perf_counter() for _ in self.engine.stream(state, max_new_tokens=tokens)]
        assert len(times) == tokens
        return times[0] - began, times[-1] - times[0]


class _Theirs:
    def __init__(self, folder: Path):
        self.processor = TrisenseProcessor.from_pretrained(folder)
        self.model = load_model(folder, torch.float32).eval()

    @torch.inference_mode()
    def answer(self, conversation: Conversation, tokens: int) -> tuple[float, float]:
        """As `_Ours.answer`."""
        began, clock = time.perf_counter(), _Clock()
        inputs = self.processor.apply_chat_template(conversation, return_tensors="pt")
        self.model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, streamer=clock)
        _, *times = clock.times
        assert len(times) == tokens
        return times[0] - began, times[-1] - times[0]


class _Clock(BaseStreamer):
    """When `generate` hands over the prompt, and then each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def _given(seed: int) -> tuple[Picture.Image, np.ndarray, str]:
    """A picture, 5 s of sound float32 [T] at 16 kHz and 100 words. What they hold does not change how long it takes."""
    rng = np.random.default_rng(seed)
    picture = Picture.fromarray(rng.integers(0, 256, (240, 320, 3), np.uint8))
    sound = rng.normal(0, 0.1, round(SECONDS * 16_000)).clip(-1, 1).astype(np.float32)
    return picture, sound, " ".join(rng.choice(["Ben", "has", "the", "red", "cup"], WORDS))


def _asked(seed: int) -> Conversation:
    picture, sound, text = _given(seed)
    return Conversation.ask(QUESTION, images=[picture], audios=[sound], texts=[text])


def _write(folder: Path, picture: Picture.Image, sound: np.ndarray, text: str) -> list[str]:
    files = [folder / name for name in ("picture.png", "sound.wav", "text.txt")]
    picture.save(files[0])
    with wave.open(str(files[1]), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    files[2].write_text(text)
    return list(map(str, files))


def _first_word(command: list[str]) -> float:
    """Seconds from starting a command to the first byte that it writes."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        said = process.stdout.read(1)
        took = time.perf_counter() - began
        process.stdout.read()
        if process.wait() or not said:
            raise RuntimeError(f"{command}: {process.stderr.read().decode()}")
    return took


def _medians(pairs: list) -> tuple[float, float]:
    ours, theirs = zip(*pairs, strict=True)
    return median(ours), median(theirs)
