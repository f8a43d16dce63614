"""Speech to text with times: any sound -> a `Transcript`, and a conversation with sounds -> one that any model reads.

All five published designs hear by transcript: Whisper writes down what is said, the language model reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trisense.assistant.windows import Word, cut, segments_of, splice, words_of
from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.engines.recogniser import MAX_SECONDS, SAMPLING_RATE, Recogniser, Segment, voice_activity
from trisense.errors import BadInput
from trisense.media import AudioSource, Limits, load_audio

# Only a window at a time is computed on, so a sound may be far longer than one that a model hears whole: two hours are
# 460 MB, and three times that while voices are looked for. What comes over HTTP gets the limits of every request.
LONG = Limits(max_bytes=512 * 2**20, max_seconds=2 * 3600.0)
# Silence of this many seconds ends a window: Whisper tends to write words into a long one.
PAUSE = 2.0
# Shorter than any word, and about what Whisper's features need.
SHORTEST = 0.1
# What stands for a sound without speech, so that a model can say so instead of guessing what was said.
SILENCE = "[nobody speaks in this sound]"


@dataclass(frozen=True)
class Transcript:
    """What was said: the whole text and its segments, in seconds from the beginning of the sound.

    language: the one given or detected; None where nobody speaks and none was given. heard: from when to when was
    listened, of `duration` seconds.
    """

    text: str
    language: str | None
    segments: tuple[Segment, ...]
    heard: tuple[float, float]
    duration: float

    @property
    def whole(self) -> bool:
        """Whether all of the sound was listened to."""
        return self.heard == (0.0, self.duration)

    @property
    def extent(self) -> str:
        """What was listened to, as "0:00-0:10 of 3:42", or "0:00-3:42" when that is all."""
        span = f"{_clock(self.heard[0])}-{_clock(self.heard[1])}"
        return span if self.whole else f"{span} of {_clock(self.duration)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True)
class Transcriber:
    """Transcribes sounds of any length with one recogniser.

    language: a code such as `en`; None to detect it in the first 30 s of speech in each sound. first_seconds: listens
    to the beginning only (10 is the rule of `tinyclip-phi2`, which cuts without a word; a `Transcript` says what was
    heard). window_seconds, overlap_seconds: of windows, where speech goes on for longer than one. speech: where in a
    sound [T] anybody speaks, as `voice_activity` says it; the rest is never given to the recogniser. Raises BadInput
    for options that do not go together and a language that the recogniser does not know.
    """

    recogniser: Recogniser
    language: str | None = None
    first_seconds: float | None = None
    window_seconds: float = MAX_SECONDS
    overlap_seconds: float = 5.0
    speech: Callable[[np.ndarray], Sequence[tuple[int, int]]] = voice_activity
    limits: Limits = LONG

    def __post_init__(self) -> None:
        if not 1 <= self.window_seconds <= MAX_SECONDS:
            raise BadInput(f"window_seconds: {self.window_seconds:g}; expected 1 to {MAX_SECONDS:g}")
        if not 0 < self.overlap_seconds <= self.window_seconds / 2:
            raise BadInput(f"overlap_seconds: {self.overlap_seconds:g}; expected more than 0, at most half a window")
        if self.first_seconds is not None and not self.first_seconds >= SHORTEST:
            raise BadInput(f"first_seconds: {self.first_seconds:g}; expected at least {SHORTEST}, or None for all")
        known = self.recogniser.languages
        if self.language is not None and self.language not in known:
            raise BadInput(f"language: {self.language!r}; this model knows {', '.join(known)}: give one, or none")

    def __call__(self, sound: AudioSource) -> Transcript:
        """The transcript of anything `load_audio` reads. Nobody speaks: an empty text, and no recogniser is called.

        Raises BadInput for what `load_audio` refuses.
        """
        wave = load_audio(sound, self.limits, SAMPLING_RATE)  # [T]
        heard = wave if self.first_seconds is None else wave[: round(self.first_seconds * SAMPLING_RATE)]
        windows = self._windows(heard)
        language, words, before = self.language, list[Word](), 0.0
        for first, last in windows:
            language = language or self._detected(heard, windows)
            start, end = first / SAMPLING_RATE, last / SAMPLING_RATE
            found = words_of(self.recogniser.recognise(heard[first:last], language), start, end)
            words = splice(words, found, start, before) if start < before else [*words, *found]
            before = end
        return Transcript(
            text="".join(word.text for word in words).strip(),
            language=language,
            segments=segments_of(words),
            heard=(0.0, len(heard) / SAMPLING_RATE),
            duration=len(wave) / SAMPLING_RATE,
        )

    def _windows(self, heard: np.ndarray) -> list[tuple[int, int]]:
        seconds = (self.window_seconds, self.overlap_seconds, PAUSE)
        windows = cut(self.speech(heard), *(round(value * SAMPLING_RATE) for value in seconds))
        return [(start, end) for start, end in windows if end - start >= SHORTEST * SAMPLING_RATE]

    def _detected(self, heard: np.ndarray, windows: Sequence[tuple[int, int]]) -> str:
        """The language of the first speech, as much as the recogniser hears at once: one word may be of many."""
        longest = round(MAX_SECONDS * SAMPLING_RATE)
        lengths = np.cumsum([end - start for start, end in windows])
        enough = windows[: int(np.searchsorted(lengths, longest)) + 1]
        return self.recogniser.detect_language(np.concatenate([heard[start:end] for start, end in enough])[:longest])


def with_transcripts(
    conversation: Conversation, transcribe: Callable[[AudioSource], Transcript]
) -> tuple[Conversation, tuple[Transcript, ...]]:
    """The conversation with what is said in place of every sound, for a model without ears, and the transcripts, one
    for each sound in order. `transcribe` is a `Transcriber`; a part that stands in several places is heard once.

    All else stays in its order, but a question that a sound follows moves behind it: the last text is the question. In
    a message without a text the transcript is the question. Where nobody speaks, a note says so, unless it would be
    the question; a message that would be left empty raises BadInput.
    """
    known: dict[int, Transcript] = {}  # by identity, as sounds may be arrays
    transcripts: list[Transcript] = []
    messages = []
    for number, message in enumerate(conversation.messages):
        for part in message.content:
            if isinstance(part, Audio):
                if id(part) not in known:
                    known[id(part)] = transcribe(part.audio)
                transcripts.append(known[id(part)])
        content = _written(message.content, known)
        if message.content and not content:
            raise BadInput(f"messages[{number}]: nobody speaks in the sound and nothing is written; write the question")
        messages.append(Message(role=message.role, content=tuple(content)))
    return Conversation(messages=tuple(messages)), tuple(transcripts)


def _written(parts: Sequence[Text | Image | Audio], known: dict[int, Transcript]) -> list[Text | Image]:
    """The parts with their transcripts in place of sounds, the question still the last text."""
    question = max((i for i, part in enumerate(parts) if isinstance(part, Text)), default=None)
    if question is not None and any(isinstance(part, Audio) for part in parts[question:]):
        parts = [*parts[:question], *parts[question + 1 :], parts[question]]
    content: list[Text | Image] = []
    for part in parts:
        if not isinstance(part, Audio):
            content.append(part)
        elif text := known[id(part)].text or (SILENCE if question is not None else ""):
            content.append(Text(text=text))
    return content
