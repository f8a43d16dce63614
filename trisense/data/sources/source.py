"""Samples by their number: what training asks of any file, folder, archive or address."""

from __future__ import annotations

import base64
import binascii
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, overload
from urllib.parse import unquote_to_bytes

import numpy as np

from trisense.chat import Conversation, Image, Sense, Text
from trisense.data.sources.files import is_url, printable
from trisense.data.sources.forms import conversations
from trisense.data.sources.stores import Embedded, NotThere, Store, is_missing
from trisense.data.sources.walk import Reader, Spans
from trisense.errors import BadInput

# What making a sample raises where the record is damaged, BadInput being a ValueError.
DAMAGED = (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
# So many samples' media are looked for before anything else is done.
CHECKED = 20


class Source(Sequence[Conversation]):
    """Samples of a file or of many. A sample is made when it is asked for, and depends on its number alone.

    Whether the data lies still or is streamed over the network makes no difference here: texts are at hand for any
    number, and pictures are references that are read once, in about the order they are stored in, when their features
    are computed. So batches can be split over processes and workers by number: none twice and none lost, however
    unequal shards are.

    name: what messages call it. fingerprint: of what it holds, to tell another one. left_out: what was not taken from
    the files from the start, and how many of it.
    """

    name: str
    fingerprint: str
    store: Store
    left_out: Mapping[str, int]

    @abstractmethod
    def where(self, index: int) -> str:
        """The file of a sample and its row there, as its reader would look for it."""

    @abstractmethod
    def _make(self, index: int) -> Conversation:
        """Raises BadInput for a sample that is none, or whatever damaged values make Python raise."""

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Conversation]: ...
    def __getitem__(self, index: int | slice) -> Conversation | Sequence[Conversation]:
        """Raises BadInput, naming the file and the row, for a sample that is no conversation."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._make(index)
        except (BadInput, OSError) as error:
            raise BadInput(f"{self.where(index)}: {error}") from None
        except DAMAGED as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise BadInput(f"{self.where(index)}: not as expected ({what})") from None

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def good(self) -> Iterator[tuple[int, Conversation]]:
        """The samples that can be made, and their numbers."""
        for index in range(len(self)):
            with suppress(BadInput):
                yield index, self[index]

    def showing(self, medium: Any) -> str:
        """Where the first sample is that shows a medium."""
        return next(self.where(i) for i, one in self.good() if medium in media_of(one))

    def check_media(self) -> None:
        """Looks for the pictures and sounds of a few samples. Raises BadInput when most of them are not there, which
        says that it is the wrong folder and not that some pictures are missing."""
        checked, missing = 0, []
        for index in np.unique(np.linspace(0, len(self) - 1, CHECKED).astype(np.int64)).tolist():
            try:
                media = media_of(self._make(index))
            except NotThere as error:
                checked, missing = checked + 1, [*missing, error.name]
            except DAMAGED:
                continue
            else:
                checked += len(media)
                missing += [os.path.relpath(one, self.store.place) for one in media if is_missing(one)]
        if 2 * len(missing) > checked:
            raise BadInput(
                f"{self.name}: {len(missing)} of {checked} checked pictures are not in {self.store.place}, first: "
                f"{printable(missing[0])}; give --media the folder or zip that holds them"
            )


def media_of(conversation: Conversation) -> list[Any]:
    """The sources of its pictures and sounds."""
    parts = [part for message in conversation.messages for part in message.content if not isinstance(part, Text)]
    return [part.image if isinstance(part, Image) else part.audio for part in parts]


class Records(Protocol):
    """Records by their number. A medium in one is a name, to be looked for in a store, or already an `Embedded`."""

    name: str
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Any: ...
    def where(self, number: int) -> str: ...


class Rows(Source):
    """Records of any form in `forms`, each of which may be several samples."""

    def __init__(self, records: Records, store: Store, turns: bool, counts: np.ndarray):
        """counts: samples of each record, as `forms.count` gives them."""
        self.name, self.fingerprint, self.store, self.left_out = records.name, records.fingerprint, store, {}
        self.records, self.turns = records, turns
        self._firsts = None if (counts == 1).all() else np.append(0, np.cumsum(counts))
        store.adapt(self._some_names())

    def __len__(self) -> int:
        return len(self.records) if self._firsts is None else int(self._firsts[-1])

    def where(self, index: int) -> str:
        return self.records.where(self._place(index)[0])

    def _place(self, index: int) -> tuple[int, int]:
        """The record of a sample, and which of its samples it is."""
        if self._firsts is None:
            return index, 0
        record = int(np.searchsorted(self._firsts, index, "right")) - 1
        return record, index - int(self._firsts[record])

    def _make(self, index: int) -> Conversation:
        record, part = self._place(index)
        held = iter(range(1_000_000))

        def place(value: Any, sense: Sense) -> Any:
            if isinstance(value, str) and value[:5].lower() == "data:":
                number = next(held)
                return Embedded(f"{self.where(index)}, {sense} {number}", lambda size: self._held(record, number))
            return self._find(value)

        found = conversations(self.records[record], self.turns, place)
        if part >= len(found):
            raise BadInput(f"holds {len(found)} samples, expected {part + 1}")
        return found[part]

    def _find(self, value: Any) -> Any:
        if isinstance(value, Embedded):
            return value
        if not isinstance(value, str) or not value:
            raise BadInput(f"a picture or sound is named by {type(value).__name__}; expected its path")
        if is_url(value):
            raise BadInput(f"{value[:80]}: addresses are not fetched; download it and give its path")
        return self.store.find(value)

    def _held(self, record: int, number: int) -> bytes:
        """The contents of a data: URL, read again: kept, those of a large file would fill the memory."""
        urls: list[str] = []

        def place(value: Any, sense: Sense) -> Any:
            if isinstance(value, str) and value[:5].lower() == "data:":
                urls.append(value)
            return value

        conversations(self.records[record], self.turns, place)
        return _from_data_url(urls[number])

    def _some_names(self) -> list[str]:
        """Names of media to settle their naming by."""
        names: list[str] = []

        def place(value: Any, sense: Sense) -> Any:
            if isinstance(value, str) and value[:5].lower() != "data:":
                names.append(value)
            return value

        for number in np.unique(np.linspace(0, max(len(self.records) - 1, 0), CHECKED).astype(np.int64)).tolist():
            if number < len(self.records):
                try:
                    conversations(self.records[number], self.turns, place)
                except DAMAGED:
                    continue
        return names


class JsonRecords:
    """The elements of a JSON list, or JSON lines, read again each time."""

    def __init__(self, file: Path, spans: Spans, fingerprint: str, lines: np.ndarray | None = None):
        self.name, self.fingerprint = str(file), fingerprint
        self._spans, self._lines, self._read = spans, lines, Reader(file)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> Any:
        return self._read(self._spans, number)

    def where(self, number: int) -> str:
        return f"{self.name}: {f'record {number}' if self._lines is None else f'line {self._lines[number]}'}"


def _from_data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise OSError("a data: URL without a comma; expected data:<type>;base64,<data>")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(b"".join(unquote_to_bytes(body).split()), validate=True)
    except binascii.Error as error:
        raise OSError(f"wrong base64 in a data: URL ({error})") from None
