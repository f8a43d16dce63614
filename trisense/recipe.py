"""Recipes: what a model is made of and how it is trained, as data.

Typed models are the truth and carry the defaults; a recipe file holds differences only; `key=value` flags override it;
an unknown key is an error that suggests the right one.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from trisense.chat import Layout
from trisense.errors import BadInput
from trisense.preprocess import AudioProcessor, ImageProcessor

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Design(_Options):
    """What the model is made of.

    text, vision, audio: configurations of transformers as plain dicts with `model_type`. senses: for `image` and
    `audio` the options of `trisense.model.configuration.SenseOptions`. placeholders: per sense the token that stands
    for one feature vector. vocabulary: size of a tokenizer trained for this model.
    """

    text: dict[str, Any]
    vision: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    senses: dict[Literal["image", "audio"], dict[str, Any]] = {}
    placeholders: dict[Literal["image", "audio"], str] = {}
    layout: Layout = Layout()
    pictures: ImageProcessor | None = None
    sounds: AudioProcessor | None = None
    vocabulary: Positive = 1024


class World(_Options):
    """How many pictures and utterances of the small world are drawn and spoken before training."""

    pictures: Positive = 60_000
    utterances: Positive = 30_000


class Contexts(_Options):
    """The contexts that a language model learns from, and the questions about them; both are made as they are needed.

    present: chance of each sense to be part of a context. senses: a context has at most so many. turns: questions asked
    about one context. follow_up: chance that a question continues the conversation of the one before it; otherwise it
    is asked alone. joined: whether a context is drawn again (ten times at most) until a question that joins all its
    senses fits it. steps: whether answers that take a step between say it.
    """

    present: dict[Literal["image", "audio", "text"], float] = {"image": 0.85, "audio": 0.75, "text": 0.7}
    senses: Annotated[int, Field(ge=1, le=3)] = 3
    joined: bool = False
    steps: bool = True
    turns: Positive = 8
    follow_up: Annotated[float, Field(ge=0, le=1)] = 0.2


class Stage(_Options):
    """One stage of training. `learns` says what: `see` and `hear` warm an encoder up, `read` trains the language model
    on media written in words, `align` teaches the projectors these words, `answer` trains the language model on what
    frozen encoders and projectors make of the media. contexts: of `read` and `answer`; None for the defaults."""

    learns: Literal["see", "hear", "read", "align", "answer"]
    steps: Positive
    batch_size: Positive = 32
    accumulate: Positive = 1
    lr: Rate = 1e-3
    warmup_steps: int = 200
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.01
    clip: Rate = 1.0
    precision: Literal["float32", "bf16"] = "float32"
    log_every: Positive = 50
    evaluate_every: Positive = 500
    save_every: Positive = 500
    contexts: Contexts | None = None

    @field_validator("contexts")
    @classmethod
    def _only_where_asked(cls, contexts: Contexts | None, info: ValidationInfo) -> Contexts | None:
        if contexts and info.data.get("learns") not in ("read", "answer"):
            raise ValueError("is for stages that learn to read or answer; leave it out")
        return contexts


class Recipe(_Options):
    name: str
    description: str = ""
    design: Design
    world: World = World()
    stages: dict[str, Stage]


def names() -> list[str]:
    """The recipes inside the package."""
    return sorted(entry.name[:-5] for entry in files("trisense.recipes").iterdir() if entry.name.endswith(".yaml"))


def read(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name, or by the path of a .yaml file, with `key.key=value` overrides (values are YAML).

    Raises BadInput for an unknown recipe or key, with a suggestion, and for a value of the wrong type.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise BadInput(f"{path}: no such recipe file; packaged recipes are {', '.join(names())}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{path}: not UTF-8 text; expected a recipe in YAML") from None
    elif str(recipe) in names():
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
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise BadInput(f"recipe {recipe}: {_explain(error)}") from None


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
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] != "extra_forbidden":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}, got {reprlib.repr(first['input'])}"
    model: Any = Recipe
    for step in first["loc"][:-1]:
        fields = getattr(model, "model_fields", {})
        annotation = fields[step].annotation if step in fields else model
        inner = [kind for kind in (annotation, *getattr(annotation, "__args__", ())) if hasattr(kind, "model_fields")]
        model = inner[0] if inner else model
    return f"unknown key {where!r}{_suggest(str(first['loc'][-1]), getattr(model, 'model_fields', {}))}"
