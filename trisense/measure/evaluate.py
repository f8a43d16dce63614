"""Evaluation: conversations, a score, a table with counts and intervals."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from trisense.assistant.assistant import Assistant
from trisense.data.world.facts import Split
from trisense.data.world.samples import GROUPS, Group, Sample, samples
from trisense.measure.scores import Share

# (title, split, voices of the training?)
COLUMNS: tuple[tuple[str, Split, bool], ...] = (
    ("held-out samples", "test", True),
    ("unseen pairs", "unseen", True),
    ("unheard voices", "test", False),
)


@dataclass(frozen=True)
class Table:
    """Shares of exact answers by row (what the answer needs) and column (what was held out)."""

    model: str
    shares: dict[str, dict[Group, Share]]
    wrong: list[dict[str, str]]

    def __str__(self) -> str:
        """Markdown, as the README shows it."""
        titles = list(self.shares)
        lines = [f"| {self.model}, exact answers | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
        for group in GROUPS:
            lines.append(f"| {group} | " + " | ".join(str(self.shares[title][group]) for title in titles) + " |")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        shares = {
            title: {
                group: {"right": s.right, "count": s.count, "share": s.value, "interval": s.interval}
                for group, s in column.items()
            }
            for title, column in self.shares.items()
        }
        return {"model": self.model, "exact": shares, "wrong": self.wrong}


def is_exact(said: str, answer: str) -> bool:
    """The whole answer and nothing else; only white space around it is forgiven."""
    return said.strip() == answer


def score(assistant: Assistant, questions: Iterable[Sample]) -> tuple[Share, list[dict[str, str]]]:
    """How many samples are answered exactly, greedily decoded; and those that were not."""
    count, wrong = 0, []
    for sample in questions:
        count += 1
        said = assistant.answer(sample.conversation, max_new_tokens=32).text
        if not is_exact(said, sample.question.answer):
            q = sample.question
            wrong.append({"task": q.task, "question": q.text, "answer": q.answer, "said": said.strip()})
    return Share(count - len(wrong), count), wrong


def world(model: str | os.PathLike[str] = "spark", n: int = 300, seed: int = 1, device: str | None = None) -> Table:
    """Exact answers of a model on `n` held-out samples of the world for every row and column of the table."""
    assistant = Assistant.from_pretrained(model, device)
    shares: dict[str, dict[Group, Share]] = {}
    wrong: list[dict[str, str]] = []
    for title, split, heard in COLUMNS:
        shares[title] = {}
        for group in GROUPS:
            shares[title][group], missed = score(assistant, samples(group, n, seed, split, heard))
            wrong += [{"column": title, "group": group, **one} for one in missed]
    return Table(os.path.basename(os.fspath(model)) or "model", shares, wrong)
