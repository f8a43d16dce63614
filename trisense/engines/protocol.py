"""What every engine does, and the part of it that does not depend on what computes.

An engine reads a rendered prompt (`prefill`), writes an answer token by token (`stream`) and says how likely a given
answer is (`logprobs`). What it has read stays in a `State`, so the next turn of a conversation pays only for what is
new.

Letters: T positions, V vocabulary, K rows of logits that are wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from trisense.chat import Conversation
from trisense.errors import BadInput
from trisense.prompt import Processor, Prompt

if TYPE_CHECKING:
    from trisense.recipe import Answering


class Seen(NamedTuple):
    """A picture or sound that a state holds: where it stands and a digest of its values."""

    sense: str
    start: int
    length: int
    digest: bytes


@dataclass
class State:
    """What an engine has read and written so far.

    `ids` may run ahead of `read` by a token that was handed out and not yet read back in.
    """

    ids: list[int]
    media: tuple[Seen, ...] = ()
    read: int = 0
    """How many of `ids` are in `cache`."""
    cache: Any = None
    logits: np.ndarray | None = field(default=None, repr=False)
    """[V] float32, for the token after `ids[:read]`."""
    finish: Literal["stop", "length"] | None = None
    """Why the last `stream` ended: an end token, or no room for more tokens."""


class Decoder(Protocol):
    """Ids back to text."""

    def decode(self, ids: Sequence[int], /) -> str: ...


class Reader(Protocol):
    """What an assistant asks of a processor: `trisense.prompt.Processor`, or another model's own behind a cover."""

    @property
    def tokenizer(self) -> Decoder: ...

    def prompt(self, conversation: Conversation, /) -> Prompt:
        """What the engine of this processor reads. Raises BadInput for what cannot be shown to the model."""
        ...


class Engine(Protocol):
    """What an assistant asks of whatever computes the answer."""

    name: str
    answering: Answering | None = None
    """How the model's recipe wants it to be asked; None: as it is."""
    base: Engine | None = None
    """The same model with its adapter off, where the recipe answers in two passes."""

    @property
    def processor(self) -> Reader: ...

    @property
    def sees(self) -> bool:
        """Whether the model has eyes; without them a conversation with a picture is refused."""
        ...

    @property
    def hears(self) -> bool:
        """Whether the model has ears; without them a conversation with a sound is refused."""
        ...

    def prefill(self, prompt: Prompt, state: State | None = None) -> State:
        """Reads a prompt; the longest beginning that `state` has read already (ids and media equal) is not read again.

        `state` itself is left as it is. Raises BadInput for a prompt longer than the model reads.
        """
        ...

    def stream(
        self,
        state: State,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Token ids of the answer, the end token left out; `state` then contains them and says why it ended.

        temperature 0: the likeliest token each time; otherwise sampled with `seed` from the smallest set of tokens
        with probability `top_p` together (Holtzman et al., 2020).
        """
        ...

    def logprobs(self, state: State, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """log p(ids[i] | what the state holds, ids[:i]), float32 [len(ids)]. Does not change `state`."""
        ...


def media_of(prompt: Prompt) -> tuple[Seen, ...]:
    """The pictures and sounds of a prompt, comparable with those of a state."""
    return tuple(
        Seen(slot.sense, slot.start, slot.length, digest(values))
        for slot, values in zip(prompt.media, prompt.values, strict=True)
    )


def digest(values: np.ndarray) -> bytes:
    digest = blake2b(f"{values.shape} {values.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def shared_prefix(ids: Sequence[int] | np.ndarray, media: Sequence[Seen], state: State) -> int:
    """How many leading positions of a prompt `state` has read: equal ids and equal media, never half a medium."""
    ids = np.asarray(ids)
    length = min(len(ids), state.read)
    differs = np.flatnonzero(ids[:length] != np.asarray(state.ids[:length]))
    length = int(differs[0]) if len(differs) else length
    for i in range(max(len(media), len(state.media))):
        mine, theirs = media[i : i + 1], state.media[i : i + 1]
        if tuple(mine) != tuple(theirs):
            length = min([length, *(seen.start for seen in (*mine, *theirs))])
            break
    for seen in media:
        if seen.start < length < seen.start + seen.length:
            length = seen.start
    return length


def closest(prompt: Prompt, states: Iterable[State]) -> State | None:
    """The state that has read most of the prompt already, or None when none has read any of it."""
    media = media_of(prompt)
    best = max(((shared_prefix(prompt.ids, media, s), s) for s in states), key=lambda pair: pair[0], default=(0, None))
    return best[1] if best[0] else None


def choose(logits: np.ndarray, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """The next token of logits [V]: the likeliest at temperature 0, else drawn from the nucleus of `top_p`."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    total = np.cumsum(p[order])
    # The token that crosses top_p belongs to the nucleus, so it is never empty.
    count = int(np.searchsorted(total, top_p)) + 1
    return int(order[: min(count, len(order))][np.searchsorted(total[:count], rng.random() * total[:count][-1])])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[K, V] -> [K, V] float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check_length(count: int, max_positions: int) -> None:
    """Raises BadInput for a prompt of `count` positions that leaves no room for an answer, or of none."""
    if not count:
        raise BadInput("the conversation is empty; expected a question")
    if count >= max_positions:
        raise BadInput(
            f"the conversation takes {count} positions, this model reads fewer than {max_positions}: "
            "give fewer or shorter pictures, sounds and texts"
        )


def check_options(max_new_tokens: int, temperature: float, top_p: float, seed: int | None) -> None:
    """Raises BadInput for an option of `Engine.stream` that makes no sense, naming it."""
    for name, value, fits, expected in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 (no chance) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "more than 0, at most 1"),
        ("seed", seed, seed is None or seed >= 0, "0 or more"),
    ):
        if not fits:
            raise BadInput(f"{name} is {value}; expected {expected}")


class CachingEngine(ABC):
    """An `Engine` over two operations on a KV cache: run some positions through the model, and cut the cache."""

    answering: Answering | None = None
    base: Engine | None = None

    def __init__(self, name: str, where: str, processor: Processor, vocab_size: int, max_positions: int) -> None:
        """name: for people; where: the folder, for messages."""
        self.name = name
        self.processor = processor
        self.max_positions = max_positions
        for sense, token in processor.placeholders.items():
            if token >= vocab_size:
                raise BadInput(
                    f"{where}: the {sense} placeholder {token} is not one of the model's {vocab_size} embeddings"
                )
        if processor.tokenizer.size > vocab_size:
            raise BadInput(
                f"{where}: tokenizer.json has ids up to {processor.tokenizer.size - 1} but the model has {vocab_size} "
                "embeddings; they do not belong together"
            )

    @property
    def sees(self) -> bool:
        return self.processor.image is not None

    @property
    def hears(self) -> bool:
        return self.processor.audio is not None

    @abstractmethod
    def _run(
        self, ids: Sequence[int], media: Sequence[tuple[Seen, np.ndarray]], cache: Any, keep: int
    ) -> tuple[np.ndarray, Any]:
        """Runs `ids` after what `cache` (None: nothing) holds. May change `cache`.

        media: the media among these positions with their values; `start` counts from the first of `ids`.
        Returns the logits of the last `keep` positions, [K, V] float32, and the longer cache.
        """

    @abstractmethod
    def _cut(self, cache: Any, length: int) -> Any:
        """A cache of the first `length` (> 0) positions that can grow without changing `cache`."""

    def prefill(self, prompt: Prompt, state: State | None = None) -> State:
        count = len(prompt.ids)
        check_length(count, self.max_positions)
        media = media_of(prompt)
        # The last position is always run, for its logits.
        known = shared_prefix(prompt.ids[:-1], media, state) if state is not None else 0
        cache = self._cut(state.cache, known) if state is not None and known else None
        rest = [
            (seen._replace(start=seen.start - known), values)
            for seen, values in zip(media, prompt.values, strict=True)
            if seen.start >= known
        ]
        ids = [int(i) for i in prompt.ids]
        logits, cache = self._run(ids[known:], rest, cache, keep=1)
        return State(ids, media, count, cache, logits[0])

    def stream(
        self,
        state: State,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        check_options(max_new_tokens, temperature, top_p, seed)
        return self._stream(state, max_new_tokens, temperature, top_p, np.random.default_rng(seed))

    def _stream(
        self, state: State, max_new_tokens: int, temperature: float, top_p: float, rng: np.random.Generator
    ) -> Iterator[int]:
        state.finish = "length"
        for _ in range(min(max_new_tokens, self.max_positions - len(state.ids))):
            logits = self._next_logits(state).copy()
            # A placeholder is a hole for a picture or a sound, never a word of an answer.
            logits[list(self.processor.placeholders.values())] = -np.inf
            token = choose(logits, temperature, top_p, rng)
            if token in self.processor.end_ids:
                state.finish = "stop"
                return
            state.ids.append(token)
            # Handed out before it is read back in, so that the reader does not wait for the next step.
            yield token

    def _next_logits(self, state: State) -> np.ndarray:
        if state.read < len(state.ids):
            logits, state.cache = self._run(state.ids[state.read :], (), state.cache, keep=1)
            state.read, state.logits = len(state.ids), logits[0]
        assert state.logits is not None
        return state.logits

    def logprobs(self, state: State, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        ids = [int(i) for i in ids]
        if not ids:
            return np.zeros(0, np.float32)
        given = [*state.ids[state.read :], *ids[:-1]]
        if state.read + len(given) > self.max_positions:
            raise BadInput(f"prompt and answer take more than the {self.max_positions} positions this model reads")
        rows = np.zeros((0, 0))
        if given:
            rows, _ = self._run(given, (), self._cut(state.cache, state.read), keep=len(given))
        if state.read == len(state.ids):
            assert state.logits is not None
            rows = np.concatenate([state.logits[None], rows.reshape(-1, len(state.logits))])  # [K, V]
        return log_softmax(rows[-len(ids) :])[np.arange(len(ids)), ids].astype(np.float32)
