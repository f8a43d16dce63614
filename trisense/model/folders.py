"""Folders that are written whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trisense.errors import BadInput


@contextmanager
def whole_folder(out: Path, marker: str | None = None) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well and is removed when it does not.

    marker: the file by which an earlier `out` is known, which is then replaced. Raises BadInput, before anything is
    written, for an `out` that holds something else.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (marker and (out / marker).is_file()))):
        raise BadInput(f"{out}: exists and is not an earlier export; give a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    earlier = aside.with_name(f"{aside.name}.earlier")
    try:
        yield aside
        aside.chmod(0o755)  # mkdtemp makes folders for one user
        if out.exists():
            out.replace(earlier)
        aside.replace(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)
