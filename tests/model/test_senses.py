"""The chosen features against what the encoders of transformers say themselves.

Letters: N media, S feature vectors of one medium, E width of the features, D width of the language model, M mel bins,
F log-mel frames.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import tiny_models
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, WhisperModel

from trisense.errors import BadInput
from trisense.model import SenseOptions
from trisense.model.senses import Sense


def close(actual: torch.Tensor, expected: torch.Tensor, within: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=within)


@cache
def clip() -> Any:
    """A whole CLIP, eyes and words."""
    torch.manual_seed(0)
    vision = tiny_models.config("clip-whisper").vision_config
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    vision.projection_dim = text.projection_dim = 10
    return CLIPModel(CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=10)).eval()


def eye(**options: Any) -> Sense:
    """A sense with CLIP's weights."""
    config = clip().config.vision_config
    sense = Sense("image", SenseOptions(**{"width": 16, **options}), config, 32).eval()
    wanted, given = sense.encoder.state_dict(), clip().state_dict()
    found = {name: given[name if name in given else f"vision_model.{name}"] for name in wanted}
    sense.encoder.load_state_dict(found)
    return sense


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


CLIP_FEATURES = {
    "context-gpt": ({"layer": -2, "select": "patches"}, lambda out, _: out.hidden_states[-2][:, 1:]),
    "tinyclip-phi2, jnana": ({"layer": -1, "select": "patches"}, lambda out, _: out.last_hidden_state[:, 1:]),
    "with CLS": ({"layer": -1, "select": "all"}, lambda out, _: out.last_hidden_state),
    "an early layer, with CLS": ({"layer": 1, "select": "all"}, lambda out, _: out.hidden_states[1]),
    "pooled": ({"select": "pooled"}, lambda out, _: out.pooler_output[:, None]),
    "ft35, eden": (
        {"select": "projected", "width": 10},
        lambda _, whole: whole.get_image_features(pixels()).pooler_output[:, None],
    ),
}


@pytest.mark.parametrize("recipe", CLIP_FEATURES)
@torch.no_grad()
def test_pictures_through_clip(recipe: str):
    options, expected = CLIP_FEATURES[recipe]
    sense = eye(**options)
    features = sense.encode(pixels())  # [N, S, E]
    out = clip().vision_model(pixels(), output_hidden_states=True)
    close(features, expected(out, clip()))
    assert features.shape == (2, {"patches": 16, "all": 17}.get(sense.options.select, 1), sense.options.width)
    assert sense.lengths(features, None).tolist() == [features.shape[1]] * 2


@torch.no_grad()
def test_a_summary_follows_the_places_that_it_is_read_off():
    """By hand: the mean of all places says which name, and the codes of names, weighed so, become vectors."""
    sense = eye(select="all", summary=3, names=5)
    plain, told = eye(select="all").encode(pixels()), sense.encode(pixels())
    assert told.shape == (2, 17 + 3, 16)
    close(told[:, :17], plain)
    summary: Any = sense.summary
    for picture in range(2):
        likely = summary.names(plain[picture].mean(0)).softmax(-1)
        code = sum(likely[name] * summary.codes.weight[:, name] for name in range(5))
        close(told[picture, 17:], torch.stack([summary.write(part) for part in code.split(summary.CODE)]))


def test_the_projected_eye_has_no_words():
    """One vector after CLIP's projection needs CLIP's eyes and the projection, not its text half."""
    assert not [name for name in eye(select="projected", width=10).state_dict() if "text" in name]


@torch.no_grad()
def test_a_map_is_read_row_by_row():
    """Feature vector r * width + c of a convolutional encoder stands in row r and column c of its map."""
    torch.manual_seed(0)
    config = tiny_models.config("spark").vision_config
    sense = Sense("image", SenseOptions(width=16), config, 32).eval()
    values = torch.randn(1, 3, 32, 64)
    features, out = sense.encode(values)[0], sense.encoder(values).last_hidden_state[0]  # [S, E], [E, h, w]
    height, width = out.shape[1:]
    assert (height, width) == (4, 8)
    for row in range(height):
        for column in range(width):
            assert torch.equal(features[row * width + column], out[:, row, column])
    pooled = Sense("image", SenseOptions(width=16, select="pooled"), config, 32).eval()
    pooled.load_state_dict(sense.state_dict())
    close(pooled.encode(values), out.mean((1, 2))[None, None])


@pytest.mark.parametrize("layer", [-1, -2, 0])
@torch.no_grad()
def test_sounds_through_whispers_encoder(layer: int):
    torch.manual_seed(0)
    config = tiny_models.config("clip-whisper").audio_config
    whole = WhisperModel(config).eval()
    sense = Sense("audio", SenseOptions(width=16, layer=layer), config, 32).eval()
    assert type(sense.encoder) is type(whole.encoder)
    sense.encoder.load_state_dict(whole.encoder.state_dict())
    mels = torch.randn(2, 80, 100)  # [N, M, F]
    out = whole.encoder(mels, output_hidden_states=True)
    features = sense.encode(mels)
    assert torch.equal(features, out.last_hidden_state if layer == -1 else out.hidden_states[layer])
    assert features.shape == (2, 50, 16)
    # Whisper's window is always full: nothing is padding, and two sounds together are the sounds alone.
    close(features[1:], sense.encode(mels[1:]))
    assert sense.lengths(features, torch.ones(2, 100)).tolist() == [50, 50]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@torch.no_grad()
def test_a_sound_beside_a_longer_one_is_the_sound_alone(dtype: torch.dtype):
    """Parakeet takes sounds of any length, padded with zeros and a mask."""
    torch.manual_seed(0)
    options = SenseOptions(width=16, time_first=True, frames_per_token=8)
    sense = Sense("audio", options, tiny_models.config("spark").audio_config, 32).eval()
    frames = [200, 75, 8, 41]
    mels = torch.randn(4, 80, 200)  # [N, M, F]
    mask = torch.arange(200) < torch.tensor(frames)[:, None]
    features = sense.encode(mels * mask[:, None], mask.to(dtype))
    lengths = sense.lengths(features, mask.to(dtype)).tolist()
    assert lengths == [25, 10, 1, 6]
    for number, (count, length) in enumerate(zip(frames, lengths, strict=True)):
        alone = sense.encode(mels[number : number + 1, :, :count])
        assert alone.shape == (1, length, 16)
        close(features[number, :length], alone[0])
    vectors = sense(mels * mask[:, None], mask.to(dtype))
    assert vectors.shape == (sum(lengths), 32)
    close(vectors[25:35], sense(mels[1:2, :, :75]))


@torch.no_grad()
def test_neighbouring_vectors_of_a_sound_are_joined():
    """As Ultravox does it: three to one, the last filled up with zeros, and a sound beside a longer one is itself."""
    torch.manual_seed(0)
    config = tiny_models.config("spark").audio_config
    single = Sense("audio", SenseOptions(width=16, time_first=True, frames_per_token=8), config, 32).eval()
    joined = SenseOptions(width=48, time_first=True, frames_per_token=24, stack=3)
    sense = Sense("audio", joined, config, 32).eval()
    sense.encoder.load_state_dict(single.encoder.state_dict())
    mels = torch.randn(1, 80, 80)  # ten vectors
    found, plain = sense.encode(mels)[0], single.encode(mels)[0]
    assert found.shape == (4, 48)
    for place in range(4):
        expected = torch.zeros(3, 16)
        expected[: len(plain[3 * place : 3 * place + 3])] = plain[3 * place : 3 * place + 3]
        assert torch.equal(found[place], expected.flatten())
    beside = torch.nn.functional.pad(mels, (0, 90)).repeat(2, 1, 1)
    mask = torch.arange(170) < torch.tensor([[80], [170]])
    features = sense.encode(beside, mask)
    assert sense.lengths(features, mask).tolist() == [4, 8]
    close(features[0, :4], found)


def test_what_an_encoder_cannot_give_is_refused():
    resnet = tiny_models.config("spark").vision_config
    with pytest.raises(BadInput, match=r"senses.image.select: 'projected' needs a clip_vision_model, not 'resnet'"):
        Sense("image", SenseOptions(width=16, select="projected"), resnet, 32)
    with pytest.raises(BadInput, match=r"senses.image.select: 'patches' drops a CLS token, and a resnet has none"):
        Sense("image", SenseOptions(width=16, select="patches"), resnet, 32)
    with pytest.raises(BadInput, match=r"senses.image: 'clip' is more than an encoder; give its vision_config"):
        Sense("image", SenseOptions(width=16), clip().config, 32)
    with pytest.raises(BadInput, match=r"senses.image.layer: -5 is not one of the 4 hidden states"):
        eye(layer=-5).encode(pixels())


def test_one_of_values_and_features():
    sense = eye()
    for given in ({"values": None}, {"values": pixels(), "features": torch.zeros(2, 17, 16)}):
        with pytest.raises(ValueError, match="image: give either"):
            sense(**given)
