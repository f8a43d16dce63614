"""The table: counts that add up, intervals that others compute too, and only the whole answer is right."""

from __future__ import annotations

import json
from math import comb
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from trisense.assistant.assistant import Assistant
from trisense.data.world.contexts import Context
from trisense.data.world.samples import GROUPS, Sample
from trisense.data.world.single import Question
from trisense.measure import evaluate as module
from trisense.measure.evaluate import COLUMNS, Table, is_exact, score, world
from trisense.measure.scores import Share


class Fake:
    """An assistant that knows the answers, or some of them."""

    def __init__(self, wrong_every: int = 0) -> None:
        self.wrong_every = wrong_every
        self.asked: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.truth: dict[str, str] = {}

    def answer(self, conversation: Any, **options: Any) -> SimpleNamespace:
        question = conversation.messages[-1].content[-1].text
        self.asked.append(question)
        self.options.append(options)
        wrong = self.wrong_every and len(self.asked) % self.wrong_every == 0
        return SimpleNamespace(text="something else " if wrong else f" {self.truth[question]}\n")


def sample(number: int) -> Sample:
    question = Question(f"Question {number}?", f"answer {number}", ("text",), "toy")
    return Sample(Context(), question, "text", None, None, [])


def assistant(fake: Fake) -> Assistant:
    return cast(Assistant, fake)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3 (score): printed to four places.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilson_s_as_published(right: int, count: int, low: float, high: float) -> None:
    assert Share(right, count).interval == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (3, 7), (399, 400), (400, 400)])
def test_the_interval_solves_wilson_s_equation(right: int, count: int) -> None:
    """Its ends are the shares from which what was seen lies 1.96 standard errors away; and it mirrors."""
    share = Share(right, count)
    low, high = share.interval
    assert 0 <= low <= share.value <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert (share.value - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count)
    mirrored = Share(count - right, count).interval
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    """Counted exactly, over all outcomes of 400 questions: never far from 95 %, and on average there."""
    covered = []
    for truth in np.linspace(0.5, 0.98, 25):
        inside = [
            right for right in range(401) if Share(right, 400).interval[0] <= truth <= Share(right, 400).interval[1]
        ]
        covered.append(sum(comb(400, right) * truth**right * (1 - truth) ** (400 - right) for right in inside))
    assert min(covered) > 0.92 and max(covered) < 0.98
    assert np.mean(covered) == pytest.approx(0.95, abs=0.005)


def test_a_share_reads_as_percent_count_and_interval() -> None:
    assert str(Share(81, 263)) == " 30.8 % (81/263, 25.5-36.6)"
    assert str(Share(20, 20)) == "100.0 % (20/20, 83.9-100.0)"


@pytest.mark.parametrize(
    ("said", "exact"),
    [
        ("red cup", True),
        (" red cup\n", True),
        ("Red cup", False),
        ("red cup.", False),
        ("a red cup", False),
        ("", False),
    ],
)
def test_only_the_whole_answer_counts(said: str, exact: bool) -> None:
    assert is_exact(said, "red cup") == exact


def test_who_knows_all_answers_scores_all() -> None:
    fake = Fake()
    questions = [sample(number) for number in range(5)]
    fake.truth = {one.question.text: one.question.answer for one in questions}
    assert score(assistant(fake), iter(questions)) == (Share(5, 5), [])
    assert fake.asked == [f"Question {number}?" for number in range(5)]
    assert all(options.get("temperature", 0.0) == 0.0 for options in fake.options), "greedily decoded"


def test_who_is_wrong_is_told_where() -> None:
    fake = Fake(wrong_every=3)
    questions = [sample(number) for number in range(7)]
    fake.truth = {one.question.text: one.question.answer for one in questions}
    share, wrong = score(assistant(fake), questions)
    assert share == Share(5, 7)
    assert wrong == [
        {"task": "toy", "question": f"Question {n}?", "answer": f"answer {n}", "said": "something else"} for n in (2, 5)
    ]


def a_table() -> Table:
    titles = [title for title, _, _ in COLUMNS]
    shares = {
        title: {group: Share(row + column, 40) for row, group in enumerate(GROUPS)}
        for column, title in enumerate(titles)
    }
    return Table("spark", shares, [{"task": "toy"}])


def test_the_table_is_markdown_with_every_row_and_column() -> None:
    head, rule, *rows = str(a_table()).splitlines()
    assert head == "| spark, exact answers | held-out samples | unseen pairs | unheard voices |"
    assert rule == "|---|---|---|---|"
    assert [row.split("|")[1].strip() for row in rows] == list(GROUPS)
    for number, row in enumerate(rows):
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        assert cells == [str(Share(number + column, 40)).strip() for column in range(3)]


def test_the_table_as_json_holds_the_same_numbers() -> None:
    record = json.loads(json.dumps(a_table().to_dict()))
    assert record["model"] == "spark" and record["wrong"] == [{"task": "toy"}]
    cell = record["exact"]["unseen pairs"]["sound"]
    assert (cell["right"], cell["count"], cell["share"]) == (2, 40, 0.05)
    assert cell["interval"] == pytest.approx(Share(2, 40).interval)


def test_the_world_is_asked_column_by_column(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, drawn = Fake(wrong_every=4), []

    def samples(group: str, count: int, seed: int, split: str, heard: bool):
        drawn.append((group, count, seed, split, heard))
        for number in range(count):
            one = sample(1000 * len(drawn) + number)
            fake.truth[one.question.text] = one.question.answer
            yield one

    monkeypatch.setattr(module, "samples", samples)
    monkeypatch.setattr(module.Assistant, "from_pretrained", lambda model, device: fake)
    table = world("some/folder/mine", n=6, seed=5)
    assert drawn == [(group, 6, 5, split, heard) for _, split, heard in COLUMNS for group in GROUPS]
    assert table.model == "mine"
    right = sum(share.right for column in table.shares.values() for share in column.values())
    assert right == 6 * len(drawn) - len(table.wrong)
    assert len(table.wrong) == 6 * len(drawn) // 4
    assert set(table.wrong[0]) == {"column", "group", "task", "question", "answer", "said"}


def test_real_samples_of_the_world_can_be_known_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The asked conversation ends with the very question whose answer is compared."""
    real, fake = module.samples, Fake()

    def remembered(*arguments: Any):
        for one in real(*arguments):
            fake.truth[one.question.text] = one.question.answer
            yield one

    monkeypatch.setattr(module, "samples", remembered)
    monkeypatch.setattr(module.Assistant, "from_pretrained", lambda model, device: fake)
    table = world("fake", n=1)
    assert all(share == Share(1, 1) for column in table.shares.values() for share in column.values())
