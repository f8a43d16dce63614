"""Recipes: what a model is made of and how it is trained, as data.

Typed models are the truth and carry the defaults; a recipe file holds differences only; `key=value` flags override it;
an unknown key is an error that suggests the right one.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from trisense.chat import Layout
from trisense.errors import BadInput
from trisense.preprocess import AudioProcessor, ImageProcessor
from trisense.stage import STAGES, AnyStage, Optimizer, Options, Positive, Rate, Share


class Adapter(Options):
    """LoRA (Hu et al. 2021, arXiv:2106.09685): matrices of rank `r`, scaled by `alpha / r`, beside every linear layer
    of the language model whose name ends with one of `targets`."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    r: Positive = 64
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Quantisation(Options):
    """How the frozen language model is kept: its linear layers, the head aside, as 4-bit NormalFloat in blocks of 64
    (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), multiplied in `compute`."""

    weights: Literal["nf4"] = "nf4"
    compute: Literal["float16", "bfloat16", "float32"] = "bfloat16"


class Design(Options):
    """What the model is made of.

    text, vision, audio: configurations of transformers as plain dicts with `model_type`, for a part that begins from
    nothing; or `pretrained`, the Hub id or the folder of one that does not. senses: for `image` and `audio` the options
    of `trisense.model.configuration.SenseOptions`. placeholders: per sense the token that stands for one feature
    vector, or the number of a spare row of a pretrained language model's embeddings. vocabulary: size of a tokenizer
    trained for this model. adapter, quantisation: of a pretrained language model; None for none.
    """

    text: dict[str, Any]
    vision: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    senses: dict[Literal["image", "audio"], dict[str, Any]] = {}
    placeholders: dict[Literal["image", "audio"], str | int] = {}
    layout: Layout = Layout()
    pictures: ImageProcessor | None = None
    sounds: AudioProcessor | None = None
    vocabulary: Positive = 1024
    adapter: Adapter | None = None
    quantisation: Quantisation | None = None


class Ears(Options):
    """What a recipe hears with under `audio: embed`, where its design has no ears of its own.

    audio, sense, sounds: what goes into the design's `audio`, `senses.audio` and `sounds`. placeholder: its
    `placeholders.audio`; None for the row before that of pictures. As it stands, Whisper small's encoder with eight of
    its vectors joined to one (as Ultravox does), so that its 30 seconds are 188 places of a prompt and not 1,500.
    """

    audio: dict[str, Any] = {"pretrained": "openai/whisper-small"}
    sense: dict[str, Any] = {"width": 8 * 768, "stack": 8, "frames_per_token": 16, "projector": "norm-mlp"}
    sounds: AudioProcessor = AudioProcessor(frames_per_token=16)
    placeholder: str | int | None = None


class World(Options):
    """How many pictures and utterances of the small world are drawn and spoken before training."""

    pictures: Positive = 60_000
    utterances: Positive = 30_000


class Real(Options):
    """What is made of a pack of real data. sentences: of its texts, spoken for `hear`. samples: questions that `read`
    and `answer` learn from, drawn once, so that the features of their media can be computed once."""

    sentences: Annotated[int, Field(ge=0)] = 12_000
    samples: Positive = 40_000


class Speech(Options):
    """Who writes down what is said, for a model without ears: a Hub id or a folder of Whisper. first_seconds: only the
    beginning of a sound is listened to (`tinyclip-phi2`)."""

    pretrained: str = "openai/whisper-small"
    first_seconds: Rate | None = None


class Answering(Options):
    """How a trained model of this recipe is asked.

    describe: what it is asked about a picture that comes without a question, and in the first of two passes. passes: 2
    lets the adapter describe the pictures, and the language model as it was, the adapter off, answer from that
    description with what was written (`ft35`, `eden`). clean: answers lose punctuation, surplus spaces and what they
    repeat of the question (`ft35`, `eden`). speech: None where sounds go through an encoder of the design.
    """

    describe: str = "Please describe this image."
    passes: Literal[1, 2] = 1
    clean: bool = False
    speech: Speech | None = None


class Recipe(Options):
    """A design, how it is asked, and the stages that train it.

    audio: `transcript` for a design without ears, to which Whisper writes down what is said (`answering.speech`), or
    `embed` for one whose sounds go through an encoder and a projector, as pictures do; `embed` gives a design without
    ears those of `ears`. Default: as the design is. budget: shares of the stages in a time that a whole run is given;
    what is left is for everything else.
    """

    name: str
    description: str = ""
    design: Design
    audio: Literal["transcript", "embed"] = "transcript"
    ears: Ears = Ears()
    answering: Answering = Answering()
    world: World = World()
    real: Real = Real()
    budget: dict[str, Share] = {}
    stages: dict[str, AnyStage] = {}

    @model_validator(mode="before")
    @classmethod
    def _hearing(cls, values: Any) -> Any:
        design = values.get("design") if isinstance(values, dict) else None
        senses = design.get("senses", {}) if isinstance(design, dict) else None
        if not isinstance(senses, dict) or not isinstance(design, dict):
            return values  # what is wrong with it is said where it is read
        if "audio" in senses:
            if values.get("audio") == "transcript":
                raise ValueError("audio: transcript, but design.senses.audio has ears; leave one of them out")
            return {**values, "audio": "embed"}
        given, placeholders = values.get("ears", {}), design.get("placeholders", {})
        if not isinstance(given, dict) or not isinstance(placeholders, dict):
            return values
        ears = _merged(Ears().model_dump(mode="json"), given)
        values = {**values, "ears": ears}
        if values.get("audio") != "embed":
            return values
        token = ears["placeholder"]
        if token is None and isinstance(row := placeholders.get("image"), int):
            token = row - 1
        design = {
            **design,
            "audio": ears["audio"],
            "senses": {**senses, "audio": ears["sense"]},
            "sounds": ears["sounds"],
            "placeholders": {**placeholders, "audio": token},
        }
        return {**values, "design": design}

    @field_validator("stages", mode="before")
    @classmethod
    def _left_out(cls, stages: Any) -> Any:
        """`stages.read=null` leaves a stage of a packaged recipe out."""
        return (
            {name: stage for name, stage in stages.items() if stage is not None} if isinstance(stages, dict) else stages
        )

    @property
    def optimizer(self) -> Optimizer:
        """That of its stages which takes the most memory."""
        light = self.stages and all(stage.optimizer == "adamw8bit" for stage in self.stages.values())
        return "adamw8bit" if light else "adamw"


def names() -> list[str]:
    """The recipes inside the package; a name such as `eden@spark` is that of a twin, on parts of another recipe."""
    found = (entry.name for entry in files("trisense.recipes").iterdir())
    return sorted(name[:-5] for name in found if name.endswith(".yaml") and not name.startswith("_"))


def read(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, or by the path of a .yaml file, with `key.key=value` overrides (values are YAML).

    A file may begin with others, `base: NAME` or a list of names and of paths beside it, and hold only what differs:
    mappings are merged, everything else is replaced. Raises BadInput for an unknown recipe or key, with a suggestion,
    and for a value of the wrong type.
    """
    values = _values(recipe)
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"recipe {recipe}: {_explain(error)}") from None


def _values(recipe: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a recipe and those it begins with hold; `above`: those that begin with this one."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BadInput(f"{path}: no such recipe file; packaged recipes are {', '.join(names())}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{path}: not UTF-8 text; expected a recipe in YAML") from None
    elif str(recipe) in names() or (above and f"{recipe}.yaml" in _fragments()):
        text = (files("trisense.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        known = names()
        raise BadInput(f"recipe {str(recipe)!r} is unknown{_suggest(str(recipe), known)}; packaged: {', '.join(known)}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{recipe}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise BadInput(f"{recipe}: expected a mapping of recipe keys")
    bases = values.pop("base", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise BadInput(f"{recipe}: base: got {base!r}; expected the name of a recipe or the path of one")
        begins = str(path.parent / base) if base.endswith((".yaml", ".yml")) else base
        chain = (*above, str(recipe))
        if begins in chain:
            raise BadInput(
                f"{recipe}: base: {' begins with '.join([*chain, begins])}; a recipe cannot begin with itself"
            )
        merged = _merged(merged, _values(begins, chain))
    return _merged(merged, values)


def _fragments() -> set[str]:
    """Files of the package that are no recipes of their own: what several of them have in common."""
    return {entry.name for entry in files("trisense.recipes").iterdir() if entry.name.startswith("_")}


def _merged(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `values` holds in its place; mappings under one key are merged."""
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise BadInput(f"{override!r}: expected key=value, such as stages.answer.lr=1e-4")
    *path, last = key.split(".")
    stages = values.get("stages")
    if path[:1] == ["stages"] and len(path) > 1 and isinstance(stages, dict) and path[1] not in stages:
        known = ", ".join(map(str, stages))
        raise BadInput(f"{override!r}: there is no stage {path[1]!r}{_suggest(path[1], stages)}; stages: {known}")
    for step in path:
        values = values.setdefault(step, {})
        if not isinstance(values, dict):
            raise BadInput(f"{override!r}: {step!r} holds a value, not keys")
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise BadInput(f"{override!r}: the value is not YAML; quote it") from None
    if isinstance(values[last], str):  # YAML 1.1 reads 1e-4 as a string
        with suppress(ValueError):
            values[last] = float(values[last])


def _suggest(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    # Below a stage pydantic names the kind of stage that it tried, which is no key of the recipe.
    steps = [step for place, step in enumerate(first["loc"]) if place != 2 or first["loc"][0] != "stages"]
    where = ".".join(str(step) for step in steps)
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "union_tag_not_found":
        return f"{where}.learns is missing; one of {', '.join(STAGES)}"
    if first["type"] == "union_tag_invalid":
        wrong = first["ctx"]["tag"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        return f"{where}.learns: got {wrong!r}{_suggest(wrong, STAGES)}; expected one of {', '.join(STAGES)}"
    if not where:
        return first["msg"].removeprefix("Value error, ")
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}, got {reprlib.repr(first['input'])}"
    return f"unknown key {where!r}{_suggest(str(steps[-1]), _keys(first['loc'][:-1]))}"


def _keys(path: tuple[int | str, ...]) -> Iterable[str]:
    """The keys that are known where a path of pydantic's leads."""
    model: Any = Recipe
    for place, step in enumerate(path):
        if place == 2 and path[0] == "stages":
            model = STAGES[str(step)]
            continue
        fields = getattr(model, "model_fields", {})
        annotation = fields[step].annotation if step in fields else model
        inner = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if hasattr(kind, "model_fields")]
        model = inner[0] if inner else model
    return getattr(model, "model_fields", {})
