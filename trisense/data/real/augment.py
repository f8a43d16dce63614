"""Other looks of the same picture, other voices of the same words: what an encoder is to see and hear past."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

# Letters: N media, S side of a picture, M mel bins, F frames.

# Weights of red, green and blue in a grey (ITU-R BT.601).
GREY = torch.tensor([0.299, 0.587, 0.114])


def redrawn(pictures: torch.Tensor, rng: np.random.Generator, photographs: torch.Tensor | None = None) -> torch.Tensor:
    """Pictures [N, 3, S, S], 0 to 1, each turned, scaled, moved, bent, lit, tinted and blurred by chance; of some only
    a part is left, some lose their colours, some keep three to six shades a channel, some lose a square; dark parts
    of some are thicker or thinner.

    photographs: bool [N], those that may be mirrored and are looked at closely more often. No drawing is mirrored: an
    arrow to the left would be called one to the right.
    """
    count, _, side, _ = pictures.shape

    def drawn(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, count).astype(np.float32))

    def chosen(share: float) -> torch.Tensor:  # [N, 1, 1, 1]
        return torch.from_numpy(rng.random(count) < share)[:, None, None, None]

    angle, scale, stretch = drawn(-0.3, 0.3), torch.exp(drawn(-0.25, 0.35)), torch.exp(drawn(-0.2, 0.2))
    x, y = drawn(-0.15, 0.15), drawn(-0.15, 0.15)
    photographs = torch.zeros(count, dtype=torch.bool) if photographs is None else photographs
    part = torch.where(photographs, chosen(0.5).flatten(), chosen(0.15).flatten())  # a close look at some place
    scale = torch.where(part, scale * drawn(0.5, 0.9), scale)
    x, y = torch.where(part, 2 * x, x), torch.where(part, 2 * y, y)
    turn = torch.stack(
        [
            torch.stack([scale * stretch * angle.cos(), -scale * angle.sin(), x], -1),
            torch.stack([scale * angle.sin(), scale / stretch * angle.cos(), y], -1),
        ],
        1,
    )  # [N, 2, 3]
    turn[photographs & chosen(0.5).flatten(), :, 0] *= -1
    places = nn.functional.affine_grid(turn, [count, 3, side, side], align_corners=False)
    bends = torch.from_numpy(rng.normal(0, 1, (count, 2, 4, 4)).astype(np.float32))
    bends = bends * drawn(0, 0.07)[:, None, None, None]
    places = places + nn.functional.interpolate(bends, (side, side), mode="bicubic").permute(0, 2, 3, 1)
    moved = nn.functional.grid_sample(pictures, places, padding_mode="border", align_corners=False)

    # The light of another place, and what another camera makes of it.
    light = torch.exp(torch.from_numpy(rng.normal(0, 0.12, (count, 3, 1, 1)).astype(np.float32)))
    moved = (moved.clamp(1e-3, 1) ** torch.exp(drawn(-0.35, 0.35))[:, None, None, None] * light).clamp(0, 1)
    thick = -nn.functional.max_pool2d(-moved, 3, 1, 1)
    thin = nn.functional.max_pool2d(moved, 3, 1, 1)
    moved = torch.where(chosen(0.1), thick, torch.where(chosen(0.1), thin, moved))
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
    shades = drawn(2, 5).round()[:, None, None, None]
    flat = nn.functional.avg_pool2d(nn.functional.pad(soft, (1, 1, 1, 1), mode="replicate"), 3, 1).clamp(0, 1)
    moved = torch.where(chosen(0.15), (torch.where(chosen(0.5), flat, moved) * shades).round() / shades, moved)
    for row in np.flatnonzero(rng.random(count) < 0.3):
        size = int(rng.integers(side // 8, side // 3))
        top, left = rng.integers(0, side - size, 2)
        moved[row, :, top : top + size, left : left + size] = float(rng.random())
    return moved


def nameless(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [N, 3, S, S], 0 to 1, of which none shows one thing: quarters of several pictures, one cut into tiles
    that were shuffled, a spot of one seen from too near, two through each other, a wash of colours, patches, stripes,
    noise, or next to nothing. Where there is but one picture, it is cut into tiles in place of quarters and of two."""
    count, _, side, _ = pictures.shape
    found = torch.empty_like(pictures)
    half, tile = side // 2, side // 4

    def widened(small: torch.Tensor) -> torch.Tensor:  # [3, s, s] -> [3, S, S]
        return nn.functional.interpolate(small[None], (side, side), mode="bicubic").clamp(0, 1)[0]

    def colours(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.random((3, *shape)).astype(np.float32))

    for row in range(count):
        kind = int(rng.integers(0, 10))
        match 1 if count == 1 and kind in (0, 4) else kind:
            case 0:
                others = pictures[torch.from_numpy(rng.integers(0, count, 4))]
                rows = [torch.cat([others[i, :, ::2, ::2], others[i + 1, :, ::2, ::2]], 2) for i in (0, 2)]
                found[row] = torch.cat(rows, 1)[:, :side, :side] if 2 * half == side else pictures[row].flip(1)
            case 1:
                tiles = pictures[row].unfold(1, tile, tile).unfold(2, tile, tile).flatten(1, 2)  # [3, 16, t, t]
                tiles = tiles[:, torch.from_numpy(rng.permutation(tiles.shape[1]))]
                whole = tiles.unflatten(1, (side // tile, -1)).permute(0, 1, 3, 2, 4).flatten(3, 4).flatten(1, 2)
                found[row] = nn.functional.interpolate(whole[None], (side, side))[0]
            case 2 | 3:
                near = int(rng.integers(max(2, side // 12), max(3, side // 6)))
                top, left = rng.integers(0, side - near, 2)
                found[row] = widened(pictures[row, :, top : top + near, left : left + near])
            case 4:
                other = pictures[(row + int(rng.integers(1, count))) % count]
                found[row] = (pictures[row] + other.transpose(1, 2)) / 2
            case 5:
                found[row] = widened(colours(*rng.integers(2, 13, 2)))
            case 6:
                places = torch.from_numpy(rng.random((int(rng.integers(4, 40)), 2)).astype(np.float32)) * side
                grid = torch.stack(torch.meshgrid(*[torch.arange(side) + 0.5] * 2, indexing="ij"), -1)  # [S, S, 2]
                nearest = torch.cdist(grid.flatten(0, 1), places).argmin(-1).view(side, side)
                found[row] = colours(len(places))[:, nearest]
            case 7:
                across, down = rng.normal(0, 1, 2) * rng.uniform(0.05, 0.8)
                waves = torch.sin(torch.arange(side)[:, None] * down + torch.arange(side) * across) / 2 + 0.5
                waves = waves.round() if rng.random() < 0.5 else waves
                found[row] = colours(1, 1) * waves + colours(1, 1) * (1 - waves)
            case 8:
                noise = rng.normal(rng.random((3, 1, 1)), rng.uniform(0.05, 0.5), (3, side, side))
                found[row] = torch.from_numpy(noise.astype(np.float32)).clamp(0, 1)
            case _:
                found[row] = colours(1, 1) * (rng.random() < 0.7)
    return found


def revoiced(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A log-mel [F, M] said faster or slower (0.8 to 1.25), by a shorter or longer throat (bins stretched by 0.85 to
    1.18: vocal tract length perturbation, Jaitly & Hinton 2013), louder or softer, into a microphone that has pitches
    of its own that it likes."""
    frames, bins = mel.shape
    wanted = max(8, round(frames * np.exp(rng.uniform(-0.22, 0.22))))
    mel = _stretched(mel.astype(np.float32), np.linspace(0, frames - 1, wanted))
    warped = np.clip(np.arange(bins) * np.exp(rng.uniform(-0.16, 0.16)), 0, bins - 1)
    liked = np.interp(np.linspace(0, 1, bins), np.linspace(0, 1, 5), rng.normal(0, 0.12, 5))
    return _stretched(mel.T, warped).T + (rng.normal(0, 0.15) + liked).astype(np.float32)


def respoken(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sound [T] faster and higher or slower and lower (0.85 to 1.18: speed perturbation, Ko et al. 2015), in noise
    whose high frequencies are softer, 10 to 40 dB below it."""
    wanted = max(1, round(len(sound) * np.exp(rng.uniform(-0.16, 0.16))))
    faster = np.interp(np.linspace(0, len(sound) - 1, wanted), np.arange(len(sound)), sound)
    spectrum = np.fft.rfft(rng.normal(size=wanted)) / np.maximum(np.arange(wanted // 2 + 1), 1) ** rng.uniform(0, 0.8)
    noise = np.fft.irfft(spectrum, wanted) if wanted > 1 else np.zeros(wanted)
    level = np.abs(faster).std() / max(noise.std(), 1e-9) * 10 ** (-rng.uniform(10, 40) / 20)
    return np.clip(faster + level * noise, -1, 1).astype(np.float32)


def _stretched(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows [R, C] read at fractional places [W], linearly: [W, C]."""
    below = np.minimum(places.astype(np.int64), len(rows) - 1)
    above = np.minimum(below + 1, len(rows) - 1)
    share = (places - below)[:, None].astype(np.float32)
    return rows[below] * (1 - share) + rows[above] * share
