"""`trisense evaluate real` over a pack in little, and what each kind of answer is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_pack

from trisense.cli import main
from trisense.data.real.sample import Sample
from trisense.measure.real import is_right, measured


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pack.write(tmp_path_factory.mktemp("pack"))


def test_each_task_has_its_measure() -> None:
    exact = Sample("t", (), "?", "yes", ("true",))
    both = Sample("t", (), "?", "no: the picture shows pear, the speaker says cup", ("pear", "cup"), "names")
    nothing = Sample("t", (), "?", "There is no sound.", score="refuses")
    assert is_right(exact, "True.") and not is_right(exact, "no")
    assert is_right(both, "pear here, cup there") and not is_right(both, "pear")
    assert is_right(nothing, "There is no picture.") and is_right(nothing, "I can't tell.")
    assert not is_right(nothing, "a cat") and not is_right(nothing, "I can tell.")
    heard = [Sample("t", (), "?", text, score="wer") for text in ("one two three", "four")]
    assert measured(heard, ["one two", "for"]).value == pytest.approx(2 / 4)
    read = [Sample("t", (), "?", "Denver Broncos", score="f1")] * 2
    assert measured(read, ["Broncos", "Denver Broncos"]).value == pytest.approx((2 / 3 + 1) / 2)
    assert measured([exact] * 4, ["yes", "yes", "no", "true"]).value == 0.75


def test_the_command_measures_what_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--task", "name an emoji", "--task", "read sentences", "--task", "fact in no sense"]
    assert main(["evaluate", "real", "--data", str(folder), "--n", "2", *chosen, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["tasks"]) == {"name an emoji", "read sentences", "fact in no sense"}
    emoji = found["tasks"]["name an emoji"]
    assert emoji["count"] == 2 and 0 <= emoji["value"] <= 1 and emoji["measure"] == "exact"
    assert main(["evaluate", "real", "--data", str(folder), "--n", "2", *chosen]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[3].startswith("| read sentences | word error rate |")


def test_what_stands_beside_a_question_is_measured_on_the_same_questions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--task", "name an emoji", "--task", "name an emoji, and a sound"]
    assert main(["evaluate", "real", "--data", str(folder), "--n", "3", *chosen, "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    alone, beside = tasks["name an emoji"], tasks["name an emoji, and a sound"]
    assert "change" not in alone and beside["change"] == pytest.approx(beside["value"] - alone["value"])
    low, high = beside["change_interval"]
    assert low <= beside["change"] <= high
    assert main(["evaluate", "real", "--data", str(folder), *chosen[2:], "--json"]) == 0
    assert "change" not in json.loads(capsys.readouterr().out)["tasks"]["name an emoji, and a sound"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "name a cat"], "no task 'name a cat'; there are: name an emoji"),
        (["--data", "nowhere"], "nowhere/pictures/easy_vqa_questions.parquet: no such file; name the folder of a pack"),
    ],
)
def test_what_cannot_be_measured_is_said(
    folder: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "real", "--data", str(folder), *options]) == 2
    assert said in capsys.readouterr().err
