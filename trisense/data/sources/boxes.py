"""Boxes around things, written as text that any language model can learn to write.

The form is `[x1, y1, x2, y2]`: the upper left and the lower right corner, from 0 to 1, three decimals. Numbers as plain
text with three decimals are Shikra's (Chen et al. 2023, arXiv:2306.15195), which found that they need no new tokens and
learn as well as tokens for places; brackets and spaces are those of LLaVA-1.5's RefCOCO data (Liu et al. 2023,
arXiv:2310.03744), and so are the two requests below.

Those two pad a picture to a square or stretch it, so that 0 to 1 spans all of it. CLIP's own preprocessing, which the
designs here use, cuts the longer side off: a model can only name places that it sees. So 0 to 1 spans what the encoder
reads. A box is cut at the edge of that. One of which less than half is seen is not written at all, unless it fills half
of what is seen: of a long train in the middle of a panorama the ends may be missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 between 0 and 1
DECIMALS = 3
SEEN = 0.5
FIND = "Please provide the bounding box coordinate of the region this sentence describes: {}"
DESCRIBE = "Please provide a short description for this region: {}"
WRITTEN = re.compile(r"\[\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*,\s*(\d*\.?\d+)\s*\]")


def write_box(box: Box) -> str:
    return f"[{', '.join(f'{value:.{DECIMALS}f}' for value in box)}]"


def read_boxes(text: str) -> list[Box]:
    """The boxes in a text, such as an answer, in their order; what is no box between 0 and 1 is left out."""
    found = [tuple(map(float, match.groups())) for match in WRITTEN.finditer(text)]
    return [(a, b, c, d) for a, b, c, d in found if a <= c <= 1 and b <= d <= 1]


def seen_box(corner_and_size: Any, width: Any, height: Any, pictures: ImageProcessor | None) -> Box | None:
    """COCO's `bbox` (x, y, width, height in pixels) in a picture of width x height -> where the encoder sees it.

    pictures: what prepares pictures for the encoder; None for all of the picture. None for a box of which too
    little is seen. Raises BadInput for numbers that are no box of a picture.
    """
    values = _finite([*corner_and_size, width, height] if isinstance(corner_and_size, Sequence) else [])
    if len(values) != 6 or min(values[2:4]) < 0 or min(values[4:]) < 1:
        raise BadInput(f"{corner_and_size!r} in {width!r} x {height!r} pixels: expected [x, y, width, height]")
    x, y, wide, high, columns, rows = values
    place = pictures.located if pictures else lambda x, y, w, h: (x / w, y / h)
    x1, y1 = place(x, y, int(columns), int(rows))
    x2, y2 = place(x + wide, y + high, int(columns), int(rows))
    cut = tuple(min(max(value, 0.0), 1.0) for value in (x1, y1, x2, y2))
    seen = (cut[2] - cut[0]) * (cut[3] - cut[1])
    if seen <= 0 or seen < SEEN * min(1.0, (x2 - x1) * (y2 - y1)):
        return None
    return cut  # pyright: ignore[reportReturnType] - four of them


def _finite(values: Sequence[Any]) -> list[float]:
    numbers = [float(one) for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else []
