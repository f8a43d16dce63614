"""Other looks and voices: by chance that is given, and never so that a name would become another."""

from __future__ import annotations

import numpy as np
import torch

from trisense.data.real.augment import redrawn, revoiced


def arrows(count: int) -> torch.Tensor:
    """Pictures [count, 3, 48, 48] that are dark on the left and light on the right."""
    return torch.linspace(0.1, 0.9, 48).expand(count, 3, 48, 48).clone()


def test_a_redrawn_picture_is_another_one_of_the_same_kind() -> None:
    pictures = arrows(64)
    other = redrawn(pictures, np.random.default_rng(0))
    assert other.shape == pictures.shape and other.dtype == torch.float32
    assert float(other.min()) >= 0 and float(other.max()) <= 1
    assert ((other - pictures).abs().mean((1, 2, 3)) > 0.01).all(), "each of them looks different"
    assert torch.equal(other, redrawn(pictures, np.random.default_rng(0)))
    assert not torch.equal(other, redrawn(pictures, np.random.default_rng(1)))


def test_left_stays_left() -> None:
    other = redrawn(arrows(200), np.random.default_rng(2)).mean(1)  # [N, 48, 48]
    left, right = other[:, :, 8:20].mean((1, 2)), other[:, :, 28:40].mean((1, 2))
    assert (left < right).float().mean() > 0.98


def test_a_revoiced_sound_is_longer_or_shorter_and_has_its_melody() -> None:
    mel = np.zeros((100, 80), np.float16)
    mel[40:60, 30:40] = 4  # a tone in the middle
    lengths = set()
    for seed in range(20):
        other = revoiced(mel, np.random.default_rng(seed))
        lengths.add(len(other))
        assert other.dtype == np.float32 and other.shape[1] == 80 and 85 <= len(other) <= 115
        frame, pitch = np.unravel_index(other.argmax(), other.shape)
        assert 0.38 < frame / len(other) < 0.62 and 25 < pitch < 46
    assert len(lengths) > 5
    assert np.array_equal(revoiced(mel, np.random.default_rng(3)), revoiced(mel, np.random.default_rng(3)))
