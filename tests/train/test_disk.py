"""Files appear whole or not at all, and on the disk before they have their name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trisense.errors import BadInput
from trisense.train.disk import full_disk, write_text, write_whole


def test_it_reaches_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_text(tmp_path / "note.txt", "grün")
    assert (tmp_path / "note.txt").read_bytes() == "grün".encode()
    assert done == ["sync", "rename", "sync"], "the file, its name, the folder that holds the name"
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(hidden: bool, tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"before")

    def write(file) -> None:
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            if hidden:  # as torch's writer does
                raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904
            raise

    with pytest.raises(BadInput) as refusal:
        write_whole(path, write, size=2_340_000)
    assert str(refusal.value) == (
        f"{path}: cannot be written, no space left on device, and it takes 2.34 MB; what checkpoint.pt held before is "
        "untouched; make room and give the same command"
    )
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path: Path):
    def broken(file) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_whole(tmp_path / "a", broken)
    with pytest.raises(PermissionError), full_disk(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "no")
    assert not list(tmp_path.iterdir())
