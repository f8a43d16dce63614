"""Pictures are found in folders and read straight out of zips, under the names of 2014 and 2017 alike."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made import decoded, jpeg, write_zip

from trisense.data.sources.stores import Embedded, NotThere, Zip, is_missing, open_store
from trisense.errors import BadInput
from trisense.media import Limits, load_image

NAME = "000000000009.jpg"


def test_names_of_2014_and_of_2017_find_each_other(tmp_path: Path):
    for year, name in ((2014, f"COCO_train2014_{NAME}"), (2017, NAME)):
        folder = tmp_path / str(year)
        folder.mkdir()
        (folder / name).write_bytes(jpeg(0))
        write_zip(tmp_path / f"{year}.zip", {f"train{year}/{name}": jpeg(0)})
        for asked in (NAME, f"COCO_train2014_{NAME}"):
            for place in (folder, tmp_path / f"{year}.zip"):
                store = open_store(place)
                store.adapt([asked])
                assert store.has(asked)
                assert not is_missing(store.find(asked))
                assert np.array_equal(np.asarray(load_image(store.find(asked))), decoded(jpeg(0)))


def test_names_that_are_not_cocos_stay_as_they_are(tmp_path: Path):
    store = open_store(tmp_path)
    store.adapt(["a/b.png", "COCO_train2014_x.png"])
    assert store.find("a/b.png") == str(tmp_path / "a" / "b.png")
    assert store.find("COCO_train2014_x.png") == str(tmp_path / "COCO_train2014_x.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_many_threads_read_one_zip(tmp_path: Path, method: int):
    members = {f"top/{number}.bin": np.random.default_rng(number).bytes(5000 + number) for number in range(60)}
    store = Zip(write_zip(tmp_path / "x.zip", members, method))
    names = list(members) * 5

    def read(name: str) -> bytes:
        return store.find(name.removeprefix("top/")).read()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(read, names)) == [members[name] for name in names]
    assert store.find("7.bin").read(10) == members["top/7.bin"][:10]
    assert store.find("7.bin") == store.find("7.bin") != store.find("8.bin")


def test_what_a_zip_lacks_or_cannot_give_is_named(tmp_path: Path):
    store = open_store(write_zip(tmp_path / "x.zip", {"a/1.jpg": jpeg(0), "b/2.jpg": b""}))
    with pytest.raises(NotThere, match=r"x\.zip: holds no '1\.jpg'"):
        store.find("1.jpg")
    with pytest.raises(BadInput, match=r"x\.zip/b/2\.jpg: empty, 0 bytes"):
        load_image(store.find("b/2.jpg"))
    packed = open_store(write_zip(tmp_path / "y.zip", {"1.jpg": jpeg(0)}, zipfile.ZIP_BZIP2))
    with pytest.raises(BadInput, match=r"1\.jpg: cannot be read \(it is compressed by method 12 in the zip"):
        load_image(packed.find("1.jpg"))
    bomb = open_store(write_zip(tmp_path / "z.zip", {"1.jpg": bytes(10**6)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(BadInput, match="more than 1,000 bytes"):
        load_image(bomb.find("1.jpg"), Limits(max_bytes=1000))


@given(
    st.integers(0, 10**6),
    st.binary(min_size=1, max_size=8),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
@example(347, b"\0\0\1", zipfile.ZIP_STORED)  # its checksum in the directory, and one byte more than there is
@example(357, b"\0\0", zipfile.ZIP_STORED)  # a name of no length
def test_a_damaged_zip_gives_what_it_held_or_says_so(
    tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes, method: int
):
    file = write_zip(tmp_path_factory.mktemp("zip") / "x.zip", {"1.bin": bytes(range(256)), "2.bin": b"two"}, method)
    content = file.read_bytes()
    place %= len(content)
    file.write_bytes((content[:place] + damage + content[place + len(damage) :])[: len(content)])
    try:
        store = open_store(file)
        found = store.find("1.bin")
    except BadInput as error:
        assert "\n" not in str(error)
        return
    assert isinstance(found, Embedded)
    with suppress(OSError):
        assert found.read() == bytes(range(256))
