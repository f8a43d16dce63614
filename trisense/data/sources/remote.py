"""A file behind an http(s) address, read as a stream; nothing of it is kept on disk."""

from __future__ import annotations

import http.client
import threading
import time
from collections import OrderedDict
from typing import Any, ClassVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

BLOCK = 1 << 20
# Blocks that are kept in memory: threads that read next to each other read from one stream.
KEPT = 16
TRIES = 4
TIMEOUT = 60.0


class Stream:
    """Bytes of a file from `start` on, in order. A connection that breaks is opened again where it broke."""

    def __init__(self, url: str, start: int = 0):
        self.url, self.at = url, start
        self._reply: Any = None

    def identity(self) -> dict[str, str]:
        """What the server says that changes when the file does; empty where that is at most its length, since shards
        are filled up to round ones. Raises OSError."""
        self.read(1)
        headers = {} if self._reply is None else self._reply.headers
        found = {name: headers.get(name) for name in ("Content-Length", "ETag", "Last-Modified")}
        dated = found["ETag"] or found["Last-Modified"]
        return {name: value for name, value in found.items() if value} if dated else {}

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end of the file. Raises OSError when the server does not give them."""
        found, problem = b"", OSError()
        for attempt in range(TRIES):
            try:
                while len(found) < size:
                    part = self._opened().read(size - len(found))
                    if not part:
                        self._whole()
                        return found
                    found += part
                    self.at += len(part)
                return found
            except HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise OSError(f"the server says {error.code} {error.reason}") from None
                problem = error
            except (URLError, http.client.HTTPException, OSError) as error:
                problem = error
            except ValueError as error:
                raise OSError(f"not an address ({error})") from None
            self.close()
            if attempt + 1 < TRIES:
                time.sleep(0.2 * 4**attempt)
        raise OSError(f"{TRIES} tries, then {getattr(problem, 'reason', None) or problem or type(problem).__name__}")

    def _opened(self) -> Any:
        if self._reply is None:
            self._open()
        return self._reply

    def _open(self) -> None:
        wanted = self.at
        request = Request(self.url, headers={"Range": f"bytes={wanted}-"} if wanted else {})
        try:
            self._reply = urlopen(request, timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == 416:  # asked for what lies behind the end
                self._reply, self._left, self._begun = _Nothing(), 0, wanted
                return
            raise
        length = self._reply.headers.get("Content-Length")
        self._left = int(length) if length and length.isdigit() else None
        self._begun = wanted
        if wanted and self._reply.status != 206:
            self._begun = 0
            self._skip(wanted)

    def _skip(self, count: int) -> None:
        """A server that knows no ranges begins with the beginning."""
        while count:
            part = self._reply.read(min(count, BLOCK))
            if not part:
                break
            count -= len(part)

    def _whole(self) -> None:
        """Raises where a reply ended before the length that the server gave."""
        if self._left is not None and self.at - self._begun < self._left:
            self._reply = None
            raise http.client.IncompleteRead(b"", self._left - (self.at - self._begun))

    def close(self) -> None:
        if self._reply is not None:
            self._reply.close()
        self._reply = None

    def __del__(self) -> None:
        self.close()


class _Nothing:
    headers: ClassVar[dict[str, str]] = {}

    def read(self, size: int) -> bytes:
        return b""

    def close(self) -> None:
        pass


class Remote:
    """Any part of a file behind an address, for any number of threads at once.

    Reading in about the order of the file takes one request; a step back opens another, by a range where the server
    knows ranges and from the beginning where it does not.
    """

    def __init__(self, url: str):
        self._url = url
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, start: int, size: int) -> bytes:
        """Exactly that part. Raises OSError."""
        if size == 0:
            return b""
        with self._lock:
            blocks = range(start // BLOCK, (start + size - 1) // BLOCK + 1)
            data = b"".join(self._block(number) for number in blocks)
        found = data[start - blocks[0] * BLOCK :][:size]
        if len(found) != size:
            raise OSError(f"the file ends before byte {start + size:,}; it was changed or cut off")
        return found

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            wanted = number * BLOCK
            near = self._stream is not None and 0 <= wanted - self._stream.at <= KEPT * BLOCK
            if self._stream is None or not near:
                if self._stream is not None:
                    self._stream.close()
                self._stream = Stream(self._url, wanted)
            while self._stream.at < wanted and (data := self._stream.read(BLOCK)):
                self._keep((self._stream.at - 1) // BLOCK, data)
            self._keep(number, self._stream.read(BLOCK) if self._stream.at == wanted else b"")
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _keep(self, number: int, data: bytes) -> None:
        self._blocks[number] = data
        while len(self._blocks) > KEPT:
            self._blocks.popitem(last=False)
