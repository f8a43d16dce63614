"""Which files are meant, and reading any part of one from any thread."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from glob import glob, has_magic
from itertools import product
from pathlib import Path
from typing import Generic, TypeVar

from trisense.errors import BadInput

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
# More files than anybody means: a range that was mistyped must not fill the memory.
MOST_FILES = 1_000_000


def is_url(name: str | os.PathLike[str]) -> bool:
    return isinstance(name, str) and name.lower().startswith(("http://", "https://"))


def expand(pattern: str | os.PathLike[str], endings: tuple[str, ...]) -> list[str]:
    """The files that a path, a folder (those in it that end with one of `endings`), a wildcard, or braces name.

    `shard-{000..009}.tar` counts with leading zeros and `{a,b}` names both, as in a shell and for WebDataset; addresses
    have no wildcards. The order is that of the braces, and of names within a folder or a wildcard. Raises BadInput for
    a pattern that names nothing.
    """
    whole = os.fspath(pattern)
    if not is_url(whole) and os.path.isfile(whole):
        return [whole]
    found = []
    for one in _braces(whole):
        if is_url(one):
            found.append(one)
        elif os.path.isdir(one):
            found += _in_folder(Path(one), endings)
        elif has_magic(one) and not os.path.exists(one):
            found += sorted(glob(one, recursive=True))
        else:
            found.append(one)
    if not found:
        raise BadInput(f"{whole}: names no file; give a file, a folder, a wildcard or a pattern like x-{{00..09}}.tar")
    return found


def _in_folder(folder: Path, endings: tuple[str, ...]) -> list[str]:
    found = {end: sorted(str(file) for file in folder.glob(f"*{end}")) for end in endings}
    kinds = [end for end in endings if found[end]]
    if len(kinds) != 1:
        has = " and ".join(kinds) or "none"
        raise BadInput(f"{folder}: expected a folder with files of one of {', '.join(endings)}; this one has {has}")
    return found[kinds[0]]


def _braces(pattern: str) -> Iterator[str]:
    """`a{0..1}b{x,y}` -> a0bx, a0by, a1bx, a1by."""
    pieces = BRACES.split(pattern)  # text, inside of braces, text, ...
    choices, count = [], 1
    for place, piece in enumerate(pieces):
        if place % 2 == 0:
            choices.append([piece])
            continue
        if bounds := RANGE.fullmatch(piece):
            first, last = int(bounds[1]), int(bounds[2])
            width = max(len(bounds[1]), len(bounds[2])) if "0" in (bounds[1][0], bounds[2][0]) else 0
            if last < first or last - first >= MOST_FILES:
                raise BadInput(f"{pattern}: {{{piece}}} counts from {first} to {last}; expected {{first..last}}")
            choices.append([str(number).zfill(width) for number in range(first, last + 1)])
        elif "," in piece:
            choices.append(piece.split(","))
        else:
            choices.append([f"{{{piece}}}"])
        count *= len(choices[-1])
        if count > MOST_FILES:
            raise BadInput(f"{pattern}: names {count:,} files or more; expected at most {MOST_FILES:,}")
    return map("".join, product(*choices))


def printable(name: str) -> str:
    """A name that somebody else chose, so that it fits into one line."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def beginning(file: str, size: int = 512) -> bytes:
    """The first bytes of a file. Raises BadInput when it cannot be read."""
    try:
        with open(file, "rb") as opened:
            return opened.read(size)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise BadInput(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


class Recent(Generic[Key, Value]):
    """The `count` values that were asked for last, each made by make(key) when it is not among them, one at a time."""

    def __init__(self, make: Callable[[Key], Value], count: int):
        self._make, self._count = make, count
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def __getitem__(self, key: Key) -> Value:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._make(key)
                if len(self._kept) > self._count:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


class Parts:
    """Any part of one local file, for any number of threads at once."""

    def __init__(self, file: str | os.PathLike[str]):
        self._file = open(file, "rb")  # noqa: SIM115 - open as long as parts are read
        self._lock = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        """Exactly that part. Raises OSError where the file is shorter, as when it was cut off since."""
        if hasattr(os, "pread"):
            found = os.pread(self._file.fileno(), size, start)
        else:
            with self._lock:
                self._file.seek(start)
                found = self._file.read(size)
        if len(found) != size:
            raise OSError(f"the file ends before byte {start + size:,}; it was changed or cut off")
        return found

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
