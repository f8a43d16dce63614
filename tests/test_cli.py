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
import wave
import zlib
from pathlib import Path

import pytest
import tiny_models
import yaml
from PIL import Image as Pictures

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
    """A copy of spark's ONNX parts to damage; its torch weights would make a model of their own of what is left."""
    return Path(shutil.copytree(SPARK, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))


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
    for command in ("ask", "serve", "transcribe", "train", "evaluate", "import", "export", "push", "world", "recipes"):
        assert f"\n  {command} " in printed


def test_recipes_are_listed_and_printed_with_what_overrides_change(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line[0] != " "]
    assert listed == ["context-gpt", "eden", "ft35", "jnana", "shrunk-phi", "spark", "tinyclip-phi2"]
    assert lines[lines.index(next(line for line in lines if line.startswith("eden"))) + 1].split(": ") == [
        "              instruct",
        "LLaVA-Instruct-150K with COCO pictures",
    ]
    memory = [line for line in lines if line.startswith("              memory: ")]
    assert len(memory) == len(listed)
    assert main(["recipes", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["recipes"]
    twins = {f"{name}@spark" for name in listed if name not in ("spark", "shrunk-phi")}
    assert {one["name"] for one in records} == {*listed, *twins}
    assert "              twin: eden@spark, the same design on spark's own parts, minutes on a CPU" in lines
    eden = next(one for one in records if one["name"] == "eden")
    assert f"memory: {eden['bytes'] / 1e9:.1f} GB to train" in memory[listed.index("eden")]
    assert main(["recipes", "spark", "stages.answer.steps=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["stages"]["answer"]["steps"] == 7
    assert "'spark'" in refusal(capsys, "recipes", "sparc")


def test_a_recipes_parts_are_counted_below_it(capsys: pytest.CaptureFixture[str]):
    assert main(["recipes", "eden", "design.adapter.r=32"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["design"]["adapter"]["r"] == 32, "the parts are comments"
    (adapter,) = (line for line in printed.splitlines() if line.startswith("# adapter"))
    assert adapter.split()[2] == f"{77_594_624 // 2:,}"
    (language_model,) = (line for line in printed.splitlines() if line.startswith("# language model"))
    assert language_model.endswith(f"nf4 ({2 * 3_821_079_552 / 1e6:,.1f} MB in 16 bits)")
    assert main(["recipes", "spark", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recipe"]["name"] == "spark"
    assert [part["name"] for part in record["parts"]][-1] == "optimiser"
    assert "did you mean 'targets'?" in refusal(capsys, "recipes", "eden", "design.adapter.target=[x]")
    assert "no linear layer is called 'qkv'" in refusal(capsys, "recipes", "eden", "design.adapter.targets=[qkv]")


def test_without_torch_a_recipe_is_printed_all_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trisense.cli.making.find_spec", lambda name: None)
    assert main(["recipes", "eden"]) == 0
    assert "# parameters and bytes of its parts: pip install 'trisense[train]'" in capsys.readouterr().out
    assert main(["recipes"]) == 0
    assert "memory" not in capsys.readouterr().out


# Trained parts, in and out


def test_trained_parts_become_other_forms_that_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Greedy, in float32, all forms say the same."""
    trained, picture = tiny_models.trained("jnana"), tmp_path / "a.png"
    Pictures.fromarray(tiny_models.picture(0)).save(picture)
    said = []
    assert main(["export", "merged", str(trained), str(tmp_path / "merged")]) == 0
    assert main(["export", "onnx", "--weights", "float32", str(trained), str(tmp_path / "onnx")]) == 0
    capsys.readouterr()
    for model in (trained, tmp_path / "merged", tmp_path / "onnx"):
        assert (
            main(["ask", "--json", "--model", str(model), "--max-tokens", "8", "--image", str(picture), "What?"]) == 0
        )
        said.append(json.loads(capsys.readouterr().out)["answer"])
    assert said[0] and said[1:] == said[:1] * 2
    line = refusal(capsys, "export", "llava", trained, tmp_path / "llava")
    assert "senses.image.projector is 'residual'; LLaVA has 'mlp'" in line
    assert not (tmp_path / "llava").exists()


def test_parts_of_others_are_imported(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    trained = tiny_models.trained("tinyclip-phi2")
    overrides = tiny_models.pretrained_overrides("tinyclip-phi2", tiny_models.parts())
    given = ["--projector", str(trained / "projector" / "image.safetensors"), "--adapter", str(trained / "adapter")]
    assert main(["import", *given, "tinyclip-phi2", str(tmp_path / "theirs"), *overrides]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'theirs'}\n"
    assert (tmp_path / "theirs" / "recipe.json").is_file()
    wider = [*overrides, "design.senses.image.width=17"]
    assert "17" in refusal(capsys, "import", *given[:2], "tinyclip-phi2", tmp_path / "wider", *wider)


def test_nothing_is_pushed_without_a_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("trisense.model.publish.get_token", lambda: None)
    assert "no token of the Hub: log in" in refusal(capsys, "push", tiny_models.trained("jnana"), "owner/model")


def test_what_is_said_is_written_down(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    model = str(tiny_models.converted_whisper())
    silence = tmp_path / "silence.wav"
    with wave.open(str(silence), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * 16_000 * 3))
    assert main(["transcribe", "--model", model, str(silence)]) == 0
    assert capsys.readouterr().out == "0:00-0:03, nobody speaks\n"
    assert main(["transcribe", "--json", "--first", "2", "--model", model, str(silence)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["text"], record["extent"], record["duration"]) == ("", "0:00-0:02 of 0:03", 3.0)
    assert "no such file" in refusal(capsys, "transcribe", "--model", model, tmp_path / "nothing.wav")
    assert "expected one of Whisper" in refusal(capsys, "transcribe", "--model", "nowhere", silence)


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
