"""A stage learns the same from the same samples, however they are stored, and says what it does not use."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image as Pictures

from trisense.chat import Conversation
from trisense.cli import main
from trisense.data.sources import remote
from trisense.errors import BadInput
from trisense.recipe import Recipe, read
from trisense.train import files, samples
from trisense.train.files import train_stage

COUNT = 24
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
NAMES = [f"{number:012}.jpg" for number in range(COUNT)]
CAPTIONS = [f"all {list(COLOURS)[number % 3]}" for number in range(COUNT)]


def jpeg(number: int) -> bytes:
    data = io.BytesIO()
    Pictures.new("RGB", (40 + number, 36), COLOURS[list(COLOURS)[number % 3]]).save(data, "JPEG")
    return data.getvalue()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """jnana over tiny parts; its first stage learns captions."""
    changes = {"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup_steps": 0, "precision": "float32", "optimizer": "adamw"}
    changes |= {"buckets": "null", "log_every": 3, "evaluate_every": 6, "save_every": 3}
    overrides = [f"stages.align.{key}={value}" for key, value in changes.items()]
    return read("jnana", [*tiny_models.pretrained_overrides("jnana", tiny_models.parts()), *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 24 captioned pictures as COCO with a folder and with a zip, as OpenAI's messages, as parquet, as shards
    of unequal length."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "train2017").mkdir()
    pictures = {name: jpeg(number) for number, name in enumerate(NAMES)}
    for name, data in pictures.items():
        (folder / "train2017" / name).write_bytes(data)
    with zipfile.ZipFile(folder / "train2014.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pictures.items():
            archive.writestr(f"train2014/COCO_train2014_{name}", data)
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "caption": caption} for number, caption in enumerate(CAPTIONS)],
    }
    (folder / "captions.json").write_text(json.dumps(coco))
    lines = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": name}}]},
                {"role": "assistant", "content": caption},
            ]
        }
        for name, caption in zip(NAMES, CAPTIONS, strict=True)
    ]
    (folder / "messages.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    for shard, (first, last) in enumerate(((0, 11), (11, 12), (12, COUNT))):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as archive:
            for name, caption in list(zip(NAMES, CAPTIONS, strict=True))[first:last]:
                for member, content in ((name, pictures[name]), (name.replace("jpg", "txt"), caption.encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


def trained(recipe: Recipe, source: Any, out: Path, **options: Any) -> bytes:
    folder = train_stage(recipe, "align", source, out, device="cpu", **options)
    return (folder / "projector" / "image.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("folder")
    return trained(recipe, data / "captions.json", out, media=data / "train2017")


def test_captions_out_of_a_zip_of_2014(recipe: Recipe, data: Path, tmp_path: Path, expected: bytes):
    assert trained(recipe, data / "captions.json", tmp_path, media=data / "train2014.zip") == expected


def test_openais_messages(recipe: Recipe, data: Path, tmp_path: Path, expected: bytes):
    assert trained(recipe, data / "messages.jsonl", tmp_path, media=data / "train2017") == expected


def test_parquet(recipe: Recipe, data: Path, tmp_path: Path, expected: bytes):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": (data / "train2017" / name).read_bytes(), "path": name} for name in NAMES]
    parquet.write_table(pa.table({"image": images, "text": CAPTIONS}), tmp_path / "x.parquet", row_group_size=7)
    assert trained(recipe, tmp_path / "x.parquet", tmp_path / "out") == expected


def test_shards_and_a_run_on_them_that_was_stopped(
    recipe: Recipe, data: Path, tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
):
    source = data / "shard-{0..2}.tar"
    assert trained(recipe, source, tmp_path / "whole") == expected
    real = files.held_back_loss

    def killed(*arguments: Any) -> Any:
        raise RuntimeError("killed")

    shorter = recipe.model_copy(
        update={"stages": {"align": recipe.stages["align"].model_copy(update={"evaluate_every": 5})}}
    )
    monkeypatch.setattr(files, "held_back_loss", killed)
    with pytest.raises(RuntimeError, match="killed"):
        trained(shorter, source, tmp_path / "stopped")
    monkeypatch.setattr(files, "held_back_loss", real)
    assert trained(shorter, source, tmp_path / "stopped") == expected


def test_shards_behind_an_address(
    recipe: Recipe, data: Path, tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = partial(SimpleHTTPRequestHandler, directory=str(data))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}/shard-{{0..2}}.tar"
            assert trained(recipe, address, tmp_path / "out") == expected
        finally:
            server.shutdown()
            thread.join()


def test_boxes_are_written_as_the_encoder_sees_them(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The pictures are 40 to 63 wide and 36 high: a crop takes the middle."""
    coco = {
        "images": [{"id": n, "file_name": name, "width": 40 + n, "height": 36} for n, name in enumerate(NAMES)],
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [20, 9, 9, 18]} for n in range(COUNT)],
        "categories": [{"id": 1, "name": "ball"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    seen: list[str] = []
    real = samples.Samples.conversation

    def watched(self: Any, index: int) -> Any:
        found = real(self, index)
        seen.append(found.messages[1].content[0].text)
        return found

    monkeypatch.setattr(samples.Samples, "conversation", watched)
    trained(recipe, tmp_path / "instances.json", tmp_path / "out", media=data / "train2017")
    resized = np.array([(40 + n) * 32 // 36 for n in range(COUNT)])
    left = (20 * resized / (40 + np.arange(COUNT)) - (resized - 32) // 2) / 32
    assert {text.split(",")[0] for text in seen} <= {f"ball [{value:.3f}" for value in left}
    assert len(set(seen)) > 10


def test_text_alone_is_learned_too(recipe: Recipe, tmp_path: Path):
    lines = [
        {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}!"}]}
        for number in range(20)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    overrides = {"learns": "instruct", "lr": 1e-3}
    stage = recipe.stages["align"].model_dump() | overrides
    both = Recipe.model_validate(recipe.model_dump() | {"stages": {"align": stage}})
    folder = train_stage(both, "align", tmp_path / "x.jsonl", tmp_path / "out", device="cpu")
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


def damaged(data: Path, folder: Path) -> Path:
    """Of the pictures the third is missing and the fifth is text."""
    (folder / "pictures").mkdir()
    for number, name in enumerate(NAMES):
        if number != 2:
            (folder / "pictures" / name).write_bytes(b"text" if number == 4 else jpeg(number))
    return folder / "pictures"


def test_damaged_rows_are_named_bounded_and_listed(
    recipe: Recipe, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    media, source = damaged(data, tmp_path), data / "captions.json"
    with pytest.raises(BadInput) as refused:
        trained(recipe, source, tmp_path / "none", media=media)
    missing = f"{source}: annotations[2]: {media / NAMES[2]}: no such file; check --media"
    assert str(refused.value) == f"{missing}; repair it, or allow rows to be left out with --skip-bad N"
    with pytest.raises(BadInput) as refused:
        trained(recipe, source, tmp_path / "one", media=media, skip_bad=1)
    unreadable = f"{source}: annotations[4]: {media / NAMES[4]}: found text; expected PNG, JPEG"
    assert str(refused.value).startswith(f"2 damaged rows, more than --skip-bad 1 allows; the last: {unreadable}")
    capsys.readouterr()
    trained(recipe, source, tmp_path / "two", media=media, skip_bad=2)
    printed = capsys.readouterr().out
    counts = (
        f"{source}: 21 samples to learn from, 1 held back to evaluate with; skipped: 2 damaged, the first: {missing}"
    )
    assert printed.count(counts) == 2, "when it begins and when it ends"
    assert printed.rstrip().splitlines()[-2] == missing
    assert printed.rstrip().splitlines()[-1].startswith(unreadable)
    trained(recipe, source, tmp_path / "two", media=media, skip_bad=2)
    assert capsys.readouterr().out.count(counts) == 2, "features that are there already say what they lack"
    with pytest.raises(BadInput, match="2 damaged rows, more than --skip-bad 1"):
        trained(recipe, source, tmp_path / "two", media=media, skip_bad=1)


def test_a_folder_that_does_not_fit_is_told_before_a_model_is_loaded(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "load_design", lambda *arguments: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput) as refused:
        trained(recipe, data / "captions.json", tmp_path / "out", media=tmp_path)
    assert str(refused.value) == (
        f"{data / 'captions.json'}: 20 of 20 checked pictures are not in {tmp_path}, first: {NAMES[0]}; give --media "
        "the folder or zip that holds them"
    )


def test_no_usable_sample_says_why_of_all(recipe: Recipe, data: Path, tmp_path: Path):
    options = recipe.stages["align"].model_dump() | {"answers": {"longest_tokens": 2}}
    short = Recipe.model_validate(recipe.model_dump() | {"stages": {"align": options}})
    with pytest.raises(BadInput) as refused:
        trained(short, data / "captions.json", tmp_path, media=data / "train2017")
    assert str(refused.value) == (
        f"{data / 'captions.json'}: 0 samples that this stage can use; expected two at least, to learn from and to "
        "evaluate with; skipped: 24 an answer is longer than 2 tokens"
    )


def test_prompts_are_cut_to_the_context_and_counted(
    recipe: Recipe, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The tiny language model reads 512 tokens, one for each letter."""
    lines = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": name}},
                        {"type": "text", "text": "x" * 600 * (number < 3)},
                        {"type": "text", "text": "y" * 600 * (number == 3)},
                    ],
                },
                {"role": "assistant", "content": caption},
            ]
        }
        for number, (name, caption) in enumerate(zip(NAMES, CAPTIONS, strict=True))
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    trained(recipe, tmp_path / "x.jsonl", tmp_path / "out", media=data / "train2017")
    printed = capsys.readouterr().out
    assert "skipped: 1 longer than the 512 tokens that the language model reads; truncated to 512 tokens: 3" in printed


def test_the_command_takes_addresses_and_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    command = ["train", "stage", "jnana", "align", "--out", str(tmp_path / "out"), "--data"]
    (tmp_path / "x.json").write_text("{")
    assert main([*command, str(tmp_path / "x.json"), "--skip-bad", "3"]) == 2
    assert f"{tmp_path / 'x.json'}: not JSON" in capsys.readouterr().err
    assert main([*command, "http://127.0.0.1:1/x-{0..1}.tar"]) == 2
    said = capsys.readouterr().err
    assert "http://127.0.0.1:1/x-0.tar: cannot be read" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_sounds_that_cannot_be_heard_are_named_by_their_row_and_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """For a model without ears: the second sound is text, the third is not there."""
    voice = Path(__file__).resolve().parents[2] / "examples" / "voice.wav"
    records = []
    for number in range(8):
        name = f"{number}.wav"
        if number != 2:
            (tmp_path / name).write_bytes(b"text" if number == 1 else voice.read_bytes())
        records.append(Conversation.ask("Who?", audios=[name]).answered("Ben").to_dict())
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    short = [f"stages.instruct.{key}" for key in ("steps=1", "precision=float32", "optimizer=adamw")]
    overrides = tiny_models.pretrained_overrides("eden", tiny_models.parts())
    eden = read("eden", [*overrides, "answering.speech.pretrained=spark", *short])
    with pytest.raises(BadInput) as refused:
        train_stage(eden, "instruct", file, tmp_path / "out", device="cpu")
    damaged = f"{file}: line 2: {tmp_path / '1.wav'}: found text; expected wav, flac"
    assert str(refused.value).startswith(damaged) and "--skip-bad N" in str(refused.value)
    with pytest.raises(
        BadInput, match=r"2 damaged rows, more than --skip-bad 1 allows; the last: .*line 3: .*no such file"
    ):
        train_stage(eden, "instruct", file, tmp_path / "out", device="cpu", skip_bad=1)
    train_stage(eden, "instruct", file, tmp_path / "out", device="cpu", skip_bad=2)
    counts = f"{file}: 5 samples to learn from, 1 held back to evaluate with; skipped: 2 damaged, the first: {damaged}"
    assert capsys.readouterr().out.count(counts) == 2
