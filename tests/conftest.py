"""What every test stands on: no network, two threads, and a picture, a voice and a note small enough to read."""

from __future__ import annotations

import os

# Read while libraries are imported, so set before any of them is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import ipaddress
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw

# A busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE: list[str] = []


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host in ("", "localhost")


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse every connection that leaves this machine, and remember it: the code under test may swallow the error."""
    if event not in ("socket.connect", "socket.sendto"):
        return
    address = arguments[1]
    if isinstance(address, tuple) and not _is_loopback(str(address[0])):
        OUTSIDE.append(f"{address[0]}:{address[1]}")
        raise ConnectionRefusedError(f"tests have no network, and this one asked for {address}")


sys.addaudithook(_guard)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[list[str]]:
    """A test that reached for the network fails, even where the code under test carried on without it."""
    OUTSIDE.clear()
    yield OUTSIDE
    assert not OUTSIDE, f"tried to reach {OUTSIDE}"


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `picture.png` (64 x 48, a red disc on white), `voice.wav` (half a second of 440 Hz at 16 kHz,
    mono) and `note.txt`."""
    folder = tmp_path_factory.mktemp("samples")
    picture = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 40, 40), fill=(214, 40, 40))
    picture.save(folder / "picture.png")
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    with wave.open(str(folder / "voice.wav"), "wb") as voice:
        voice.setparams((1, 2, 16000, 0, "NONE", ""))
        voice.writeframes((tone * 32767).astype("<i2").tobytes())
    (folder / "note.txt").write_text("Anna has the red cup.\n", encoding="utf-8")
    return folder
