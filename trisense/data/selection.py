"""Which samples of a source a stage can use, and an account of the others: damaged rows, long answers, long prompts."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from tqdm import tqdm

from trisense.assistant.transcribe import Transcript, with_transcripts
from trisense.chat import Audio, Conversation, Image, Message, Text, render
from trisense.data.answers import prepare
from trisense.data.sources import Source, is_missing, media_of
from trisense.data.sources.files import printable
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor
from trisense.prompt import Processor
from trisense.stage import FileStage

NO_TRANSCRIPTS: Mapping[str, Transcript | BadInput] = MappingProxyType({})


@dataclass
class Damaged:
    """Rows that cannot be used, `allowed` at most: each as the line that says why."""

    allowed: int = 0
    rows: list[str] = field(default_factory=list)

    def add(self, error: BadInput) -> None:
        """Raises BadInput when that is one more than allowed."""
        self.rows.append(str(error))
        if len(self.rows) <= self.allowed:
            return
        if self.allowed == 0:
            raise BadInput(f"{error}; repair it, or allow rows to be left out with --skip-bad N")
        raise BadInput(f"{len(self.rows)} damaged rows, more than --skip-bad {self.allowed} allows; the last: {error}")


@dataclass
class Selection:
    """lengths: of the longest answers of the samples that can be used, in tokens, its end not counted. left_out: how
    many others there are, by reason. truncated: samples of which something was cut off, so that they fit `context`."""

    source: Source
    context: int
    damaged: Damaged
    lengths: dict[int, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    truncated: set[int] = field(default_factory=set)
    _showing: dict[Any, list[int]] = field(default_factory=dict)

    def unreadable(self, picture: Any, error: BadInput) -> None:
        """Leaves out the samples that show a picture which cannot be read. Raises BadInput for more damaged ones than
        allowed."""
        if not self._showing:
            for index in self.lengths:
                for one in media_of(self.source[index]):
                    self._showing.setdefault(one, []).append(index)
        for index in self._showing[picture]:
            if self.lengths.pop(index, None) is not None:
                self.truncated.discard(index)
                self.damaged.add(BadInput(f"{self.source.where(index)}: {error}"))

    def reasons(self) -> str:
        """How many samples are not used, by reason."""
        found = [f"{count:,} {reason}" for reason, count in self.left_out.most_common()]
        rows = self.damaged.rows
        return "; ".join([*found, *([f"{len(rows):,} damaged, the first: {rows[0]}"] if rows else [])]) or "none"

    def account(self, learned: int, held: int) -> str:
        """One line: how many samples are used, skipped (and why) and truncated."""
        return (
            f"{self.source.name}: {learned:,} samples to learn from, {held:,} held back to evaluate with; skipped: "
            f"{self.reasons()}; truncated to {self.context:,} tokens: {len(self.truncated):,}"
        )


def prepared(
    source: Source, index: int, stage: FileStage, transcripts: Mapping[str, Transcript | BadInput]
) -> Conversation | None:
    """A sample as the stage wants it; None when it does not. transcripts: in place of its sounds, by their names; none
    for a model with ears. Raises BadInput for a sample that cannot be used."""
    conversation = prepare(source[index], stage.answers)
    if conversation is None or not transcripts:
        return conversation

    def heard(sound: Any) -> Transcript:
        found = transcripts[str(sound)]
        if isinstance(found, BadInput):
            raise found
        return found

    return with_transcripts(conversation, heard)[0]


def select(
    source: Source,
    stage: FileStage,
    processor: Processor,
    context: int,
    damaged: Damaged,
    transcripts: Mapping[str, Transcript | BadInput] = NO_TRANSCRIPTS,
) -> Selection:
    """Looks at every sample once, without opening a medium. Of a sound whose length decides how many feature vectors it
    becomes, only one is counted.

    context: the most tokens that the language model reads. Raises BadInput for more damaged rows than `damaged` allows.
    """
    limits = [limit for limit in (stage.answers.longest_tokens, max(stage.buckets or [0])) if limit]
    longest = min(limits, default=context)
    end = len(processor.tokenizer.control(processor.layout.answer.after))
    found = Selection(source, context, damaged, left_out=Counter(source.left_out))
    left_out, there = found.left_out, set()
    for index in tqdm(range(len(source)), desc="samples", mininterval=5, leave=False):
        try:
            for medium in media_of(source[index]):
                if medium not in there:
                    if is_missing(medium):
                        raise BadInput(f"{source.where(index)}: {printable(medium)}: no such file; check --media")
                    there.add(medium)
            if (sample := prepared(source, index, stage, transcripts)) is None:
                limit = f"empty or longer than {stage.answers.longest} characters" if stage.answers.longest else "empty"
                left_out[f"an answer is {limit}"] += 1
                continue
            ids, mask = _rendered(sample, processor)
        except BadInput as error:
            where = source.where(index)
            damaged.add(error if str(error).startswith(where) else BadInput(f"{where}: {error}"))
            continue
        if (length := _longest_run(mask) - end) > longest:
            left_out[f"an answer is longer than {longest:,} tokens"] += 1
        elif length == 0:
            left_out["an answer is empty"] += 1
        elif len(ids) > context and fitted(sample, processor, context) is None:
            left_out[f"longer than the {context:,} tokens that the language model reads"] += 1
        else:
            found.lengths[index] = length
            if len(ids) > context:
                found.truncated.add(index)
    return found


def fitted(conversation: Conversation, processor: Processor, context: int) -> Conversation | None:
    """As much of a conversation as `context` tokens hold, every answer in it whole; None where that is nothing.

    Questions with their answers go first, from the last on; then texts that are given beside a question lose their
    ends, the longest first. Neither a question, an answer nor a medium is ever cut.
    """

    def length(messages: tuple[Message, ...]) -> int:
        return len(_rendered(Conversation(messages=messages), processor)[0])

    messages = conversation.messages
    while length(messages) > context:
        answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
        if len(answers) < 2:
            break
        messages = messages[: answers[-2] + 1]
    for place, part in _beside_questions(messages):
        if length(messages) <= context:
            break
        kept = range(len(_text(messages, place, part)))
        # The first length that is too much, less one; nothing of it where already that is too much.
        first = bisect_right(kept, context, key=lambda n, m=messages, i=place, j=part: length(_shortened(m, i, j, n)))
        messages = _shortened(messages, place, part, max(first - 1, 0))
    return Conversation(messages=messages) if length(messages) <= context else None


def _beside_questions(messages: tuple[Message, ...]) -> list[tuple[int, int]]:
    """The places of texts that are not the question of their message, the longest first."""
    found = []
    for place, message in enumerate(messages):
        texts = [(part, one.text) for part, one in enumerate(message.content) if isinstance(one, Text)]
        if message.role == "user":
            found += [(-len(text), place, part) for part, text in texts[:-1]]
    return [(place, part) for _, place, part in sorted(found)]


def _shortened(messages: tuple[Message, ...], place: int, part: int, kept: int) -> tuple[Message, ...]:
    content = list(messages[place].content)
    content[part] = Text(text=_text(messages, place, part)[:kept])
    return (*messages[:place], Message(role="user", content=tuple(content)), *messages[place + 1 :])


def _text(messages: tuple[Message, ...], place: int, part: int) -> str:
    found = messages[place].content[part]
    assert isinstance(found, Text)
    return found.text


def _rendered(conversation: Conversation, processor: Processor) -> tuple[np.ndarray, np.ndarray]:
    """ids and mask [T], with as many placeholders as each medium takes; no medium is opened."""

    def slots(part: Image | Audio) -> int:
        reads = processor.image if isinstance(part, Image) else processor.audio
        if reads is None:
            lacks = "eyes" if isinstance(part, Image) else "ears, and its recipe names no Whisper (answering.speech)"
            shown = part.image if isinstance(part, Image) else part.audio
            raise BadInput(f"shows {shown}, and this design has no {lacks}")
        if isinstance(reads, ImageProcessor):
            return reads.tokens
        if reads.chunk_seconds is None:
            return 1
        return reads.num_tokens(round(reads.chunk_seconds * reads.sampling_rate) // reads.hop_length)

    rendered = render(conversation, processor.layout, processor.tokenizer, processor.placeholders, slots)
    return rendered.ids, rendered.mask


def _longest_run(mask: np.ndarray) -> int:
    """Of the runs of True in a mask [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
