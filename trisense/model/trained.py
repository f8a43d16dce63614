"""What a stage with pretrained parts has trained, saved apart from them: projectors and adapter, with their recipe.

FOLDER/recipe.json                    the resolved recipe, after which stage, and which weights it was trained beside
FOLDER/projector/image.safetensors    of every sense its own
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
from trisense.model.fingerprint import fingerprints
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Design, Recipe

RECIPE_FILE = "recipe.json"
# What trained parts only fit if it is the same; of pretrained parts the weights count, and not where they are kept.
# Layouts are compared stage by stage, since stages may have some of their own.
FITTING = ("vision", "audio", "senses", "text", "placeholders", "pictures", "sounds")


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
    record = {"stage": stage, "weights": fingerprints(recipe.design), "recipe": recipe.model_dump(mode="json")}
    (folder / RECIPE_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def has_adapter(model: TrisenseForConditionalGeneration) -> bool:
    return any(".lora_" in name for name, _ in model.language_model.named_parameters())


def read_recipe(folder: Path) -> tuple[Recipe, str]:
    """The recipe that trained the parts in a folder, and its last stage. Raises BadInput."""
    recipe, stage, _ = _read(folder)
    return recipe, stage


def _read(folder: Path) -> tuple[Recipe, str, dict[str, str]]:
    """And the fingerprints of the pretrained parts, by what the design calls them."""
    path = folder / RECIPE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return Recipe.model_validate(record["recipe"]), str(record["stage"]), dict(record.get("weights", {}))
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
    put_trained(model, recipe, folder)
    return model.eval(), processor


def staged(recipe: Recipe, stage: str) -> Design:
    """The design with the layout of a stage."""
    layout = getattr(recipe.stages[stage], "layout", None)
    return recipe.design.model_copy(update={"layout": layout}) if layout else recipe.design


def put_trained(model: TrisenseForConditionalGeneration, recipe: Recipe, folder: Path) -> None:
    """Gives the model of a recipe the projectors, and the adapter if there is one, of a folder.

    Raises BadInput for parts of another design or layout, by the field that differs, for parts that were trained beside
    other weights, whatever these are called, and for files that cannot be read.
    """
    trained, stage, weights = _read(folder)
    _check_fit(folder, trained, stage, weights, recipe)
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
    add_adapter(model, trained.design)
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


def _check_fit(folder: Path, trained: Recipe, stage: str, weights: dict[str, str], recipe: Recipe) -> None:
    """Raises BadInput where parts of `trained`, after `stage` and beside `weights`, do not belong to `recipe`."""
    theirs, ours = trained.design.model_dump(mode="json"), recipe.design.model_dump(mode="json")
    present = fingerprints(recipe.design)
    known = sorted(weights.keys() & present.keys())
    names = {part: tuple(design[part]["pretrained"] for design in (theirs, ours)) for part in known}
    theirs |= {part: ours[part] for part in known}
    pairs = [(f"design.{key}", theirs[key], ours[key]) for key in FITTING]
    if stage in recipe.stages:
        before, now = (staged(one, stage).layout.model_dump(mode="json") for one in (trained, recipe))
        pairs.append((f"the layout of {stage}", before, now))
    for field, before, now in pairs:
        if before != now:
            field, before, now = _difference(field, before, now)
            raise BadInput(f"{folder}: trained with {field}={before}, now {now}; they do not belong together")
    for part, (before, now) in names.items():
        if weights[part] != present[part]:
            raise BadInput(
                f"{folder}: trained with design.{part}.pretrained={before} (weights {weights[part][:8]}), now {now} "
                f"(weights {present[part][:8]}); they do not belong together"
            )


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
