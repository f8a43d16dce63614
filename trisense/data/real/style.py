"""A drawing style of our own that training never sees: does a name carry over to other drawings of the same thing?"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


def in_other_style(picture: Image.Image, seed: int) -> Image.Image:
    """An RGB picture on white as a cartoonist would draw it again: few flat colours of another tone, dark outlines,
    lines that waver, a little larger or smaller and off the centre.

    The same picture and seed give the same drawing. `trisense.data.real.augment` makes none of this but the change of
    size and tone.
    """
    rng = np.random.default_rng(seed)
    side = 144
    picture = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    smooth = picture.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(1))
    flat = smooth.quantize(int(rng.integers(6, 10)), Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat = flat.convert("RGB").filter(ImageFilter.ModeFilter(7)).quantize(16, dither=Image.Dither.NONE)
    pixels = np.asarray(flat.convert("RGB"), np.float32) / 255  # [S, S, 3]
    white = pixels.min(-1) > 0.93

    # Other tones: colours turned a little around grey, and darker or lighter.
    angle = rng.uniform(-0.25, 0.25)
    grey = pixels.mean(-1, keepdims=True)
    turned = grey + (pixels - grey) * np.cos(angle) + np.roll(pixels - grey, 1, -1) * np.sin(angle)
    toned = np.clip(turned, 0, 1) ** rng.uniform(0.75, 1.35)
    toned[white] = 1

    # Outlines where flat colours meet.
    index = np.where(white, -1, np.asarray(flat, np.int16))
    edge = np.zeros(index.shape, bool)
    edge[:-1] |= index[:-1] != index[1:]
    edge[:, :-1] |= index[:, :-1] != index[:, 1:]
    outline = Image.fromarray((edge * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    ink = np.minimum(1, np.asarray(outline, np.float32)[..., None] / 128)
    drawn = toned * (1 - ink) + 0.12 * ink

    # Wavering lines, another size and place.
    places = (np.arange(side) + 0.5) / side - 0.5
    y, x = np.meshgrid(places, places, indexing="ij")
    size, waves = rng.uniform(0.85, 1.2), rng.uniform(2, 4, 2) * 2 * np.pi
    shift, phase = rng.uniform(-0.05, 0.05, 2), rng.uniform(0, 2 * np.pi, 2)
    across = (x + 0.012 * np.sin(waves[0] * y + phase[0])) * size + shift[0]
    down = (y + 0.012 * np.sin(waves[1] * x + phase[1])) * size + shift[1]
    columns, rows = (np.rint((one + 0.5) * side - 0.5).astype(int) for one in (across, down))
    inside = (columns >= 0) & (columns < side) & (rows >= 0) & (rows < side)
    found = np.ones((side, side, 3), np.float32)
    found[inside] = drawn[rows[inside], columns[inside]]
    return Image.fromarray((found * 255).round().astype(np.uint8)).resize((72, 72), Image.Resampling.LANCZOS)
