"""Windows that cover all speech, and seams at which no word is doubled or lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from listeners import Ideal, Spoken, everywhere, ramp

from trisense.assistant.transcribe import Transcriber
from trisense.assistant.windows import Word, cut, segments_of, splice, words_of
from trisense.engines.recogniser import Segment

EDGES = st.sampled_from(["lost", "half", "whole"])


def spoken(words: list[str], lengths: list[float], pauses: list[float]) -> list[Spoken]:
    """The words one after another, each with its length and the pause before it, in seconds."""
    said, now = [], 0.0
    for word, length, pause in zip(words, lengths, pauses, strict=True):
        said.append((word, now + pause, now + pause + length))
        now += pause + length
    return said


def texts(words: list[Word]) -> str:
    return "".join(word.text for word in words).strip()


def heard(text: str, start: float, length: float = 0.4) -> list[Word]:
    """Words one after another from `start`, `length` seconds each."""
    said = [Segment(f" {word}", i * length, (i + 1) * length) for i, word in enumerate(text.split())]
    return words_of(said, start, start + 30)


@given(
    st.lists(
        st.tuples(st.sampled_from(["no!", "Yes,", "maybe", "three"]), st.floats(0.2, 0.6), st.floats(0, 0.8)),
        min_size=1,
        max_size=80,
    ),
    EDGES,
    EDGES,
)
def test_every_word_is_written_once_however_often_it_is_said(said, first, last):
    words = spoken(*map(list, zip(*said, strict=True)))
    listener = Ideal(words, first, last, blur=0.04)
    transcript = Transcriber(listener, window_seconds=8, overlap_seconds=3, speech=everywhere)(ramp(words[-1][2] + 0.5))
    assert transcript.text == " ".join(word for word, *_ in words)
    assert all(end - start <= 8 for start, end, _ in listener.heard)
    ends = [time for segment in transcript.segments for time in (segment.start, segment.end)]
    assert ends == sorted(ends)
    assert ends[0] >= 0
    assert ends[-1] <= transcript.duration + 0.001


@given(
    st.lists(st.tuples(st.floats(0.2, 0.4), st.floats(0, 0.2)), min_size=1, max_size=80),
    st.integers(2, 6),
    EDGES,
    EDGES,
)
def test_words_without_times_of_their_own_are_joined_too(said, group, first, last):
    """Recognisers write times for segments; where a word lies in one is estimated."""
    words = spoken([f"word{i}" for i in range(len(said))], *map(list, zip(*said, strict=True)))
    listener = Ideal(words, first, last, group)
    transcript = Transcriber(listener, window_seconds=8, overlap_seconds=3, speech=everywhere)(ramp(words[-1][2] + 0.5))
    assert transcript.text == " ".join(word for word, *_ in words)


def test_a_word_said_nine_times_over_a_seam_stays_nine():
    # Spoken from 8.8 to 12.4. One window ends at 11.9, in the eighth word, the next begins at 9.1, in the first.
    left, right = heard("no no no no no no no", 8.8), heard("no no no no no no no no", 9.3)
    assert texts(splice(left, right, 9.1, 11.9)) == "no no no no no no no no no"


def test_half_words_at_the_edges_of_windows_are_left_out():
    left, right = heard("the red elephant ate the ban", 0), heard("hant ate the banana", 1)
    assert texts(splice(left, right, 1.0, 2.4)) == "the red elephant ate the banana"


def test_capitals_and_punctuation_may_differ():
    left, right = heard("It is here. And", 0), heard("is here, and there", 0.4)
    assert texts(splice(left, right, 0.4, 1.6)) == "It is here. and there"


def test_where_nothing_agrees_the_text_changes_windows_at_the_middle():
    left, right = heard("a b c d", 0, 1.0), heard("x y z w", 2, 1.0)
    assert texts(splice(left, right, 2.0, 4.0)) == "a b c y z w"


def test_what_only_one_window_heard_is_kept():
    """Recognisers fall silent before the end of a window, or begin to write late."""
    silent, writing = heard("a b", 0, 1.0), heard("c d e f", 2, 1.0)
    assert texts(splice(silent, writing, 2.0, 5.0)) == "a b c d e f"
    early, late = heard("a b c d e", 0, 1.0), heard("f", 5, 1.0)
    assert texts(splice(early, late, 2.0, 5.0)) == "a b c d e f"
    assert splice([], [], 2.0, 5.0) == []


def test_equal_words_far_apart_are_not_one():
    left, right = heard("go", 0, 0.4), heard("go", 9.6, 0.4)
    assert texts(splice(left, right, 0.0, 10.0)) == "go go"


def test_without_spaces_every_character_is_a_word():
    left = words_of([Segment("今天我们去学校", 0, 3.5)], 0, 30)
    right = words_of([Segment("们去学校读书。", 0, 3.5)], 1.5, 31.5)
    assert [word.text for word in left] == list("今天我们去学校")
    assert texts(splice(left, right, 1.5, 3.5)) == "今天我们去学校读书。"


def test_segments_are_kept_and_one_over_a_seam_is_whole():
    left = words_of([Segment(" It is late.", 0, 3), Segment(" The red", 3, 5)], 0, 5)
    right = words_of([Segment(" The red cup.", 0, 3), Segment(" Go!", 3, 4)], 3, 8)
    assert segments_of(splice(left, right, 3.0, 5.0)) == (
        Segment("It is late.", 0, 3),
        Segment("The red cup.", 3, 6),
        Segment("Go!", 6, 7),
    )


def test_times_beyond_the_window_are_its_end():
    """Whisper writes times up to 30 s, however short the sound."""
    (word,) = words_of([Segment(" yes", 0.5, 29.98)], 10.0, 12.0)
    assert (word.start, word.end) == (10.5, 12.0)


def test_what_begins_after_the_sound_has_ended_is_made_up():
    assert words_of([Segment(" Thank you.", 2.0, 4.0)], 10.0, 12.0) == []


stretches = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 700)), max_size=12).map(
    lambda pairs: [(end - length, end) for end, length in _placed(pairs)]
)


def _placed(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    now, placed = 0, []
    for gap, length in pairs:
        now += gap + length
        placed.append((now, length))
    return placed


@given(stretches)
def test_windows_hold_all_speech_and_no_long_silence(speech: list[tuple[int, int]]):
    windows = cut(speech, longest=300, overlap=50, pause=20)
    covered = {sample for start, end in windows for sample in range(start, end)}
    assert covered >= {sample for start, end in speech for sample in range(start, end)}
    assert all(0 < end - start <= 300 for start, end in windows)
    for (_, end), (start, _) in pairwise(speech):
        assert start - end <= 20 or not covered & set(range(end, start))
    for (first, end), (start, last) in pairwise(windows):
        assert first < start and end < last
        assert start >= end or end - start >= 50


@pytest.mark.parametrize(
    ("speech", "expected"),
    [
        ([], []),
        ([(0, 100), (110, 200)], [(0, 200)]),
        ([(0, 100), (130, 200)], [(0, 100), (130, 200)]),
        ([(0, 200), (210, 310)], [(0, 200), (210, 310)]),
        ([(0, 301)], [(0, 176), (125, 301)]),
    ],
    ids=["nothing", "short pause", "long pause", "together too long", "one too long"],
)
def test_cuts_fall_into_pauses(speech: list[tuple[int, int]], expected: list[tuple[int, int]]):
    assert cut(speech, longest=300, overlap=50, pause=20) == expected
