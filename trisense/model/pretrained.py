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
from trisense.model.build import build_processor
from trisense.model.checkpoint import is_model_folder, load_model, quiet
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import design_config, linear_layers, located
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

    A part comes from a model of transformers, or out of one of this package (`spark`, or a folder). The language model
    is float32 on a CPU and bfloat16 elsewhere, or in 4 bits where the design says so. Raises BadInput for a part that
    is not to be had, lacks a weight, or does not fit the others.
    """
    device = torch.device(device)
    for part in ("text", "vision", "audio"):
        if "pretrained" not in (getattr(design, part) or {"pretrained": None}):
            raise BadInput(f"design.{part}: begins from nothing; this needs a pretrained part")
    processor = load_processor(design)
    with torch.device("meta"):
        model = TrisenseForConditionalGeneration(design_config(design, processor.placeholders))
    model.language_model = _language_model(design, device)
    width = model.language_model.get_input_embeddings().embedding_dim
    for name, sense in model.senses.items():
        assert isinstance(sense, Sense)
        sense.encoder = _encoder(design, name, sense, device)
        sense.projector = build_projector(sense.options.projector, sense.options.width, width).to(device)
    model.requires_grad_(False)
    for sense in model.senses.values():
        sense.projector.requires_grad_(True)
    return model.eval(), processor


def load_processor(design: Design) -> Processor:
    """The processor of a design, with the tokenizer of its pretrained language model. Raises BadInput."""
    file = _file_of("design.text", design.text["pretrained"], "tokenizer.json")
    return build_processor(design, TextTokenizer.from_file(file))


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
    name = design.text["pretrained"]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if (own := _own(name)) is not None:
        if design.quantisation:
            raise BadInput(
                f"design.quantisation: the language model of {name!r} is part of a model of this package, which is not "
                "loaded in 4 bits; set it to null"
            )
        return own.language_model.to(device, dtype)
    options: dict[str, Any] = {"dtype": dtype}
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
    model = _loaded("design.text", AutoModelForCausalLM, name, **options).to(device)
    for module in model.modules():
        # On a CPU with bf16 instructions bitsandbytes (0.50) packs the weights anew in the first pass without
        # gradients, computes in bf16 whatever the recipe says, and no gradient comes through any more.
        if device.type == "cpu" and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _encoder(design: Design, name: str, sense: Sense, device: torch.device) -> PreTrainedModel:
    where, part = ("design.vision", design.vision) if name == "image" else ("design.audio", design.audio)
    assert part
    dtype = torch.float32 if device.type == "cpu" else torch.float16  # as CLIP and Whisper were published
    if (own := _own(part["pretrained"])) is not None:
        if name not in own.senses:
            raise BadInput(f"{where}.pretrained: {part['pretrained']!r} is a model of this package without such a part")
        return own.senses[name].encoder.to(device, dtype)
    kind: Any = AutoModel
    if isinstance(sense.encoder.config, CLIPVisionConfig):  # its checkpoints hold a text model too
        kind = CLIPVisionModelWithProjection if sense.options.select == "projected" else CLIPVisionModel
    encoder = _loaded(where, kind, part["pretrained"], dtype=dtype)
    # The checkpoint of a speech model holds a text decoder as well.
    return (encoder.get_encoder() if encoder.config.is_encoder_decoder else encoder).to(device)


def _own(name: str) -> Any:
    """The model of this package in a folder; None where there is none."""
    folder = Path(located(name))
    return load_model(folder, torch.float32) if is_model_folder(folder) else None


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
    if (folder := Path(located(name))).is_dir():
        return folder / file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{where}.pretrained: {file} of {name!r} is not to be had from the Hub "
            f"({str(error).strip().splitlines()[0][:100]}); give the folder of a model of transformers"
        ) from None
