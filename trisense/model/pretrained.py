"""A design with pretrained parts: loads them, freezes them, puts new projectors and an adapter beside them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from trisense.errors import BadInput
from trisense.model.checkpoint import quiet
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import design_config, linear_layers
from trisense.model.projector import build_projector
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Design
from trisense.tokens import TextTokenizer


def load_design(
    design: Design, device: torch.device | str = "cpu"
) -> tuple[TrisenseForConditionalGeneration, Processor]:
    """The model with everything frozen but its projectors, which are new (torch's generator: seed it first), and its
    processor. No adapter yet: `add_adapter`.

    The language model is float32 on a CPU and bfloat16 elsewhere, or in 4 bits where the design says so. Raises
    BadInput for a part that is not to be had, lacks a weight, or does not fit the others.
    """
    device = torch.device(device)
    for part in ("text", "vision"):
        if "pretrained" not in (getattr(design, part) or {}):
            raise BadInput(f"design.{part}: begins from nothing; this needs a pretrained part")
    numbers = {sense: token for sense, token in design.placeholders.items() if isinstance(token, int)}
    if len(numbers) < len(design.placeholders):
        raise BadInput("design.placeholders: expected the numbers of spare rows of a pretrained language model")
    tokenizer = TextTokenizer.from_file(_file_of("design.text", design.text["pretrained"], "tokenizer.json"))
    processor = Processor(tokenizer, design.layout, design.pictures, None, numbers)
    config = design_config(design, numbers)
    with torch.device("meta"):
        model = TrisenseForConditionalGeneration(config)
    model.language_model = _language_model(design, device)
    width = model.language_model.get_input_embeddings().embedding_dim
    for sense in model.senses.values():
        assert isinstance(sense, Sense)
        sense.encoder = _encoder(design, sense, device)
        sense.projector = build_projector(sense.options.projector, sense.options.width, width).to(device)
    model.requires_grad_(False)
    for sense in model.senses.values():
        sense.projector.requires_grad_(True)
    return model.eval(), processor


def add_adapter(model: TrisenseForConditionalGeneration, design: Design) -> None:
    """Puts the design's LoRA matrices beside the language model's layers; they learn, what they stand beside does not.

    `model.language_model.disable_adapters()` gives the very base model again. Raises BadInput for a design without an
    adapter and for a target that no linear layer has.
    """
    adapter = design.adapter
    if adapter is None:
        raise BadInput("design.adapter is missing; this stage trains one")
    linear_layers(model.language_model, adapter.targets)
    config = LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=list(adapter.targets)
    )
    model.language_model.add_adapter(config)


def _language_model(design: Design, device: torch.device) -> Any:
    options: dict[str, Any] = {"dtype": torch.float32 if device.type == "cpu" else torch.bfloat16}
    if design.quantisation:
        if find_spec("bitsandbytes") is None:
            raise BadInput(
                "design.quantisation: 4 bits need bitsandbytes: pip install 'trisense[qlora]', or set it to null"
            )
        compute = getattr(torch, design.quantisation.compute)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=design.quantisation.weights, bnb_4bit_compute_dtype=compute
        )
        options["device_map"] = {"": device}
    return _loaded("design.text", AutoModelForCausalLM, design.text["pretrained"], **options).to(device)


def _encoder(design: Design, sense: Sense, device: torch.device) -> PreTrainedModel:
    assert design.vision
    kind: Any = AutoModel
    if isinstance(sense.encoder.config, CLIPVisionConfig):  # its checkpoints hold a text model too
        kind = CLIPVisionModelWithProjection if sense.options.select == "projected" else CLIPVisionModel
    dtype = torch.float32 if device.type == "cpu" else torch.float16  # as CLIP was trained
    return _loaded("design.vision", kind, design.vision["pretrained"], dtype=dtype).to(device)


def _loaded(where: str, kind: Any, name: str, **options: Any) -> Any:
    """A pretrained part, whole. Raises BadInput when it is not to be had or lacks a weight."""
    with quiet():
        try:
            model, info = kind.from_pretrained(name, trust_remote_code=False, output_loading_info=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise BadInput(
                f"{where}.pretrained: {name!r} cannot be loaded ({str(error).strip().splitlines()[0][:150]}); "
                "give the folder of a model of transformers, or a Hub id that can be reached"
            ) from None
    if missing := sorted(info["missing_keys"]):
        raise BadInput(f"{where}.pretrained: {name!r} lacks the weight {missing[0]} ({len(missing)} such)")
    return model


def _file_of(where: str, name: str, file: str) -> Path:
    """A file of a folder, or of a repository of the Hub."""
    if Path(name).is_dir():
        return Path(name) / file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{where}.pretrained: {file} of {name!r} is not to be had from the Hub "
            f"({str(error).strip().splitlines()[0][:100]}); give the folder of a model of transformers"
        ) from None
