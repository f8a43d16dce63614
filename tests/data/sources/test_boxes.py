"""Boxes are written as the encoder sees them: checked against a rectangle that is drawn, prepared and looked for."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image as Pictures

from trisense.data.sources.boxes import Box, read_boxes, seen_box, write_box
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor

unit = st.floats(0, 1)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@given(
    st.lists(boxes, max_size=4), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]"), max_size=9)
)
def test_what_is_written_is_read(found: list[Box], between: str):
    text = between.join(["", *map(write_box, found), ""])
    assert np.allclose(read_boxes(text), found, atol=0.0005 + 1e-9) if found else read_boxes(text) == []
    for one in map(write_box, found):
        assert re.fullmatch(r"\[(0\.\d{3}|1\.000)(, (0\.\d{3}|1\.000)){3}\]", one)


@given(st.text(alphabet="[]0123456789., ", max_size=40))
def test_reading_never_fails(text: str):
    for x1, y1, x2, y2 in read_boxes(text):
        assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1


sizes = st.integers(24, 120)
processors = st.builds(
    ImageProcessor,
    height=st.just(96),
    width=st.just(96),
    crop=st.booleans(),
    tokens=st.just(1),
    mean=st.just((0.0, 0.0, 0.0)),
    std=st.just((1.0, 1.0, 1.0)),
    resample=st.just("bilinear"),
) | st.builds(
    ImageProcessor,
    height=st.just(96),
    width=st.just(96),
    shortest_edge=st.integers(80, 120),
    tokens=st.just(1),
    mean=st.just((0.0, 0.0, 0.0)),
    std=st.just((1.0, 1.0, 1.0)),
    resample=st.just("bilinear"),
)


@given(sizes, sizes, st.data(), processors)
def test_a_drawn_rectangle_is_where_its_box_says(
    width: int, height: int, data: st.DataObject, processor: ImageProcessor
):
    x1, y1 = data.draw(st.integers(0, width - 8)), data.draw(st.integers(0, height - 8))
    x2, y2 = data.draw(st.integers(x1 + 8, width)), data.draw(st.integers(y1 + 8, height))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    seen = processor(Pictures.fromarray(pixels))[0] > 0.5  # [H, W]
    box = seen_box([x1, y1, x2 - x1, y2 - y1], width, height, processor)
    if box is None:
        assert seen.mean() < 0.55, "a box that is left out does not fill the picture"
        return
    assume(seen.any())
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    drawn = (columns[0] / 96, rows[0] / 96, (columns[-1] + 1) / 96, (rows[-1] + 1) / 96)
    # A pixel of the picture may become several of the encoder's, and where a grey edge counts as white is a guess.
    slack = 1.5 / 96 + 1 / min(width, height) / 2
    assert np.allclose(box, drawn, atol=slack), (box, drawn)


def test_half_a_box_is_cut_and_less_is_left_out():
    """200 x 100 pixels: the crop sees columns 50 to 150."""
    processor = ImageProcessor(height=10, width=10, tokens=1)
    assert seen_box([40, 0, 20, 50], 200, 100, processor) == (0.0, 0.0, 0.1, 0.5)
    assert seen_box([39, 0, 20, 50], 200, 100, processor) is None
    assert seen_box([39, 0, 20, 50], 200, 100, None) == (39 / 200, 0.0, 59 / 200, 0.5)


@pytest.mark.parametrize(
    "bbox", [None, [1, 2, 3], [0, 0, "1", 2], [0, 0, -1, 2], [0, 0, float("nan"), 1], "abcd", [True] * 4]
)
def test_no_box_is_refused(bbox: object):
    with pytest.raises(BadInput, match=r"expected \[x, y, width, height\]"):
        seen_box(bbox, 10, 10, None)
