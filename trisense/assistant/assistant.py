"""`Assistant`: the only way from a conversation to an answer. The command line and the server both go through it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from threading import Lock
from typing import TYPE_CHECKING, Literal

from trisense.assistant.passes import Kept, cleaned, in_words, pictures_of, question_of, with_question
from trisense.chat import Audio, Conversation, Image, Message
from trisense.engines import Engine, State, open_engine
from trisense.engines.protocol import closest, digest, media_of, shared_prefix
from trisense.errors import BadInput
from trisense.media import AudioSource, load_audio

if TYPE_CHECKING:  # opened only for a sound that is to be written down
    from trisense.assistant.transcribe import Transcriber, Transcript
    from trisense.recipe import Answering

# States kept for follow-up turns. Each holds the KV cache of one conversation.
KEPT_STATES = 4


@dataclass(frozen=True)
class Answer:
    """A whole answer. `completion_tokens` leaves the end token out; seconds count from the call.

    `descriptions`: what the first of two passes said about pictures, from which the second answered. `transcripts`: of
    the sounds, for a model that does not hear.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]
    first_token_seconds: float
    seconds: float
    descriptions: tuple[str, ...] = ()
    transcripts: tuple[Transcript, ...] = ()


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

    def __init__(
        self,
        engine: Engine,
        answering: Answering | None = None,
        *,
        describer: Assistant | None = None,
        speech: Callable[[], Transcriber] | None = None,
    ) -> None:
        """answering: how the model's recipe wants it to be asked. describer: says in words what pictures show to an
        engine that is not to see them. speech: what writes down sounds for an engine that is not to hear them, opened
        when the first one comes."""
        self.engine = engine
        self._answering = answering
        self._describer = describer
        self._speech = speech
        self._described: Kept[str] = Kept()
        self._transcribed: Kept[Transcript] = Kept()
        self._states: list[State] = []  # last used last; none is changed once it is here
        self._lock = Lock()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "spark",
        device: str | None = None,
        speech: str | os.PathLike[str] | None = None,
    ) -> Assistant:
        """`spark`, the folder of a model, or a Hub id. speech: a Whisper model, folder or Hub id, that writes down
        sounds; default: that of the model's recipe, for a model without ears. Raises BadInput when there is no such
        model.
        """
        engine = open_engine(model, device)
        answering = engine.answering
        own = answering.speech if answering and not engine.hears else None
        if speech is None and own is not None:
            speech = own.pretrained
        opened = None
        if speech is not None:
            opened = cache(partial(_transcriber, os.fspath(speech), device, own.first_seconds if own else None))
        if engine.base is not None:
            return cls(engine.base, answering, describer=cls(engine), speech=opened)
        return cls(engine, answering, speech=opened)

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
        conversation, transcripts = self._heard(conversation)
        if self._answering:
            conversation = with_question(conversation, self._answering.describe)
        conversation, descriptions = self._seen(conversation)
        prompt = self.engine.processor.prompt(conversation)
        with self._lock:
            known = list(self._states)
        state = self.engine.prefill(prompt, closest(prompt, known))
        ids = self.engine.stream(state, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
        written = self._write(ids, state, tuple(stop), len(prompt.ids), started)
        clean = self._answering is not None and self._answering.clean
        return _finished(written, descriptions, transcripts, question_of(conversation) if clean else None)

    def _heard(self, conversation: Conversation) -> tuple[Conversation, tuple[Transcript, ...]]:
        """The conversation with transcripts in place of its sounds, where somebody writes them, and the transcripts."""
        speech = self._speech
        if speech is None or not any(isinstance(part, Audio) for m in conversation.messages for part in m.content):
            return conversation, ()
        from trisense.assistant.transcribe import with_transcripts

        def transcribe(sound: AudioSource) -> Transcript:
            wave = load_audio(sound)
            return self._transcribed.get(digest(wave), lambda: speech()(wave))

        return with_transcripts(conversation, transcribe)

    def _seen(self, conversation: Conversation) -> tuple[Conversation, tuple[str, ...]]:
        """The conversation with the describer's words in place of its pictures, and these words."""
        if self._describer is None:
            return conversation, ()
        messages, descriptions = [], []
        for message in conversation.messages:
            if any(isinstance(part, Image) for part in message.content):
                descriptions.append(self._description(self._describer, message))
                message = in_words(message, descriptions[-1])
            messages.append(message)
        return Conversation(messages=tuple(messages)), tuple(descriptions)

    def _description(self, describer: Assistant, message: Message) -> str:
        """Made once for the same pictures: a follow-up question does not have them described again."""
        assert self._answering
        asked = pictures_of(message, self._answering.describe)
        key = media_of(describer.engine.processor.prompt(asked))
        return self._described.get(key, lambda: describer.answer(asked).text)

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
        return _whole(pieces)

    def _keep(self, state: State) -> None:
        """Keeps a state for the next turn, in place of those that it continues."""
        if not state.read:  # this engine keeps nothing that a next turn could use
            return
        with self._lock:
            self._states = [kept for kept in self._states if not _continues(state, kept)]
            self._states = [*self._states, state][-KEPT_STATES:]


def _whole(pieces: Generator[str, None, Answer]) -> Answer:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def _finished(
    pieces: Generator[str, None, Answer],
    descriptions: tuple[str, ...],
    transcripts: tuple[Transcript, ...],
    question: str | None,
) -> Generator[str, None, Answer]:
    """The pieces, and the answer with what it was given in words. question: clean the answer of it; then it comes in
    one piece, since only a whole one shows what it repeats."""
    if question is None:
        answer = yield from pieces
    else:
        answer = _whole(pieces)
        answer = replace(answer, text=cleaned(answer.text, question))
        if answer.text:
            yield answer.text
    return replace(answer, descriptions=descriptions, transcripts=transcripts)


def _transcriber(name: str, device: str | None, first_seconds: float | None) -> Transcriber:
    from trisense.assistant.transcribe import Transcriber
    from trisense.engines.recogniser import open_recogniser

    try:
        return Transcriber(open_recogniser(name, device), first_seconds=first_seconds)
    except BadInput as error:  # perhaps the recipe named it, and the one who asks has never heard of it
        raise BadInput(f"{error} (a model without ears reads what Whisper writes; --speech names another)") from None


def _before(text: str, stop: tuple[str, ...]) -> tuple[int, bool]:
    """How much of `text` can be given out, and whether that is its end: what may begin a stop string is held back."""
    found = [at for string in stop if (at := text.find(string)) >= 0]
    if found:
        return min(found), True
    held = (n for string in stop for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n]))
    return len(text) - max(held, default=0), False


def _continues(state: State, earlier: State) -> bool:
    return shared_prefix(earlier.ids[: earlier.read], earlier.media, state) == earlier.read
