"""Voices of the small world: a function of the facts, in the promised conditions."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from trisense.data.world import speech
from trisense.data.world.facts import Utterance
from trisense.data.world.speech import Voice, conditions, loudness, noise_for, resample, say, speak, voices
from trisense.errors import BadInput

RATE = 16_000


def utterance(style: int, words: str = "anna has the red cup") -> Utterance:
    return Utterance(words, "has", style=style)


def digest(sound: np.ndarray) -> str:
    return hashlib.sha256(sound.tobytes()).hexdigest()


def test_held_out_voices_are_never_in_training() -> None:
    heard, unheard = voices(True), voices(False)
    assert len(heard) >= 24
    assert len(unheard) == 4
    assert not {voice.variant for voice in heard} & {voice.variant for voice in unheard}
    assert voices() == heard + unheard
    assert {conditions(style).voice for style in range(2000)} == set(heard)


def test_flite_voices_only_when_asked_for() -> None:
    assert all(voice.engine == "espeak" for voice in voices())
    both = voices(True, engines=("espeak", "flite"))
    assert {voice.engine for voice in both} == {"espeak", "flite"}
    assert not set(both) & set(voices(False, engines=("espeak", "flite")))


def test_sound_is_16_khz_mono_of_sane_length_and_level() -> None:
    for style in range(12):
        sound = speak(utterance(style))
        asked = conditions(style)
        assert sound.dtype == np.float32
        assert sound.ndim == 1
        assert 0.9 < len(sound) / RATE < 2.6
        assert np.abs(sound).max() == pytest.approx(asked.peak, abs=1e-6)
        assert 0.15 <= asked.peak <= 0.9


def test_a_sentence_does_not_depend_on_those_before_it() -> None:
    forwards = [digest(speak(utterance(style))) for style in range(10)]
    backwards = [digest(speak(utterance(style))) for style in reversed(range(10))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 10


def test_another_process_says_the_same_samples() -> None:
    program = (
        "import hashlib; from trisense.data.world.speech import speak; from trisense.data.world.facts import Utterance;"
        "sounds = [speak(Utterance('the blue key', 'thing', style=s)) for s in (5, 2, 9)];"
        "print(*[hashlib.sha256(sound.tobytes()).hexdigest() for sound in sounds])"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert there == [digest(speak(utterance(style, "the blue key"))) for style in (5, 2, 9)]


@pytest.mark.parametrize("voice", voices(), ids=lambda voice: voice.label)
def test_every_voice_speaks_and_tells_words_apart(voice: Voice) -> None:
    seven, nine = say("seven", voice), say("nine", voice)
    assert 0.2 < len(seven) / RATE < 1.2
    shorter = min(len(seven), len(nine))
    assert np.abs(seven[:shorter] - nine[:shorter]).mean() > 0.01


def test_voices_differ_from_each_other() -> None:
    sounds = {digest(say("the brown heart is anna's", voice)) for voice in voices()}
    assert len(sounds) == len(voices())


def test_a_given_voice_keeps_the_other_conditions() -> None:
    voice = voices(False)[0]
    drawn, given = conditions(7), conditions(7, voice)
    assert given.voice == voice
    assert (given.speed, given.noise, given.snr, given.seed) == (drawn.speed, drawn.noise, drawn.snr, drawn.seed)
    assert digest(speak(utterance(7), voice)) != digest(speak(utterance(7)))


def test_speed_and_pitch_are_heard() -> None:
    voice = voices(True)[0]
    assert len(say("the green boat", voice, speed=0.8)) > 1.2 * len(say("the green boat", voice, speed=1.2))

    def pitch(sound: np.ndarray) -> float:
        middle = sound[len(sound) // 3 : len(sound) // 3 + 2048]
        same = np.correlate(middle, middle, "full")[len(middle) :]
        return RATE / (50 + int(same[50:300].argmax()))

    assert pitch(say("one", voice, pitch=1.6)) > 1.05 * pitch(say("one", voice, pitch=0.5))


def test_conditions_stay_within_their_promise() -> None:
    drawn = [conditions(style) for style in range(900)]
    assert 0.28 < sum(one.noise == "none" for one in drawn) / 900 < 0.39
    assert {one.noise for one in drawn} == {"none", "white", "pink", "hum"}
    assert all(12 <= one.snr <= 40 for one in drawn)
    assert all(0.05 <= silence <= 0.25 for one in drawn for silence in (one.before, one.after))
    assert 0.4 < sum(one.room == 0 for one in drawn) / 900 < 0.6


@pytest.mark.parametrize("colour", ["white", "pink", "hum"])
@pytest.mark.parametrize("snr", [12.0, 40.0])
def test_noise_has_the_asked_level(colour: speech.Colour, snr: float) -> None:
    sound = np.concatenate([np.zeros(4000), say("seven", voices(True)[0]), np.zeros(4000)])
    noise = noise_for(sound, colour, snr, np.random.default_rng(0))
    assert noise.shape == sound.shape
    assert 10 * np.log10(loudness(sound) / (noise**2).mean()) == pytest.approx(snr, abs=0.1)


def test_spoken_noise_is_within_12_to_40_db() -> None:
    checked = 0
    for style in range(40):
        asked = conditions(style)
        if asked.room or asked.noise == "none":
            continue
        clean, noisy = (speak(utterance(style), clean=c).astype(float) for c in (True, False))
        scale = clean @ noisy / (clean @ clean)
        measured = 10 * np.log10(loudness(scale * clean) / ((noisy - scale * clean) ** 2).mean())
        assert measured == pytest.approx(asked.snr, abs=0.7)
        checked += 1
    assert checked >= 8


def test_clean_speech_begins_and_ends_in_silence() -> None:
    for style in range(6):
        asked, sound = conditions(style), speak(utterance(style), clean=True)
        assert not sound[: int(asked.before * RATE) - 1].any()
        assert not sound[len(sound) - int(asked.after * RATE) + 1 :].any()


def test_a_room_answers_after_the_words() -> None:
    click = np.zeros(8000)
    click[100] = 1.0
    answered = speech.reverberate(click, 0.3, 0.3, np.random.default_rng(0))
    assert answered[100] == pytest.approx(1.0, abs=1e-6)
    early, late = (answered[200:1200] ** 2).sum(), (answered[3500:4500] ** 2).sum()
    assert early > 100 * late > 0
    assert ((answered[110:] ** 2).sum()) == pytest.approx(0.09, rel=0.05)


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_resampling_keeps_a_tone(rate: int) -> None:
    there = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate) * np.hanning(rate)
    here = resample(there, rate, RATE)
    wanted = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert len(here) == RATE
    middle = slice(6000, 10000)
    window = np.hanning(rate)[np.round(np.arange(RATE)[middle] * rate / RATE).astype(int)]
    np.testing.assert_allclose(here[middle], wanted[middle] * window, atol=2e-3)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    high = np.sin(2 * np.pi * 10_000 * np.arange(22050) / 22050) * np.hanning(22050)
    assert np.abs(resample(high, 22050, RATE)).max() < 1e-3


def test_many_in_two_processes_are_the_same_in_the_same_order() -> None:
    asked = [utterance(style, words) for style, words in enumerate(("two", "three", "the pink hat"))]
    alone = [digest(speak(one)) for one in asked]
    assert [digest(sound) for sound in speech.speak_many(asked, workers=2)] == alone
    assert [digest(sound) for sound in speech.speak_many(asked, workers=1)] == alone


@pytest.mark.parametrize("words", ["", "  ", "tea\0cup"])
def test_words_that_cannot_be_spoken(words: str) -> None:
    with pytest.raises(BadInput, match="words"):
        speak(utterance(0, words))


def test_unknown_voices_and_engines_are_named() -> None:
    with pytest.raises(BadInput, match="en-moon"):
        say("one", Voice("espeak", "en-moon"))
    assert len(say("one", voices()[0])) > 0  # and the synthesiser still works
    with pytest.raises(BadInput, match="parrot"):
        voices(engines=("parrot",))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="parrot"):
        say("one", Voice("parrot", "polly"))  # type: ignore[arg-type]


def test_missing_espeak_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    speech._espeak_files.cache_clear()
    with pytest.raises(BadInput, match=r"trisense\[world\]"):
        say("one", voices()[0])
    monkeypatch.undo()
    assert len(say("one", voices()[0])) > 0


def test_missing_flite_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech.shutil, "which", lambda name: None)
    with pytest.raises(BadInput, match="apt-get install flite"):
        say("one", Voice("flite", "slt"))


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
@pytest.mark.parametrize("voice", voices(engines=("flite",)), ids=lambda voice: voice.label)
def test_flite_speaks_the_same_each_time(voice: Voice) -> None:
    first, second = (speak(utterance(3), voice) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0.9 < len(first) / RATE < 3
    with pytest.raises(BadInput, match="nobody"):
        say("one", Voice("flite", "nobody"))
