"""Whisper as transformers runs it: the recogniser for a folder of its weights, and the one of any device of torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from trisense.engines.recogniser import LOGPROB_THRESHOLD, NO_SPEECH_THRESHOLD, SAMPLING_RATE, Segment
from trisense.errors import BadInput
from trisense.model.checkpoint import first_line, open_device, quiet


class TransformersWhisper:
    """A `Recogniser` over `WhisperForConditionalGeneration`: the likeliest token each time, windows on their own.

    On a CPU in float32, on other devices in the checkpoint's own dtype. Raises BadInput for a folder of another model,
    and for one whose files are missing or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], device: str | None = None) -> None:
        folder = Path(folder)
        self.device = open_device(device)
        self._check(folder)
        with quiet():
            try:
                self._processor: Any = WhisperProcessor.from_pretrained(folder, local_files_only=True)
                loaded: Any = WhisperForConditionalGeneration.from_pretrained(
                    folder,
                    dtype=torch.float32 if self.device.type == "cpu" else "auto",
                    local_files_only=True,
                    output_loading_info=True,
                )
            except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
                raise BadInput(f"{folder}: cannot be loaded as Whisper ({first_line(error)}); get it again") from None
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise BadInput(f"{folder}: the weights lack {missing[0]} ({len(missing)} such); get the folder again")
        self.model = model.to(self.device).eval()
        if getattr(self.model.generation_config, "no_timestamps_token_id", None) is None:
            path = folder / "generation_config.json"
            raise BadInput(f"{path}: lacks no_timestamps_token_id, so there are no times; copy the published file")
        if self._processor.tokenizer.eos_token_id != self.model.generation_config.eos_token_id:
            raise BadInput(f"{folder}: tokenizer.json is missing or of another model; get the folder again")
        # <|en|> -> its id; models of English alone have none.
        self._languages: dict[str, int] = getattr(self.model.generation_config, "lang_to_id", None) or {}

    @staticmethod
    def _check(folder: Path) -> None:
        path = folder / "config.json"
        try:
            kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        except (OSError, ValueError, AttributeError):
            raise BadInput(f"{path}: no config of a model; expected the folder of a Whisper model") from None
        if kind != "whisper":
            raise BadInput(f"{path}: model_type is {kind!r}; expected 'whisper'")

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(token.strip("<|>") for token in self._languages) or ("en",)

    def detect_language(self, wave: np.ndarray) -> str:
        if not self._languages:
            return "en"
        with torch.inference_mode():
            found = self.model.detect_language(self._features(wave, padding="max_length")).item()
        return next(token.strip("<|>") for token, id in self._languages.items() if id == found)

    def recognise(self, wave: np.ndarray, language: str) -> list[Segment]:
        spoken = {"language": f"<|{language}|>", "task": "transcribe"} if self._languages else {}
        with quiet(), torch.inference_mode():
            out = self.model.generate(
                # Frames of the sound alone, so that nothing is looked for in the silence that fills the 30 s.
                self._features(wave, padding="longest"),
                return_timestamps=True,
                return_segments=True,
                temperature=0.0,
                no_speech_threshold=NO_SPEECH_THRESHOLD,
                logprob_threshold=LOGPROB_THRESHOLD,
                max_new_tokens=self.model.config.max_target_positions // 2,  # as Whisper's authors decode
                **spoken,
            )
        return [Segment(self._text(s["tokens"]), float(s["start"]), float(s["end"])) for s in out["segments"][0]]

    def _features(self, wave: np.ndarray, padding: str) -> torch.Tensor:
        """Log-mel features [1, M, F]: of 30 s (`max_length`), or of the sound's own length (`longest`)."""
        features = self._processor.feature_extractor(
            wave, sampling_rate=SAMPLING_RATE, padding=padding, truncation=False, return_tensors="pt"
        ).input_features
        return features.to(self.device, self.model.dtype)

    def _text(self, tokens: torch.Tensor) -> str:
        words = tokens[tokens < self.model.generation_config.eos_token_id]  # times and control tokens lie above
        return self._processor.tokenizer.decode(words.tolist(), clean_up_tokenization_spaces=False)
