"""Where pictures and sounds lie: in a folder, in a zip, or inside the file that speaks about them."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from trisense.data.sources.files import Parts
from trisense.errors import BadInput

# COCO named the pictures of 2014 `COCO_train2014_000000000009.jpg` and those of 2017, which are the same pictures,
# `000000000009.jpg`; files about the ones are used with folders of the others.
PREFIX = re.compile(r"COCO_(train|val|test)20\d\d_(?=\d{12}\.)")
NAMINGS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: PREFIX.sub("", name),
    lambda name: _renamed(name, "COCO_train2014_"),
    lambda name: _renamed(name, "COCO_val2014_"),
)
STORED, DEFLATED = 0, 8
ENCRYPTED = 1


class Embedded:
    """A picture or a sound inside another file.

    It is like an open file that begins anew at each `read`, for any number of threads, so whatever reads media takes it
    as it is. Equal where the name is equal.
    """

    def __init__(self, name: str, contents: Callable[[int], bytes]):
        self.name = name
        self._contents = contents

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes of it; all of it where size is negative. Raises OSError."""
        data = self._contents(size)
        return data if size < 0 else data[:size]

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Embedded({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Embedded) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


class NotThere(BadInput):
    """A store knows that it does not hold what goes by `name`."""

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.name = name


class Store(Protocol):
    """Media by the names that data files give them."""

    @property
    def place(self) -> str: ...
    def find(self, name: str) -> str | Embedded:
        """Raises NotThere where it is known already that there is no such medium."""
        ...

    def has(self, name: str) -> bool: ...
    def adapt(self, names: Iterable[str]) -> None:
        """Settles whether the names are those of COCO 2014 or 2017, by what most of `names` are found under."""
        ...


def open_store(path: str | os.PathLike[str]) -> Store:
    """The pictures and sounds in a folder or a zip. Raises BadInput for anything else."""
    if os.path.isdir(path):
        return Folder(Path(path))
    if os.path.isfile(path):
        return Zip(Path(path))
    raise BadInput(f"{path}: no such folder or zip; expected the pictures and sounds that the data names")


class _Named(ABC):
    """What both kinds of stores do with names."""

    _naming: Callable[[str], str] = staticmethod(NAMINGS[0])

    @abstractmethod
    def _is_there(self, name: str) -> bool: ...

    def has(self, name: str) -> bool:
        return self._is_there(self._naming(name))

    def adapt(self, names: Iterable[str]) -> None:
        names = list(names)
        self._naming = max(NAMINGS, key=lambda naming: sum(self._is_there(naming(name)) for name in names))


class Folder(_Named):
    """Files in a folder, found as paths. Nothing is listed and nothing opened: it may hold millions."""

    def __init__(self, folder: Path):
        self.place = str(folder)

    def find(self, name: str) -> str:
        return os.path.join(self.place, self._naming(name))

    def _is_there(self, name: str) -> bool:
        try:
            return os.path.isfile(os.path.join(self.place, name))
        except ValueError:  # a null character
            return False


class Zip(_Named):
    """Files in a zip, read out of it by any number of threads; nothing is unpacked.

    A name may leave out the one folder that all of the zip is in, such as `train2017/`. Its directory is kept as
    numbers beside a dict of names.
    """

    def __init__(self, file: Path):
        self.place = str(file)
        self._numbers: dict[str, int] = {}
        self._offsets, self._stored, self._sizes, self._sums = array("q"), array("q"), array("q"), array("L")
        self._methods, self._flags = array("H"), array("H")
        try:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if not entry.filename.endswith("/"):  # is_dir fails on a name of no length
                        self._add(entry)
            self._parts = Parts(file)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error) as error:
            raise BadInput(f"{file}: not a folder and not a whole zip ({error}); expected one of the two") from None
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
        tops = {name.partition("/")[0] for name in self._numbers}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in self._numbers) else ""

    def _add(self, entry: zipfile.ZipInfo) -> None:
        self._numbers[entry.filename] = len(self._offsets)
        self._offsets.append(entry.header_offset)
        self._stored.append(entry.compress_size)
        self._sizes.append(entry.file_size)
        self._sums.append(entry.CRC)
        self._methods.append(entry.compress_type)
        self._flags.append(entry.flag_bits)

    def find(self, name: str) -> Embedded:
        number = self._number(self._naming(name))
        if number is None:
            raise NotThere(f"{self.place}: holds no {self._naming(name)!r}", name)
        return Embedded(f"{self.place}/{self._naming(name)}", lambda size: self._contents(number, size))

    def _is_there(self, name: str) -> bool:
        return self._number(name) is not None

    def _number(self, name: str) -> int | None:
        for one in (name, str(PurePosixPath(name.replace("\\", "/")))):
            if (number := self._numbers.get(self._top + one, self._numbers.get(one))) is not None:
                return number
        return None

    def _contents(self, number: int, size: int) -> bytes:
        method, stored = self._methods[number], self._stored[number]
        if method not in (STORED, DEFLATED) or self._flags[number] & ENCRYPTED:
            how = "encrypted" if self._flags[number] & ENCRYPTED else f"compressed by method {method}"
            raise OSError(f"it is {how} in the zip; store or deflate it")
        head = self._parts.read(self._offsets[number], 30)
        name_length, extra_length = struct.unpack_from("<HH", head, 26)
        if head[:4] != b"PK\3\4":
            raise OSError("the zip has no file where its directory says")
        start = self._offsets[number] + 30 + name_length + extra_length
        if method == STORED:
            data = self._parts.read(start, stored if size < 0 else min(stored, size))
        else:
            data = _inflated(self._parts.read(start, stored), size)
        if len(data) > self._sizes[number]:
            raise OSError("damaged in the zip: it is longer than its directory says")
        # Of a part nothing is known; whoever asked for one finds it too long.
        if len(data) == self._sizes[number] and zlib.crc32(data) != self._sums[number]:
            raise OSError("damaged in the zip: its checksum is another")
        if len(data) < self._sizes[number] and (size < 0 or len(data) < size):
            raise OSError("damaged in the zip: it ends early")
        return data


def _inflated(data: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(size, 0))
    except zlib.error as error:
        raise OSError(f"damaged in the zip: {error}") from None


def _renamed(name: str, prefix: str) -> str:
    head, slash, tail = name.rpartition("/")
    return f"{head}{slash}{prefix}{tail}"


def is_missing(medium: Any) -> bool:
    """Whether a medium of a conversation is a path where no file is."""
    if not isinstance(medium, str) or medium[:5].lower() == "data:":
        return False
    try:
        return not os.path.isfile(medium)
    except ValueError:  # a null character
        return True
