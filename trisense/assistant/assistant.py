"""`Assistant`: the only way from a conversation to an answer. The command line and the server both go through it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

from trisense.chat import Conversation
from trisense.engines import Engine, State, open_engine
from trisense.engines.protocol import closest, shared_prefix
from trisense.errors import BadInput

# States kept for follow-up turns. Each holds the KV cache of one conversation.
KEPT_STATES = 4


@dataclass(frozen=True)
class Answer:
    """A whole answer. `completion_tokens` leaves the end token out; seconds count from the call."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    first_token_seconds: float
    seconds: float


class TextPieces:
    """Token ids, one by one, -> pieces of text that never end inside a character.

    A byte-level token can be part of a character, and some tokenizers write a token differently at the start of a text
    than inside; so a short window of ids is decoded with and without the new one, and the difference is the piece.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # where the window begins
        self._given = 0  # ids before this one have been given out as text

    def add(self, id: int) -> str:
        """The text that this id completes, often empty while a character is still in parts."""
        self._ids.append(id)
        piece = self._piece()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return piece

    def end(self) -> str:
        """What is left when no more ids come; an unfinished character is dropped."""
        piece = self._piece().rstrip("\ufffd")
        self._start = self._given = len(self._ids)
        return piece

    def _piece(self) -> str:
        before = self._decode(self._ids[self._start : self._given])
        return self._decode(self._ids[self._start :])[len(before) :]


class Assistant:
    """Answers conversations with one model. Several threads may ask an ONNX model at once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._states: list[State] = []  # last used last; none is changed once it is here
        self._lock = Lock()

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] = "spark", device: str | None = None) -> Assistant:
        """`spark`, the folder of a model, or a Hub id. Raises BadInput when there is no such model."""
        return cls(open_engine(model, device))

    @property
    def name(self) -> str:
        return self.engine.name

    def stream(
        self,
        conversation: Conversation,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Generator[str, None, Answer]:
        """Pieces of the answer as they are written; the generator returns the whole `Answer`.

        temperature 0 takes the likeliest token each time, otherwise `seed` decides. The answer ends before the first
        of the strings in `stop`, and never begins with white space, which belongs to the layout. Closing the generator
        stops the writing. What was asked is read before this returns, so that everything wrong with it, or with the
        options, raises BadInput here.
        """
        started = time.perf_counter()
        if not conversation.messages or conversation.messages[-1].role != "user":
            raise BadInput("the conversation does not end with a user's message; there is nothing to answer")
        if "" in stop:
            raise BadInput("stop: an empty string would end every answer at once; expected strings with text in them")
        prompt = self.engine.processor.prompt(conversation)
        with self._lock:
            known = list(self._states)
        state = self.engine.prefill(prompt, closest(prompt, known))
        ids = self.engine.stream(state, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        return self._write(ids, state, tuple(stop), len(prompt.ids), started)

    def _write(
        self, ids: Iterator[int], state: State, stop: tuple[str, ...], prompt_tokens: int, started: float
    ) -> Generator[str, None, Answer]:
        pieces = TextPieces(self.engine.processor.tokenizer.decode)
        text, given, count, first, stopped = "", 0, 0, None, False
        try:
            for id in ids:
                count += 1
                if first is None:
                    first = time.perf_counter() - started
                text += pieces.add(id)
                text = text if given else text.lstrip()
                end, stopped = _before(text, stop)
                if end > given:
                    yield text[given:end]
                    given = end
                if stopped:
                    break
            text = text[:given] if stopped else text + pieces.end()
            text = text if given else text.lstrip()
            if text[given:]:
                yield text[given:]
        finally:
            self._keep(state)
        seconds = time.perf_counter() - started
        return Answer(
            text=text,
            prompt_tokens=prompt_tokens,
            completion_tokens=count,
            finish_reason="length" if not stopped and state.finish == "length" else "stop",
            first_token_seconds=seconds if first is None else first,
            seconds=seconds,
        )

    def answer(
        self,
        conversation: Conversation,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """The whole answer. Options and errors as in `stream`."""
        pieces = self.stream(
            conversation, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop
        )
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                return end.value

    def _keep(self, state: State) -> None:
        """Keeps a state for the next turn, in place of those that it continues."""
        with self._lock:
            self._states = [kept for kept in self._states if not _continues(state, kept)]
            self._states = [*self._states, state][-KEPT_STATES:]


def _before(text: str, stop: tuple[str, ...]) -> tuple[int, bool]:
    """How much of `text` can be given out, and whether that is its end: what may begin a stop string is held back."""
    found = [at for string in stop if (at := text.find(string)) >= 0]
    if found:
        return min(found), True
    held = (n for string in stop for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n]))
    return len(text) - max(held, default=0), False


def _continues(state: State, earlier: State) -> bool:
    return shared_prefix(earlier.ids[: earlier.read], earlier.media, state) == earlier.read
