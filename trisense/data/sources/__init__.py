"""Files of others as conversations: what is read is told from what a file holds, not from its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trisense.data.sources import refs, shards, table, walk
from trisense.data.sources.coco import digest, open_coco
from trisense.data.sources.files import beginning, expand, is_url
from trisense.data.sources.forms import KINDS as RECORDS
from trisense.data.sources.forms import count, form_of
from trisense.data.sources.source import JsonRecords, Rows, Source, media_of
from trisense.data.sources.spool import counts_of
from trisense.data.sources.stores import Store, is_missing, open_store
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor

__all__ = ["Source", "is_missing", "media_of", "open_source"]

ENDINGS = (".tar", ".parquet", ".jsonl", ".json")
# So many records are tried before a file is said to be damaged altogether.
LOOKED_AT = 20
KINDS = (
    "LLaVA-Instruct (a list with `conversations`), COCO (`images` and `annotations`), RefCOCO's refs, JSON lines with "
    "`messages`, parquet with media in it, or WebDataset shards (.tar)"
)


def open_source(
    data: str | os.PathLike[str],
    media: str | os.PathLike[str] | None = None,
    *,
    turns: bool = False,
    pictures: ImageProcessor | None = None,
) -> Source:
    """The samples of a file, of all files of a folder, wildcard or pattern like `shard-{000..009}.tar`, or of
    WebDataset shards behind http(s) addresses.

    media: the folder or zip of the pictures and sounds that the data names; default: the data's own folder. turns: each
    question with its answer is a sample of its own. pictures: how pictures are prepared for the encoder; boxes are
    written as it sees them.

    Raises BadInput, naming the file, when it is missing, of no known kind or without samples.
    """
    files = expand(data, ENDINGS)
    store = open_store(media if media is not None else _folder_of(files[0]))
    heads = {file: b"" if is_url(file) else beginning(file) for file in files}
    kinds = {_kind(file, head) for file, head in heads.items()}
    if len(kinds) > 1:
        raise BadInput(f"{os.fspath(data)}: files of several kinds ({', '.join(sorted(kinds))}); give them one by one")
    kind = kinds.pop()
    if kind == "shards":
        source = _rows(shards.open_shards(files), store, turns)
    elif kind == "parquet":
        source = _rows(table.open_table(files), store, turns)
    elif len(files) > 1:
        raise BadInput(f"{os.fspath(data)}: names {len(files)} JSON files; give one, or put the lines of all into one")
    elif kind == "refs":
        source = refs.open_refs(Path(files[0]), store, pictures)
    else:
        source = _open_json(Path(files[0]), store, turns, pictures)
    if not len(source):
        raise BadInput(f"{source.name}: holds no conversation; expected {KINDS}")
    return source


def _folder_of(file: str) -> str:
    return "." if is_url(file) else os.path.dirname(file) or "."


def _kind(file: str, head: bytes) -> str:
    if is_url(file) or shards.is_tar(head):
        return "shards"
    if head.startswith(table.MAGIC):
        return "parquet"
    if next((True for magic in shards.MAGICS if head.startswith(magic)), False):
        return "shards"
    return "refs" if refs.is_pickle(head) else "JSON"


def _rows(records: object, store: Store, turns: bool) -> Source:
    return Rows(records, store, turns, counts_of(records, lambda record: count(record, turns)))  # pyright: ignore


def _open_json(file: Path, store: Store, turns: bool, pictures: ImageProcessor | None) -> Source:
    if walk.is_lines(file):
        spans, numbers = walk.lines(file)
        return _known(JsonRecords(file, spans, digest(file), numbers), store, turns)
    begins = beginning(str(file), 1 << 16).removeprefix(walk.MARK).lstrip()[:1]
    if begins == b"{" and (coco := open_coco(file, store, pictures)):
        return coco
    if begins != b"{":
        found = walk.walk(file, lambda key, element: None)
        records = JsonRecords(file, found[""] if found else walk.NONE, digest(file))
        if len(records) and refs.is_refs([_readable(records)]):
            return refs.open_refs(file, store, pictures)
        return _known(records, store, turns)
    spans, numbers = walk.lines(file)
    whole = walk.Spans(spans.starts[:1], spans.ends[-1:])
    return _known(JsonRecords(file, whole, digest(file), numbers[:1]), store, turns)


def _known(records: JsonRecords, store: Store, turns: bool) -> Source:
    """Records of which the first that can be read is of a known form: then another that is not is a damaged row."""
    if len(records) and form_of(_readable(records)) is None:
        raise BadInput(f"{records.name}: of no kind that is known; expected {KINDS}; a record has {RECORDS}")
    return _rows(records, store, turns)


def _readable(records: JsonRecords) -> Any:
    """The first of a few records that can be read at all. Raises BadInput when there is none."""
    problems = []
    for number in range(min(len(records), LOOKED_AT)):
        try:
            return records[number]
        except (OSError, ValueError) as error:
            problems.append(f"{records.where(number)}: {error}; expected {KINDS}")
    raise BadInput(problems[0])
