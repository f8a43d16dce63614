"""Text of files and folders, one document at a time, and one line for what is none."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from trisense.data.text import documents, fingerprint, text_files
from trisense.errors import BadInput


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as refused:
        list(documents(text_files(path)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_folder_gives_every_document_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("Zwei Wörter.\nUnd mehr.", encoding="utf-8")
    jsonl(tmp_path / "a.jsonl", {"text": "first", "id": 1}, {"text": "  "}, {"text": "second"})
    (tmp_path / "notes.md").write_text("not read")
    assert list(documents(text_files(tmp_path))) == ["first", "second", "Zwei Wörter.\nUnd mehr."]
    assert list(documents(text_files(tmp_path / "a.jsonl"))) == ["first", "second"]


def test_a_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", {"text": "first"})
    before = fingerprint([file])
    assert fingerprint([file]) == before
    jsonl(file, {"text": "fürst"})
    assert fingerprint([file]) != before
    copy = tmp_path / "b.jsonl"
    copy.write_bytes(file.read_bytes())
    assert fingerprint([copy]) != fingerprint([file])


def test_what_is_no_text_is_one_line_that_names_it(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: holds no text" in refusal(empty)
    assert "no such file" in refusal(tmp_path / "nowhere.txt")
    (tmp_path / "picture.png").write_bytes(b"x")
    assert "of no kind that is known" in refusal(tmp_path / "picture.png")
    (tmp_path / "latin.txt").write_bytes("Wörter".encode("latin-1"))
    assert "latin.txt: not UTF-8 text (byte 1)" in refusal(tmp_path / "latin.txt")
    assert "a.jsonl: line 2: expected an object with the key `text`" in refusal(
        jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"txt": "y"})
    )
    assert "line 1: `text` is int" in refusal(jsonl(tmp_path / "b.jsonl", {"text": 3}))
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n{"text"\n')
    assert "c.jsonl: line 2: not JSON" in refusal(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "\xff"}\n')
    assert "d.jsonl: line 1: not JSON" in refusal(tmp_path / "d.jsonl")


def test_parquet_is_read_where_pyarrow_is_and_refused_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 broken")
    with monkeypatch.context() as patch:
        patch.setattr("trisense.data.text.find_spec", lambda name: None)
        assert "needs pyarrow: pip install 'trisense[parquet]'" in refusal(file)
    if find_spec("pyarrow") is None:
        return
    assert "not a parquet file" in refusal(file)
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "id": [1, 2, 3]}), file)
    assert list(documents(text_files(file))) == ["one", "two"]
    pyarrow.parquet.write_table(pyarrow.table({"label": ["one"]}), file)
    assert "no column `text`; it has label" in refusal(file)
