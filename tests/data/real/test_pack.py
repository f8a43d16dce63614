"""Files of a pack: rows by split, media by reference, and what is said of a file that is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tiny_pack

from trisense.data.real.pack import Pack, Ref
from trisense.errors import BadInput


def test_rows_have_their_numbers_and_say_where_media_are(pack: Pack) -> None:
    train, dev = (pack.rows("pictures/noto72", split) for split in ("train", "dev"))
    assert [number for number, _ in train] == list(range(7)) and [number for number, _ in dev] == [7, 8, 9]
    assert train[0][1]["text"] == "A red apple." and train[0][1]["image"] is True
    assert pack.medium(Ref("image", "pictures/noto72", 8)) == tiny_pack.picture(8)


def test_a_file_that_is_missing_broken_or_of_another_kind_is_named(folder: Path) -> None:
    pack = Pack(folder)
    with pytest.raises(BadInput, match=r"pictures/cats\.parquet: no such file; name the folder of a pack"):
        pack.rows("pictures/cats", "train")
    (folder / "text/qed.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match=r"qed\.parquet: not a parquet file that can be read"):
        pack.rows("text/qed", "train")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), folder / "text/trivia.parquet")
    with pytest.raises(BadInput, match=r"trivia\.parquet: no column 'split'"):
        pack.rows("text/trivia", "train")


def test_a_row_without_a_medium_is_named(folder: Path) -> None:
    table = pyarrow.table({"id": ["a"], "split": ["train"], "audio": pyarrow.array([None], pyarrow.binary())})
    pyarrow.parquet.write_table(table, folder / "speech/fsdd.parquet")
    pack = Pack(folder)
    assert pack.rows("speech/fsdd", "train")[0][1]["audio"] is False
    with pytest.raises(BadInput, match=r"fsdd\.parquet, row 0: no audio"):
        pack.medium(Ref("audio", "speech/fsdd", 0))
