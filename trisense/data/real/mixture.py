"""All tasks of a pack as one: samples without end for training, by number; every subject once for measuring."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import yaml

from trisense.data.real.joined import JOINED
from trisense.data.real.pack import Pack, Split
from trisense.data.real.reading import READING
from trisense.data.real.sample import Sample
from trisense.data.real.tasks import SINGLE, Measuring, Task
from trisense.errors import BadInput

TASKS: dict[str, Task] = SINGLE | READING | JOINED


def weights() -> dict[str, float]:
    """How often each task is asked in training, from `mixture.yaml`."""
    found = yaml.safe_load((files("trisense.data.real") / "mixture.yaml").read_text(encoding="utf-8"))
    if unknown := set(found) - set(TASKS):
        raise BadInput(f"mixture.yaml: no task {sorted(unknown)[0]!r}; there are: {', '.join(TASKS)}")
    return found


@dataclass(frozen=True)
class Mixture:
    """The tasks of a pack's split. The same seed and number give the same sample."""

    pack: Pack
    split: Split
    seed: int

    def sample(self, number: int) -> Sample:
        rng = random.Random(f"{self.seed}/{self.split}/{number}")
        task = rng.choices(*self._weighted)[0]
        return self._asked(task, rng, rng.choice(self.subjects(task)))

    def every(self, task: str, count: int | None = None) -> Iterator[Sample]:
        """A sample about every subject of a task, or about `count` of them drawn by the seed, each asked in the first
        phrasing; a task with something beside its question asks just what it asks alone. Raises BadInput for a task
        that there is not."""
        if task not in TASKS:
            raise BadInput(f"no task {task!r}; there are: {', '.join(TASKS)}")
        chosen = list(enumerate(self.subjects(task)))
        alone = TASKS[task].alone or task
        if count is not None and count < len(chosen):
            chosen = random.Random(f"{self.seed}/{alone}").sample(chosen, count)
        for number, subject in chosen:
            yield self._asked(task, Measuring(f"{self.seed}/{alone}/{number}"), subject)

    def subjects(self, task: str) -> Sequence[Any]:
        """What a task may ask about; none where the split has nothing for it."""
        if task not in self._subjects:
            self._subjects[task] = TASKS[task].subjects(self.pack, self.split)
        return self._subjects[task]

    @cached_property
    def _subjects(self) -> dict[str, Sequence[Any]]:
        return {}

    @cached_property
    def _weighted(self) -> tuple[list[str], list[float]]:
        able = {task: weight for task, weight in weights().items() if self.subjects(task)}
        return list(able), list(able.values())

    def _asked(self, task: str, rng: random.Random, subject: Any) -> Sample:
        asked = TASKS[task].ask(rng, subject)
        return Sample(task, asked.given, asked.question, asked.answer, asked.accepted, TASKS[task].score)
