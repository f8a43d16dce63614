"""Other looks of the same picture, other voices of the same words: what an encoder is to see and hear past."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

# Letters: N media, S side of a picture, M mel bins, F frames.

# Weights of red, green and blue in a grey (ITU-R BT.601).
GREY = torch.tensor([0.299, 0.587, 0.114])


def redrawn(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [N, 3, S, S], 0 to 1, each turned, scaled, moved, lit, tinted and blurred by chance; some lose their
    colours, some keep four shades a channel, some lose a square.

    A picture is never mirrored: an arrow to the left would be called one to the right.
    """
    count, _, side, _ = pictures.shape

    def drawn(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    def chosen(share: float) -> torch.Tensor:  # [N, 1, 1, 1]
        return torch.from_numpy(rng.random(count) < share)[:, None, None, None]

    angle, scale, stretch = drawn(-0.3, 0.3), torch.exp(drawn(-0.25, 0.35)), torch.exp(drawn(-0.15, 0.15))
    x, y = drawn(-0.15, 0.15), drawn(-0.15, 0.15)
    turn = torch.stack(
        [
            torch.stack([scale * stretch * angle.cos(), -scale * angle.sin(), x], -1),
            torch.stack([scale * angle.sin(), scale / stretch * angle.cos(), y], -1),
        ],
        1,
    )  # [N, 2, 3]
    places = nn.functional.affine_grid(turn, [count, 3, side, side], align_corners=False)
    moved = nn.functional.grid_sample(pictures, places, padding_mode="border", align_corners=False)

    grey = (moved * GREY[:, None, None]).sum(1, keepdim=True)
    moved = torch.where(chosen(0.15), grey, moved)
    # Hue and saturation: a little of every channel goes into every other.
    mix = torch.eye(3) + torch.from_numpy(rng.normal(0, 0.12, (count, 3, 3)).astype(np.float32))
    moved = torch.einsum("ncd,ndhw->nchw", mix / mix.sum(-1, keepdim=True), moved)
    moved = (
        (moved - 0.5) * torch.exp(drawn(-0.4, 0.4))[:, None, None, None] + 0.5 + drawn(-0.15, 0.15)[:, None, None, None]
    )
    soft = nn.functional.avg_pool2d(nn.functional.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    moved = torch.where(chosen(0.2), soft, torch.where(chosen(0.2), 2 * moved - soft, moved)).clamp(0, 1)
    moved = torch.where(chosen(0.1), (moved * 3).round() / 3, moved)
    for row in np.flatnonzero(rng.random(count) < 0.3):
        size = int(rng.integers(side // 8, side // 3))
        top, left = rng.integers(0, side - size, 2)
        moved[row, :, top : top + size, left : left + size] = float(rng.random())
    return moved


def revoiced(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A log-mel [F, M] said faster or slower (0.85 to 1.15), by a shorter or longer throat (bins stretched by 0.9 to
    1.1: vocal tract length perturbation, Jaitly & Hinton 2013), louder or softer."""
    frames, bins = mel.shape
    wanted = max(8, round(frames * rng.uniform(0.85, 1.15)))
    mel = _stretched(mel.astype(np.float32), np.linspace(0, frames - 1, wanted))
    warped = np.clip(np.arange(bins) * rng.uniform(0.9, 1.1), 0, bins - 1)
    return _stretched(mel.T, warped).T + rng.normal(0, 0.15)


def _stretched(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows [R, C] read at fractional places [W], linearly: [W, C]."""
    below = np.minimum(places.astype(np.int64), len(rows) - 1)
    above = np.minimum(below + 1, len(rows) - 1)
    share = (places - below)[:, None].astype(np.float32)
    return rows[below] * (1 - share) + rows[above] * share
