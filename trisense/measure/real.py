"""`trisense evaluate real`: every task of a pack's dev split, each by its own measure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trisense.assistant.assistant import Assistant
from trisense.data.real.media import asked
from trisense.data.real.mixture import TASKS, Mixture
from trisense.data.real.pack import Pack
from trisense.data.real.sample import Sample, Score, edit_distance
from trisense.errors import BadInput
from trisense.measure.scores import Change, Ratio, Share, Value, is_any_of, names_all, normal, refuses, word_f1

MEASURES: dict[Score, str] = {
    "exact": "exact",
    "wer": "word error rate",
    "f1": "F1",
    "names": "names both",
    "refuses": "says so",
}
# What others published for a source, in percent, each on a split of its own: a hint at how hard a task is. Shapes: the
# convolutional network of easy-VQA's author, on a set twice as large. Statements: models that see raw pictures, Suhr et
# al. 2017. Commands: Warden 2018 (arXiv:1804.03209), ten words, unknown and silence. Kinds of groceries: pretrained
# networks, Antioquia 2021.
PUBLISHED = {
    "shapes": "99.5",
    "statements about scenes": "58 to 66",
    "commands": "88.2",
    "name a grocery": "92.0",
}
# Answers of training that the most frequent one is found among.
FREQUENT = 2000


@dataclass(frozen=True)
class Row:
    """One task. frequent: what the most frequent answer of training would get, whatever is asked. change: against the
    same questions without what is beside them, in points."""

    task: str
    score: Score
    value: Value
    frequent: Value
    change: Change | None = None

    def __str__(self) -> str:
        frequent = f"{100 * self.frequent.value:.1f} %"
        published = f"{PUBLISHED[self.task]} %" if self.task in PUBLISHED else ""
        cells = (self.task, MEASURES[self.score], self.value, frequent, published, self.change or "")
        return f"| {' | '.join(map(str, cells))} |"


@dataclass(frozen=True)
class RealTable:
    """Measures by task, and answers that were not right."""

    model: str
    rows: list[Row]
    wrong: list[dict[str, str]]

    def __str__(self) -> str:
        """Markdown, as the README shows it."""
        title = f"| {self.model}, real data never trained on | measure | value | most frequent answer | published "
        return "\n".join([f"{title}| change |", "|---|---|---|---|---|---|", *map(str, self.rows)])

    def to_dict(self) -> dict:
        tasks = {
            row.task: {
                "measure": MEASURES[row.score],
                "value": row.value.value,
                "count": row.value.count,
                "interval": row.value.interval,
                "most_frequent_answer": row.frequent.value,
            }
            | ({"published": PUBLISHED[row.task]} if row.task in PUBLISHED else {})
            | ({"change": row.change.value, "change_interval": row.change.interval} if row.change else {})
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
    answered: dict[str, Ratio] = {}
    for task in tasks or TASKS:
        samples = list(held.every(task, n))
        if not samples:
            continue
        said = [assistant.answer(asked(pack, sample), max_new_tokens=48).text.strip() for sample in samples]
        common = Counter(sample.answer for sample in learned.every(task, FREQUENT)).most_common(1)
        frequent = measured(samples, [common[0][0] if common else ""] * len(samples))
        answered[task] = worth(samples, said)
        alone = answered.get(TASKS[task].alone)
        change = Change(alone, answered[task]) if alone and alone.count == answered[task].count else None
        rows.append(Row(task, samples[0].score, measured(samples, said), frequent, change))
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


def measured(samples: Sequence[Sample], said: Sequence[str]) -> Value:
    """What the answers to samples of one task are worth, by the task's own measure."""
    ratio = worth(samples, said)
    return ratio if samples[0].score in ("wer", "f1") else Share(round(sum(ratio.parts)), ratio.count)


def worth(samples: Sequence[Sample], said: Sequence[str]) -> Ratio:
    """The same answer by answer: errors of words; F1 of 1; right, 1 or 0, of 1."""
    pairs = list(zip(samples, said, strict=True))
    if samples[0].score == "wer":
        truths = [(normal(sample.answer).split(), normal(answer).split()) for sample, answer in pairs]
        errors = (edit_distance(words, truth) for truth, words in truths)
        return Ratio(tuple(errors), tuple(len(truth) for truth, _ in truths))
    if samples[0].score == "f1":
        parts = (word_f1(answer, (sample.answer, *sample.accepted)) for sample, answer in pairs)
    else:
        parts = (float(is_right(sample, answer)) for sample, answer in pairs)
    return Ratio(tuple(parts), (1.0,) * len(pairs))
