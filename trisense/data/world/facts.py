"""The facts of the small world: what a picture shows, what a voice says, what a note reads.

Everything here is plain data. `draw.py` turns a `Scene` into pixels with boxes, `speech.py` turns an `Utterance` into
sound, `questions.py` asks about any combination of them. Because facts come first, the same fact can be shown, spoken
or written, and every answer is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 204),
    "yellow": (245, 205, 30),
    "orange": (245, 130, 32),
    "purple": (128, 52, 168),
    "pink": (250, 140, 190),
    "brown": (124, 76, 40),
    "black": (28, 28, 30),
    "gray": (140, 144, 150),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
OBJECTS = ("cup", "house", "tree", "car", "fish", "key", "book", "flower", "boat", "hat")
KINDS = SHAPES + OBJECTS
SIZES = ("small", "large")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIGNS = ("stop", "open", "exit", "milk", "tea", "bus", "shop", "park", "hot", "cold", "yes", "bank")
PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

# Pairs never shown, spoken or written together in training: what the column "unseen pairs" of the table asks about.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {("red", "fish"), ("blue", "cup"), ("green", "star"), ("yellow", "key"), ("purple", "house"), ("orange", "circle"),
     ("pink", "car"), ("brown", "heart"), ("black", "flower"), ("gray", "triangle")}
)  # fmt: skip

Split = Literal["train", "test", "unseen"]


def place_name(row: int, column: int) -> str:
    """`top left`, `middle right`, ...; the cell in the middle of everything is `center`."""
    return "center" if (row, column) == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"


@dataclass(frozen=True)
class Thing:
    """One thing in a picture.

    `kind` is one of KINDS, or `number` / `word` for drawn text, which then stands in `text` (a digit `0`-`9` or one of
    SIGNS). `row` and `column` (0-2) are the cell of a 3 x 3 grid that holds the centre; `dx`, `dy` shift the centre
    within the cell, as a share of the cell (-0.5 to 0.5). `size` is `small` or `large`.
    """

    kind: str
    colour: str
    size: str
    row: int
    column: int
    dx: float = 0.0
    dy: float = 0.0
    text: str = ""

    @property
    def name(self) -> str:
        """`red cup`: what a sentence calls it."""
        return f"{self.colour} {self.kind}"

    @property
    def place(self) -> str:
        return place_name(self.row, self.column)

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the centre, 0 to 1 of the picture's width and height."""
        return (self.column + 0.5 + self.dx) / 3, (self.row + 0.5 + self.dy) / 3


@dataclass(frozen=True)
class Scene:
    """A picture's facts. `style` seeds everything that carries no meaning: background, fonts, outlines, tilt, noise."""

    things: tuple[Thing, ...]
    style: int = 0


Topic = Literal["thing", "number", "person", "list", "has"]


@dataclass(frozen=True)
class Utterance:
    """What a voice says. `words` is the plain transcript, lower case, without punctuation.

    `topic` says what kind of fact it carries: a `thing` (`the red cup`), a `number`, a `person`, a `list` of two or
    three kinds, or `has` (`anna has the red cup`). The facts themselves stand in `colours`, `kinds`, `number` and
    `people`.
    `style` seeds voice, speed, pitch, room and noise.
    """

    words: str
    topic: Topic
    colours: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    number: str = ""
    people: tuple[str, ...] = ()
    style: int = 0


@dataclass(frozen=True)
class Note:
    """A short written text and its facts: who `has` what (person, colour, kind), or a `list` of kinds."""

    text: str
    topic: Literal["has", "list"]
    people: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
