"""Who hears words in a sound, and where in it anybody speaks. `open_recogniser` finds the recogniser for a model.

All of it runs without torch: faster-whisper computes Whisper (Radford et al., 2022, arXiv:2212.04356) with CTranslate2
and brings Silero's detector of voices along; both come with the extra `speech`. Only a folder of transformers' Whisper
needs the heavy wing, `engines/whisper.py`.

Letters: T samples of a sound, one channel at 16 kHz, float32 in [-1, 1].
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from trisense.chat import Conversation
from trisense.engines import HUB_ID, open_engine
from trisense.engines.hub import download
from trisense.errors import BadInput

SAMPLING_RATE = 16_000
# Whisper reads this many seconds at once.
MAX_SECONDS = 30.0
# Whisper's own second look at silence, with its paper's numbers: a stretch is skipped when the token for no speech is
# likelier than the first and the mean log-probability of what it would write is below the second.
NO_SPEECH_THRESHOLD = 0.6
LOGPROB_THRESHOLD = -1.0
# Of what a model that is asked may write about one sound.
MAX_WORDS = 128
HUB_FILES = ("*.json", "*.txt", "model.bin", "model.safetensors", "model-*.safetensors")


@dataclass(frozen=True)
class Segment:
    """Something said from `start` to `end`, in seconds."""

    text: str
    start: float
    end: float


class Recogniser(Protocol):
    """Hears words in at most `MAX_SECONDS` of sound [T], and in at least a tenth of a second."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes of the languages it knows, such as `en`."""
        ...

    def detect_language(self, wave: np.ndarray) -> str:
        """The likeliest of `languages`."""
        ...

    def recognise(self, wave: np.ndarray, language: str) -> list[Segment]:
        """What is said, in order, in seconds from the beginning of `wave`.

        Texts keep the white space they begin with where the language writes any: joined as they are, they read on.
        Whisper writes times up to its 30 s whatever the length of the sound.
        """
        ...


def voice_activity(wave: np.ndarray) -> list[tuple[int, int]]:
    """Where anybody speaks in a sound [T] of any length: from and to which sample, in order and apart.

    By Silero VAD, a small network in faster-whisper's wheel. Pauses below half a second are inside a stretch, and each
    stretch is 0.2 s longer at both ends than what was found, since words begin and end softly. Raises BadInput without
    the extra `speech`.
    """
    _faster_whisper()
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(min_speech_duration_ms=100, min_silence_duration_ms=500, speech_pad_ms=200)
    found = get_speech_timestamps(wave, options, sampling_rate=SAMPLING_RATE)
    return [(int(stretch["start"]), int(stretch["end"])) for stretch in found]


class FasterWhisper:
    """A Whisper model converted for CTranslate2, a `Recogniser`: the likeliest token each time, windows on their own.

    The folder holds model.bin, config.json, tokenizer.json, and vocabulary and preprocessor_config.json as converted.
    device: None for a GPU where there is one, or `cpu`, `cuda`, `cuda:1`. compute_type: one of CTranslate2's; None for
    int8 on a CPU, elsewhere as the model was saved.
    """

    def __init__(
        self, folder: str | os.PathLike[str], device: str | None = None, compute_type: str | None = None
    ) -> None:
        library = _faster_whisper()
        from ctranslate2 import get_cuda_device_count

        folder = Path(folder)
        for file in ("model.bin", "config.json", "tokenizer.json"):
            if not (folder / file).is_file():  # faster-whisper would look for a tokenizer on the Hub
                raise BadInput(f"{folder / file}: no such file; expected a folder of Whisper converted for CTranslate2")
        if device is None or device == "auto":
            device = "cuda" if get_cuda_device_count() else "cpu"
        kind, _, index = device.partition(":")
        try:
            self._model = library.WhisperModel(
                str(folder),
                device=kind,
                device_index=int(index or 0),
                compute_type=compute_type or ("int8" if kind == "cpu" else "default"),
            )
        except Exception as error:  # CTranslate2 and tokenizers raise many kinds, the plain one too
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BadInput(
                f"{folder}: cannot be opened on {device} ({reason}); expected Whisper converted for CTranslate2"
            ) from None
        wanted, made = self._model.model.n_mels, len(self._model.feature_extractor.mel_filters)
        if wanted != made:
            raise BadInput(
                f"{folder / 'preprocessor_config.json'}: feature_size is {made}, or the file is missing, but the model "
                f"reads {wanted} mel bins; copy that file from the model that was converted"
            )

    @property
    def languages(self) -> tuple[str, ...]:
        if not self._model.model.is_multilingual:
            return ("en",)
        token = self._model.hf_tokenizer.token_to_id
        return tuple(code for code in self._model.supported_languages if token(f"<|{code}|>") is not None)

    def detect_language(self, wave: np.ndarray) -> str:
        if not self._model.model.is_multilingual:
            return "en"
        # faster-whisper fills up with features of nothing, which no sound has; Whisper learned on silence.
        rest = max(0, round(MAX_SECONDS * SAMPLING_RATE) - len(wave))
        return self._model.detect_language(np.pad(wave, (0, rest)))[0]

    def recognise(self, wave: np.ndarray, language: str) -> list[Segment]:
        segments, _ = self._model.transcribe(
            wave,
            language=language,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            no_speech_threshold=NO_SPEECH_THRESHOLD,
            log_prob_threshold=LOGPROB_THRESHOLD,
        )
        return [Segment(segment.text, segment.start, segment.end) for segment in segments]


class AskedModel:
    """A model of this package with ears, asked what is said: a `Recogniser` of the one language that it knows.

    It says no times, so what it hears is one segment, as long as the sound. `spark` writes down its own small world
    with it, which is how recipes that read transcripts are trained and compared on spark's parts.
    """

    languages = ("en",)
    question = "What does the speaker say?"

    def __init__(self, model: str | os.PathLike[str], device: str | None = None) -> None:
        """Raises BadInput when there is no such model, or it has no ears."""
        self._engine = open_engine(model, device)
        if not self._engine.hears:
            raise BadInput(f"{os.fspath(model)}: has no ears; expected Whisper, or a model that hears")

    def detect_language(self, wave: np.ndarray) -> str:
        return "en"

    def recognise(self, wave: np.ndarray, language: str) -> list[Segment]:
        prompt = self._engine.processor.prompt(Conversation.ask(self.question, audios=[wave]))
        ids = list(self._engine.stream(self._engine.prefill(prompt), max_new_tokens=MAX_WORDS))
        return [Segment(self._engine.processor.tokenizer.decode(ids).strip(), 0.0, len(wave) / SAMPLING_RATE)]


def open_recogniser(model: str | os.PathLike[str], device: str | None = None) -> Recogniser:
    """The recogniser for a folder of Whisper, for a Hub id, which is downloaded first, or for `spark`; its files say
    which.

    With model.bin, as CTranslate2 converts it, faster-whisper (the extra `speech`); else transformers (`train`).
    device: None for a GPU where there is one, or `cpu`, `cuda`, ... Raises BadInput when there is no such model, the
    folder is not a whole one, or the package that runs it is missing.
    """
    name = os.fspath(model)
    folder = Path(name)
    if name == "spark" or _ours(folder / "config.json"):
        return AskedModel(name, device)
    if not folder.is_dir():
        if folder.exists():
            raise BadInput(f"{name}: a file; expected the folder of a Whisper model")
        if not HUB_ID.fullmatch(name) or name.startswith("."):
            raise BadInput(f"{name}: no such folder; expected one of Whisper, or a Hub id such as openai/whisper-small")
        folder = download(name, HUB_FILES)
    if (folder / "model.bin").is_file():
        return FasterWhisper(folder, device)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no Whisper model; expected model.bin (CTranslate2) or config.json and weights")
    try:
        from trisense.engines.whisper import TransformersWhisper
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{name}: this Whisper needs {error.name}: pip install 'trisense[train]', or give one converted for "
            "CTranslate2, which is lighter"
        ) from None
    return TransformersWhisper(folder, device)


def _ours(config: Path) -> bool:
    """Whether a config says that its model, exported or not, is one of this package."""
    try:
        return json.loads(config.read_bytes())["model_type"] == "trisense"
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _faster_whisper() -> ModuleType:
    try:
        import faster_whisper
    except ModuleNotFoundError as error:
        raise BadInput(f"speech: package {error.name} is missing: pip install 'trisense[speech]'") from None
    return faster_whisper
