"""Plain text for a language model: files and folders -> documents, one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from trisense.errors import BadInput

KINDS = (".txt", ".jsonl", ".parquet")
EXPECTED = "expected .txt files, .jsonl with a key `text`, .parquet with a column `text`, or a folder of such"
# What a file is known by besides its name and size: so much of its beginning and of its end.
EDGE = 1 << 20


def text_files(path: Path) -> list[Path]:
    """The files of text that a path names: itself, or all in a folder and below, sorted by name.

    Raises BadInput where there is none, or where parquet cannot be read because pyarrow is not installed.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in KINDS and file.is_file())
        if not files:
            raise BadInput(f"{path}: holds no text; {EXPECTED}")
    elif path.suffix not in KINDS or not path.is_file():
        raise BadInput(f"{path}: {'of no kind that is known' if path.exists() else 'no such file'}; {EXPECTED}")
    else:
        files = [path]
    if any(file.suffix == ".parquet" for file in files) and find_spec("pyarrow") is None:
        raise BadInput(f"{path}: .parquet needs pyarrow: pip install 'trisense[parquet]', or give .txt or .jsonl")
    return files


def fingerprint(files: Iterable[Path]) -> str:
    """What tells one set of files from another: names, sizes, and the first and last megabyte of each."""
    digest = sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(EDGE))
            stream.seek(max(0, size - EDGE))
            digest.update(stream.read(EDGE))
    return digest.hexdigest()


def documents(files: Iterable[Path]) -> Iterator[str]:
    """The documents of files, in order: a .txt is one, a .jsonl has one a line, a .parquet one a row. Empty ones are
    left out. Raises BadInput, naming the file and the line or row."""
    readers = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}
    for file in files:
        for place, text in readers[file.suffix](file):
            if not isinstance(text, str):
                raise BadInput(f"{file}: {place}: `text` is {type(text).__name__}, expected a string")
            if text.strip():
                yield text


def _txt(file: Path) -> Iterator[tuple[str, object]]:
    try:
        yield "all", file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: not UTF-8 text (byte {error.start}); convert or remove it") from None


def _jsonl(file: Path) -> Iterator[tuple[str, object]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:  # UnicodeDecodeError is one too
                raise BadInput(f"{file}: line {number}: not JSON ({error})") from None
            if not isinstance(record, dict) or "text" not in record:
                raise BadInput(f"{file}: line {number}: expected an object with the key `text`")
            yield f"line {number}", record["text"]


def _parquet(file: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        names = table.schema_arrow.names
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{file}: not a parquet file ({str(error).splitlines()[0][:100]})") from None
    if "text" not in names:
        raise BadInput(f"{file}: no column `text`; it has {', '.join(names)}")
    row = 0
    for batch in table.iter_batches(columns=["text"]):
        for value in batch.column(0).to_pylist():
            row += 1
            if value is not None:
                yield f"row {row}", value
