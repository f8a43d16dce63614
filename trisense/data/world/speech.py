"""Speaks an utterance of the small world: words in, 16 kHz sound out.

The default synthesiser is espeak-ng, which the pip package `espeakng-loader` brings along; Debian's `flite` is used
when a voice of it is asked for. Chance comes from `Utterance.style` alone: the same utterance gives the same samples.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import wave
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np

from trisense.data.world.facts import Utterance
from trisense.errors import BadInput

SAMPLING_RATE = 16_000

Engine = Literal["espeak", "flite"]
Colour = Literal["none", "white", "pink", "hum"]


@dataclass(frozen=True)
class Voice:
    """Who speaks. For espeak, `name` is the accent and `variant` the speaker; a flite voice has no variant."""

    engine: Engine
    name: str
    variant: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}+{self.variant}" if self.variant else self.name


ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan")
SPEAKERS = ("m1", "m3", "m5", "m6", "f1", "f3", "f4", "michel", "adam", "klatt4")
# Four speakers (espeak variants) that training never hears in any accent.
_HELD_OUT = {
    "espeak": (
        Voice("espeak", "en-us", "f2"),
        Voice("espeak", "en-us", "m7"),
        Voice("espeak", "en-us-nyc", "f5"),
        Voice("espeak", "en-gb-x-rp", "m2"),
    ),
    "flite": (Voice("flite", "rms"),),
}
_HEARD = {
    "espeak": tuple(Voice("espeak", accent, speaker) for accent in ACCENTS for speaker in SPEAKERS),
    "flite": (Voice("flite", "slt"), Voice("flite", "awb"), Voice("flite", "kal16")),
}


def voices(heard: bool | None = None, engines: Iterable[Engine] = ("espeak",)) -> tuple[Voice, ...]:
    """The voices used in training (`heard=True`), those never used in it (`False`), or both (`None`)."""
    chosen: list[Voice] = []
    for engine in engines:
        if engine not in _HEARD:
            raise BadInput(f"engine {engine!r} does not speak: use one of {', '.join(_HEARD)}")
        chosen += _HEARD[engine] if heard is not False else ()
        chosen += _HELD_OUT[engine] if heard is not True else ()
    return tuple(chosen)


@dataclass(frozen=True)
class Conditions:
    """Everything about a recording but its words. `before` and `after` are silence in seconds, `room` the reverberation
    time (60 dB) in seconds or 0, `wet` the level of the room's answer, `snr` in dB, `peak` the loudest sample (0 to 1).
    `speed` and `pitch` multiply the voice's own; `seed` makes the noise and the room's answer."""

    voice: Voice
    speed: float
    pitch: float
    before: float
    after: float
    room: float
    wet: float
    noise: Colour
    snr: float
    peak: float
    seed: int


def conditions(style: int, voice: Voice | None = None) -> Conditions:
    """The conditions that a style stands for. A given voice replaces the drawn one and changes nothing else."""
    rng = random.Random(style)
    drawn = rng.choice(_HEARD["espeak"])
    return Conditions(
        voice=voice or drawn,
        speed=rng.uniform(0.8, 1.2),
        pitch=rng.uniform(0.85, 1.15),
        before=rng.uniform(0.05, 0.25),
        after=rng.uniform(0.05, 0.25),
        room=rng.choice((0.0, rng.uniform(0.08, 0.35))),
        wet=rng.uniform(0.1, 0.4),
        noise="none" if rng.random() < 1 / 3 else rng.choice(("white", "pink", "hum")),
        snr=rng.uniform(12, 40),
        peak=rng.uniform(0.15, 0.9),
        seed=rng.getrandbits(32),
    )


def speak(utterance: Utterance, voice: Voice | None = None, clean: bool = False) -> np.ndarray:
    """The utterance as sound, [T] float32 in [-1, 1], mono, 16 kHz.

    The style draws the voice (of training, unless one is given), speed, pitch, silence around the words, room, noise
    and gain; `clean` leaves out room, noise and gain. Raises BadInput for words that cannot be spoken and for a missing
    synthesiser.
    """
    asked = conditions(utterance.style, voice)
    sound = np.concatenate(
        [
            np.zeros(round(asked.before * SAMPLING_RATE)),
            say(utterance.words, asked.voice, asked.speed, asked.pitch),
            np.zeros(round(asked.after * SAMPLING_RATE)),
        ]
    )  # [T]
    peak = 0.7
    if not clean:
        rng = np.random.default_rng(asked.seed)
        if asked.room:
            sound = reverberate(sound, asked.room, asked.wet, rng)
        if asked.noise != "none":
            sound = sound + noise_for(sound, asked.noise, asked.snr, rng)
        peak = asked.peak
    return (sound * (peak / np.abs(sound).max())).astype(np.float32)


def speak_many(utterances: Iterable[Utterance], workers: int = 2, clean: bool = False) -> Iterator[np.ndarray]:
    """`speak` for many utterances, in order, in `workers` processes (espeak-ng speaks one sentence at a time)."""
    if workers < 2:
        yield from (speak(one, clean=clean) for one in utterances)
        return
    everything = list(utterances)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(speak, everything, [None] * len(everything), [clean] * len(everything), chunksize=64)


def say(words: str, voice: Voice, speed: float = 1.0, pitch: float = 1.0) -> np.ndarray:
    """The bare words of a voice, [T] float64, mono, 16 kHz, peak 1, without silence around them."""
    if not words.strip() or "\0" in words:
        raise BadInput(f"words {words!r} cannot be spoken: give at least one plain word")
    if voice.engine not in _HEARD:
        raise BadInput(f"engine {voice.engine!r} does not speak: use one of {', '.join(_HEARD)}")
    samples, rate = (_espeak if voice.engine == "espeak" else _flite)(words, voice, speed, pitch)
    sound = resample(samples.astype(np.float64), rate, SAMPLING_RATE)
    peak = np.abs(sound).max(initial=0.0)
    if peak == 0:
        raise BadInput(f"voice {voice.label} said nothing for the words {words!r}: give words it can pronounce")
    sound = sound / peak
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1]


def resample(sound: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Sound [T] at another sampling rate, [ceil(T * to / rate)]: band-limited, by cutting its spectrum."""
    if rate == to:
        return sound
    up, down = to // gcd(rate, to), rate // gcd(rate, to)
    # Zeros behind the sound keep its end from leaking into its start: the transform is periodic.
    blocks = -(-(len(sound) + 256) // down)
    spectrum = np.fft.rfft(sound, blocks * down)
    length = blocks * up
    return np.fft.irfft(spectrum[: length // 2 + 1], length)[: -(-len(sound) * up // down)] * (up / down)


def reverberate(sound: np.ndarray, seconds: float, wet: float, rng: np.random.Generator) -> np.ndarray:
    """Sound [T] in a room, [T]: the direct sound and `wet` times a diffuse tail that falls 60 dB in `seconds`."""
    length = round(seconds * SAMPLING_RATE)
    times = np.arange(length) / SAMPLING_RATE
    tail = rng.normal(size=length) * 10 ** (-3 * times / seconds)
    tail[: SAMPLING_RATE // 500] = 0  # the first wall is further away than 2 ms
    tail *= wet / np.sqrt((tail**2).sum())
    size = 1 << (len(sound) + length - 1).bit_length()
    answer = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)
    return sound + answer[: len(sound)]


def noise_for(sound: np.ndarray, colour: Colour, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Noise [T] that lies `snr` dB below the sound [T]; the sound's power is that of its loud part, not of the silence.

    `pink` falls 3 dB per octave, `hum` is mains hum (50 or 60 Hz) with overtones over a little white noise.
    """
    length = len(sound)
    if colour == "hum":
        base = rng.choice((50.0, 60.0))
        turns = np.arange(length) / SAMPLING_RATE * 2 * np.pi * base
        noise = 0.15 * rng.normal(size=length)
        for overtone in (1, 2, 3, 4, 6, 8):
            noise += np.sin(turns * overtone + rng.uniform(0, 2 * np.pi)) / overtone
    else:
        noise = rng.normal(size=length)
        if colour == "pink":
            spectrum = np.fft.rfft(noise)
            spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
            noise = np.fft.irfft(spectrum, length)
    power = (noise**2).mean()
    return noise * np.sqrt(loudness(sound) / power / 10 ** (snr / 10))


def loudness(sound: np.ndarray) -> float:
    """Mean power of the part of a sound [T] that is within 40 dB of its loudest sample's power."""
    loud = np.abs(sound) > 0.01 * np.abs(sound).max()
    return float((sound[loud] ** 2).mean())


_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8 = 2, 0x8000, 1
_RATE, _PITCH = 1, 3
_WORDS_PER_MINUTE, _PITCH_MIDDLE = 160, 50
_FLITE_PITCH = {"slt": 170.0, "rms": 95.0, "awb": 120.0, "kal16": 95.0}  # Hz, each voice's own
_lock = threading.Lock()


def _unload(library: ctypes.CDLL) -> None:
    handle = ctypes.c_void_p(library._handle)
    if sys.platform == "win32":
        ctypes.windll.kernel32.FreeLibrary(handle)
    else:
        ctypes.CDLL(None).dlclose(handle)


@lru_cache(maxsize=1)
def _espeak_files() -> tuple[str, str]:
    try:
        import espeakng_loader
    except ImportError:
        raise BadInput("package espeakng-loader is missing: pip install 'trisense[world]' to speak") from None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def _espeak(words: str, voice: Voice, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    """Samples [T] int16 and their rate.

    espeak-ng keeps its pitch flutter and its random numbers from one sentence to the next, and terminating it does not
    reset them. Loading the library anew for every sentence (about 3 ms) does, so a sentence never depends on those
    before it (unless something else in the process holds the same library).
    """
    library, data = _espeak_files()
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def take(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    text = words.encode()
    with _lock:
        espeak = ctypes.CDLL(library)
        try:
            rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DO_NOT_EXIT)
            if rate <= 0:
                raise BadInput(f"espeak-ng does not start with its data in {data}: reinstall espeakng-loader")
            espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
            espeak.espeak_SetSynthCallback(take)
            if espeak.espeak_SetVoiceByName(voice.label.encode()) != 0:
                raise BadInput(
                    f"espeak-ng has no voice {voice.label!r}: choose one of trisense.data.world.speech.voices()"
                )
            espeak.espeak_SetParameter(_RATE, round(_WORDS_PER_MINUTE * speed), 0)
            espeak.espeak_SetParameter(_PITCH, round(_PITCH_MIDDLE * pitch), 0)
            espeak.espeak_Synth(
                text, ctypes.c_size_t(len(text) + 1), ctypes.c_uint(0), 1, ctypes.c_uint(0), _UTF8, None, None
            )
            espeak.espeak_Synchronize()
        finally:
            espeak.espeak_Terminate()  # ends its thread, which must not outlive its code
            _unload(espeak)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int16), rate


def _flite(words: str, voice: Voice, speed: float, pitch: float) -> tuple[np.ndarray, int]:
    """Samples [T] int16 and their rate."""
    program = shutil.which("flite")
    if program is None:
        raise BadInput(f"voice {voice.label} needs flite: install the Debian package flite (apt-get install flite)")
    if voice.name not in _FLITE_PITCH:
        raise BadInput(f"flite has no voice {voice.name!r}: use one of {', '.join(_FLITE_PITCH)}")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/words.wav"
        settings = [f"duration_stretch={1 / speed:.3f}", f"int_f0_target_mean={_FLITE_PITCH[voice.name] * pitch:.1f}"]
        command = [program, "-voice", voice.name, "--setf", settings[0], "--setf", settings[1], "-t", words, "-o", path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise BadInput(
                f"flite could not speak {words!r} as {voice.name}: {done.stderr.strip() or 'no reason given'}"
            )
        with wave.open(path) as file:
            return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()
