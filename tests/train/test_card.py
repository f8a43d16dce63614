"""`run.md`: a run on one page."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
import yaml
from PIL import Image
from toy import batch_at, evaluate, stage, toy

from trisense.stage import WarmupStage
from trisense.train.card import _duration, _spaced, commit
from trisense.train.loop import train
from trisense.train.report import Answer


def run(out: Path, **options: int) -> str:
    about = {"recipe": "eden", "data": "12 samples learned from", "design": "text: {a: 1}\nvision: null\n"}
    answers = [Answer("where?", "left | up", "right")]
    train(
        toy(),
        batch_at,
        stage(**options),
        out,
        device="cpu",
        evaluate=evaluate,
        sample=lambda model: answers,
        about=about,
    )
    return (out / "run.md").read_text()


def test_it_says_what_was_done_on_what_and_what_came_of_it(tmp_path: Path):
    text = run(tmp_path / "eden" / "align", log_every=2)
    assert text.startswith("# eden/align\n")
    assert "| recipe | eden |\n| data | 12 samples learned from |\n" in text
    rows = sum(len(batch_at(number).inputs["x"]) for number in range(6))
    assert f"| samples | {rows} in 6 steps |" in text
    for fact in (
        " GFLOP/s (measured) |",
        "| time | ",
        "process-seconds per 1,000 samples |",
        "| processes | 1 process on cpu |",
        " cores of ",
    ):
        assert fact in text
    assert f"torch {torch.__version__}" in text
    assert "| where? | left , up | right |" in text, "a bar would end the cell"
    assert "![loss](loss.png)" in text and "- error: " in text
    curve = [line for line in text.splitlines() if line.startswith(("| 2 |", "| 4 |", "| 6 |"))]
    assert len(curve) == 3 and all(line.count("|") == 6 for line in curve)
    stages = text.split("## Stage\n\n```yaml\n")[1].split("```")[0]
    assert WarmupStage.model_validate(yaml.safe_load(stages)) == stage(log_every=2)
    assert "## Design\n\n```yaml\ntext: {a: 1}\nvision: null\n```" in text
    with Image.open(tmp_path / "eden" / "align" / "loss.png") as image:
        assert image.size == (800, 450)


def test_a_finished_run_gets_the_card_that_a_kill_took_and_no_other(tmp_path: Path):
    first = run(tmp_path)
    (tmp_path / "run.md").unlink()
    assert run(tmp_path) == first
    (tmp_path / "run.md").write_text("mine")
    assert run(tmp_path) == "mine"


def test_the_commit_is_that_of_the_code_and_says_whether_it_was_changed(tmp_path: Path):
    def git(*words: str) -> str:
        options = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", tmp_path, *options, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    inside, other = tmp_path / "code", tmp_path / "environment"
    for folder in (inside, other):
        folder.mkdir()
        (folder / "a.py").write_text("1")
    assert commit(inside) is None
    git("init", "-q")
    git("add", "code")
    git("commit", "-qm", "first")
    assert commit(inside) == git("rev-parse", "HEAD")
    assert commit(other) is None, "an environment inside somebody's repository is not in it"
    (inside / "a.py").write_text("2")
    assert commit(inside) == git("rev-parse", "HEAD") + " with changes"


def test_long_curves_are_thinned_and_times_are_read_at_a_glance():
    rows = [{"step": step} for step in range(100)]
    thin = _spaced(rows)
    assert len(thin) == 12 and thin[0]["step"] == 0 and thin[-1]["step"] == 99
    assert [_duration(seconds) for seconds in (1.26, 75, 7300)] == ["1.3 s", "1 min 15 s", "2 h 1 min"]
