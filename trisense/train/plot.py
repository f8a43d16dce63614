"""Line plots as pictures, drawn with Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trisense.train.disk import write_whole

# Told apart by people who see few colours too (Okabe & Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
INK, GRID, PALE = "#222222", "#dddddd", "#b8c4d0"
# Drawn this many times larger, then made smaller: smooth lines.
SCALE = 3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Line = tuple[Sequence[float], Sequence[float]]


def line_plot(
    lines: Mapping[str, Line],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, float] | None = None,
    dots: Line | None = None,
    highest: float = math.inf,
    size: tuple[int, int] = (800, 450),
) -> Image.Image:
    """A picture of named lines, each as its xs and ys; points that are not finite, or that a logarithm has no place
    for, are gaps, and so are those above `highest`. marks: names -> xs at which a dashed line stands. dots: pale points
    below the lines, as of single measurements. size: width, height in pixels."""
    width, height = size
    image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    draw = ImageDraw.Draw(image)
    small, large = (ImageFont.load_default(points * SCALE) for points in (12, 15))
    shown = {name: _runs(xs, ys, log_x, log_y, highest) for name, (xs, ys) in lines.items()}
    pale = [point for run in (_runs(*dots, log_x, log_y, highest) if dots else []) for point in run]
    points = [point for runs in shown.values() for run in runs for point in run] + pale
    marks = {name: x for name, x in (marks or {}).items() if not log_x or x > 0}
    marked = [_place(x, log_x) for x in marks.values()]
    x_ticks = _ticks(*_range([x for x, _ in points] + marked), log_x)
    y_ticks = _ticks(*_range([y for _, y in points]), log_y)
    x_range = _range([x for x, _ in points] + marked)
    y_range = _range([y for _, y in points] + ([] if log_y else [t for t, _ in y_ticks]))
    left = 34 * SCALE + max((draw.textlength(text, small) for _, text in y_ticks), default=0)
    top, right, bottom = 44 * SCALE, (width - 16) * SCALE, (height - 48) * SCALE

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    for value, text in x_ticks:
        if x_range[0] <= value <= x_range[1]:
            x = at(value, y_range[0])[0]
            draw.line([(x, top), (x, bottom)], GRID, SCALE)
            draw.text((x, bottom + 5 * SCALE), text, INK, small, anchor="ma")
    for value, text in y_ticks:
        if y_range[0] <= value <= y_range[1]:
            y = at(x_range[0], value)[1]
            draw.line([(left, y), (right, y)], GRID, SCALE)
            draw.text((left - 5 * SCALE, y), text, INK, small, anchor="rm")
    for x, y in (at(*point) for point in pale):
        draw.ellipse((x - 2 * SCALE, y - 2 * SCALE, x + 2 * SCALE, y + 2 * SCALE), PALE)
    for number, runs in enumerate(shown.values()):
        colour = COLOURS[number % len(COLOURS)]
        for run in runs:
            placed = [at(x, y) for x, y in run]
            if len(placed) > 1:
                draw.line(placed, colour, 2 * SCALE, joint="curve")
            else:
                (x, y), r = placed[0], 2 * SCALE
                draw.ellipse((x - r, y - r, x + r, y + r), colour)
    for number, ((name, x), value) in enumerate(zip(marks.items(), marked, strict=True)):
        place = at(value, y_range[0])[0]
        for start in range(int(top), int(bottom), 8 * SCALE):
            draw.line([(place, start), (place, start + 4 * SCALE)], INK, SCALE)
        near_end = place > (left + right) / 2
        offset = -4 * SCALE if near_end else 4 * SCALE
        words = (place + offset, top + (4 + 18 * number) * SCALE)
        text, anchor = f"{name} {x:.3g}", "ra" if near_end else "la"
        draw.rectangle(draw.textbbox(words, text, small, anchor=anchor), "white")  # another mark's line may be there
        draw.text(words, text, INK, small, anchor=anchor)
    draw.line([(left, top), (left, bottom), (right, bottom)], INK, SCALE)
    draw.text((left, 8 * SCALE), title, INK, large)
    draw.text(((left + right) / 2, (height - 8) * SCALE), x_label, INK, small, anchor="md")
    _upright(image, y_label, (6 * SCALE, int((top + bottom) / 2)), small)
    _legend(draw, list(shown), right, 12 * SCALE, small)
    return image.resize(size, Image.Resampling.LANCZOS)


def save_plot(image: Image.Image, path: Path) -> None:
    """As PNG, whole or not at all."""
    content = BytesIO()
    image.save(content, "PNG", optimize=True)
    write_whole(path, lambda file: file.write(content.getvalue()), len(content.getvalue()))


def _place(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _runs(
    xs: Sequence[float], ys: Sequence[float], log_x: bool, log_y: bool, highest: float
) -> list[list[tuple[float, float]]]:
    """The points of a line in the units of the axes, cut where one has no place."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        finite = math.isfinite(x) and math.isfinite(y)
        fits = finite and y <= highest and (x > 0 or not log_x) and (y > 0 or not log_y)
        if fits:
            runs[-1].append((_place(x, log_x), _place(y, log_y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, apart from each other."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low < high:
        return low, high
    margin = abs(low) / 10 or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float, log: bool) -> list[tuple[float, str]]:
    """Round numbers over a range: their places, and how they are written."""
    if log and high - low >= 1:
        step = max(1, round((high - low) / 8))
        powers = range(math.floor(low), math.ceil(high) + 1, step)
        return [(power, f"1e{power}" if abs(power) > 3 else f"{10.0**power:g}") for power in powers]
    if log:
        linear = _ticks(10**low, 10**high, log=False)
        return [(math.log10(value), text) for value, text in linear if value > 0]
    rough = (high - low) / 6
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    values = [round(number * step, 12) for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return [(value, f"{value:,.10g}") for value in values]


def _upright(image: Image.Image, text: str, centre: tuple[int, int], font: Font) -> None:
    """Writes from bottom to top, the left edge and the middle at `centre`."""
    if not text:
        return
    box = font.getbbox(text)
    label = Image.new("RGB", (math.ceil(box[2]) + 2, math.ceil(box[3]) + 2), "white")
    ImageDraw.Draw(label).text((0, 0), text, INK, font)
    label = label.rotate(90, expand=True)
    image.paste(label, (centre[0], centre[1] - label.height // 2))


def _legend(draw: ImageDraw.ImageDraw, names: Sequence[str], right: float, top: float, font: Font):
    x = right
    for number, name in reversed(list(enumerate(names))):
        if not name:
            continue
        x -= draw.textlength(name, font)
        draw.text((x, top), name, INK, font)
        draw.line([(x - 22 * SCALE, top + 8 * SCALE), (x - 6 * SCALE, top + 8 * SCALE)], COLOURS[number % 7], 3 * SCALE)
        x -= 36 * SCALE
