"""What was read of a shard behind an address, kept on disk, so that a run that goes on does not stream it again.

One file for each address, in `trisense/shards` of the user's cache folder (XDG_CACHE_HOME, default ~/.cache): the texts
of its samples and where its media begin, no media. It is used as long as the server gives the same tag, date and length
of the shard; from a server that gives neither tag nor date a shard is streamed each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trisense.data.sources.remote import Stream

# Of this layout; another one is read anew.
VERSION = 1


def kept(url: str, read: Callable[[], Iterable[Any]]) -> list[Any]:
    """The entries that read() gives, plain values, out of the file that an earlier call wrote where there is one.

    Raises OSError when the server does not answer, and whatever read() raises.
    """
    stream = Stream(url)
    identity = stream.identity()
    stream.close()
    if not identity:  # a server that does not tell one version from another
        return list(read())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trisense" / "shards"
    file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.jsonl"
    card = json.dumps({"url": url, "version": VERSION, **identity}, sort_keys=True)
    if (entries := _read(file, card)) is None:
        entries = list(read())
        _write(file, card, entries)
    return entries


def _read(file: Path, card: str) -> list[Any] | None:
    try:
        with file.open(encoding="ascii") as opened:
            return list(map(json.loads, opened)) if opened.readline().rstrip("\n") == card else None
    except (OSError, ValueError):  # not there, or damaged: it is made anew
        return None


def _write(file: Path, card: str, entries: list[Any]) -> None:
    """Where nothing can be written there, the next run streams again, and nothing else is lost."""
    aside = file.with_name(f"{file.name}.{os.getpid()}.part")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text("".join(f"{line}\n" for line in (card, *map(json.dumps, entries))), encoding="ascii")
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)
