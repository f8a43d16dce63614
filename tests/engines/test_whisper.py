"""Whisper in transformers: what its own `generate` writes, and what faster-whisper hears with the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from trisense.engines import whisper
from trisense.engines.recogniser import FasterWhisper, Segment
from trisense.engines.whisper import TransformersWhisper
from trisense.errors import BadInput


def sound(seed: int, seconds: float) -> np.ndarray:
    """Noise [T] that ends in silence: at a sharp end the two libraries compute the last frame differently."""
    noise = tiny_models.sound(seed, seconds)
    noise[-800:] = 0
    return noise


@pytest.fixture(scope="module")
def ours() -> TransformersWhisper:
    return TransformersWhisper(tiny_models.whisper())


@pytest.fixture(scope="module")
def theirs() -> FasterWhisper:
    return FasterWhisper(tiny_models.converted_whisper(), compute_type="float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model to change."""
    return copytree(tiny_models.whisper(), tmp_path / "whisper")


def rewrite(path: Path, **changes: object) -> None:
    """A json file with changed keys; None removes one."""
    values = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("language", tiny_models.WHISPER_LANGUAGES)
def test_the_same_words_and_times_as_generate(ours: TransformersWhisper, language: str):
    wave = sound(1, 30.0)
    model = WhisperForConditionalGeneration.from_pretrained(tiny_models.whisper())
    processor = WhisperProcessor.from_pretrained(tiny_models.whisper())
    out = model.generate(
        processor(wave, sampling_rate=16_000, return_tensors="pt").input_features,
        return_timestamps=True,
        return_segments=True,
        language=language,
        task="transcribe",
        max_new_tokens=224,
    )
    expected = [
        Segment(
            processor.tokenizer.decode(one["tokens"].tolist(), skip_special_tokens=True),
            float(one["start"]),
            float(one["end"]),
        )
        for one in out["segments"][0]
    ]
    assert "w" in "".join(segment.text for segment in expected)
    assert ours.recognise(wave, language) == expected


@pytest.mark.parametrize(
    ("seed", "seconds", "language"), [(0, 0.8, "en"), (1, 4.0, "de"), (2, 11.5, "fr"), (3, 30, "en")]
)
def test_both_recognisers_hear_the_same(
    ours: TransformersWhisper, theirs: FasterWhisper, seed: int, seconds: float, language: str
):
    wave = sound(seed, seconds)
    heard = [one for one in ours.recognise(wave, language) if one.text.strip() and one.start != one.end]
    expected = theirs.recognise(wave, language)
    assert expected
    assert [one.text for one in heard] == [one.text for one in expected]
    for one, other in zip(heard, expected, strict=True):
        assert (one.start, one.end) == (pytest.approx(other.start, abs=0.005), pytest.approx(other.end, abs=0.005))


def test_both_detect_the_language_that_the_model_finds_likeliest(ours: TransformersWhisper, theirs: FasterWhisper):
    model = WhisperForConditionalGeneration.from_pretrained(tiny_models.whisper())
    processor = WhisperProcessor.from_pretrained(tiny_models.whisper())
    found = set()
    for seed, gain in ((0, 1.0), (1, 0.3), (2, 0.05), (3, 0.01), (4, 0.0)):
        wave = gain * sound(seed, 3.0 + 5 * seed)
        features = processor(wave, sampling_rate=16_000, return_tensors="pt").input_features
        token = processor.tokenizer.convert_ids_to_tokens(model.detect_language(features).item())
        assert f"<|{ours.detect_language(wave)}|>" == token
        assert f"<|{theirs.detect_language(wave)}|>" == token
        found.add(token)
    assert len(found) > 1


def test_a_model_of_english_alone_takes_everything_for_english(folder: Path):
    rewrite(folder / "generation_config.json", lang_to_id=None, task_to_id=None, is_multilingual=False)
    english = TransformersWhisper(folder)
    assert english.languages == ("en",)
    assert english.detect_language(sound(0, 2.0)) == "en"
    assert english.recognise(sound(0, 2.0), "en")


def test_what_is_likely_silence_is_not_written(ours: TransformersWhisper, monkeypatch: pytest.MonkeyPatch):
    """Whisper's own rule, here with thresholds that everything passes."""
    assert ours.recognise(sound(0, 2.0), "en")
    monkeypatch.setattr(whisper, "NO_SPEECH_THRESHOLD", -1.0)
    monkeypatch.setattr(whisper, "LOGPROB_THRESHOLD", 0.0)
    assert ours.recognise(sound(0, 2.0), "en") == []


def test_a_cpu_computes_in_float32_whatever_the_file_holds(folder: Path):
    weights = load_file(folder / "model.safetensors")
    save_file({name: value.half() for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert {value.dtype for value in TransformersWhisper(folder, "cpu").model.parameters()} == {torch.float32}


def test_another_model_is_refused(folder: Path):
    rewrite(folder / "config.json", model_type="clip")
    with pytest.raises(BadInput, match=r"config.json: model_type is 'clip'; expected 'whisper'"):
        TransformersWhisper(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_refused_in_one_line(folder: Path, file: str):
    (folder / file).unlink()
    with pytest.raises(BadInput) as refusal:
        TransformersWhisper(folder)
    assert "\n" not in str(refusal.value)
    assert str(folder) in str(refusal.value)


def test_weights_that_are_missing_are_named(folder: Path):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.encoder.conv1.bias")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"the weights lack model\.encoder\.conv1\.bias \(1 such\)"):
        TransformersWhisper(folder)


def test_a_tokenizer_of_another_model_is_refused(folder: Path):
    tiny_models.tokenizer().copy().save(str(folder / "tokenizer.json"))
    with pytest.raises(BadInput, match="of another model"):
        TransformersWhisper(folder)


def test_a_model_that_cannot_tell_times_is_refused(folder: Path):
    rewrite(folder / "generation_config.json", no_timestamps_token_id=None)
    with pytest.raises(BadInput, match=r"generation_config.json: lacks no_timestamps_token_id"):
        TransformersWhisper(folder)


def test_no_such_device_is_one_line():
    with pytest.raises(BadInput, match="device quantum") as refusal:
        TransformersWhisper(tiny_models.whisper(), "quantum")
    assert "\n" not in str(refusal.value)
