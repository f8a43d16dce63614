"""Draws a scene of the small world: facts in, an RGB picture and one box per thing out.

Drawings (`drawings.py`) and text in real fonts are painted at three times the picture's size on a light background and
brought down with a Lanczos filter.

Chance comes from `Scene.style` alone: the same scene gives the same bytes.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trisense.data.world.drawings import DRAWINGS, RGB, Pen, dark, inwards, mix
from trisense.data.world.facts import COLOURS, Scene, Thing
from trisense.errors import BadInput

OVERSAMPLE = 3
EXTENT = {"small": 0.17, "large": 0.28}  # share of the picture's width
WORD_WIDTH = {"small": 0.30, "large": 0.35}

# Real fonts from small pip packages; "" is the one built into Pillow. All are free: Apache 2.0 or SIL OFL 1.1.
FONTS: tuple[tuple[str, str], ...] = (
    ("", ""),
    ("font_roboto", "Roboto-Medium.ttf"),
    ("font_roboto", "Roboto-Bold.ttf"),
    ("font_source_sans_pro", "SourceSansPro-Semibold.ttf"),
    ("font_source_sans_pro", "SourceSansPro-Black.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Semibold.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Bold.ttf"),
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_caladea", "Caladea-Bold.ttf"),
)


class Box(NamedTuple):
    """A thing and the rectangle that holds its drawing: pixels, x to the right, y down, x1 and y1 exclusive."""

    thing: Thing
    x0: float
    y0: float
    x1: float
    y1: float


@lru_cache(maxsize=512)
def _font(package: str, file: str, pixels: int) -> ImageFont.FreeTypeFont:
    if not package:
        font = ImageFont.load_default(pixels)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise BadInput("this Pillow has no FreeType: install the Pillow wheel from PyPI to draw text")
        return font
    # The package is found, not imported: its code is not needed, only its font files.
    spec = find_spec(package)
    path = Path(spec.origin).parent / "files" / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise BadInput(f"font {file} of package {package.replace('_', '-')} is missing: pip install 'trisense[world]'")
    # Layout.BASIC, so that pictures do not depend on whether libraqm is there.
    return ImageFont.truetype(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)


def _text_mask(thing: Thing, width: int, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """The glyphs and the glyphs with their outline, as equally large `L` masks (0-255), tilted and cut to their ink."""
    package, file = FONTS[rng.randrange(len(FONTS))]
    grow = rng.uniform(0.97, 1.03)
    tilt = rng.uniform(-7, 7)
    outlined = rng.random() < 0.4 or thing.colour in ("yellow", "pink")
    trial = _font(package, file, 64).getbbox(thing.text)
    if thing.kind == "number":
        pixels = 64 * EXTENT[thing.size] * 1.05 * width * grow / (trial[3] - trial[1])
    else:
        fit = WORD_WIDTH[thing.size] * width * grow / (trial[2] - trial[0])
        pixels = 64 * min(fit, 0.24 * width / (trial[3] - trial[1]))
    font = _font(package, file, max(8, round(pixels)))
    stroke = max(1, round(pixels * 0.035)) if outlined else 0
    x0, y0, x1, y1 = font.getbbox(thing.text, stroke_width=stroke)
    shape, origin = (round(x1 - x0) + 4, round(y1 - y0) + 4), (2 - x0, 2 - y0)
    layers = []
    for around in (0, stroke):
        layer = Image.new("L", shape)
        ImageDraw.Draw(layer).text(origin, thing.text, fill=255, font=font, stroke_width=around)
        layers.append(layer.rotate(tilt, Image.Resampling.BILINEAR, expand=True))
    ink = layers[1].getbbox() or (0, 0, *layers[1].size)
    return layers[0].crop(ink), layers[1].crop(ink)


def _background(side: int, rng: random.Random) -> Image.Image:
    """A light `side` x `side` picture: plain, a gradient, or faint stripes."""
    level = rng.randint(222, 250)
    base: RGB = (level + rng.randint(-6, 5), level + rng.randint(-6, 5), level + rng.randint(-6, 5))
    style = rng.choice(("plain", "gradient", "stripes"))
    if style == "gradient":
        corners = Image.new("RGB", (2, 2))
        for i in range(4):
            corners.putpixel((i % 2, i // 2), mix(base, (190, 190, 190), rng.uniform(0, 0.5)))
        return corners.resize((side, side), Image.Resampling.BILINEAR)
    picture = Image.new("RGB", (side, side), base)
    if style == "stripes":
        other = mix(base, (160, 160, 160), rng.uniform(0.06, 0.16))
        pitch = side * rng.uniform(0.06, 0.14)
        slant = rng.uniform(-1, 1) * side
        upright = rng.random() < 0.5
        canvas = ImageDraw.Draw(picture)
        for i in range(math.ceil((side + abs(slant)) / pitch) + 1):
            start = i * pitch - max(0.0, slant)
            ends = [(start, 0.0), (start + slant, float(side))]
            canvas.line(ends if upright else [(y, x) for x, y in ends], fill=other, width=max(1, round(pitch * 0.45)))
    return picture


def draw(scene: Scene, size: int = 96) -> tuple[Image.Image, list[Box]]:
    """The picture of a scene, `size` x `size` RGB, and one box per thing in the order of `scene.things`.

    A thing that would leave the picture is moved inwards. Raises BadInput for a kind, colour or size that the world
    does not know, for a number or word without text, and for a missing font package.
    """
    if size < 16:
        raise BadInput(f"size {size} of a picture is too small to draw in: give at least 16 pixels")
    rng = random.Random(scene.style)
    side = size * OVERSAMPLE
    picture = _background(side, rng)
    noise = max(0.0, rng.uniform(-3, 4))
    canvas = ImageDraw.Draw(picture)
    boxes: list[Box] = []
    for thing in scene.things:
        _check(thing)
        # Lighter or darker as a whole, hardly tinted: a gray must not turn purple.
        shift = rng.randint(-9, 9)
        red, green, blue = (min(255, max(0, c + shift + rng.randint(-4, 4))) for c in COLOURS[thing.colour])
        paint = _paint_text if thing.text else _paint_drawing
        x0, y0, x1, y1 = paint(picture, canvas, thing, (red, green, blue), rng)
        # One pixel more on each side: as far as the filter below spreads an edge visibly.
        low = [max(0.0, v / OVERSAMPLE - 1) for v in (x0, y0)]
        high = [min(float(size), v / OVERSAMPLE + 1) for v in (x1, y1)]
        boxes.append(Box(thing, low[0], low[1], high[0], high[1]))
    picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    if noise > 0:
        grain = np.random.default_rng(scene.style).normal(0.0, noise, (size, size, 1)).astype(np.float32)
        pixels = np.asarray(picture) + grain  # [H, W, 3]
        picture = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    return picture, boxes


def _check(thing: Thing) -> None:
    if thing.kind not in DRAWINGS and thing.kind not in ("number", "word"):
        raise BadInput(f"kind {thing.kind!r} cannot be drawn: use one of {', '.join(DRAWINGS)}, number, word")
    if (thing.kind in ("number", "word")) != bool(thing.text):
        raise BadInput(f"a {thing.kind} has text {thing.text!r}: numbers and words need one, drawings have none")
    if thing.colour not in COLOURS:
        raise BadInput(f"colour {thing.colour!r} is unknown: use one of {', '.join(COLOURS)}")
    if thing.size not in EXTENT:
        raise BadInput(f"size {thing.size!r} of a {thing.kind} is unknown: use one of {', '.join(EXTENT)}")


def _paint_drawing(
    picture: Image.Image, canvas: ImageDraw.ImageDraw, thing: Thing, colour: RGB, rng: random.Random
) -> tuple[float, float, float, float]:
    side = picture.width
    half = EXTENT[thing.size] * rng.uniform(0.95, 1.05) * side / 2
    pen = Pen(colour, rng.random() < 0.6, half, math.radians(rng.uniform(-12, 12)))
    DRAWINGS[thing.kind](pen)
    x, y = thing.centre
    return pen.paint(canvas, (x * side, y * side), side)


def _paint_text(
    picture: Image.Image, canvas: ImageDraw.ImageDraw, thing: Thing, colour: RGB, rng: random.Random
) -> tuple[float, float, float, float]:
    side = picture.width
    glyphs, around = _text_mask(thing, side, rng)
    x0, y0 = thing.centre[0] * side - glyphs.width / 2, thing.centre[1] * side - glyphs.height / 2
    x0 = round(x0 + inwards(x0, x0 + glyphs.width, side))
    y0 = round(y0 + inwards(y0, y0 + glyphs.height, side))
    picture.paste(dark(colour), (x0, y0), around)
    picture.paste(colour, (x0, y0), glyphs)
    return x0, y0, x0 + glyphs.width, y0 + glyphs.height
