"""Records that were read once, out of a table or a stream, kept in a temporary file and read again by their number."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from trisense.data.sources.stores import Embedded
from trisense.errors import BadInput

# A medium in a record: the number of the file it is in, and what finds it there.
Address = list[Any]


class Spool:
    """Texts in a temporary file, without a name and gone with the process; in memory are eight bytes for each record.

    Each is a record, where it stands, and the addresses of its media by key; `find(address)` makes a medium of one.
    fingerprint: of all records and addresses, which hold the sizes of the media but not what is in them.
    """

    def __init__(self, name: str, find: Callable[[Address], Embedded]):
        self.name, self._find = name, find
        self._file = tempfile.TemporaryFile(prefix="trisense-")  # noqa: SIM115 - open as long as records are read
        self._lock = threading.Lock()
        self._ends = array("q", [0])
        self._digest = hashlib.sha256()

    def add(self, record: Any, where: str, media: dict[str, list[Address]], problem: str | None = None) -> None:
        """problem: why the record is none."""
        data = json.dumps([record, where, media, problem]).encode("ascii")
        self._file.seek(self._ends[-1])
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        # The same files in another folder are the same data.
        self._digest.update(json.dumps([record, media, problem]).encode("ascii"))

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _entry(self, number: int) -> Any:
        start = self._ends[number]
        with self._lock:
            self._file.seek(start)
            return json.loads(self._file.read(self._ends[number + 1] - start))

    def __getitem__(self, number: int) -> Any:
        record, _, media, problem = self._entry(number)
        if problem:
            raise BadInput(problem)
        if media:
            record = {**record, **{key: [self._find(one) for one in found] for key, found in media.items()}}
        return record

    def where(self, number: int) -> str:
        return self._entry(number)[1]


def counts_of(records: Any, count: Callable[[Any], int]) -> np.ndarray:
    """count(record) of each record, int32; 1 for one that cannot be read."""
    found = np.ones(len(records), np.int32)
    for number in range(len(records)):
        try:
            found[number] = count(records[number])
        except (OSError, ValueError):
            continue
    return found
