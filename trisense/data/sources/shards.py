"""WebDataset: tar archives whose members of one name belong together (`0001.jpg` with `0001.txt` or `0001.json`).

Each shard is read through once, from its file or as a stream from its address. What is kept of it are its texts and
where its media begin. They are read when features are computed, in the order of the archive, so an address is streamed
twice in all, no shard is ever stored, and a run that goes on after a stop streams nothing (`kept.py`).

Splitting samples over processes and workers happens by their number, not by shard: shards of different lengths would
leave some of them without samples before others, where libraries that split by shard repeat or drop some.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from trisense.data.sources.files import Parts, Recent, is_url, printable
from trisense.data.sources.forms import form_of
from trisense.data.sources.kept import kept
from trisense.data.sources.remote import Remote, Stream
from trisense.data.sources.spool import Address, Spool
from trisense.data.sources.stores import Embedded
from trisense.errors import BadInput

RECORD = 512
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
SOUNDS = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "webm")
CAPTIONS = ("txt", "text", "caption")
# A text member larger than this is no caption and no conversation.
LARGEST_TEXT = 64 << 20
AT_ONCE = 4  # shards that are open
MAGICS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


class Bytes(Protocol):
    def read(self, size: int) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """A file in a tar: its bytes are those from `start` on, `size` of them. text: its contents, where it is one."""

    name: str
    start: int
    size: int
    text: bytes | None


def is_tar(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are the header of a tar."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def open_shards(shards: list[str]) -> Spool:
    """The samples of shards, in their order. Raises BadInput for a shard that is no whole tar."""
    opened = Recent[str, Remote | Parts](lambda shard: Remote(shard) if is_url(shard) else Parts(shard), AT_ONCE)

    def find(address: Address) -> Embedded:
        number, start, size, name = address
        shard = shards[number]
        return Embedded(
            f"{shard}/{name}", lambda wanted: opened[shard].read(start, size if wanted < 0 else min(size, wanted))
        )

    spool = Spool(shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more", find)
    with ThreadPoolExecutor(AT_ONCE) as readers:
        for number, entries in enumerate(readers.map(_entries, shards)):
            for key, record, media, problem in entries:
                numbered = {sense: [[number, *place] for place in places] for sense, places in media.items()}
                spool.add(record, f"{shards[number]}: sample {key}", numbered, problem)
    return spool


def _entries(shard: str) -> list[Any]:
    """Of each sample its key, its record, its media as [start, size, name] by sense, and why it is none."""

    def read() -> Iterator[Any]:
        for key, members in _samples(shard):
            try:
                yield key, *_record(members), None
            except BadInput as error:
                yield key, None, {}, str(error)

    try:
        return list(kept(shard, read) if is_url(shard) else read())
    except OSError as error:
        raise BadInput(f"{shard}: cannot be read ({error.strerror or error})") from None


def _samples(shard: str) -> Iterator[tuple[str, list[Member]]]:
    """Members that follow each other and have one name up to the first dot behind the last slash."""
    key, members = None, []
    for member in members_of(shard):
        folder, _, base = member.name.rpartition("/")
        stem = base.partition(".")[0]
        now = f"{folder}/{stem}" if folder else stem
        if key is not None and now != key:
            yield key, members
            members = []
        key = now
        members.append(member)
    if key is not None:
        yield key, members


def members_of(shard: str) -> Iterator[Member]:
    """The regular files of a tar, in order, with the contents of those that are text. Raises BadInput, naming the
    shard, when it is no tar or ends early: a shard that was cut off must not be taken for a short one. And OSError."""
    opened: Any = None
    try:
        opened = Stream(shard) if is_url(shard) else open(shard, "rb")  # noqa: SIM115 - one of two kinds, closed below
        whole = None if is_url(shard) else os.path.getsize(shard)
        yield from _members(opened, whole)
    except tarfile.TarError as error:
        raise BadInput(f"{shard}: not a whole tar ({error}); expected a WebDataset shard, uncompressed") from None
    finally:
        if opened is not None:
            opened.close()


def _members(opened: Any, whole: int | None) -> Iterator[Member]:
    at, given = 0, {}  # what a header before says about the next member: its name, its size
    while head := opened.read(RECORD):
        at += RECORD
        if head == bytes(RECORD):
            _nothing_more(opened)
            return
        if at == RECORD and (packed := next((MAGICS[magic] for magic in MAGICS if head.startswith(magic)), None)):
            raise tarfile.ReadError(f"it is compressed by {packed}; unpack it to .tar")
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {at - RECORD:,}") from None
        size = int(given.get("size", info.size))
        padded = -(-size // RECORD) * RECORD
        name = printable(given.get("path", info.name))
        if whole is not None and at + size > whole:
            raise tarfile.ReadError(f"it ends inside of {name}")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            data = _exactly(opened, padded, name)[:size]
            long = info.type == tarfile.GNUTYPE_LONGNAME
            given |= {"path": data.rstrip(b"\0").decode("utf-8", "replace")} if long else _pax(data)
        elif info.isreg():
            wanted = _kind(name) in ("json", *CAPTIONS) and size <= LARGEST_TEXT
            text = _exactly(opened, padded, name)[:size] if wanted else _skipped(opened, padded, name, whole)
            yield Member(name, at, size, text)
            given = {}
        else:
            _skipped(opened, padded, name, whole)
            given = {}
        at += padded
    raise tarfile.ReadError("it ends without the mark of its end, so it was cut off")


def _nothing_more(opened: Bytes) -> None:
    while part := opened.read(1 << 20):
        if part.strip(b"\0"):
            raise tarfile.ReadError("another tar follows in it; make one of them, or two files")


def _exactly(opened: Bytes, size: int, name: str) -> bytes:
    if size > 2 * LARGEST_TEXT:
        raise tarfile.ReadError(f"the header before {name} is {size:,} bytes long")
    data = opened.read(size)
    if len(data) < size:
        raise tarfile.ReadError(f"it ends inside of {name}")
    return data


def _skipped(opened: Any, size: int, name: str, whole: int | None) -> None:
    """Goes on behind a member; a stream has to be read for that."""
    if whole is not None:
        opened.seek(size, os.SEEK_CUR)
        return
    while size:
        part = opened.read(min(size, 1 << 20))
        if not part:
            raise tarfile.ReadError(f"it ends inside of {name}")
        size -= len(part)


def _pax(data: bytes) -> dict[str, str]:
    """`path` and `size` out of an extended header: records `LENGTH KEY=VALUE\\n`."""
    found = {}
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(data):
            raise tarfile.ReadError("an extended header is damaged")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "replace")
        data = data[int(length) :]
    if not found.get("size", "0").isdigit():
        raise tarfile.ReadError("an extended header is damaged")
    return found


def _kind(name: str) -> str:
    """What stands behind the last dot: `a.seg.png` is a png."""
    return PurePosixPath(name).suffix[1:].lower()


def _record(members: list[Member]) -> tuple[Any, dict[str, list[Any]]]:
    """The record of a sample, its json where that holds a conversation, else its caption; and where its media are.
    Raises BadInput for json that is none."""
    media: dict[str, list[Any]] = {}
    record: Any = {}
    captions = []
    for member in members:
        kind = _kind(member.name)
        if kind in IMAGES or kind in SOUNDS:
            place = [member.start, member.size, member.name]
            media.setdefault("images" if kind in IMAGES else "audios", []).append(place)
        elif kind == "json" and member.text is not None:
            try:
                record = json.loads(member.text)
            except (ValueError, RecursionError):
                raise BadInput(f"{member.name} is not JSON") from None
        elif kind in CAPTIONS and member.text is not None:
            captions.append(member.text.decode("utf-8", "replace"))
    record = dict(record) if isinstance(record, dict) else {}
    for key in ("image", "images", "audio", "audios") if media else ():
        record.pop(key, None)
    form = form_of({**record, **dict.fromkeys(media, True)})
    if captions and (form is None or form.key in ("caption", "captions", "text")):
        return {"caption": captions[0]}, media
    return record, media
