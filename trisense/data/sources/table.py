"""Parquet files with text and media in them, as Hugging Face's datasets are stored.

Texts are read once, a thousand rows at a time. A picture or sound (a column of structs `bytes` and `path`, or a list of
them, or of plain bytes) is read when it is asked for, with the group of rows that it is stored in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from trisense.data.sources.files import Recent
from trisense.data.sources.forms import KEYS, KINDS, MEDIA
from trisense.data.sources.spool import Address, Spool
from trisense.data.sources.stores import Embedded
from trisense.errors import BadInput

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"PAR1"
ROWS = 1000
LISTS = ("messages", "conversations", "texts")
# Groups of rows whose media are kept: the one that is read, one that threads beside it still read, of two columns.
KEPT_GROUPS = 4


def need_pyarrow(file: str) -> None:
    """Raises BadInput where parquet cannot be read at all."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise BadInput(f"{file}: a parquet file needs pyarrow: pip install 'trisense[parquet]'") from None


def open_table(files: list[str]) -> Spool:
    """The records of parquet files. Raises BadInput for a file that is none, or without a column that is known."""
    need_pyarrow(files[0])
    groups = Recent[tuple[str, int, str], Any](_group, KEPT_GROUPS)
    tables = [Table(file, groups) for file in files]

    def find(address: Address) -> Embedded:
        number, row, column, place = address
        name = f"{files[number]}, row {row}, {column}{'' if place is None else f' {place}'}"
        return Embedded(name, lambda size: tables[number].medium(row, column, place))

    spool = Spool(files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more", find)
    for number, table in enumerate(tables):
        table.spool(spool, number)
    return spool


def _group(wanted: tuple[str, int, str]) -> Any:
    """One column of a group of rows. Raises what pyarrow raises."""
    from pyarrow import parquet

    file, group, column = wanted
    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, [column]).column(0)


class Table:
    """One parquet file. It is open only while something is read, since a data set may have a thousand of them.

    groups: file, group of rows and column -> values, shared by all tables.
    """

    def __init__(self, file: str, groups: Recent[tuple[str, int, str], Any]):
        from pyarrow import parquet

        self.file, self._groups = file, groups
        try:
            with parquet.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                paths = [opened.schema.column(i).path for i in range(len(opened.schema))]
                counts = [opened.metadata.row_group(i).num_rows for i in range(opened.metadata.num_row_groups)]
        except Exception as error:  # pyarrow's own, and OSError
            raise BadInput(f"{file}: not a parquet file that can be read ({_line(error)})") from None
        self._media = [field.name for field in schema if field.name in MEDIA and _holds_bytes(field.type)]
        self._texts = [field.name for field in schema if field.name in KEYS and field.name not in self._media]
        if not self._texts:
            raise BadInput(f"{file}: has the columns {', '.join(schema.names)}; expected {KINDS}")
        self._columns = [*self._texts, *(_without_bytes(paths, name) for name in self._media)]
        self._firsts = np.cumsum([0, *counts])

    def spool(self, spool: Spool, number: int) -> None:
        """Adds all rows, their media as addresses."""
        from pyarrow import parquet

        row = 0
        try:
            with parquet.ParquetFile(self.file) as opened:
                for batch in opened.iter_batches(ROWS, columns=self._columns):
                    for values in batch.to_pylist():
                        media = {name: _addresses(number, row, name, values.get(name)) for name in self._media}
                        record = {name: values.get(name) for name in self._texts}
                        spool.add(_plain(record), f"{self.file}: row {row}", media)
                        row += 1
        except BadInput:
            raise
        except Exception as error:  # pyarrow's own, and OSError
            raise BadInput(f"{self.file}: damaged after row {row} ({_line(error)}); get the file again") from None

    def medium(self, row: int, column: str, place: int | None) -> bytes:
        """The bytes of one picture or sound. Raises OSError."""
        group = int(np.searchsorted(self._firsts, row, "right")) - 1
        try:
            value = self._groups[self.file, group, column][row - int(self._firsts[group])].as_py()
        except Exception as error:
            raise OSError(_line(error)) from None
        value = value if place is None else value[place]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            path = value.get("path") if isinstance(value, dict) else None
            raise OSError(f"no bytes are stored, only the path {path!r}; embed the files in the table")
        return data


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _without_bytes(paths: list[str], column: str) -> str:
    """What says of each row how many media it has, at the least cost: their paths, where there are some."""
    ours = [path for path in paths if path.split(".")[0] == column]
    return next((path for path in ours if path.endswith(".path")), column)


def _addresses(number: int, row: int, column: str, value: Any) -> list[Address]:
    if value is None:
        return []
    if isinstance(value, list):
        return [[number, row, column, place] for place, one in enumerate(value) if one is not None]
    return [[number, row, column, None]]


def _plain(value: Any) -> Any:
    """A record as JSON has it: `messages` and their like may be stored as JSON themselves."""
    if isinstance(value, dict):
        return {key: _plain(_listed(one) if key in LISTS else one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _listed(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
