"""`trisense train lr-find`: every stage on files has a range test, and a run beside it is left as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from PIL import Image as Pictures

from trisense.cli import main

SHORT = ["steps=6", "batch_size=4", "warmup_steps=1", "precision=float32", "save_every=3", "evaluate_every=6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    records = []
    for index, colour in enumerate(("red", "green", "blue", "white") * 6):
        Pictures.new("RGB", (40, 36), colour).save(folder / f"{index}.png")
        said = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": f"It is {colour}."}]
        records.append({"image": f"{index}.png", "conversations": said})
    (folder / "llava.json").write_text(json.dumps(records))
    return folder / "llava.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    parts = tiny_models.pretrained(tmp_path_factory.mktemp("parts"))
    return [*tiny_models.pretrained_overrides("eden", parts), *(f"stages.instruct.{option}" for option in SHORT)]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_suggestion_is_printed_and_only_the_plot_and_its_numbers_are_left(
    tiny: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "lr-find", "instruct", "eden", *tiny, "--data", str(data), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "new"), "--steps", "60"]) == 0
    said, use, wrote = capsys.readouterr().out.splitlines()[-3:]
    numbers = json.loads((tmp_path / "new/instruct/lr_find.json").read_text())
    assert said == (
        f"suggestion: {numbers['steepest']:.1e} (steepest descent), {numbers['tenth']:.1e} (a tenth of the lowest's)"
    )
    assert use == f"to use it: stages.instruct.lr={numbers['steepest']:.1e}"
    assert wrote.startswith(f"wrote {tmp_path}/new/instruct/lr_find.png")
    assert {path.name for path in (tmp_path / "new/instruct").iterdir()} == {"lr_find.json", "lr_find.png"}
    assert 1e-5 < numbers["steepest"] < 1, "tests/train/test_files.py learns at 1e-2"
    assert main([*command, "--out", str(tmp_path / "again"), "--steps", "60"]) == 0
    new, again = (tmp_path / name / "instruct/lr_find.json" for name in ("new", "again"))
    assert new.read_bytes() == again.read_bytes()
    assert main(["train", "stage", "eden", "instruct", use.split(": ")[1], "--help"]) == 0


def test_a_run_in_the_same_folder_is_left_as_it_is(tiny: list[str], data: Path, tmp_path: Path) -> None:
    common = [*tiny, "--data", str(data), "--device", "cpu", "--out", str(tmp_path)]
    assert main(["train", "stage", "eden", "instruct", *common]) == 0
    before = everything(tmp_path)
    assert "instruct/checkpoint.pt" in before
    assert main(["train", "lr-find", "instruct", "eden", *common, "--steps", "12"]) == 0
    after = everything(tmp_path)
    assert {path for path in after if path not in before} == {"instruct/lr_find.json", "instruct/lr_find.png"}
    assert all(after[path] == content for path, content in before.items())


def test_text_has_one_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("The cup is red. The fish is blue. " * 300)
    shape = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=1", "num_attention_heads=2", "vocab_size=320"]
    options = [f"design.text.{one}" for one in shape] + ["design.vocabulary=300", "stages.language.precision=float32"]
    options += ["stages.language.batch_size=4", "stages.language.block_size=16"]
    command = ["train", "lr-find", "language", "shrunk-phi", *options, "--data", str(tmp_path / "text.txt")]
    assert main([*command, "--out", str(tmp_path / "run"), "--device", "cpu", "--steps", "50"]) == 0
    assert "to use it: stages.language.lr=" in capsys.readouterr().out
    left = {path.name.partition("-")[0] for path in (tmp_path / "run/language").iterdir()}
    assert left == {"lr_find.json", "lr_find.png", "tokenizer", "tokens.bin", "tokens.json"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["align", "eden"], "recipe eden has no stage 'align' that learns from files; it has instruct"),
        (["see", "spark"], "recipe spark has no stage 'see' that learns from files; it has none"),
        (["eden", "instruct"], "recipe 'instruct' is unknown"),
        (["language", "shrunk-phi", "--media", "x"], "--media: stage language trains a language model"),
        (["instruct", "eden", "stages.instruct.lrs.language_model=1"], "nowhere.json: cannot be read"),
    ],
)
def test_what_cannot_be_tested_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--data", "nowhere.json", "--out", str(tmp_path)]
    assert main(["train", "lr-find", *arguments, *out]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_rate_for_a_frozen_part_is_refused(
    tiny: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = [*tiny, "stages.instruct.lrs.language_model=1e-5"]
    assert main(["train", "stage", "eden", "instruct", *frozen, "--data", str(data), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "trisense: lrs.language_model: nothing of that part learns in this stage, but adapter, projector"
