"""`trisense evaluate real`: every task of a pack's dev split, each by its own measure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trisense.assistant.assistant import Assistant
from trisense.data.real.media import asked
from trisense.data.real.mixture import TASKS, Mixture
from trisense.data.real.pack import Pack
from trisense.data.real.sample import Sample, Score, edit_distance
from trisense.errors import BadInput
from trisense.measure.scores import Ratio, Share, Value, is_any_of, names_all, normal, refuses, word_f1

MEASURES: dict[Score, str] = {
    "exact": "exact",
    "wer": "word error rate",
    "f1": "F1",
    "names": "names both",
    "refuses": "says so",
}
# Answers of training that the most frequent one is found among.
FREQUENT = 2000


@dataclass(frozen=True)
class Row:
    """One task. frequent: what the most frequent answer of training would get, whatever is asked."""

    task: str
    score: Score
    value: Value
    frequent: Value

    def __str__(self) -> str:
        return f"| {self.task} | {MEASURES[self.score]} | {self.value} | {100 * self.frequent.value:.1f} % |"


@dataclass(frozen=True)
class RealTable:
    """Measures by task, and answers that were not right."""

    model: str
    rows: list[Row]
    wrong: list[dict[str, str]]

    def __str__(self) -> str:
        """Markdown, as the README shows it."""
        title = f"| {self.model}, real data never trained on | measure | value | most frequent answer |"
        return "\n".join([title, "|---|---|---|---|", *map(str, self.rows)])

    def to_dict(self) -> dict:
        tasks = {
            row.task: {
                "measure": MEASURES[row.score],
                "value": row.value.value,
                "count": row.value.count,
                "interval": row.value.interval,
                "most_frequent_answer": row.frequent.value,
            }
            for row in self.rows
        }
        return {"model": self.model, "tasks": tasks, "wrong": self.wrong}


def real(
    model: str | os.PathLike[str], pack: Pack, n: int = 200, tasks: Sequence[str] = (), seed: int = 1,
    device: str | None = None,
) -> RealTable:  # fmt: skip
    """Measures a model on `n` questions of each task's dev rows, all of them where there are fewer, greedily decoded.

    Raises BadInput for a task that there is not, and as `Pack.rows`.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise BadInput(f"no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
    assistant = Assistant.from_pretrained(model, device)
    learned, held = Mixture(pack, "train", seed), Mixture(pack, "dev", seed)
    rows: list[Row] = []
    wrong: list[dict[str, str]] = []
    for task in tasks or TASKS:
        samples = list(held.every(task, n))
        if not samples:
            continue
        said = [assistant.answer(asked(pack, sample), max_new_tokens=48).text.strip() for sample in samples]
        common = Counter(sample.answer for sample in learned.every(task, FREQUENT)).most_common(1)
        frequent = measured(samples, [common[0][0] if common else ""] * len(samples))
        rows.append(Row(task, samples[0].score, measured(samples, said), frequent))
        wrong += [
            {"task": task, "question": one.question, "answer": one.answer, "said": answer}
            for one, answer in zip(samples, said, strict=True)
            if not is_right(one, answer)
        ]
    return RealTable(os.path.basename(os.fspath(model)) or "model", rows, wrong)


def is_right(sample: Sample, said: str) -> bool:
    """Whether an answer is right as a whole."""
    if sample.score == "names":
        return names_all(said, sample.accepted or (sample.answer,))
    if sample.score == "refuses":
        return refuses(said)
    return is_any_of(said, (sample.answer, *sample.accepted))


def measured(samples: Sequence[Sample], said: Iterable[str]) -> Value:
    """What the answers to samples of one task are worth, by the task's own measure."""
    pairs = list(zip(samples, said, strict=True))
    if samples[0].score == "wer":
        truths = [(normal(sample.answer).split(), normal(answer).split()) for sample, answer in pairs]
        return Ratio(
            tuple(edit_distance(words, truth) for truth, words in truths), tuple(len(truth) for truth, _ in truths)
        )
    if samples[0].score == "f1":
        return Ratio(
            tuple(word_f1(answer, (sample.answer, *sample.accepted)) for sample, answer in pairs), (1.0,) * len(pairs)
        )
    return Share(sum(is_right(sample, answer) for sample, answer in pairs), len(pairs))
