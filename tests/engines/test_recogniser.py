"""Who hears words: voices found, noise not; which recogniser opens a folder, and what is said when none does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tiny_models
from huggingface_hub.utils import filter_repo_objects

from trisense.data.world.speech import Voice, say, voices
from trisense.engines import recogniser
from trisense.engines.recogniser import HUB_FILES, FasterWhisper, Segment, open_recogniser, voice_activity
from trisense.errors import BadInput
from trisense.media import load_audio

RATE = 16_000
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def spaced(*parts: float | str, voice: Voice) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Silences (seconds) and sentences one after another as a sound [T], and where each sentence lies."""
    pieces, places = [np.zeros(0)], []
    for part in parts:
        piece = 0.5 * say(part, voice) if isinstance(part, str) else np.zeros(round(part * RATE))
        start = sum(map(len, pieces))
        places += [(start, start + len(piece))] if isinstance(part, str) else []
        pieces.append(piece)
    return np.concatenate(pieces).astype(np.float32), places


@pytest.mark.parametrize("voice", voices()[::6], ids=lambda voice: voice.label)
def test_a_voice_is_found_where_it_speaks(voice: Voice):
    wave, said = spaced(3.0, "anna has the red cup", 4.0, "the blue fish is here", 2.0, voice=voice)
    found = voice_activity(wave)
    assert len(found) == 2
    for (start, end), (first, last) in zip(found, said, strict=True):
        assert start <= first
        assert end >= last
        assert end - start <= last - first + RATE


def test_pauses_inside_a_sentence_do_not_cut_it():
    wave, _ = spaced(1.0, "anna has", 0.3, "the red cup", 1.0, voice=Voice("espeak", "en-us", "f1"))
    assert len(voice_activity(wave)) == 1


def test_the_example_is_a_voice():
    wave = load_audio(EXAMPLES / "voice.wav")
    ((start, end),) = voice_activity(wave)
    assert end - start > 0.8 * len(wave)


def test_spark_writes_down_its_own_world():
    spark = open_recogniser("spark")
    assert spark.languages == ("en",)
    wave = load_audio(EXAMPLES / "voice.wav")
    assert spark.recognise(wave, spark.detect_language(wave)) == [Segment("ben", 0.0, len(wave) / RATE)]


def test_a_model_of_this_package_is_asked_whatever_its_form_and_needs_ears(tmp_path: Path):
    for folder in (tiny_models.exported(), tiny_models.folder()):
        (heard,) = open_recogniser(folder, "cpu").recognise(tiny_models.sound(0), "en")
        assert heard.end == len(tiny_models.sound(0)) / RATE
    deaf = copytree(tiny_models.exported(), tmp_path / "deaf")
    config = json.loads((deaf / "processor_config.json").read_text())
    del config["placeholders"]["audio"]
    (deaf / "processor_config.json").write_text(json.dumps({**config, "audio": None}))
    export = json.loads((deaf / "export.json").read_text())
    for name in [name for name in export["parts"] if name.startswith("audio")]:
        (deaf / export["parts"].pop(name)["file"]).unlink()
    (deaf / "export.json").write_text(json.dumps(export))
    with pytest.raises(BadInput, match="deaf: has no ears; expected Whisper, or a model that hears"):
        open_recogniser(deaf)


@pytest.mark.parametrize("level", [0.0, 0.003, 0.1, 0.5])
def test_silence_and_noise_are_no_voice(level: float):
    wave = np.random.default_rng(1).normal(0, level, 10 * RATE).clip(-1, 1)
    assert voice_activity(wave.astype(np.float32)) == []


@pytest.mark.parametrize("frequency", [50, 110, 220, 440, 1000, 3000])
def test_a_pure_tone_is_no_voice(frequency: float):
    wave = 0.3 * np.sin(2 * np.pi * frequency * np.arange(10 * RATE) / RATE)
    assert voice_activity(wave.astype(np.float32)) == []


def test_a_folder_opens_with_what_runs_it():
    converted, original = open_recogniser(tiny_models.converted_whisper()), open_recogniser(str(tiny_models.whisper()))
    assert (type(converted).__name__, type(original).__name__) == ("FasterWhisper", "TransformersWhisper")
    assert set(converted.languages) == set(original.languages) == set(tiny_models.WHISPER_LANGUAGES)


def test_a_model_of_the_hub_is_known_by_its_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recogniser, "download", lambda name, patterns: tiny_models.converted_whisper())
    assert isinstance(open_recogniser("somebody/whisper"), FasterWhisper)


@pytest.mark.parametrize(
    ("offered", "wanted"),
    [
        (
            ["README.md", "config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "tf_model.h5"],
            ["config.json", "merges.txt", "model.safetensors"],
        ),
        (
            ["model.fp32-00001-of-00002.safetensors", "model.safetensors", "tokenizer.json"],
            ["model.safetensors", "tokenizer.json"],
        ),
        (["config.json", "model.bin", "vocabulary.txt"], ["config.json", "model.bin", "vocabulary.txt"]),
    ],
    ids=["transformers", "twice in it", "CTranslate2"],
)
def test_of_the_hub_only_one_kind_of_weights_is_downloaded(offered: list[str], wanted: list[str]):
    assert list(filter_repo_objects(offered, allow_patterns=list(HUB_FILES))) == wanted


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no/such/folder", "no such folder; expected one of Whisper, or a Hub id"),
        ("small", "no such folder"),
        ("owner/no-such-model", "not to be had from the Hub"),
        (str(Path(__file__)), "a file; expected the folder of a Whisper model"),
        (str(Path(__file__).parent), "no Whisper model; expected model.bin"),
    ],
)
def test_no_such_model_is_one_line(name: str, expected: str):
    with pytest.raises(BadInput, match=expected) as refusal:
        open_recogniser(name)
    assert "\n" not in str(refusal.value)
    assert "folder" in str(refusal.value) or name in str(refusal.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    for need in (lambda: voice_activity(np.zeros(RATE, np.float32)), lambda: FasterWhisper(Path("x"))):
        with pytest.raises(BadInput, match=r"faster_whisper is missing: pip install 'trisense\[speech\]'"):
            need()


def test_without_torch_the_other_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trisense.engines.whisper", None)
    with pytest.raises(BadInput, match=r"pip install 'trisense\[train\]', or give one converted for CTranslate2"):
        open_recogniser(tiny_models.whisper())


# faster-whisper; what it hears is compared with transformers in test_whisper.py


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A converted model to change."""
    return copytree(tiny_models.converted_whisper(), tmp_path / "whisper")


@pytest.mark.parametrize("file", ["model.bin", "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, file: str):
    (folder / file).unlink()
    with pytest.raises(BadInput, match=f"{file}: no such file"):
        FasterWhisper(folder)


def test_a_damaged_model_is_refused(folder: Path):
    (folder / "model.bin").write_bytes(b"not a model")
    with pytest.raises(BadInput, match="cannot be opened on cpu") as refusal:
        FasterWhisper(folder, "cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("device", ["quantum", "cpu:first"])
def test_no_such_device_is_one_line(device: str):
    with pytest.raises(BadInput, match=f"cannot be opened on {device}") as refusal:
        FasterWhisper(tiny_models.converted_whisper(), device)
    assert "\n" not in str(refusal.value)


def test_features_of_another_model_are_refused(folder: Path):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"feature_size": 128}))
    with pytest.raises(BadInput, match="feature_size is 128, or the file is missing, but the model reads 80"):
        FasterWhisper(folder)


def test_a_model_of_english_alone_takes_everything_for_english(folder: Path):
    path = folder / "vocabulary.json"
    path.write_text(json.dumps([token or "Ġno" for token in json.loads(path.read_text())]))
    english = FasterWhisper(folder)
    assert english.languages == ("en",)
    assert english.detect_language(tiny_models.sound(0, 2.0)) == "en"


def test_what_is_likely_silence_is_not_written(monkeypatch: pytest.MonkeyPatch):
    """Whisper's own rule, here with thresholds that everything passes."""
    whisper, wave = FasterWhisper(tiny_models.converted_whisper()), tiny_models.sound(0, 2.0)
    heard = whisper.recognise(wave, "en")
    assert heard
    assert all(isinstance(segment, Segment) for segment in heard)
    monkeypatch.setattr(recogniser, "NO_SPEECH_THRESHOLD", -1.0)
    monkeypatch.setattr(recogniser, "LOGPROB_THRESHOLD", 0.0)
    assert whisper.recognise(wave, "en") == []
