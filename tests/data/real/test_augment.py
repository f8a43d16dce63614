"""Other looks and voices: by chance that is given, and never so that a name would become another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trisense.data.real.augment import nameless, redrawn, respoken, revoiced


def arrows(count: int, side: int = 48) -> torch.Tensor:
    """Pictures [count, 3, side, side] that are dark on the left and light on the right."""
    return torch.linspace(0.1, 0.9, side).expand(count, 3, side, side).clone()


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


def test_photographs_alone_are_mirrored_and_looked_at_closely() -> None:
    pictures, taken = arrows(400), torch.arange(400) < 200
    other = redrawn(pictures, np.random.default_rng(3), photographs=taken).mean(1)  # [N, 48, 48]
    mirrored = other[:, :, 8:20].mean((1, 2)) > other[:, :, 28:40].mean((1, 2))
    assert 0.4 < mirrored[taken].float().mean() < 0.6 and mirrored[~taken].float().mean() < 0.02
    steepness = (other[:, :, 4:16].mean((1, 2)) - other[:, :, 32:44].mean((1, 2))).abs()
    assert steepness[taken].median() < 0.95 * steepness[~taken].median(), "of a part there is less to see"


def test_light_has_a_colour() -> None:
    """Mixed among each other, the channels of a grey stay one grey; in the light of another place they do not."""
    other = redrawn(arrows(200), np.random.default_rng(5)).mean((2, 3))  # [N, 3]
    assert 0.7 < ((other.amax(1) - other.amin(1)) > 0.02).float().mean() < 0.95, "some lost all colour"


def test_most_are_bent() -> None:
    """Turned, scaled, lit and tinted, a ramp stays a plane: what is left of its middle beside the best plane is none of
    that. (Some are sharpened or have few shades too, but not most.)"""
    other = redrawn(arrows(200), np.random.default_rng(4)).mean(1)[:, 16:32, 16:32].flatten(1)  # [N, 256]
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    plane = torch.stack([torch.ones(256), x.flatten(), y.flatten()], 1)
    left = other - (plane @ torch.linalg.lstsq(plane, other.T).solution).T
    assert (left.std(1) > 0.01 * other.std(1)).float().mean() > 0.8


@pytest.mark.parametrize("side", [48, 50, 47])
def test_a_nameless_picture_is_of_nothing_that_was_there(side: int) -> None:
    pictures = arrows(60, side)
    made = nameless(pictures, np.random.default_rng(0))
    assert made.shape == pictures.shape and made.dtype == pictures.dtype
    assert torch.isfinite(made).all() and float(made.min()) >= 0 and float(made.max()) <= 1
    assert torch.equal(pictures, arrows(60, side)), "what was given is not touched"
    assert torch.equal(made, nameless(pictures, np.random.default_rng(0)))
    assert not torch.equal(made, nameless(pictures, np.random.default_rng(1)))
    if side == 48:
        assert all(float((made[i] - pictures[i]).abs().mean()) > 0.02 for i in range(60))
    assert (made.flatten(2).std(2) < 1e-6).all(1).any(), "some show nothing at all"


def test_a_nameless_picture_may_be_in_quarters_or_in_tiles() -> None:
    """Of a picture with a value of its own in each place, quarters hold every other place four times, and tiles all of
    them once."""
    one = torch.arange(48.0 * 48).reshape(1, 1, 48, 48).expand(1, 3, 48, 48) / 48**2
    found = [nameless(one.expand(2, -1, -1, -1), np.random.default_rng(seed))[0, 0] for seed in range(60)]
    alone = [nameless(one, np.random.default_rng(seed))[0, 0] for seed in range(60)]
    quarters = torch.cat([torch.cat([one[0, 0, ::2, ::2]] * 2, 1)] * 2)
    assert any(torch.equal(made, quarters) for made in found)
    assert not any(torch.equal(made, quarters) for made in alone), "of one alone, each quarter would show it"
    tiles = [made for made in found if torch.equal(made.flatten().sort()[0], one[0, 0].flatten())]
    assert tiles and not any(torch.equal(made, one[0, 0]) for made in tiles)
    for made in tiles:  # of 12 x 12, in which neighbours are still neighbours
        inner = (made[:, 1:] - made[:, :-1]).reshape(48, 47)[:, [c for c in range(47) if c % 12 != 11]]
        torch.testing.assert_close(inner, torch.full_like(inner, 1 / 48**2), atol=1e-6, rtol=0)


def test_a_revoiced_sound_is_longer_or_shorter_and_has_its_melody() -> None:
    mel = np.zeros((100, 80), np.float16)
    mel[40:60, 30:40] = 4  # a tone in the middle
    lengths = set()
    for seed in range(20):
        other = revoiced(mel, np.random.default_rng(seed))
        lengths.add(len(other))
        assert other.dtype == np.float32 and other.shape[1] == 80 and 80 <= len(other) <= 125
        frame, pitch = np.unravel_index(other.argmax(), other.shape)
        assert 0.38 < frame / len(other) < 0.62 and 23 < pitch < 48
    assert len(lengths) > 5
    assert np.array_equal(revoiced(mel, np.random.default_rng(3)), revoiced(mel, np.random.default_rng(3)))


def test_a_respoken_sound_is_faster_and_higher_or_slower_and_lower_in_noise() -> None:
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000).astype(np.float32) * 0.5
    for seed in range(20):
        other = respoken(tone, np.random.default_rng(seed))
        assert other.dtype == np.float32 and 0.85 < len(other) / 16_000 < 1.18
        pitch = np.abs(np.fft.rfft(other)).argmax() * 16_000 / len(other)
        assert abs(pitch * len(other) / 16_000 - 440) < 2, "the same number of periods in another time"
        x = np.arange(len(other)) * 2 * np.pi * pitch / 16_000
        waves = np.stack([np.sin(x), np.cos(x)])
        heard = waves.T @ np.linalg.lstsq(waves.T, other, rcond=None)[0]
        assert 0.003 < (other - heard).std() / heard.std() < 0.5, "some noise, and less than sound"
    assert np.array_equal(respoken(tone, np.random.default_rng(3)), respoken(tone, np.random.default_rng(3)))
    assert np.isfinite(respoken(np.zeros(1, np.float32), np.random.default_rng(0))).all()
