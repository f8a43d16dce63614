"""The command line as a user meets it: what it prints, what it refuses and how it ends."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml

import trisense
from trisense.cli import main

ROOT = Path(trisense.__file__).resolve().parent.parent
SPARK = Path(trisense.__file__).resolve().parent / "spark"
QUESTION = "What is in the picture?"


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must be refused, and give the one line that says why."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("trisense: ")
    assert "Traceback" not in printed.err
    return lines[0]


def shell(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trisense", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


# What is typed wrong


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ask", "--imgae", "cup.png", QUESTION], "'--image'"),
        (["aks", QUESTION], "'ask'"),
        (["ask"], "QUESTION"),
        (["ask", "--max-tokens", "many", QUESTION], "'many'"),
        (["ask", "--max-tokens", "0", QUESTION], "'--max-tokens'"),
        (["ask", "--temperature", "-1", QUESTION], "'--temperature'"),
        (["ask", "two", "questions"], "questions"),
        (["ask", "  "], "question is empty"),
        (["ask", "--text", " ", "Who has the cup?"], "--text is empty"),
        (["serve", "--port", "70000"], "'--port'"),
        (["export", "onnx", "folder", "--weights", "int3"], "int8"),
        (["train", "spark"], "'--out'"),
        (["world", "out", "--split", "dev"], "unseen"),
    ],
)
def test_a_wrong_command_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str):
    assert expected in refusal(capsys, *arguments)


def test_an_unknown_recipe_key_is_one_line_with_the_nearest_key(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    out = tmp_path / "out"
    line = refusal(capsys, "train", "spark", "--out", out, "stages.answer.stepz=3")
    assert "stages.answer.stepz" in line
    assert "'steps'" in line
    assert not out.exists()


def test_text_that_cannot_be_read_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    latin, long, blank = tmp_path / "latin.txt", tmp_path / "long.txt", tmp_path / "blank.txt"
    latin.write_bytes("Grüße".encode("latin-1"))
    long.write_bytes(b"a" * (1 << 20) + b"a")
    blank.write_text(" \n")
    for file in (tmp_path / "none.txt", tmp_path, latin, long, blank):
        assert str(file) in refusal(capsys, "ask", "--text-file", file, QUESTION)


def test_a_question_on_stdin_that_is_not_text_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00")))
    assert "stdin" in refusal(capsys, "ask", "-")


def test_several_lines_of_a_message_become_one(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "a b.txt" in refusal(capsys, "ask", "--text-file", tmp_path / "a\nb.txt", QUESTION)


# What the files hold


def png_header(width: int, height: int) -> bytes:
    """A png that says how large it is and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def wav_header(seconds: int, held: int = 0) -> bytes:
    """A wav that says it lasts `seconds` at 16 kHz and holds `held` samples."""
    size = seconds * 16000 * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size) + bytes(2 * held)
    )


BAD_FILES = {
    "text.png": ("--image", b"This is not a picture."),
    "truncated.jpg": ("--image", None),
    "empty.png": ("--image", b""),
    "bomb.png": ("--image", png_header(50_000, 50_000)),
    "empty.wav": ("--audio", b""),
    "silent.wav": ("--audio", wav_header(0)),
    "ten_hours.wav": ("--audio", wav_header(36_000, held=100)),
    "text.wav": ("--audio", b"This is not a sound."),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_picture_or_sound_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str):
    option, content = BAD_FILES[name]
    if content is None:
        from PIL import Image

        whole = io.BytesIO()
        Image.effect_noise((200, 200), 80).save(whole, "JPEG")
        content = whole.getvalue()[: len(whole.getvalue()) // 2]
    file = tmp_path / name
    file.write_bytes(content)
    assert name in refusal(capsys, "ask", option, file, QUESTION)


@pytest.mark.parametrize("option", ["--image", "--audio"])
def test_a_missing_file_and_a_folder_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str):
    assert "none.bin" in refusal(capsys, "ask", option, tmp_path / "none.bin", QUESTION)
    assert str(tmp_path) in refusal(capsys, "ask", option, tmp_path, QUESTION)


# Models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of spark to damage."""
    return Path(shutil.copytree(SPARK, tmp_path / "model"))


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert "none" in refusal(capsys, "ask", "--model", tmp_path / "none", QUESTION)
    (tmp_path / "bare").mkdir()
    assert "bare" in refusal(capsys, "ask", "--model", tmp_path / "bare", QUESTION)


@pytest.mark.parametrize("missing", ["onnx/decoder.onnx", "onnx/audio_encoder.onnx", "tokenizer.json", "export.json"])
def test_a_model_with_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str], model: Path, missing: str):
    (model / missing).unlink()
    assert missing in refusal(capsys, "ask", "--model", model, QUESTION)


@pytest.mark.parametrize("file", ["export.json", "processor_config.json"])
def test_a_model_with_one_key_too_many_is_one_line(capsys: pytest.CaptureFixture[str], model: Path, file: str):
    content = json.loads((model / file).read_text(encoding="utf-8"))
    (model / file).write_text(json.dumps({**content, "colour_of_the_box": 3}), encoding="utf-8")
    line = refusal(capsys, "ask", "--model", model, QUESTION)
    assert file in line
    assert "colour_of_the_box" in line


def test_a_model_with_a_weight_cut_short_is_one_line(capsys: pytest.CaptureFixture[str], model: Path):
    part = model / "onnx" / "decoder.onnx"
    part.write_bytes(part.read_bytes()[:-100])
    assert "decoder.onnx" in refusal(capsys, "ask", "--model", model, QUESTION)


# What it answers


def test_ask_streams_the_same_answer_that_json_holds(capsys: pytest.CaptureFixture[str], samples: Path):
    given = ["--image", str(samples / "picture.png"), "--text-file", str(samples / "note.txt"), QUESTION]
    assert main(["ask", *given]) == 0
    streamed = capsys.readouterr()
    assert main(["ask", "--json", *given]) == 0
    record = json.loads(capsys.readouterr().out)
    assert streamed.err == ""
    assert streamed.out == record["answer"] + "\n"
    assert record["question"] == QUESTION
    assert record["finish_reason"] in ("stop", "length")
    assert record["completion_tokens"] > 0
    assert 0 < record["seconds"]["first_token"] <= record["seconds"]["command"]


def test_a_dash_reads_the_question_from_stdin(capsys: pytest.CaptureFixture[str], samples: Path):
    picture = str(samples / "picture.png")
    piped = shell("ask", "--image", picture, "-", input=QUESTION + "\n")
    assert (piped.returncode, piped.stderr) == (0, "")
    assert main(["ask", "--image", picture, QUESTION]) == 0
    assert capsys.readouterr().out == piped.stdout


def test_verbose_tells_what_was_given_and_the_times(capsys: pytest.CaptureFixture[str], samples: Path):
    assert main(["ask", "--verbose", "--image", str(samples / "picture.png"), "--text", "Ben is here.", QUESTION]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in (*lines[:4], lines[-1])] == [
        "image:",
        "text:",
        "question:",
        "answer:",
        "times:",
    ]
    assert lines[1].split(maxsplit=1)[1] == "Ben is here."
    assert "s to the first word" in lines[-1]


def test_max_tokens_ends_an_answer_early(capsys: pytest.CaptureFixture[str], samples: Path):
    assert main(["ask", "--json", "--max-tokens", "1", "--image", str(samples / "picture.png"), QUESTION]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["finish_reason"], record["completion_tokens"]) == ("length", 1)


# Asking what there is


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for command in ("ask", "serve", "train", "evaluate", "export", "world", "recipes"):
        assert f"\n  {command} " in printed


def test_recipes_are_listed_and_printed_with_what_overrides_change(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line[0] != " "]
    assert listed == ["context-gpt", "eden", "ft35", "jnana", "spark", "tinyclip-phi2"]
    assert lines[lines.index(next(line for line in lines if line.startswith("eden"))) + 1].split(": ") == [
        "              instruct",
        "LLaVA-Instruct-150K with COCO pictures",
    ]
    assert main(["recipes", "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["recipes"]] == listed
    assert main(["recipes", "spark", "stages.answer.steps=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["stages"]["answer"]["steps"] == 7
    assert "'spark'" in refusal(capsys, "recipes", "sparc")


def test_a_recipes_parts_are_counted_below_it(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "eden", "design.adapter.r=32"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["design"]["adapter"]["r"] == 32, "the parts are comments"
    (adapter,) = (line for line in printed.splitlines() if line.startswith("# adapter"))
    assert adapter.split()[2] == f"{77_594_624 // 2:,}"
    assert main(["recipes", "spark", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recipe"]["name"] == "spark"
    assert [part["name"] for part in record["parts"]][-1] == "optimiser"
    assert "did you mean 'targets'?" in refusal(capsys, "recipes", "eden", "design.adapter.target=[x]")
    assert "no linear layer is called 'qkv'" in refusal(capsys, "recipes", "eden", "design.adapter.targets=[qkv]")


def test_without_torch_a_recipe_is_printed_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trisense.cli.find_spec", lambda name: None)
    assert main(["recipes", "eden"]) == 0
    assert "# parameters and bytes of its parts: pip install 'trisense[train]'" in capsys.readouterr().out


def test_a_group_alone_shows_its_commands(capsys: pytest.CaptureFixture[str]):
    assert main(["train"]) == 0
    assert "\n  spark " in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trisense {trisense.__version__}\n"


# How it ends


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "trisense", "--help"], cwd=ROOT, stdout=nobody, stderr=subprocess.PIPE, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    class Waiting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            signal.raise_signal(signal.SIGINT)
            return b""

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Waiting()))
    assert main(["ask", "-"]) == 130
    assert capsys.readouterr().err.strip() == ""
