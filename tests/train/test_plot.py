"""Plots: lines are where their values are, axes say round numbers, gaps are gaps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from trisense.train.plot import COLOURS, _ticks, line_plot, save_plot


def coloured(image: Image.Image, number: int) -> np.ndarray:
    """bool [H, W]: where the line of that number is, its legend aside."""
    near = np.abs(np.asarray(image).astype(int) - ImageColor.getrgb(COLOURS[number])).sum(-1) < 60
    near[:40] = False
    return near


def heights(image: Image.Image, number: int = 0) -> np.ndarray:
    """The mean row of a line in each column that it crosses."""
    mask = coloured(image, number)
    return np.array([np.flatnonzero(column).mean() for column in mask.T if column.any()])


def test_a_line_goes_where_its_values_go():
    rows = heights(line_plot({"loss": ([0, 1, 2, 3], [0, 1, 2, 3])}))
    assert len(rows) > 600 and (np.diff(rows) < 0.5).all(), "up is up"
    straight = np.polyfit(np.arange(len(rows)), rows, 1)
    assert np.abs(np.polyval(straight, np.arange(len(rows))) - rows).max() < 3
    falling = heights(line_plot({"loss": ([0, 1], [5, 1])}))
    assert falling[-1] - falling[0] > 250


def test_a_logarithmic_axis_makes_powers_equally_far():
    xs = [10.0**power for power in range(-6, 1)]
    rows = heights(line_plot({"": (xs, list(range(7)))}, log_x=True))
    straight = np.polyfit(np.arange(len(rows)), rows, 1)
    assert np.abs(np.polyval(straight, np.arange(len(rows))) - rows).max() < 3
    bent = heights(line_plot({"": (xs, list(range(7)))}))
    assert np.abs(np.polyval(np.polyfit(np.arange(len(bent)), bent, 1), np.arange(len(bent))) - bent).max() > 20


def test_what_is_not_finite_or_has_no_logarithm_is_a_gap():
    xs = list(range(101))
    whole = coloured(line_plot({"": (xs, [1.0] * 101)}), 0).any(0).sum()
    holes = [math.nan if 40 < x < 60 else 1.0 for x in xs]
    assert coloured(line_plot({"": (xs, holes)}), 0).any(0).sum() == pytest.approx(0.8 * whole, rel=0.03)
    assert coloured(line_plot({"": ([-1.0, 0.0, 1.0, 10.0], [9, 9, 1, 2])}, log_x=True), 0).any()


def test_two_lines_have_two_colours_and_a_mark_is_dashed():
    image = line_plot({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "title", "x", "y", marks={"here": 0.5})
    assert coloured(image, 0).any() and coloured(image, 1).any()
    dark = np.asarray(image.convert("L")) < 120
    across = dark[60:390].sum(0)
    assert any(120 < count < 250 for count in across), "about half of a column"


@pytest.mark.parametrize("lines", [{}, {"a": ([], [])}, {"a": ([3], [2])}, {"a": ([1, 2], [5, 5])}])
def test_little_or_nothing_to_draw_is_no_error(lines: dict):
    assert line_plot(lines, size=(400, 300)).size == (400, 300)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.0192), (-3, 900), (1e-9, 4e-9), (12, 12.5)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float):
    ticks = [value for value, _ in _ticks(low, high, log=False)]
    assert 4 <= len(ticks) <= 10
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    mantissa = f"{ticks[1] - ticks[0]:.6e}".split("e")[0].rstrip("0").rstrip(".")
    assert mantissa in ("1", "2", "5")


def test_powers_are_written_as_people_write_them():
    assert [text for _, text in _ticks(-6, 0, log=True)] == ["1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]


def test_it_is_saved_as_png(tmp_path: Path):
    save_plot(line_plot({"a": ([0, 1], [0, 1])}), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert (image.format, image.size) == ("PNG", (800, 450))
    assert len(list(tmp_path.iterdir())) == 1
