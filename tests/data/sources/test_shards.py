"""WebDataset shards: local, by pattern and over HTTP, with and without ranges, whole and broken."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made import decoded, jpeg, pixels, said, write_tar

from trisense.data.sources import media_of, open_source, remote
from trisense.data.sources.remote import Remote
from trisense.data.sources.shards import members_of
from trisense.errors import BadInput


def sample(number: int) -> list[tuple[str, bytes]]:
    return [(f"{number:04}.jpg", jpeg(number)), (f"{number:04}.txt", f"no {number}".encode())]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of unequal length: 5, 1 and 4 samples."""
    bounds = (0, 5, 6, 10)
    for number, (first, last) in enumerate(pairwise(bounds)):
        members = [member for i in range(first, last) for member in sample(i)]
        write_tar(tmp_path / f"shard-{number:03}.tar", members)
    return tmp_path


class Served(ThreadingHTTPServer):
    """A folder over HTTP. ranges: whether they are known. breaks: after so many bytes a reply breaks off, once each.
    tags: whether files have one."""

    def __init__(self, folder: Path, ranges: bool, breaks: list[int], tags: bool):
        self.folder, self.ranges, self.breaks, self.tags = folder, ranges, breaks, tags
        self.asked: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Served  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file():
            return self.send_error(404)
        data, status = file.read_bytes(), 200
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                return self.send_error(416)
            data, status = data[start:], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if self.server.tags:
            self.send_header("ETag", sha256(file.read_bytes()).hexdigest())
        self.end_headers()
        self.wfile.write(data[: self.server.breaks.pop()] if self.server.breaks else data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path, ranges: bool = True, breaks: tuple[int, ...] = (), tags: bool = True) -> Iterator[Served]:
    with Served(folder, ranges, list(breaks), tags) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def impatient_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def check(found: object, count: int = 10) -> None:
    assert [said(one)[1] for one in found] == [("assistant", [f"no {i}"]) for i in range(count)]  # pyright: ignore
    for number, one in enumerate(found):  # pyright: ignore
        assert np.array_equal(pixels(one)[0], decoded(jpeg(number)))


def test_local_shards_by_pattern_folder_and_file(shards: Path):
    for data in (shards, shards / "shard-{000..002}.tar", shards / "shard-*.tar"):
        check(open_source(data))
    check(open_source(shards / "shard-000.tar"), 5)
    found = open_source(shards)
    found.check_media()
    assert found.where(6) == f"{shards / 'shard-002.tar'}: sample 0006"
    assert str(media_of(found[6])[0]) == f"{shards / 'shard-002.tar'}/0006.jpg"


def test_a_thousand_shards_are_not_open_at_once(tmp_path: Path):
    for number in range(60):
        write_tar(tmp_path / f"{number:02}.tar", sample(number))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    found = open_source(tmp_path / "{00..59}.tar")
    check(found, 60)
    assert not before or len(os.listdir("/proc/self/fd")) < before + 20


def test_a_sample_depends_on_its_number_alone(shards: Path):
    """In any order, from many threads, and from a source that was opened again."""
    order = np.random.default_rng(0).permutation(np.repeat(range(10), 8)).tolist()
    found, again = open_source(shards), open_source(shards)
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda number: (said(found[number]), pixels(again[number])[0]), order))
    for number, (words, picture) in zip(order, read, strict=True):
        assert words[1] == ("assistant", [f"no {number}"])
        assert np.array_equal(picture, decoded(jpeg(number)))
    assert found.fingerprint == again.fingerprint


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_behind_addresses_are_streamed(shards: Path, ranges: bool, tmp_path: Path):
    with served(shards, ranges) as server:
        found = open_source(f"{server.address}/shard-{{000..002}}.tar")
        told, streamed = ([(f"/shard-{n:03}.tar", None) for n in range(3)] for _ in "ab")
        assert sorted(server.asked) == sorted(told + streamed), "each was read once, after a look at its headers"
        assert found.fingerprint == open_source(shards).fingerprint
        server.asked.clear()
        check(found)
        assert sorted(server.asked) == streamed, "once more for the pictures"
        with ThreadPoolExecutor(8) as threads:
            order = np.random.default_rng(0).permutation(np.repeat(range(10), 4)).tolist()
            read = list(threads.map(lambda number: pixels(found[number])[0], order))
        assert all(np.array_equal(one, decoded(jpeg(n))) for one, n in zip(read, order, strict=True))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_file_is_read_by_blocks(tmp_path: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "BLOCK", 1000)
    monkeypatch.setattr(remote, "KEPT", 4)
    content = np.random.default_rng(0).bytes(50_500)
    (tmp_path / "x.bin").write_bytes(content)
    with served(tmp_path, ranges) as server:
        file = Remote(f"{server.address}/x.bin")
        for start in range(0, 50_000, 700):
            assert file.read(start, 700) == content[start : start + 700]
        assert len(server.asked) == 1, "one request for reading in order"
        for start, size in ((0, 10), (49_000, 1500), (20_000, 9000), (50_499, 1), (5, 0), (0, 50_500)):
            assert file.read(start, size) == content[start : start + size]
        for start in (50_400, 50_500, 99_000):
            with pytest.raises(OSError, match="the file ends before"):
                file.read(start, 101)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_goes_on_where_it_broke(shards: Path, ranges: bool):
    with served(shards, ranges, breaks=(3000, 700, 5000, 1, 2000)) as server:
        check(open_source(f"{server.address}/shard-{{000..002}}.tar"))
        assert not server.breaks and len(server.asked) > 6


def test_addresses_that_give_nothing_are_named(shards: Path):
    with served(shards, breaks=(1,) * 5) as server:
        with pytest.raises(BadInput, match=r"shard-000\.tar: cannot be read \(4 tries, then "):
            open_source(f"{server.address}/shard-000.tar")
        with pytest.raises(BadInput, match=r"nothing\.tar: cannot be read \(the server says 404 Not Found\)"):
            open_source(f"{server.address}/nothing.tar")
        gone = server.address
    with pytest.raises(BadInput, match=r"cannot be read \(4 tries, then .*refused"):
        open_source(f"{gone}/shard-000.tar")


def test_the_text_of_a_sample_is_its_json_or_its_caption(tmp_path: Path):
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "This."}]
    caption = {"caption": "from json", "url": "https://example.org/3.jpg", "width": 40, "status": "success"}
    members = [
        ("a/1.json", json.dumps({"image": "elsewhere.jpg", "conversations": turns}).encode()),
        ("a/1.jpg", jpeg(2)),
        ("a/1.txt", b"not this"),
        ("a/2.jpg", jpeg(4)),
        ("a/2.txt", b"a caption"),
        ("a/2.json", json.dumps(caption).encode()),
        ("a/3.json", json.dumps(caption).encode()),
        ("a/3.jpg", jpeg(6)),
        ("b/3.left.png", jpeg(1)),
        ("b/3.right.png", jpeg(3)),
        ("b/3.cls", b"7"),
        ("b/3.json", json.dumps({"question": "Same?", "answer": "No."}).encode()),
        ("b/4.wav", b"RIFF"),
        ("b/4.txt", b"a voice"),
        ("b/5.json", b"{"),
    ]
    found = open_source(write_tar(tmp_path / "x.tar", members))
    assert [said(found[number]) for number in range(5)] == [
        [("user", ["[1.jpg]", "Which?"]), ("assistant", ["This."])],
        [("user", ["[2.jpg]"]), ("assistant", ["a caption"])],
        [("user", ["[3.jpg]"]), ("assistant", ["from json"])],
        [("user", ["[3.left.png]", "[3.right.png]", "Same?"]), ("assistant", ["No."])],
        [("user", ["[4.wav]"]), ("assistant", ["a voice"])],
    ]
    with pytest.raises(BadInput, match=r"x\.tar: sample b/5: b/5\.json is not JSON"):
        found[5]


LONG = "a" * 90 + "/" + "b" * 150
KINDS: tuple[int, ...] = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)


@given(
    st.lists(
        st.tuples(st.sampled_from(["1.txt", "é.txt", "x/2.bin", f"{LONG}.txt"]), st.binary(max_size=1500)), min_size=1
    ),
    st.sampled_from(KINDS[:2]),
)
def test_members_are_those_that_tarfile_finds(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], kind: int
):
    file = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", members, kind)
    content = file.read_bytes()
    with tarfile.open(file) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive]
    found = list(members_of(str(file)))
    assert [(one.name, one.start, one.size) for one in found] == expected
    for one, (name, data) in zip(found, members, strict=True):
        assert one.name == name and content[one.start : one.start + one.size] == data
        assert one.text == (data if name.endswith(".txt") else None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remote_", [False, True])
def test_a_shard_that_was_cut_off_is_not_taken_for_a_short_one(tmp_path: Path, kind: int, remote_: bool):
    members = [member for number in range(3) for member in sample(number)]
    whole = write_tar(tmp_path / "whole.tar", members, kind).read_bytes()
    end = max(place for place in range(0, len(whole), 512) if whole[place : place + 512].strip(b"\0")) + 512
    cut = tmp_path / "cut.tar"
    with served(tmp_path) as server:
        address = f"{server.address}/cut.tar" if remote_ else str(cut)
        for length in (1, 300, 700, end - 513, end - 512 + 1, end):
            cut.write_bytes(whole[:length])
            with pytest.raises(BadInput, match=r"cut\.tar: not a whole tar|cut\.tar: not JSON"):
                len(open_source(address))
        cut.write_bytes(whole + whole)
        with pytest.raises(BadInput, match="another tar follows in it"):
            open_source(address)
        cut.write_bytes(whole[: 512 * 3] + b"damage".ljust(512) + whole[512 * 4 :])
        with pytest.raises(BadInput, match="not a whole tar"):
            open_source(address)


def test_a_compressed_shard_says_so(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(__file__, "x.txt")
    with pytest.raises(BadInput, match=r"x\.tar\.gz: not a whole tar \(it is compressed by gzip; unpack it to \.tar\)"):
        open_source(tmp_path / "x.tar.gz")


@example(525321, b"\n")
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_a_damaged_shard_is_one_line(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes):
    file = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", [*sample(0), (f"{LONG}.txt", b"x"), *sample(1)])
    content = file.read_bytes()
    place %= len(content)
    file.write_bytes((content[:place] + damage + content[place + len(damage) :])[: len(content)])
    try:
        found = open_source(file)
        for number in range(len(found)):
            pixels(found[number])
    except BadInput as error:
        assert "\n" not in str(error)


def read_share(address: str, process: int, processes: int, workers: int) -> list[tuple[str, int]]:
    """What one process reads with its workers: captions, and the sizes of the pictures with them."""
    found = open_source(address)

    def work(worker: int) -> list[tuple[str, int]]:
        own = range(process * workers + worker, len(found), processes * workers)
        return [(said(found[number])[1][1][0], len(media_of(found[number])[0].read())) for number in own]

    with ThreadPoolExecutor(workers) as threads:
        return [one for part in threads.map(work, range(workers)) for one in part]


def test_processes_with_workers_read_every_sample_once(shards: Path):
    """Two processes that open the shards at the same time, each for itself, and have nothing but their number."""
    with served(shards) as server, ProcessPoolExecutor(2, get_context("spawn")) as processes:
        address = f"{server.address}/shard-{{000..002}}.tar"
        parts = [processes.submit(read_share, address, process, 2, 2) for process in range(2)]
        read = [one for part in parts for one in part.result()]
    assert sorted(read) == [(f"no {number}", len(jpeg(number))) for number in range(10)]


@pytest.mark.parametrize("tags", [True, False])
def test_a_shard_that_was_read_is_not_streamed_again_until_it_changes(shards: Path, tags: bool):
    with served(shards, tags=tags) as server:
        first = open_source(f"{server.address}/shard-000.tar")
        server.asked.clear()
        again = open_source(f"{server.address}/shard-000.tar")
        assert len(server.asked) == (1 if tags else 2), "its headers alone, where they tell one version from another"
        assert again.fingerprint == first.fingerprint
        check(again, 5)
        for file in Path(os.environ["XDG_CACHE_HOME"]).rglob("*.jsonl"):
            file.write_text(file.read_text()[:-9])
        check(open_source(f"{server.address}/shard-000.tar"), 5)
        write_tar(shards / "shard-000.tar", [member for i in range(8) for member in sample(i)])
        check(open_source(f"{server.address}/shard-000.tar"), 8)


def test_what_was_read_of_a_broken_shard_is_not_kept(shards: Path, tmp_path: Path):
    whole = (shards / "shard-000.tar").read_bytes()
    cut = bytearray(whole)
    cut[3 * 512 : 4 * 512] = b"damage".ljust(512)
    with served(shards) as server:
        (shards / "shard-000.tar").write_bytes(cut)
        for _ in range(2):
            with pytest.raises(BadInput, match="not a whole tar"):
                open_source(f"{server.address}/shard-000.tar")
        (shards / "shard-000.tar").write_bytes(whole)
        check(open_source(f"{server.address}/shard-000.tar"), 5)
