"""Files of a run, written whole or not at all; a full disk is said in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trisense.errors import BadInput

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_whole(path: Path, write: Callable[[BinaryIO], object], size: int | None = None) -> None:
    """Has `write` fill a file beside `path`, brings it to the disk and renames it, so that neither a kill nor a power
    cut leaves half a file under that name.

    size: the bytes that it takes, for the message. Raises BadInput where the disk or a quota is full: what was there
    before is then untouched and what was written aside is removed.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        with full_disk(path, size), aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, path)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, as `write_whole` writes."""
    content = text.encode()
    write_whole(path, lambda file: file.write(content), len(content))


@contextmanager
def full_disk(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns the errors of a full disk into BadInput that names `path` and says how much it takes."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if (cause := _cause(error)) is None:
            raise
        takes = "" if size is None else f", and it takes {_readable(size)}"
        kept = f"; what {path.name} held before is untouched" if path.exists() else ""
        raise BadInput(
            f"{path}: cannot be written, {os.strerror(cause).lower()}{takes}{kept}; make room and give the same command"
        ) from None


def _cause(error: BaseException | None) -> int | None:
    """The number of the error of a full disk that `error` is or, as torch's writer hides it, came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def _readable(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # pyright: ignore[reportAssignmentType]
    return f"{size:.3g} GB"


def _sync_folder(folder: Path) -> None:
    """A rename is in the folder, which is brought to the disk too where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folder
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems do not
        pass
    finally:
        os.close(handle)
