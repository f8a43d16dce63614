"""A large JSON file walked through once: where each of its records stands, and nothing else in memory.

Half a million captions take hundreds of megabytes as Python objects; the places where they begin and end take nine, and
a record is read again when it is asked for.
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trisense.data.sources.files import Parts
from trisense.errors import BadInput

WHITE = re.compile(r"[ \t\n\r]*")
MARK = b"\xef\xbb\xbf"  # a byte order mark, which some programs write before UTF-8
DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Spans:
    """Records of one file by their place in bytes: int64 [records] each."""

    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, chosen: np.ndarray) -> Spans:
        return Spans(self.starts[chosen], self.ends[chosen])


NONE = Spans(np.zeros(0, np.int64), np.zeros(0, np.int64))


class Reader:
    """Reads the records of one JSON file again."""

    def __init__(self, file: str | Path):
        self._parts = Parts(file)

    def __call__(self, spans: Spans, number: int) -> Any:
        """Raises ValueError for a record that is no JSON, OSError where the file is another now."""
        start, end = int(spans.starts[number]), int(spans.ends[number])
        try:
            return json.loads(self._parts.read(start, end - start).decode("utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error})") from None
        except UnicodeDecodeError:
            raise ValueError("not UTF-8 text") from None
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None


def is_lines(file: Path) -> bool:
    """Whether a file holds JSON lines: an object on its first line, and another below it."""
    with file.open("rb") as opened:
        lines = (line for raw in opened if (line := raw.removeprefix(MARK).strip()))
        first, second = next(lines, b""), next(lines, b"")
    return first.startswith(b"{") and first.endswith(b"}") and second.startswith(b"{")


def lines(file: Path) -> tuple[Spans, np.ndarray]:
    """The places of all lines that are not empty, and their numbers, counted from 1."""
    starts, ends, numbers = array("q"), array("q"), array("q")
    at = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            begin = at + (len(MARK) if at == 0 and line.startswith(MARK) else 0)
            at += len(line)
            if line.removeprefix(MARK).strip():
                starts.append(begin)
                ends.append(at)
                numbers.append(number)
    return Spans(_numbers(starts), _numbers(ends)), _numbers(numbers)


def walk(file: Path, see: Callable[[str, Any], None]) -> dict[str, Spans]:
    """The elements of a file that is one list (under the key ``), or of all lists of one object, by their key.

    see(key, element) is called for each of them, and for every other value of the object. Strings in them are not to be
    kept: each byte stands as one letter here, so that places in the text are places in the file. Raises BadInput for
    what is no JSON.
    """
    try:
        with file.open("rb") as opened:
            if not opened.seek(0, 2):
                return {}
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                text = str(mapped, "latin-1")  # pyright: ignore[reportArgumentType] - a buffer, which str decodes
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    at = _white(text, 3 if text.startswith(MARK.decode("latin-1")) else 0)
    found: dict[str, Spans] = {}
    try:
        if text[at : at + 1] == "[":
            found[""], at = _elements(text, at, lambda element: see("", element))
        elif text[at : at + 1] == "{":
            at = _members(text, at, see, found)
        elif at < len(text):
            raise json.JSONDecodeError("Expecting a list or an object", text, at)
        if (at := _white(text, at)) < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
    except RecursionError:
        raise BadInput(f"{file}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise BadInput(f"{file}: not JSON ({error})") from None
    return found


def _members(text: str, at: int, see: Callable[[str, Any], None], found: dict[str, Spans]) -> int:
    at = _white(text, at + 1)
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("Expecting a key in double quotes", text, at)
        key, at = DECODER.raw_decode(text, at)
        at = _after(text, _white(text, at), ":")
        if text[at : at + 1] == "[":
            found[key], at = _elements(text, at, lambda element, key=key: see(key, element))
        else:
            value, at = _decoded(text, at)
            see(key, value)
        at = _next(text, at, "}")
    return at + 1


def _elements(text: str, at: int, see: Callable[[Any], None]) -> tuple[Spans, int]:
    starts, ends = array("q"), array("q")
    at = _white(text, at + 1)
    while text[at : at + 1] != "]":
        starts.append(at)
        value, at = _decoded(text, at)
        ends.append(at)
        see(value)
        at = _next(text, at, "]")
    return Spans(_numbers(starts), _numbers(ends)), at + 1


def _decoded(text: str, at: int) -> tuple[Any, int]:
    if at >= len(text):
        raise json.JSONDecodeError("Expecting a value, and the file ends", text, at)
    return DECODER.raw_decode(text, at)


def _next(text: str, at: int, end: str) -> int:
    """Where the next element begins, or where `end` stands."""
    at = _white(text, at)
    if text[at : at + 1] == end:
        return at
    at = _after(text, at, ",")
    if text[at : at + 1] == end:
        raise json.JSONDecodeError("Expecting another element after the comma", text, at)
    return at


def _after(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, at)
    return _white(text, at + 1)


def _white(text: str, at: int) -> int:
    return WHITE.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess] - it matches nothing, too


def _numbers(values: array[int]) -> np.ndarray:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)
