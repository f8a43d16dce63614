"""Parquet as Hugging Face's datasets writes it: media as structs of bytes and path, records in several forms."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import decoded, jpeg, pixels, said

from trisense.data.sources import media_of, open_source
from trisense.errors import BadInput
from trisense.media import load_image

pa = pytest.importorskip("pyarrow", reason="extra parquet")
parquet = pytest.importorskip("pyarrow.parquet")

MEDIUM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}


def write(file: Path, columns: dict[str, Any], rows_of_a_group: int = 3) -> Path:
    """With the metadata that datasets leaves, which nothing here depends on."""
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(FEATURES)})
    parquet.write_table(table, file, row_group_size=rows_of_a_group)
    return file


def media(*seeds: int | None) -> Any:
    return pa.array([None if s is None else {"bytes": jpeg(s), "path": f"{s}.png"} for s in seeds], MEDIUM)


def test_captions_with_their_pictures(tmp_path: Path):
    seeds = list(range(10))
    file = write(
        tmp_path / "train-00000-of-00001.parquet", {"image": media(*seeds), "text": [f"no {s}" for s in seeds]}
    )
    found = open_source(file)
    found.check_media()
    assert [said(one)[1] for one in found] == [("assistant", [f"no {s}"]) for s in seeds]
    for sample, seed in zip(found, seeds, strict=True):
        assert np.array_equal(pixels(sample)[0], decoded(jpeg(seed)))
    assert found.where(4) == f"{file}: row 4"


def test_many_threads_read_pictures_in_any_order(tmp_path: Path):
    seeds = list(range(40))
    found = open_source(write(tmp_path / "x.parquet", {"image": media(*seeds), "text": ["x"] * 40}))
    asked = np.random.default_rng(0).permutation(np.repeat(seeds, 3)).tolist()
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda number: pixels(found[number])[0], asked))
    assert all(np.array_equal(one, decoded(jpeg(number))) for one, number in zip(read, asked, strict=True))


def test_several_pictures_in_a_row_and_turns(tmp_path: Path):
    """The Cauldron's columns: a list of pictures, a list of turns."""
    turns = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())]))
    texts = [
        [
            {"user": "Which?", "assistant": "Both.", "source": "x"},
            {"user": "Sure?", "assistant": "Yes.", "source": "x"},
        ],
        [{"user": "Hi", "assistant": "Hello", "source": "x"}],
    ]
    pictures = pa.array([[{"bytes": jpeg(s), "path": None} for s in (1, 2)], []], pa.list_(MEDIUM))
    found = open_source(
        write(tmp_path / "x.parquet", {"images": pictures, "texts": pa.array(texts, turns)}), turns=True
    )
    assert [len(media_of(one)) for one in found] == [2, 2, 0]
    assert [np.array_equal(a, decoded(jpeg(s))) for a, s in zip(pixels(found[1]), (1, 2), strict=True)] == [True, True]
    assert said(found[1])[1] == ("assistant", ["Yes."])


def test_messages_as_structs_with_empty_fields_and_as_json(tmp_path: Path):
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]
    expected = [("user", ["[x.parquet, row 0, image]", "Which?"]), ("assistant", ["This."])]
    for column in (pa.array([messages]), pa.array([json.dumps(messages)])):
        found = open_source(write(tmp_path / "x.parquet", {"image": media(3), "messages": column}))
        assert said(found[0]) == expected
        assert np.array_equal(pixels(found[0])[0], decoded(jpeg(3)))


def test_conversations_and_pictures_named_by_path(tmp_path: Path):
    said_ = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "This."}]
    found = open_source(write(tmp_path / "x.parquet", {"image": ["a/1.jpg"], "conversations": pa.array([said_])}))
    assert media_of(found[0]) == [str(tmp_path / "a" / "1.jpg")]


def test_files_of_a_folder_and_of_a_pattern_are_one_source(tmp_path: Path):
    for number in range(3):
        columns = {"image": media(number), "caption": [f"no {number}"]}
        write(tmp_path / f"train-{number:05}-of-00003.parquet", columns)
    pattern = tmp_path / "train-{00000..00002}-of-00003.parquet"
    for data in (tmp_path, pattern, tmp_path / "train-*.parquet"):
        found = open_source(data)
        assert [said(one)[1] for one in found] == [("assistant", [f"no {number}"]) for number in range(3)]
    assert open_source(tmp_path).fingerprint == open_source(pattern).fingerprint
    other = open_source(tmp_path / "train-{00000,00002}-of-00003.parquet")
    assert len(other) == 2 and other.fingerprint != found.fingerprint


def test_a_thousand_files_are_not_open_at_once(tmp_path: Path):
    for number in range(60):
        write(tmp_path / f"{number:02}.parquet", {"image": media(number), "text": [f"no {number}"]})
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    found = open_source(tmp_path)
    assert [np.array_equal(pixels(one)[0], decoded(jpeg(n))) for n, one in enumerate(found)] == [True] * 60
    assert not before or len(os.listdir("/proc/self/fd")) < before + 20


def test_what_a_table_lacks_is_named(tmp_path: Path):
    file = write(tmp_path / "x.parquet", {"label": [1, 2]})
    with pytest.raises(BadInput, match=r"x\.parquet: has the columns label; expected `messages`"):
        open_source(file)
    empty = pa.array([{"bytes": None, "path": "1.jpg"}, None], MEDIUM)
    found = open_source(write(file, {"image": empty, "text": ["x", "y"]}))
    with pytest.raises(BadInput, match=r"row 0, image: cannot be read \(no bytes are stored, only the path '1\.jpg'"):
        load_image(media_of(found[0])[0])
    with pytest.raises(BadInput, match=r"x\.parquet: row 1: 'text' without a picture or sound"):
        found[1]
    with pytest.raises(BadInput, match="files of several kinds"):
        (tmp_path / "y.jsonl").write_text("{}\n{}\n")
        open_source(tmp_path / "{x.parquet,y.jsonl}")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "x.parquet", {"image": media(1), "text": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match=r"pip install 'trisense\[parquet\]'"):
        open_source(file)


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=6))
def test_a_damaged_table_is_one_line(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes):
    file = write(tmp_path_factory.mktemp("table") / "x.parquet", {"image": media(1, 2), "text": ["x", "y"]})
    content = file.read_bytes()
    place %= len(content)
    file.write_bytes((content[:place] + damage + content[place + len(damage) :])[: len(content)])
    try:
        found = open_source(file)
        for sample in found:
            for medium in media_of(sample):
                load_image(medium)
    except BadInput as error:
        assert "\n" not in str(error)
