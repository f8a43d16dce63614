"""A folder of parquet files with real pictures, sound and text, one schema a kind, each row in `train` or `dev`.

The columns are those of `docs/spark.md`. Texts are kept in memory, media as the encoded bytes that they are stored as.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trisense.data.sources.table import need_pyarrow
from trisense.errors import BadInput

Split = Literal["train", "dev"]
Row = dict[str, Any]
MEDIA = ("image", "audio")


@dataclass(frozen=True, order=True)
class Ref:
    """One picture or sound of a pack: the row of a file. Equal and hashable, so that features can be kept for it.
    style: of a picture that is drawn anew (`trisense.data.real.style`); 0 for the picture as it is. spoilt: of one of
    which nothing is left that has a name (`trisense.data.real.augment.nameless`)."""

    sense: Literal["image", "audio"]
    file: str
    row: int
    style: int = 0
    spoilt: int = 0


@dataclass(frozen=True)
class Pack:
    """The files of `folder`, by their path below it and without suffix: `pictures/noto72`."""

    folder: Path

    def rows(self, file: str, split: Split) -> list[tuple[int, Row]]:
        """The rows of a split with their numbers, without their media; `image` and `audio` say whether there is one.

        Raises BadInput for a file that is missing or no parquet file with the column `split`.
        """
        return [(number, row) for number, row in enumerate(self._file(file).rows) if row["split"] == split]

    def medium(self, ref: Ref) -> bytes:
        """The encoded picture or sound."""
        value = self._file(ref.file).media[ref.sense][ref.row].as_py()
        if value is None:
            raise BadInput(f"{self.folder / ref.file}.parquet, row {ref.row}: no {ref.sense}")
        return value

    def _file(self, file: str) -> _File:
        if file not in self._files:
            self._files[file] = _File.read(self.folder / f"{file}.parquet")
        return self._files[file]

    @cached_property
    def _files(self) -> dict[str, _File]:
        return {}


@dataclass(frozen=True)
class _File:
    rows: list[Row]
    media: dict[str, Any]  # columns of pyarrow

    @classmethod
    def read(cls, path: Path) -> _File:
        need_pyarrow(str(path))
        from pyarrow import ArrowException, parquet

        try:
            table = parquet.read_table(path)
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file; name the folder of a pack (docs/spark.md lists its files)") from None
        except (ArrowException, OSError) as error:
            raise BadInput(f"{path}: not a parquet file that can be read ({error})") from None
        if "split" not in table.column_names:
            raise BadInput(f"{path}: no column 'split'; expected one that says train or dev")
        media = {name: table[name] for name in MEDIA if name in table.column_names}
        rows = table.drop_columns(list(media)).to_pylist()
        for name, column in media.items():
            for row, there in zip(rows, column.is_valid().to_pylist(), strict=True):
                row[name] = there
        return cls(rows, media)
