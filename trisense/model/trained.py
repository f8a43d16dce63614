"""What a stage with pretrained parts has trained, saved apart from them: projectors and adapter, with their recipe.

FOLDER/recipe.json                    the resolved recipe, and after which stage
FOLDER/projector/image.safetensors
FOLDER/adapter/                       as peft writes it
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trisense.chat import bad_input
from trisense.errors import BadInput
from trisense.model.checkpoint import quiet
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Design, Recipe

RECIPE_FILE = "recipe.json"
# What trained parts only fit if it is the same; `layout` is not among them, since stages may have layouts of their own.
FITTING = ("vision", "senses", "text", "placeholders", "pictures")


def save_trained(model: TrisenseForConditionalGeneration, recipe: Recipe, stage: str, folder: Path) -> None:
    """Writes the parts aside and renames them, so that a kill leaves the old ones or the new ones."""
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    projectors = {name: cast(Sense, sense).projector.state_dict() for name, sense in model.senses.items()}
    write_trained(aside, recipe, stage, projectors)
    if has_adapter(model):
        with quiet():
            model.language_model.save_pretrained(aside / "adapter")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_trained(
    folder: Path, recipe: Recipe, stage: str, projectors: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Writes recipe and projectors, the latter by sense, into a folder without them; an adapter goes beside them."""
    (folder / "projector").mkdir(parents=True)
    for name, weights in projectors.items():
        kept = {key: value.contiguous().cpu() for key, value in weights.items()}
        save_file(kept, folder / "projector" / f"{name}.safetensors")
    record = {"stage": stage, "recipe": recipe.model_dump(mode="json")}
    (folder / RECIPE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def has_adapter(model: TrisenseForConditionalGeneration) -> bool:
    return any(".lora_" in name for name, _ in model.language_model.named_parameters())


def read_recipe(folder: Path) -> tuple[Recipe, str]:
    """The recipe that trained the parts in a folder, and its last stage. Raises BadInput."""
    path = folder / RECIPE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Recipe.model_validate(record["recipe"]), str(record["stage"])
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); expected the folder that a stage has trained"
        ) from None
    except ValidationError as error:
        raise bad_input(error, str(path)) from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not what a stage writes; expected `stage` and `recipe`") from None


def load_trained(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[TrisenseForConditionalGeneration, Processor]:
    """The model whose parts a folder holds, ready to answer, and its processor in the layout of the last stage.

    Raises BadInput as `load_design` and `put_trained` do.
    """
    recipe, stage = read_recipe(folder)
    model, processor = load_design(staged(recipe, stage), device)
    put_trained(model, recipe.design, folder)
    return model.eval(), processor


def staged(recipe: Recipe, stage: str) -> Design:
    """The design with the layout of a stage."""
    layout = getattr(recipe.stages[stage], "layout", None)
    return recipe.design.model_copy(update={"layout": layout}) if layout else recipe.design


def put_trained(model: TrisenseForConditionalGeneration, design: Design, folder: Path) -> None:
    """Gives a model of `design` the projectors, and the adapter if there is one, of a folder.

    Raises BadInput for parts of another design, by the field that differs, and for files that cannot be read.
    """
    recipe, _ = read_recipe(folder)
    for key in FITTING:
        theirs, ours = (one.model_dump(mode="json")[key] for one in (recipe.design, design))
        if theirs != ours:
            field, before, now = _difference(f"design.{key}", theirs, ours)
            raise BadInput(f"{folder}: trained with {field}={before}, now {now}; they do not belong together")
    for name, sense in model.senses.items():
        assert isinstance(sense, Sense)
        path = folder / "projector" / f"{name}.safetensors"
        try:
            sense.projector.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise BadInput(f"{path}: not the projector of this design ({str(error).splitlines()[0][:100]})") from None
    if not (folder / "adapter").is_dir():
        return
    if has_adapter(model):
        raise BadInput(f"{folder}: has an adapter, and the model has one already")
    add_adapter(model, recipe.design)
    with quiet():
        try:
            weights = load_file(folder / "adapter" / "adapter_model.safetensors")
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder / 'adapter'}: cannot be read ({str(error).splitlines()[0][:100]})") from None
    own = {name: parameter for name, parameter in model.language_model.named_parameters() if ".lora_" in name}
    given = {plain_name(name): value for name, value in weights.items()}
    if {plain_name(name) for name in own} != set(given):
        raise BadInput(f"{folder / 'adapter'}: has matrices beside other layers than design.adapter says")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[plain_name(name)])


def plain_name(name: str) -> str:
    """The name of a matrix without what peft puts before it, and without the adapter's own."""
    return name.removeprefix("base_model.model.").replace(".default.", ".")


def _difference(field: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first field in which two plain records differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return _difference(f"{field}.{key}", before.get(key), now.get(key))
    return field, before, now
