"""Trained parts and the pretrained parts they belong to -> one whole model of this package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from trisense.errors import BadInput
from trisense.model.checkpoint import load_config, load_model, quiet
from trisense.model.configuration import TrisenseConfig
from trisense.model.folders import whole_folder
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import design_config
from trisense.model.pretrained import load_design, load_processor
from trisense.model.processing import TrisenseProcessor
from trisense.model.publish import write_card
from trisense.model.trained import RECIPE_FILE, put_trained, read_recipe, staged
from trisense.prompt import Processor

Dtype = Literal["float32", "bfloat16", "float16"]
Model = TypeVar("Model", bound=PreTrainedModel)


def merge(folder: str | os.PathLike[str], out: str | os.PathLike[str], dtype: Dtype = "float32") -> None:
    """Writes the trained parts of `folder` with the pretrained ones into `out` as one whole model, or not at all.

    `AutoModelForImageTextToText` and `AutoProcessor` open it after `import trisense.model`, `open_engine` without more;
    the layout is that of the last stage. The folders it was made from stay as they are.

    dtype: of the weights on disk. Everything is merged in float32, and float32 gives the logits of the unmerged model;
    16 bits are half the size, but rounding a merged weight also rounds away a part of what its adapter learned.

    Raises BadInput for an unknown dtype, for an `out` that holds something, and as `merged` does.
    """
    if dtype not in get_args(Dtype):
        raise BadInput(f"dtype {dtype!r}: unknown; expected one of {', '.join(get_args(Dtype))}")
    with whole_folder(Path(out)) as aside:
        model, processor = merged(Path(folder))
        with quiet():
            as_dtype(model, dtype).save_pretrained(aside)
        TrisenseProcessor(processor).save_pretrained(aside)
        write_card(aside, Path(folder), "merged")


def as_dtype(model: Model, dtype: Dtype) -> Model:
    """The model with its weights rounded to `dtype`, and the configs of its parts saying so."""
    for part in model.config.sub_configs:
        if (config := getattr(model.config, part, None)) is not None:
            config.dtype = getattr(torch, dtype)
    return model.to(getattr(torch, dtype))


def merged(folder: Path) -> tuple[TrisenseForConditionalGeneration, Processor]:
    """The model of a folder of trained parts, on the CPU in float32, its adapter added to the language model's weights.

    The language model is loaded unquantised, also where the design trains on 4 bits: rounded to those again, most of
    what the adapter adds would be lost. It takes 4 bytes a parameter (phi-2 11 GB, Phi-3.5-mini 15 GB). Generation ends
    where the layout's answers do. Raises BadInput as `load_design` and `put_trained` do.
    """
    recipe, stage = read_recipe(folder)
    design = staged(recipe, stage).model_copy(update={"quantisation": None})
    model, processor = load_design(design)
    put_trained(model, recipe, folder)
    try:
        add_up(model.language_model)
    except ValueError as error:
        raise BadInput(f"{folder / 'adapter'}: {error}; its training went wrong") from None
    for part in (model.config.text_config, model.config.vision_config, model.config.audio_config):
        if part is not None:
            part.name_or_path = ""  # perhaps a folder of this machine
    ends = sorted(processor.end_ids)
    generation = model.generation_config
    if generation is not None and ends:
        generation.eos_token_id = ends
        generation.pad_token_id = ends[0] if generation.pad_token_id is None else generation.pad_token_id
    return model.requires_grad_(False).eval(), processor


def add_up(module: nn.Module) -> None:
    """Puts the sum of each layer and its adapter in the layer's place: W + alpha / r * B A (Hu et al. 2021).

    Raises ValueError when a sum is not finite.
    """
    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            module.set_submodule(name, layer.get_base_layer())


def open_whole(folder: Path) -> tuple[TrisenseForConditionalGeneration, Processor]:
    """A model on the CPU in float32, whole: of a model folder as it is, of trained parts `merged`."""
    if (folder / RECIPE_FILE).is_file():
        return merged(folder)
    processor = Processor.from_folder(folder)
    return load_model(folder, torch.float32).eval(), processor


def config_of(folder: Path) -> TrisenseConfig:
    """The config of what `open_whole` opens, without loading a weight."""
    if not (folder / RECIPE_FILE).is_file():
        return load_config(folder)
    design = read_recipe(folder)[0].design
    return design_config(design, load_processor(design).placeholders)
