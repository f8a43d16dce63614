"""Speech to text: what was heard and when, the rule of the first seconds, silence, long sounds, conversations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from listeners import Ideal, Spoken, everywhere, ramp

from trisense.assistant.transcribe import LONG, SILENCE, Transcriber, Transcript, with_transcripts
from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.data.world.speech import Voice, say
from trisense.engines.recogniser import Segment, open_recogniser
from trisense.errors import BadInput
from trisense.media import Limits

RATE = 16_000
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COUNTING: list[Spoken] = [(f"n{second}", second + 0.1, second + 0.6) for second in range(222)]


def transcript(text: str, language: str | None = "en") -> Transcript:
    return Transcript(text, language, (Segment(text, 0.0, 1.0),) if text else (), (0.0, 2.0), 2.0)


def test_a_transcript_has_its_words_segments_language_and_extent():
    said: list[Spoken] = [("Ben", 0.5, 0.9), ("has", 1.0, 1.2), ("it.", 1.3, 1.6)]
    assert Transcriber(Ideal(said, group=3), speech=everywhere)(ramp(2.0)) == Transcript(
        text="Ben has it.", language="de", segments=(Segment("Ben has it.", 0.5, 1.6),), heard=(0.0, 2.0), duration=2.0
    )


@pytest.mark.parametrize(
    ("heard", "duration", "extent"),
    [
        ((0.0, 10.0), 222.0, "0:00-0:10 of 3:42"),
        ((0.0, 222.4), 222.4, "0:00-3:42"),
        ((0.0, 59.7), 3725.0, "0:00-1:00 of 1:02:05"),
        ((0.0, 0.3), 0.3, "0:00-0:00"),
    ],
)
def test_the_extent_says_what_was_heard(heard: tuple[float, float], duration: float, extent: str):
    assert Transcript("", None, (), heard, duration).extent == extent


def test_the_first_ten_seconds_are_heard_and_the_transcript_says_so():
    listener = Ideal(COUNTING)
    found = Transcriber(listener, first_seconds=10, speech=everywhere)(ramp(222.0))
    assert found.text == " ".join(f"n{second}" for second in range(10))
    assert found.extent == "0:00-0:10 of 3:42"
    assert not found.whole
    assert listener.heard == [(0.0, 10.0, "de")]


def test_everything_is_heard_without_that_rule():
    found = Transcriber(Ideal(COUNTING), speech=everywhere)(ramp(222.0))
    assert found.text == " ".join(f"n{second}" for second in range(222))
    assert found.extent == "0:00-3:42"
    assert [(one.start, one.end) for one in found.segments] == [
        (pytest.approx(start, abs=0.001), pytest.approx(end, abs=0.001)) for _, start, end in COUNTING
    ]


def test_a_sound_shorter_than_the_rule_is_heard_whole():
    assert Transcriber(Ideal(COUNTING), first_seconds=10, speech=everywhere)(ramp(3.0)).extent == "0:00-0:03"


def test_the_language_is_detected_once_or_taken_as_given():
    detecting, told = Ideal(COUNTING), Ideal(COUNTING)
    assert Transcriber(detecting, speech=everywhere)(ramp(100.0)).language == "de"
    assert Transcriber(told, "en", speech=everywhere)(ramp(100.0)).language == "en"
    assert (detecting.detected, told.detected) == ([30.0], [])
    assert {language for *_, language in detecting.heard} == {"de"}
    assert {language for *_, language in told.heard} == {"en"}
    assert len(told.heard) == 4


def test_the_language_is_not_guessed_from_one_word_where_more_is_said():
    listener = Ideal([])
    Transcriber(listener, speech=lambda wave: [(0, RATE // 4), (10 * RATE, 20 * RATE)])(ramp(30.0))
    assert listener.detected == [10.25]


class Deaf(Ideal):
    """Must not be asked."""

    def __init__(self) -> None:
        super().__init__([])

    def detect_language(self, wave: np.ndarray) -> str:
        raise AssertionError("a recogniser was given a sound in which nobody speaks")

    def recognise(self, wave: np.ndarray, language: str) -> list[Segment]:
        raise AssertionError("a recogniser was given a sound in which nobody speaks")


def noise(level: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, 12 * RATE).clip(-1, 1).astype(np.float32)


def tone(frequency: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(12 * RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize(
    "wave",
    [np.zeros(12 * RATE, np.float32), noise(0.002), noise(0.2), tone(110), tone(440), tone(3000)],
    ids=["silence", "quiet noise", "loud noise", "110 Hz", "440 Hz", "3000 Hz"],
)
def test_where_nobody_speaks_nothing_is_written(wave: np.ndarray):
    found = Transcriber(Deaf())(wave)
    assert found == Transcript("", None, (), (0.0, 12.0), 12.0)
    assert Transcriber(Deaf(), "en")(wave).language == "en"


def test_only_speech_is_given_to_the_recogniser():
    """Two sentences with six seconds of silence between them, and three before and after."""
    words = [0.5 * say(text, Voice("espeak", "en-us", "f1")) for text in ("anna has the red cup", "ben is here")]
    silence = np.zeros(3 * RATE)
    wave = np.concatenate([silence, words[0], silence, silence, words[1], silence]).astype(np.float32)
    listener = Ideal([])
    listener.recognise = lambda wave, language: listener.heard.append((len(wave), 0, language)) or []  # type: ignore
    Transcriber(listener, "en")(wave)
    lengths = [length for length, *_ in listener.heard]
    assert len(lengths) == 2
    for length, said in zip(lengths, words, strict=True):
        assert len(said) <= length <= len(said) + RATE


def test_words_have_their_times_in_the_whole_sound():
    found = Transcriber(Ideal(COUNTING), speech=lambda wave: [(40 * RATE, 42 * RATE), (100 * RATE, 101 * RATE)])(
        ramp(120.0)
    )
    assert found.text == "n40 n41 n100"
    assert [round(one.start, 1) for one in found.segments] == [40.1, 41.1, 100.1]


def test_a_click_is_too_short_for_a_word():
    assert Transcriber(Deaf(), speech=lambda wave: [(100, 200)])(ramp(1.0)).text == ""


def test_a_long_sound_is_refused_only_beyond_the_limits():
    quiet = np.zeros(601 * RATE, np.float32)
    assert Transcriber(Deaf(), speech=lambda wave: [])(quiet).extent == "0:00-10:01"
    assert LONG.max_seconds > Limits().max_seconds == 600
    with pytest.raises(BadInput, match="more than 600"):
        Transcriber(Deaf(), limits=Limits())(quiet)


@pytest.mark.parametrize("model", [tiny_models.converted_whisper, tiny_models.whisper], ids=["faster-whisper", "torch"])
def test_from_a_file_to_a_transcript(model: Callable[[], Path]):
    """Every part is real but the weights, which are random: the words mean nothing, their times lie in the sound."""
    found = Transcriber(open_recogniser(model()), "en")(EXAMPLES / "voice.wav")
    assert found.extent == "0:00-0:01"
    assert found.text
    assert "".join(found.text.split()) == "".join("".join(one.text for one in found.segments).split())
    assert all(0 <= one.start <= one.end <= found.duration + 0.001 for one in found.segments)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window_seconds": 31}, "window_seconds: 31; expected 1 to 30"),
        ({"window_seconds": 0.5}, "window_seconds: 0.5"),
        ({"overlap_seconds": 0}, "overlap_seconds: 0; expected more than 0"),
        ({"overlap_seconds": 16}, "overlap_seconds: 16"),
        ({"first_seconds": 0}, "first_seconds: 0; expected at least 0.1"),
        ({"first_seconds": float("nan")}, "first_seconds: nan"),
        ({"language": "english"}, "language: 'english'; this model knows en, de"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], expected: str):
    with pytest.raises(BadInput, match=expected):
        Transcriber(Ideal([]), **options)


def test_what_is_no_sound_is_refused_by_its_name(samples: Path):
    with pytest.raises(BadInput, match=r"note.txt: found text"):
        Transcriber(Deaf())(samples / "note.txt")


# Conversations


def spoken(sound: str) -> Transcript:
    """Stands for a transcriber: the sound is its own words."""
    return transcript(sound.removeprefix("silent"))


def user(*parts: Text | Image | Audio) -> Conversation:
    return Conversation(messages=(Message(role="user", content=parts),))


def test_a_transcript_stands_where_the_sound_stood():
    asked = Conversation.ask("Where is it?", images=["cup.png"], audios=["Ben has it"], texts=["a note"])
    written, (found,) = with_transcripts(asked, spoken)
    assert written == user(
        Image(image="cup.png"), Text(text="Ben has it"), Text(text="a note"), Text(text="Where is it?")
    )
    assert found == spoken("Ben has it")


def test_the_question_stays_the_question_when_a_sound_follows_it():
    written, _ = with_transcripts(user(Text(text="Who?"), Audio(audio="Ben"), Image(image="a.png")), spoken)
    assert written == user(Text(text="Ben"), Image(image="a.png"), Text(text="Who?"))


def test_without_a_text_the_voice_asks_the_question():
    written, _ = with_transcripts(user(Image(image="a.png"), Audio(audio="What is this?")), spoken)
    assert written == user(Image(image="a.png"), Text(text="What is this?"))


def test_where_nobody_speaks_a_note_says_so():
    written, (found,) = with_transcripts(user(Audio(audio="silent"), Text(text="Who is it?")), spoken)
    assert written == user(Text(text=SILENCE), Text(text="Who is it?"))
    assert found.text == ""


def test_a_note_is_never_the_question():
    written, _ = with_transcripts(user(Image(image="a.png"), Audio(audio="silent")), spoken)
    assert written == user(Image(image="a.png"))
    with pytest.raises(BadInput, match=r"messages\[0\]: nobody speaks in the sound and nothing is written"):
        with_transcripts(user(Audio(audio="silent")), spoken)


def test_other_turns_stay_and_a_sound_shown_again_is_heard_once():
    heard = []

    def hear(sound: str) -> Transcript:
        heard.append(sound)
        return spoken(sound)

    sound = Audio(audio="Ben")
    asked = user(sound, Text(text="Who?")).answered("Ben.")
    again = Conversation(messages=(*asked.messages, Message(role="user", content=(sound, Text(text="Sure?")))))
    written, found = with_transcripts(again, hear)
    assert [message.role for message in written.messages] == ["user", "assistant", "user"]
    assert written.messages[1] == asked.messages[1]
    assert written.messages[2].content == (Text(text="Ben"), Text(text="Sure?"))
    assert heard == ["Ben"]
    assert found == (spoken("Ben"), spoken("Ben"))


def test_a_conversation_without_sounds_is_left_alone():
    asked = Conversation.ask("What?", images=["a.png"], texts=["b"]).answered("c")
    assert with_transcripts(asked, spoken) == (asked, ())


parts = st.one_of(
    st.builds(Text, text=st.text("abc", min_size=1, max_size=3)),
    st.builds(Image, image=st.text("xyz", min_size=1, max_size=3)),
    st.builds(Audio, audio=st.sampled_from(["silent", "one", "two", "three"])),
)


def question_last(content: tuple[Text | Image | Audio, ...]) -> list[Text | Image | Audio]:
    """The order in which a message is written for a model: the last text at the end."""
    at = max((i for i, part in enumerate(content) if isinstance(part, Text)), default=None)
    return [*content] if at is None else [*content[:at], *content[at + 1 :], content[at]]


@given(st.lists(parts, min_size=1, max_size=8))
def test_a_model_reads_the_parts_in_the_order_it_would_have_heard_them(content):
    heard = [part.audio for part in content if isinstance(part, Audio)]
    if all(part == Audio(audio="silent") for part in content):
        with pytest.raises(BadInput):
            with_transcripts(user(*content), spoken)
        return
    written, found = with_transcripts(user(*content), spoken)
    note = SILENCE if any(isinstance(part, Text) for part in content) else None
    expected = [
        Text(text=words) if isinstance(part, Audio) and (words := spoken(part.audio).text or note) else part
        for part in question_last(tuple(content))
    ]
    expected = [part for part in expected if not isinstance(part, Audio)]
    assert question_last(written.messages[0].content) == question_last(tuple(expected))
    assert [one.text for one in found] == [spoken(sound).text for sound in heard]
