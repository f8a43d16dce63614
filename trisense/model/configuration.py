"""`TrisenseConfig`: the language model, an encoder per sense, and how each sense's features reach the language model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from trisense.errors import BadInput

Select = Literal["patches", "all", "pooled", "projected"]
Kind = Literal["linear", "residual", "norm-mlp", "mlp"]

# The config of a sense's encoder stands where transformers' own multimodal models keep it.
ENCODER_CONFIG = {"image": "vision_config", "audio": "audio_config"}


@dataclass(frozen=True)
class SenseOptions:
    """Which features of an encoder a sense takes, and the projector that carries them to the language model.

    layer: the hidden state to take, counted as in `hidden_states` (-1: the encoder's own last output).
    select: `all` tokens; `patches` (the first token, CLS, dropped); `pooled` (one vector, before any projection);
        `projected` (one vector, after CLIP's own projection).
    width: the features' width.
    projector: `linear`, `residual` (linear, then the LLaVA-1.5 residual block of `jnana`), `norm-mlp` (`eden`, `ft35`)
        or `mlp` (LLaVA-1.5).
    time_first: the audio encoder takes [B, frames, mel bins] with a mask (Parakeet) instead of Whisper's
        [B, mel bins, frames].
    frames_per_token: audio only: log-mel frames that become one feature vector.
    """

    width: int
    layer: int = -1
    select: Select = "all"
    projector: Kind = "mlp"
    time_first: bool = False
    frames_per_token: int = 2

    @classmethod
    def parse(cls, sense: str, values: dict[str, Any]) -> SenseOptions:
        """From a config's plain dict; an unknown or missing key is a `BadInput` that names it."""
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise BadInput(f"senses.{sense}: unknown key {min(unknown)!r}; expected {', '.join(sorted(known))}")
        if "width" not in values:
            raise BadInput(f"senses.{sense}: the key 'width' (the features' width) is missing")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class TrisenseConfig(PreTrainedConfig):
    """Configuration of `TrisenseForConditionalGeneration`.

    text_config: any causal language model of transformers; vision_config, audio_config: any encoder, or None for a
    model without that sense. `senses` maps `image` and `audio` to the options of `SenseOptions` as plain dicts, and
    `placeholders` maps them to the token id whose embedding is replaced, one feature vector each. The ids may lie in
    the rows by which a language model's embedding exceeds its tokenizer (Phi-2, Phi-3.5).
    """

    model_type = "trisense"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig, "audio_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    audio_config: dict | PreTrainedConfig | None = None
    senses: dict | None = None
    placeholders: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.text_config = _typed(self.text_config) or AutoConfig.for_model("llama")
        self.vision_config = _typed(self.vision_config)
        self.audio_config = _typed(self.audio_config)
        self.senses = self.senses or {}
        self.placeholders = self.placeholders or {}
        # What generate() and the caches ask of the outer config is the language model's own.
        self.tie_word_embeddings = bool(self.text_config.tie_word_embeddings)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self.text_config, name, None)
        super().__post_init__(**kwargs)
        vocabulary = self.text_config.vocab_size
        for sense in self.senses:
            if getattr(self, ENCODER_CONFIG.get(sense, ""), None) is None:
                raise BadInput(f"senses.{sense}: no encoder; expected {ENCODER_CONFIG.get(sense, 'image or audio')}")
            token = self.placeholders.get(sense)
            if token is None or not 0 <= token < vocabulary:
                raise BadInput(f"placeholders.{sense}: {token!r} is not a row of the {vocabulary} embeddings")

    def options(self, sense: str) -> SenseOptions:
        """The typed options of one sense."""
        return SenseOptions.parse(sense, (self.senses or {})[sense])

    def encoder_config(self, sense: str) -> PreTrainedConfig:
        return getattr(self, ENCODER_CONFIG[sense])


def _typed(config: dict | PreTrainedConfig | None) -> PreTrainedConfig | None:
    """A sub-config read back from json, as the class its `model_type` names."""
    if isinstance(config, dict):
        values = dict(config)
        return AutoConfig.for_model(values.pop("model_type"), **values)
    return config
