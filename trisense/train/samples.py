"""The samples of a stage on files, by number: which are learned from, their prompts, and the batches that they fill."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from trisense.assistant.transcribe import Transcript
from trisense.chat import Audio, Conversation, Image, Message, Part, Text
from trisense.data.batches import Batch, by_answer, like_length
from trisense.data.features import Features
from trisense.data.packing import Bundles, packed
from trisense.data.rounds import disjoint, one_after_another
from trisense.data.selection import NO_TRANSCRIPTS, Damaged, Selection, fitted, prepared, select
from trisense.data.sources import Source
from trisense.errors import BadInput
from trisense.prompt import Processor, Prompt, featured
from trisense.stage import FileStage
from trisense.train.optim import round_starts

# One sample in so many, but at most HELD_BACK, is kept from training, to evaluate with.
ONE_IN = 10
HELD_BACK = 200
# By sense and path: features on disk, or some of them.
Shown = Mapping[str, Features] | Mapping[str, Mapping[str, np.ndarray]]


@dataclass
class Samples:
    """The samples of a source that a stage can use: `held` back for evaluation, and those to learn from. lengths: of
    their longest answers, in tokens. selection: an account of the others. transcripts: of their sounds, for a model
    without ears."""

    source: Source
    stage: FileStage
    processor: Processor
    pool: list[int]
    held: list[int]
    lengths: dict[int, int]
    seed: int
    selection: Selection
    transcripts: Mapping[str, Transcript | BadInput]
    _order: tuple[int, np.ndarray] | None = None  # of the round under way, and its number

    @classmethod
    def of(
        cls,
        source: Source,
        stage: FileStage,
        processor: Processor,
        seed: int,
        context: int,
        skip_bad: int = 0,
        transcripts: Mapping[str, Transcript | BadInput] = NO_TRANSCRIPTS,
    ) -> Samples:
        """Raises BadInput when the stage can use fewer than two samples, and for more damaged ones than `skip_bad`."""
        selection = select(source, stage, processor, context, Damaged(skip_bad), transcripts)
        usable = list(selection.lengths)
        if len(usable) < 2:
            raise _too_few(selection)
        random.Random(f"{seed}/held").shuffle(usable)
        held = max(1, min(HELD_BACK, len(usable) // ONE_IN))
        pool, held = sorted(usable[held:]), sorted(usable[:held])
        return cls(source, stage, processor, pool, held, selection.lengths, seed, selection, transcripts)

    def leave_out_damaged(self) -> None:
        """Drops samples whose media could not be read. Raises BadInput when too few are left."""
        self.pool = [index for index in self.pool if index in self.lengths]
        self.held = [index for index in self.held if index in self.lengths]
        if not self.pool or not self.held:
            raise _too_few(self.selection)

    def counts(self) -> str:
        """One line: how many samples are used, skipped (and why) and truncated."""
        return self.selection.account(len(self.pool), len(self.held))

    def learned(self, number: int) -> int:
        """Index in the source of the sample learned as `number`: every one once, in an order drawn anew each time."""
        turn, place = divmod(number, len(self.pool))
        if self._order is None or self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.pool))
        return self.pool[self._order[1][place]]

    def rounds(self) -> list[Samples]:
        """What each round of the stage learns from. Raises BadInput for more rounds than samples."""
        count, pool = self.stage.rounds, self.pool
        if count > len(pool):
            raise BadInput(f"{self.source.name}: rounds: {count}, but only {len(pool)} samples to learn from")
        return [replace(self, pool=part, _order=None) for part in disjoint(pool, count, self.seed)]

    def conversation(self, index: int) -> Conversation:
        sample = prepared(self.source, index, self.stage, self.transcripts)
        if sample is not None and index in self.selection.truncated:
            sample = fitted(sample, self.processor, self.selection.context)
        assert sample is not None
        return sample

    def media(self) -> dict[str, list[Any]]:
        """What the pictures and sounds that the model is shown are read from, by sense, in the order of the source, in
        which archives and streams are read best."""
        return media_in(self.conversation(index) for index in sorted((*self.pool, *self.held)))

    def prompt(self, index: int, features: Shown) -> Prompt:
        """The rendered sample, its pictures and sounds as features [S, E]."""

        def shown(part: Part) -> Part:
            if isinstance(part, Image):
                return Image(image=features["image"][part.image])
            return Audio(audio=features["audio"][part.audio]) if isinstance(part, Audio) else part

        messages = [
            Message(role=message.role, content=tuple(map(shown, message.content)))
            for message in self.conversation(index).messages
        ]
        return featured(Conversation(messages=tuple(messages)), self.processor)

    def prompts(self, indices: Sequence[int], features: Shown) -> list[Prompt]:
        """Rendered samples about the same media, which are the same arrays in all of them, as a fan wants them."""
        paths = media_in([self.conversation(indices[0])])
        same = {sense: {path: features[sense][path] for path in own} for sense, own in paths.items()}
        return [self.prompt(index, same) for index in indices]

    def about(self, index: int) -> object:
        """What a sample's media are; None for text alone."""
        paths = media_in([self.conversation(index)])
        return tuple(map(tuple, paths.values())) if any(paths.values()) else None


def media_in(conversations: Iterable[Conversation]) -> dict[str, list[Any]]:
    """What pictures and sounds are read from, by sense: paths, or references into an archive."""
    found: dict[str, list[Any]] = {"image": [], "audio": []}
    for conversation in conversations:
        for message in conversation.messages:
            for part in message.content:
                if not isinstance(part, Text):
                    found[part.type].append(part.image if isinstance(part, Image) else part.audio)
    return found


def batches(samples: Samples, features: Mapping[str, Features], processes: int = 1) -> Callable[[int], Batch]:
    """The batch of a number, from the round that has it."""
    stage = samples.stage
    width = stage.accumulate * processes
    rounds = [batches_of(part, features) for part in samples.rounds()]
    batch_at = one_after_another(rounds, [start * width for start in round_starts(stage)])
    if stage.scheduled_sampling is None:
        return batch_at
    begins = round(stage.scheduled_sampling.after * stage.steps) * width

    def marked(number: int) -> Batch:
        batch = batch_at(number)
        return replace(batch, inputs={**batch.inputs, "own_words": torch.tensor(number >= begins)})

    return marked


class Learned(Protocol):
    """What batches are made of: `Samples`, or what has their lengths."""

    stage: FileStage
    seed: int
    pool: list[int]
    lengths: dict[int, int]

    def learned(self, number: int) -> int: ...
    def about(self, index: int) -> object: ...
    def prompt(self, index: int, features: Shown) -> Prompt: ...
    def prompts(self, indices: Sequence[int], features: Shown) -> list[Prompt]: ...


def batches_of(samples: Learned, features: Shown) -> Callable[[int], Batch]:
    """Packed rows, batches of answers of like length or of prompts of like length, as the stage says."""
    stage, seed = samples.stage, samples.seed
    if stage.packing:
        tokens, share = stage.packing.tokens, stage.packing.share
        bundles = Bundles.of(
            samples.pool,
            lambda i: samples.prompt(i, features),
            lambda i: samples.about(i) if share else None,
            tokens,
        )
        return packed(bundles, lambda members: samples.prompts(members, features), tokens, seed)
    if stage.buckets:
        lengths = {index: samples.lengths[index] for index in samples.pool}
        return by_answer(lambda i: samples.prompt(i, features), lengths, stage.buckets, seed)
    return like_length(lambda n: samples.prompt(samples.learned(n), features), stage.batch_size, seed)


def _too_few(selection: Selection) -> BadInput:
    return BadInput(
        f"{selection.source.name}: {len(selection.lengths)} samples that this stage can use; expected two at least, to "
        f"learn from and to evaluate with; skipped: {selection.reasons()}"
    )
