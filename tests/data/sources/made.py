"""Small files in the real formats, made for tests."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures

from trisense.chat import Conversation, Text
from trisense.data.sources import media_of
from trisense.media import load_image


def jpeg(seed: int, size: tuple[int, int] = (40, 36)) -> bytes:
    """A picture of one colour that the seed draws."""
    colour = tuple(np.random.default_rng(seed).integers(0, 256, 3).tolist())
    data = io.BytesIO()
    Pictures.new("RGB", size, colour).save(data, "PNG" if seed % 2 else "JPEG")
    return data.getvalue()


def write_json(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def write_lines(file: Path, records: Iterable[Any]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


def write_zip(file: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def write_tar(file: Path, members: Iterable[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(file, "w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def said(conversation: Conversation) -> list[tuple[str, list[str]]]:
    """Each message as its role and its parts, media by the name of their file."""
    return [
        (
            message.role,
            [
                part.text if isinstance(part, Text) else f"[{str(getattr(part, part.type)).rpartition('/')[2]}]"
                for part in message.content
            ],
        )
        for message in conversation.messages
    ]


def pixels(conversation: Conversation) -> list[np.ndarray]:
    """Its pictures, opened."""
    return [np.asarray(load_image(one)) for one in media_of(conversation)]


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Pictures.open(io.BytesIO(data)).convert("RGB"))
