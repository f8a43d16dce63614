"""`TrisenseConfig`: the language model, an encoder per sense, and how the features of each reach the language model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from trisense.errors import BadInput

Select = Literal["patches", "all", "pooled", "projected"]
Kind = Literal["linear", "residual", "norm-mlp", "mlp", "naming"]

# The config of a sense's encoder stands where transformers' own multimodal models keep it.
ENCODER_CONFIG = {"image": "vision_config", "audio": "audio_config"}


@dataclass(frozen=True)
class SenseOptions:
    """Which features of an encoder a sense takes, and the projector that carries them to the language model.

    layer: the hidden state to take, counted as in `hidden_states` (-1: the encoder's own last output).
    select: `all` tokens; of a picture also `patches` (the first token, CLS, dropped), `pooled` (one vector, before any
        projection) or `projected` (one vector, after CLIP's own projection).
    width: the features' width.
    projector: `linear`, `residual` (linear, then the LLaVA-1.5 residual block of `jnana`), `norm-mlp` (`eden`, `ft35`),
        `mlp` (LLaVA-1.5) or `naming` (`spark`: the words of what is recognised).
    classes: for `naming`: how many classes each group of them has, of which one holds.
    summary: picture only: so many vectors about all of it follow those of its places, for
    names: so many names that it may have.
    time_first: the audio encoder takes [B, frames, mel bins] with a mask (Parakeet) instead of Whisper's
        [B, mel bins, frames].
    frames_per_token: audio only: log-mel frames that become one feature vector.
    stack: audio only: so many vectors of the encoder are joined to one, `width` wide altogether (Ultravox).
    """

    width: int
    layer: int = -1
    select: Select = "all"
    projector: Kind = "mlp"
    time_first: bool = False
    frames_per_token: int = 2
    stack: int = 1
    classes: tuple[int, ...] = ()
    summary: int = 0
    names: int = 0

    @classmethod
    def parse(cls, sense: str, values: Any) -> SenseOptions:
        """From a config's plain dict; what does not fit is a `BadInput` that names it."""
        if not isinstance(values, dict):
            raise BadInput(f"senses.{sense}: {values!r}; expected a mapping of options")
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise BadInput(f"senses.{sense}: unknown key {min(unknown)!r}; expected {', '.join(sorted(known))}")
        if "width" not in values:
            raise BadInput(f"senses.{sense}: the key 'width' (the features' width) is missing")
        options = cls(**{**values, "classes": tuple(values.get("classes") or ())})
        for key, choices in (
            ("select", get_args(Select)),
            ("projector", get_args(Kind)),
            ("time_first", (False, True)),
        ):
            if (value := getattr(options, key)) not in choices:
                raise BadInput(f"senses.{sense}.{key}: {value!r} is unknown; expected {', '.join(map(str, choices))}")
        for key, least in (
            ("width", 1),
            ("frames_per_token", 1),
            ("stack", 1),
            ("summary", 0),
            ("names", 0),
            ("layer", None),
        ):
            value = getattr(options, key)
            if type(value) is not int or (least is not None and value < least):
                raise BadInput(f"senses.{sense}.{key}: {value!r}; expected a whole number{' above 0' if least else ''}")
        if (options.projector == "naming") != bool(options.classes) or not all(
            type(one) is int and one > 0 for one in options.classes
        ):
            raise BadInput(
                f"senses.{sense}.classes: {list(options.classes)}; expected the sizes of the groups of classes for the "
                f"projector 'naming', and none for others"
            )
        if bool(options.summary) != bool(options.names):
            raise BadInput(f"senses.{sense}.names: {options.names}; a summary has names, and names have a summary")
        if options.summary and (sense != "image" or options.select != "all"):
            raise BadInput(f"senses.{sense}.summary: {options.summary}; only a picture with select: all has a summary")
        if options.layer != -1 and options.select in ("pooled", "projected"):
            raise BadInput(
                f"senses.{sense}.layer: {options.layer}, but {options.select!r} is of no layer; leave it out"
            )
        if options.stack > 1 and (sense != "audio" or options.frames_per_token % options.stack):
            raise BadInput(
                f"senses.{sense}.stack: {options.stack}; only vectors of sound are joined, and frames_per_token "
                f"({options.frames_per_token}) counts the frames of all of them"
            )
        if sense == "audio" and options.select != "all":
            raise BadInput(f"senses.audio.select: {options.select!r} is for pictures; expected 'all'")
        return options

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
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig, "audio_config": AutoConfig}  # pyright: ignore

    text_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    senses: dict | None = None
    placeholders: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # transformers makes a config without arguments to learn its defaults.
        self.text_config = sub_config("text_config", self.text_config or {"model_type": "llama"})
        self.vision_config = sub_config("vision_config", self.vision_config)
        self.audio_config = sub_config("audio_config", self.audio_config)
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
            if sense not in ENCODER_CONFIG:
                raise BadInput(f"senses.{sense}: no such sense; expected {' or '.join(ENCODER_CONFIG)}")
            if self.encoder_config(sense) is None:
                raise BadInput(f"senses.{sense}: no encoder; {ENCODER_CONFIG[sense]} is missing")
            self.options(sense)
            token = self.placeholders.get(sense)
            if type(token) is not int or not 0 <= token < vocabulary:
                raise BadInput(f"placeholders.{sense}: {token!r} is not a row of the {vocabulary} embeddings")
        if len(set(self.placeholders.values())) < len(self.placeholders):
            raise BadInput(f"placeholders: two senses share one token in {self.placeholders}")

    def options(self, sense: str) -> SenseOptions:
        """The typed options of one sense."""
        return SenseOptions.parse(sense, (self.senses or {})[sense])

    def encoder_config(self, sense: str) -> PreTrainedConfig:
        return getattr(self, ENCODER_CONFIG[sense])


def sub_config(name: str, config: Any) -> Any:
    """A config of transformers from its plain dict, as the class its `model_type` names; a config or None as it is.

    Raises BadInput, naming `name`, for a `model_type` that is missing or unknown.
    """
    if not isinstance(config, dict):
        return config
    values = dict(config)
    kind = values.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise BadInput(f"{name}: model_type {kind!r} is not one that transformers knows")
    return AutoConfig.for_model(kind, **values)
