"""The plot of a range test, drawn with Pillow: loss over the learning rate, the latter by its logarithm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE = (960, 600)
# Everything is drawn so many times as large and shrunk, so that lines are smooth.
FINER = 3
LEFT, TOP, RIGHT, BOTTOM = 90, 60, 930, 520
INK, PALE, GRID = "#222222", "#b8c4d0", "#e6e6e6"
CURVE, MARKS = "#1f5fa8", ("#c2410c", "#3f7d20")


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within a range, about so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    return [number * apart for number in range(math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9) + 1)]


def plot(
    title: str,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    marks: Mapping[str, float | None],
) -> Image.Image:
    """RGB [600, 960]: losses as dots, smoothed as a line, marked rates as dashed lines with their names and values.

    What lies far above the start, where a test diverged, is cut off, so that the fall can be seen.
    """
    bottom, first, highest = min(*losses, *smoothed), smoothed[0], max(losses)
    low, high = bottom, min(highest, first + max(first - min(smoothed), 0.05 * abs(first)))
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    left, right = math.log10(rates[0]), max(math.log10(rates[-1]), math.log10(rates[0]) + 1e-6)

    def at(rate: float, loss: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * (math.log10(rate) - left) / (right - left)
        y = BOTTOM - (BOTTOM - TOP) * (loss - low) / (high - low)
        return FINER * x, FINER * y

    whole = Image.new("RGB", (FINER * SIZE[0], FINER * SIZE[1]), "white")
    canvas = ImageDraw.Draw(whole)
    small, large = (ImageFont.load_default(FINER * size) for size in (16, 20))
    for power in range(math.floor(left), math.ceil(right) + 1):
        for digit in range(1, 10):
            rate = digit * 10.0**power
            if not left - 1e-9 <= math.log10(rate) <= right + 1e-9:
                continue
            x, foot = at(rate, low)
            if digit == 1:
                canvas.line([(x, FINER * TOP), (x, foot)], GRID, FINER)
                canvas.text((x, foot + FINER * 14), f"1e{power}", INK, small, anchor="mt")
            canvas.line([(x, foot), (x, foot + FINER * (10 if digit == 1 else 5))], INK, FINER)
    levels = ticks(low, high)
    digits = max(0, -math.floor(math.log10(levels[1] - levels[0]) + 1e-9)) if len(levels) > 1 else 2
    for level in levels:
        x, y = at(rates[0], level)
        canvas.line([(x, y), (FINER * RIGHT, y)], GRID, FINER)
        canvas.line([(x - FINER * 8, y), (x, y)], INK, FINER)
        canvas.text((x - FINER * 12, y), f"{level:.{digits}f}", INK, small, anchor="rm")

    inside = Image.new("RGB", whole.size, "white")
    inside.paste(whole)
    drawn = ImageDraw.Draw(inside)
    for rate, loss in zip(rates, losses, strict=True):
        x, y = at(rate, loss)
        drawn.ellipse([x - 3 * FINER, y - 3 * FINER, x + 3 * FINER, y + 3 * FINER], PALE)
    drawn.line([at(rate, loss) for rate, loss in zip(rates, smoothed, strict=True)], CURVE, 3 * FINER, joint="curve")
    box = (FINER * LEFT, FINER * TOP, FINER * RIGHT, FINER * BOTTOM)
    whole.paste(inside.crop(box), box[:2])

    known = [(name, rate) for name, rate in marks.items() if rate is not None and rates[0] <= rate <= rates[-1]]
    lines = [at(rate, low)[0] for _, rate in known]
    for x, colour in zip(lines, MARKS, strict=False):
        for y in range(TOP, BOTTOM, 11):
            canvas.line([(x, FINER * y), (x, FINER * min(y + 6, BOTTOM))], colour, 2 * FINER)
    for number, ((name, rate), x, colour) in enumerate(zip(known, lines, MARKS, strict=False)):
        words = f"{name}: {rate:.1e}"
        space = small.getlength(words) + FINER * 16
        beside = max(line for line in lines if line < x + space)  # no line goes through the words
        if beside + space > FINER * RIGHT:
            beside = min(line for line in lines if line > x - space) - space
        canvas.text((beside + FINER * 8, FINER * (TOP + 10 + 24 * number)), words, colour, small)
    canvas.rectangle(box, outline=INK, width=FINER)
    canvas.text((FINER * SIZE[0] / 2, FINER * 20), title, INK, large, anchor="mt")
    canvas.text((FINER * (LEFT + RIGHT) / 2, FINER * 562), "learning rate", INK, small, anchor="mt")
    canvas.text((FINER * LEFT, FINER * 34), "loss", INK, small, anchor="rt")
    return whole.resize(SIZE, Image.Resampling.LANCZOS)
