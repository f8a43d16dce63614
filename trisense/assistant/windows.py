"""A sound longer than a recogniser hears at once: cut into windows that overlap, and what was heard joined again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from trisense.engines.recogniser import Segment

# At this many seconds between the times at which two windows heard a word, the pair counts half.
HALF = 0.5
# Scripts that write no spaces: Thai to Burmese, Khmer, kana and Han. There every character is a word.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"\s*(?:[{UNSPACED}]|[^\s{UNSPACED}]+)")


@dataclass(frozen=True)
class Word:
    """A word with the white space before it, in seconds of the whole sound; `opens` the segment it stands in or not."""

    text: str
    start: float
    end: float
    opens: bool

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2


def cut(stretches: Iterable[tuple[int, int]], longest: int, overlap: int, pause: int) -> list[tuple[int, int]]:
    """Stretches of speech (start, end), in order and apart -> windows of at most `longest`; all in samples.

    Neighbours share a window while they fit and at most `pause` lies between, so that cuts fall into silence, as
    WhisperX packs them (Bain et al., 2023, arXiv:2303.00747). A stretch that is longer becomes windows of one length,
    each sharing `overlap` with the next.
    """
    packed: list[tuple[int, int]] = []
    for start, end in stretches:
        if packed and end - packed[-1][0] <= longest and start - packed[-1][1] <= pause:
            packed[-1] = (packed[-1][0], end)
        else:
            packed.append((start, end))
    return [window for start, end in packed for window in _split(start, end, longest, overlap)]


def _split(start: int, end: int, longest: int, overlap: int) -> list[tuple[int, int]]:
    length = end - start
    if length <= longest:
        return [(start, end)]
    count = -(-(length - overlap) // (longest - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    starts = [start + i * (length - size) // (count - 1) for i in range(count)]
    return [(first, first + size) for first in starts]


def words_of(segments: Iterable[Segment], start: float, end: float) -> list[Word]:
    """The words of a window that lasts from `start` to `end`, its segments in seconds from `start`.

    A word's place in its segment is taken from the letters before it. Times outside the window are moved to its ends;
    a segment that begins after the window has ended was not heard but made up, and is dropped.
    """
    words = []
    for segment in segments:
        if start + segment.start >= end:
            continue
        pieces = WORD.findall(segment.text)
        length, before = sum(map(len, pieces)), 0
        for i, piece in enumerate(pieces):
            times = (
                min(max(start + segment.start + (segment.end - segment.start) * at / length, start), end)
                for at in (before, before + len(piece))
            )
            words.append(Word(piece, *times, opens=i == 0))
            before += len(piece)
    return words


def splice(left: Sequence[Word], right: Sequence[Word], start: float, end: float) -> list[Word]:
    """The words of two windows that both heard from `start` to `end`, in seconds, as one text.

    Words there are paired when both windows have them, in the same order and at about the same time; the text changes
    windows at the pair nearest the middle, far from where either window was cut and may have heard half a word. Where
    no word is in both, it changes where most words stay, as near the middle as that can be.
    """
    middle = (start + end) / 2
    ours = [i for i, word in enumerate(left) if word.end > start]
    theirs = [j for j, word in enumerate(right) if word.start < end]
    pairs = [
        (ours[i], theirs[j])
        for i, j in _pairs([left[i] for i in ours], [right[j] for j in theirs], reach=(end - start) / 2)
    ]
    if not pairs:
        early, late = [left[i].middle for i in ours], [right[j].middle for j in theirs]

        def kept(time: float) -> int:
            return sum(one < time for one in early) + sum(one >= time for one in late)

        change = max((middle, start, end, *early, *late), key=lambda time: (kept(time), -abs(time - middle)))
        before = [word for word in left if word.middle < change or word.end <= start]
        return [*before, *(word for word in right if word.middle >= change or word.start >= end)]
    i, j = min(pairs, key=lambda pair: abs(left[pair[0]].middle + right[pair[1]].middle - 2 * middle))
    return [*left[: i + 1], *right[j + 1 :]]


def _pairs(left: Sequence[Word], right: Sequence[Word], reach: float) -> list[tuple[int, int]]:
    """Which words of both are one, as indices in rising order: the alignment with the most pairs, each worth less the
    further apart it was heard, which tells repeated words from each other; none further than `reach` seconds."""
    ours, theirs = [_key(word) for word in left], [_key(word) for word in right]

    def worth(i: int, j: int) -> float:
        apart = abs(left[i].middle - right[j].middle)
        return 1 / (1 + apart / HALF) if ours[i] == theirs[j] and apart <= reach else 0.0

    best = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]  # of what is left from (i, j) on
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            value = worth(i, j)
            paired = value + best[i + 1][j + 1] if value else 0.0
            best[i][j] = max(paired, best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    return pairs


def _key(word: Word) -> str:
    """A word without capitals and punctuation, which differ where sentences are cut."""
    text = word.text.strip().casefold()
    return "".join(letter for letter in text if letter.isalnum()) or text


def segments_of(words: Iterable[Word]) -> tuple[Segment, ...]:
    """Words as segments again, each without the white space around it, none beginning before the last one ended."""
    segments: list[Segment] = []
    for word in words:
        if word.opens or not segments:
            after = segments[-1].end if segments else 0.0
            start = max(word.start, after)
            segments.append(Segment(word.text.lstrip(), start, max(word.end, start)))
        else:
            last = segments[-1]
            segments[-1] = replace(last, text=last.text + word.text, end=max(last.end, word.end))
    return tuple(replace(one, start=round(one.start, 3), end=round(one.end, 3)) for one in segments)
