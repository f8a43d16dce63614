"""Recognisers that know what is said, and a sound that tells them where in it they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from trisense.engines.recogniser import SAMPLING_RATE, Segment

Edge = Literal["lost", "half", "whole"]
Spoken = tuple[str, float, float]  # a word, from and to which second


def ramp(seconds: float) -> np.ndarray:
    """A sound [T] whose samples count themselves, so that any piece of it tells where it was cut out."""
    return np.arange(round(seconds * SAMPLING_RATE), dtype=np.float32) / np.float32(2**24)


def everywhere(wave: np.ndarray) -> list[tuple[int, int]]:
    """One stretch of speech from end to end."""
    return [(0, len(wave))]


class Ideal:
    """Hears in a piece of `ramp` the `words` that are spoken there, `group` of them in a segment.

    Of a word that the piece cuts, it hears nothing, half or all, at its `first` and its `last` edge. Times are wrong
    by up to `blur` seconds, differently in every piece.
    """

    languages = ("en", "de")

    def __init__(
        self, words: Sequence[Spoken], first: Edge = "lost", last: Edge = "lost", group: int = 1, blur: float = 0.0
    ):
        self.words, self.first, self.last, self.group, self.blur = words, first, last, group, blur
        self.heard: list[tuple[float, float, str]] = []
        self.detected: list[float] = []  # the seconds that were listened to for it

    def detect_language(self, wave: np.ndarray) -> str:
        self.detected.append(len(wave) / SAMPLING_RATE)
        return "de"

    def recognise(self, wave: np.ndarray, language: str) -> list[Segment]:
        start = float(wave[0]) * 2**24 / SAMPLING_RATE
        end = start + len(wave) / SAMPLING_RATE
        self.heard.append((start, end, language))
        rng = np.random.default_rng(round(start * 1000))
        heard = []
        for word, begins, ends in self.words:
            if ends <= start or begins >= end:
                continue
            edge = self.first if begins < start else self.last if ends > end else "whole"
            if edge != "lost":
                off = rng.uniform(-self.blur, self.blur)
                text = word if edge == "whole" else f"{word[: len(word) // 2]}~"
                heard.append((text, max(begins, start) - start + off, min(ends, end) - start + off))
        groups = [heard[i : i + self.group] for i in range(0, len(heard), self.group)]
        return [Segment("".join(f" {word}" for word, *_ in g), g[0][1], g[-1][2]) for g in groups]
