"""The kinds of the small world, each a hand-made drawing in a unit square (x to the right, y down, both -1 to 1).

Details use darker and lighter tones of the thing's own colour, so a picture never shows a colour that its facts do not
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from PIL import ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

MARGIN = 0.012  # share of the picture that stays free around everything


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with `share` (0 to 1) of `b`."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def dark(colour: RGB) -> RGB:
    """The tone of outlines and details."""
    # On black, "darker" would vanish, so its shade is a dark grey.
    return mix(colour, (255, 255, 255), 0.32) if max(colour) < 70 else mix(colour, (0, 0, 0), 0.42)


def light(colour: RGB) -> RGB:
    """The tone of windows and bands."""
    return mix(colour, (255, 255, 255), 0.62)


def inwards(low: float, high: float, side: int) -> float:
    """How far a span of pixels must move to lie inside a picture of `side` pixels."""
    margin = MARGIN * side
    return max(0.0, margin - low) + min(0.0, side - margin - high)


class Pen:
    """Takes down what a drawing paints in its unit square, then paints it at a place.

    Taken down first, because only a finished drawing knows its extent, and with it how far it must move to fit.
    """

    def __init__(self, colour: RGB, outline: bool, half: float, tilt: float) -> None:
        self.colour, self.outline, self.half = colour, outline, half
        self.dark, self.light = dark(colour), light(colour)
        self._cos, self._sin = math.cos(tilt) * half, math.sin(tilt) * half
        self._strokes: list[tuple[list[Point], RGB, int]] = []  # points, colour, width (0: a filled polygon)

    def _add(self, points: Sequence[Point], fill: RGB, width: int) -> None:
        c, s = self._cos, self._sin
        self._strokes.append(([(c * x - s * y, s * x + c * y) for x, y in points], fill, width))

    def _edge(self, points: Sequence[Point]) -> None:
        if self.outline:
            self._add([*points, points[0], points[1]], self.dark, max(2, round(self.half * 0.075)))

    def polygon(self, points: Sequence[Point], fill: RGB | None = None, edge: bool = True) -> None:
        """A filled polygon; `fill` None is the thing's colour. `edge` draws the outline when this thing has one."""
        self._add(points, fill or self.colour, 0)
        if edge:
            self._edge(points)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: RGB | None = None, edge: bool = True, turn: float = 0.0
    ) -> None:
        self.polygon(_arc(x, y, rx, ry, turn), fill, edge)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, fill: RGB | None = None, edge: bool = True) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, edge)

    def line(self, points: Sequence[Point], width: float, fill: RGB | None = None) -> None:
        self._add(points, fill or self.colour, max(1, round(width * self.half)))

    def ring(self, x: float, y: float, rx: float, ry: float, hole: float) -> None:
        """An ellipse with a hole (a share of its radii) through which the background shows."""
        outer, inner = _arc(x, y, rx, ry), _arc(x, y, rx * hole, ry * hole)
        self._add([*outer, outer[0], inner[0], *reversed(inner)], self.colour, 0)
        self._add([outer[0], inner[0]], self.colour, 3)  # covers the seam
        self._edge(outer)
        self._edge(inner)

    def paint(self, canvas: ImageDraw.ImageDraw, centre: Point, side: int) -> tuple[float, float, float, float]:
        """Paints around `centre` (pixels), moved inwards if need be; gives the painted x0, y0, x1, y1."""
        spans: list[tuple[float, float]] = []
        moves: list[float] = []
        for axis in (0, 1):
            low = min(p[axis] - width / 2 for points, _, width in self._strokes for p in points) + centre[axis]
            high = max(p[axis] + width / 2 for points, _, width in self._strokes for p in points) + centre[axis]
            push = inwards(low, high, side)
            moves.append(centre[axis] + push)
            spans.append((low + push, high + push))
        for points, fill, width in self._strokes:
            placed = [(x + moves[0], y + moves[1]) for x, y in points]
            if width:
                canvas.line(placed, fill=fill, width=width, joint="curve")
            else:
                canvas.polygon(placed, fill=fill)
        return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


@lru_cache(maxsize=256)
def _arc(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> tuple[Point, ...]:
    """Points around an ellipse whose axes are turned by `turn` degrees, clockwise."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points: list[Point] = []
    for i in range(30):
        a, b = rx * math.cos(math.pi * i / 15), ry * math.sin(math.pi * i / 15)
        points.append((x + a * cos - b * sin, y + a * sin + b * cos))
    return tuple(points)


def _circle(pen: Pen) -> None:
    pen.ellipse(0, 0, 0.95, 0.95)


def _square(pen: Pen) -> None:
    pen.rectangle(-0.85, -0.85, 0.85, 0.85)


def _triangle(pen: Pen) -> None:
    pen.polygon([(0, -0.95), (1.0, 0.85), (-1.0, 0.85)])


def _star(pen: Pen) -> None:
    radii = (1.05, 0.45)
    angles = [math.radians(-90 + 36 * i) for i in range(10)]
    pen.polygon([(radii[i % 2] * math.cos(a), radii[i % 2] * math.sin(a) + 0.06) for i, a in enumerate(angles)])


def _heart(pen: Pen) -> None:
    angles = [2 * math.pi * i / 36 for i in range(36)]
    curve = [
        (16 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)))
        for a in angles
    ]
    pen.polygon([(x / 16.5, y / 15.5 - 0.1) for x, y in curve])


def _diamond(pen: Pen) -> None:
    pen.polygon([(0, -1.05), (0.7, 0), (0, 1.05), (-0.7, 0)])


def _cross(pen: Pen) -> None:
    a, b = 0.32, 0.95
    pen.polygon(
        [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
    )


def _ring(pen: Pen) -> None:
    pen.ring(0, 0, 0.98, 0.98, 0.58)


def _cup(pen: Pen) -> None:
    pen.ring(0.55, 0.02, 0.45, 0.48, 0.55)
    pen.polygon([(-0.85, -0.6), (0.55, -0.6), (0.42, 0.8), (0.25, 0.92), (-0.55, 0.92), (-0.72, 0.8)])
    pen.ellipse(-0.15, -0.62, 0.7, 0.24, pen.light)
    pen.ellipse(-0.15, -0.57, 0.52, 0.14, pen.dark, edge=False)


def _house(pen: Pen) -> None:
    pen.rectangle(0.38, -0.85, 0.62, -0.2, pen.dark, edge=False)
    pen.rectangle(-0.75, -0.1, 0.75, 0.95)
    pen.polygon([(-1.0, -0.02), (0, -0.95), (1.0, -0.02)])
    pen.line([(-0.98, -0.02), (0.98, -0.02)], 0.09, pen.dark)
    pen.rectangle(-0.16, 0.4, 0.2, 0.95, pen.dark, edge=False)
    pen.rectangle(-0.58, 0.2, -0.28, 0.5, pen.light, edge=False)
    pen.rectangle(0.34, 0.2, 0.62, 0.5, pen.light, edge=False)


def _tree(pen: Pen) -> None:
    pen.polygon([(-0.14, 0.2), (0.14, 0.2), (0.2, 1.0), (-0.2, 1.0)], pen.dark, edge=False)
    crowns = ((-0.45, 0.05, 0.42), (0.45, 0.05, 0.42), (-0.22, -0.42, 0.42), (0.27, -0.42, 0.42), (0.0, -0.62, 0.38))
    for x, y, r in crowns:
        pen.ellipse(x, y, r, r)
    for x, y, r in (*crowns, (0.0, -0.1, 0.4)):  # covers the outlines inside the crown
        pen.ellipse(x, y, r * 0.9, r * 0.9, edge=False)


def _car(pen: Pen) -> None:
    pen.polygon([(-0.62, 0.0), (-0.38, -0.55), (0.3, -0.55), (0.62, 0.0)])
    body = [(-1.0, 0.45), (-1.0, 0.08), (-0.85, -0.06), (0.72, -0.06), (1.0, 0.14), (1.0, 0.45)]
    pen.polygon(body)
    pen.polygon([(-0.44, -0.06), (-0.29, -0.42), (-0.06, -0.42), (-0.06, -0.06)], pen.light, edge=False)
    pen.polygon([(0.06, -0.06), (0.06, -0.42), (0.22, -0.42), (0.43, -0.06)], pen.light, edge=False)
    for x in (-0.52, 0.52):
        pen.ellipse(x, 0.45, 0.27, 0.27, pen.dark, edge=False)
        pen.ellipse(x, 0.45, 0.11, 0.11, pen.light, edge=False)


def _fish(pen: Pen) -> None:
    pen.polygon([(0.35, 0.0), (1.0, -0.55), (0.86, 0.0), (1.0, 0.55)])
    pen.polygon([(-0.35, -0.35), (0.02, -0.78), (0.35, -0.3)], pen.dark, edge=False)
    pen.ellipse(-0.2, 0.0, 0.8, 0.5)
    pen.polygon([(-0.1, 0.08), (0.28, -0.08), (0.28, 0.28)], pen.dark, edge=False)
    pen.ellipse(-0.6, -0.12, 0.13, 0.13, pen.light, edge=False)
    pen.ellipse(-0.62, -0.12, 0.06, 0.06, (0, 0, 0) if max(pen.colour) > 70 else pen.colour, edge=False)


def _key(pen: Pen) -> None:
    pen.polygon(
        [(-0.2, -0.12), (1.0, -0.12), (1.0, 0.5), (0.8, 0.5), (0.8, 0.12), (0.66, 0.12), (0.66, 0.4), (0.46, 0.4),
         (0.46, 0.12), (-0.2, 0.12)]
    )  # fmt: skip
    pen.ring(-0.55, 0.0, 0.48, 0.5, 0.48)


def _book(pen: Pen) -> None:
    pen.polygon([(-0.72, 0.72), (-0.6, 0.98), (0.85, 0.98), (0.85, -0.68), (0.72, -0.9)], pen.dark, edge=False)
    pen.polygon([(-0.6, 0.74), (-0.56, 0.88), (0.78, 0.88), (0.78, -0.68), (0.6, -0.8)], (248, 246, 238), edge=False)
    pen.rectangle(-0.75, -0.95, 0.66, 0.74)
    pen.rectangle(-0.75, -0.95, -0.5, 0.74, pen.dark, edge=False)
    pen.rectangle(-0.25, -0.6, 0.42, -0.42, pen.light, edge=False)
    pen.rectangle(-0.25, -0.25, 0.25, -0.1, pen.light, edge=False)


def _flower(pen: Pen) -> None:
    pen.line([(0, 0), (0.04, 0.55), (0.0, 1.05)], 0.14, pen.dark)
    pen.ellipse(0.28, 0.72, 0.3, 0.12, pen.dark, edge=False, turn=-30)
    for i in range(6):
        angle = 60 * i + 30
        x, y = 0.42 * math.cos(math.radians(angle)), 0.42 * math.sin(math.radians(angle)) - 0.3
        pen.ellipse(x, y, 0.32, 0.22, turn=angle)
    pen.ellipse(0, -0.3, 0.2, 0.2, pen.light, edge=False)


def _boat(pen: Pen) -> None:
    pen.line([(-0.02, -1.0), (-0.02, 0.45)], 0.1, pen.dark)
    pen.polygon([(0.1, -0.95), (0.85, 0.2), (0.1, 0.2)])
    pen.polygon([(-0.14, -0.7), (-0.14, 0.2), (-0.7, 0.2)], pen.light)
    pen.polygon([(-1.0, 0.4), (1.0, 0.4), (0.62, 0.92), (-0.66, 0.92)])


def _hat(pen: Pen) -> None:
    pen.ellipse(0, 0.52, 1.0, 0.26)
    pen.polygon([(-0.56, -0.72), (-0.2, -0.8), (0.2, -0.8), (0.56, -0.72), (0.5, 0.46), (0.0, 0.56), (-0.5, 0.46)])
    pen.polygon([(-0.525, 0.1), (0.525, 0.1), (0.5, 0.42), (0.0, 0.52), (-0.5, 0.42)], pen.light, edge=False)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "heart": _heart, "diamond": _diamond,
    "cross": _cross, "ring": _ring, "cup": _cup, "house": _house, "tree": _tree, "car": _car, "fish": _fish,
    "key": _key, "book": _book, "flower": _flower, "boat": _boat, "hat": _hat,
}  # fmt: skip
