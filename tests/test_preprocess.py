"""Pictures and sounds become the same arrays that transformers' own processors make."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from trisense.errors import BadInput
from trisense.preprocess import AudioProcessor, ImageProcessor, mel_filter_bank

RATE = 16000


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture with some noise: plain noise would hide a shift by half a pixel."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + 2 * y) / 23)], axis=-1) * 90 + 128
    noise = np.random.default_rng(0).normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(waves + noise, 0, 255).astype(np.uint8))


def sound(samples: int) -> np.ndarray:
    """A rising tone with a little noise, float32 [samples]."""
    t = np.arange(samples) / RATE
    noise = np.random.default_rng(0).normal(0, 0.01, samples)
    return (0.5 * np.sin(2 * np.pi * (300 + 400 * t) * t) + noise).astype(np.float32)


def clip(**options):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**options)


def steps_of_255(ours: np.ndarray, theirs: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Differences in units of 1/255 of the picture's own range, [3, H, W]."""
    return np.abs(ours - theirs) * np.array(processor.std)[:, None, None] * 255


SIZES = [(224, 224), (225, 337), (640, 481), (31, 500), (333, 1000), (7, 7), (1, 300), (223, 225), (449, 224)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pixel_values_are_those_of_clip(width: int, height: int) -> None:
    image, processor = picture(width, height), ImageProcessor(tokens=1)
    theirs = np.asarray(clip()(image, return_tensors="np")["pixel_values"][0])
    ours = processor(image)
    assert (ours.shape, ours.dtype, ours.flags.c_contiguous) == ((3, 224, 224), np.float32, True)
    steps = steps_of_255(ours, theirs, processor)
    assert steps.max() < 1.01
    # Only Pillow's rounding of the box differs, in a few pixels; a picture shifted by half a pixel differs in most.
    assert (steps > 0.01).mean() < 0.01


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
        {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 48}, "resample": 2},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 64, "width": 50}},  # black around the picture
        {"size": {"height": 48, "width": 80}, "do_center_crop": False},
        {"size": 56, "crop_size": 56, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]},
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "do_normalize": False},
        {},
    ],
)
def test_a_clip_config_is_followed(config: dict) -> None:
    processor = ImageProcessor.from_transformers(clip(**config).to_dict(), tokens=9)
    image = picture(131, 97)
    theirs = np.asarray(clip(**config)(image, return_tensors="np")["pixel_values"][0])
    assert processor.tokens == 9
    assert processor(image).shape == theirs.shape
    assert steps_of_255(processor(image), theirs, processor).max() < 1.01


def test_without_crop_the_whole_picture_is_kept() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (0, 0, 150, 100))
    values = ImageProcessor(height=32, width=32, crop=False, tokens=1, mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert np.allclose(values[:, :, :14], 1) and np.allclose(values[:, :, 18:], 0)


def test_a_strip_of_pixels_stays_small() -> None:
    values = ImageProcessor(tokens=1)(picture(50_000, 1))
    assert values.shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_only_rgb_is_accepted(mode: str) -> None:
    with pytest.raises(BadInput, match=rf"mode {mode}; expected RGB"):
        ImageProcessor(tokens=1)(Image.new(mode, (9, 9)))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 0.5}, "rescale_factor"),
        ({"resample": 0}, "resample"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"size": {"longest_edge": 300}}, "longest_edge"),
        ({"image_mean": [0.5]}, "mean"),
        ({"image_std": [0, 1, 1]}, "std"),
        ({"crop_size": {"height": 0, "width": 224}}, "height"),
    ],
)
def test_a_clip_config_that_cannot_be_followed_is_refused(config: dict, named: str) -> None:
    with pytest.raises(BadInput, match=named) as refused:
        ImageProcessor.from_transformers(config, tokens=1)
    assert "\n" not in str(refused.value)


def whisper(**options):
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(**options)


@pytest.mark.parametrize("mel_bins", [40, 80, 128])
def test_the_mel_filter_bank_is_whispers(mel_bins: int) -> None:
    bank = mel_filter_bank(mel_bins, 400, RATE)
    assert bank.dtype == np.float32
    np.testing.assert_allclose(bank, whisper(feature_size=mel_bins).mel_filters.T, atol=1e-7)


SOUNDS = {
    "three seconds": sound(3 * RATE),
    "one window": sound(400),
    "an odd length": sound(12_345),
    "longer than the chunk": sound(31 * RATE),
    "just shorter than the chunk": sound(30 * RATE - 100),
    "silence": np.zeros(5000, np.float32),
    "a click": np.eye(1, 9000, 4000, dtype=np.float32)[0],
    "one loud tone": 0.9 * np.sin(2 * np.pi * 1000 * np.arange(20_000) / RATE).astype(np.float32),
}


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_input_features_are_those_of_whisper(name: str, mel_bins: int) -> None:
    wave, extractor = SOUNDS[name], whisper(feature_size=mel_bins)
    theirs = extractor(wave, sampling_rate=RATE, return_tensors="np")["input_features"][0]
    ours = AudioProcessor(mel_bins=mel_bins)(wave)
    assert (ours.shape, ours.dtype, ours.flags.c_contiguous) == ((mel_bins, 3000), np.float32, True)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)

    options = {"padding": "do_not_pad", "truncation": False, "return_tensors": "np"}
    theirs = extractor(wave, sampling_rate=RATE, **options)["input_features"][0]
    ours = AudioProcessor(mel_bins=mel_bins, chunk_seconds=None)(wave)
    assert ours.shape == theirs.shape == (mel_bins, len(wave) // 160)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_whisper_config_is_followed() -> None:
    extractor = whisper(feature_size=40, hop_length=200, chunk_length=5, n_fft=512)
    processor = AudioProcessor.from_transformers(extractor.to_dict())
    assert processor == AudioProcessor(mel_bins=40, hop_length=200, chunk_seconds=5, n_fft=512)
    theirs = extractor(sound(RATE), sampling_rate=RATE, return_tensors="np")["input_features"][0]
    np.testing.assert_allclose(processor(sound(RATE)), theirs, atol=1e-4)


@settings(max_examples=40)
@given(samples=st.integers(1, 4000), hop=st.integers(1, 400), half=st.integers(1, 300))
def test_any_sound_gives_at_least_one_frame(samples: int, hop: int, half: int) -> None:
    n_fft = max(2 * half, hop + hop % 2)
    features = AudioProcessor(mel_bins=8, n_fft=n_fft, hop_length=hop, chunk_seconds=None)(sound(samples))
    assert features.shape == (8, max(samples, n_fft) // hop) and features.shape[1] >= 1
    assert np.isfinite(features).all()


def test_a_short_sound_is_padded_with_silence() -> None:
    processor = AudioProcessor(chunk_seconds=None)
    padded = np.pad(sound(90), (0, 310))
    np.testing.assert_array_equal(processor(sound(90)), processor(padded))


@pytest.mark.parametrize(
    ("frames", "per_token", "tokens"), [(3000, 2, 1500), (1, 2, 1), (301, 2, 151), (300, 4, 75), (9, 1, 9)]
)
def test_num_tokens_rounds_up(frames: int, per_token: int, tokens: int) -> None:
    assert AudioProcessor(frames_per_token=per_token).num_tokens(frames) == tokens


@pytest.mark.parametrize("shape", [(0,), (2, 500), ()])
def test_only_one_channel_with_samples_is_accepted(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="one channel, not empty"):
        AudioProcessor()(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"do_normalize": True}, "do_normalize"),
        ({"dither": 0.1}, "dither"),
        ({"padding_value": 1.0}, "padding_value"),
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "Wav2Vec2FeatureExtractor"),
        ({"feature_size": 0}, "mel_bins"),
        ({"n_fft": 401}, "n_fft"),
        ({"hop_length": 500}, "hop_length"),
        ({"chunk_length": 0.01}, "chunk_seconds"),
    ],
)
def test_a_whisper_config_that_cannot_be_followed_is_refused(config: dict, named: str) -> None:
    with pytest.raises(BadInput, match=named) as refused:
        AudioProcessor.from_transformers(config)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("processor", [ImageProcessor(tokens=4), AudioProcessor(chunk_seconds=None)])
def test_settings_survive_json_and_reject_unknown_keys(processor) -> None:
    kind = type(processor)
    assert kind.model_validate_json(processor.model_dump_json()) == processor
    with pytest.raises(ValidationError, match="brightness"):
        kind.model_validate({**processor.model_dump(), "brightness": 2})


def test_the_shared_filter_bank_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        mel_filter_bank(80, 400, RATE)[0, 0] = 1
