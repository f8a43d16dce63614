"""What a design is made of, part by part: parameters and bytes, on meta tensors, without loading a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

from trisense.engines import PACKAGED
from trisense.errors import BadInput
from trisense.model.configuration import TrisenseConfig, sub_config
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.recipe import Adapter, Design
from trisense.stage import Optimizer

# bitsandbytes keeps one float32 scale for so many 4-bit weights.
BLOCK = 64
# And one for so many 8-bit moments of Adam.
MOMENTS = 256


@dataclass(frozen=True)
class Part:
    """parameters: how many numbers. size: the bytes they take while training. kept: as what."""

    name: str
    parameters: int
    size: int
    kept: str

    @property
    def in_16_bits(self) -> int:
        """The bytes that it would take in 16 bits, as a language model does that is not quantised."""
        return 2 * self.parameters


def count_parts(design: Design, optimizer: Optimizer = "adamw") -> list[Part]:
    """Encoders and projectors of the senses, language model, adapter, gradients, optimiser.

    What is frozen stays in 16 bits, or in 4 where the design says so; what learns (projectors and adapter) is float32,
    with a gradient and the two moments of Adam each, in 8 bits where `optimizer` says so. The activations of a batch
    come on top. A design without a pretrained language model learns whole. Raises BadInput as `design_config` does, for
    pictures that become other features than the design says, and for an adapter's target that no linear layer has.
    """
    # A tokenizer that is yet to be trained counts as large as it may become, and its tokens may have any number.
    tokens = {s: token if isinstance(token, int) else i for i, (s, token) in enumerate(design.placeholders.items())}
    with torch.device("meta"):
        model = TrisenseForConditionalGeneration(design_config(design, tokens, vocab_size=design.vocabulary))
    for name in model.senses:
        _check_features(model, design, name)
    parts: list[Part] = []
    whole = "pretrained" not in design.text
    for name, sense in model.senses.items():
        assert isinstance(sense, Sense)
        encoder = nn.ModuleList([sense.encoder, *([sense.summary] if sense.summary else [])])
        parts.append(_plain(f"{name} encoder", encoder, learns=whole))
        parts.append(_plain(f"{name} projector", sense.projector, learns=True))
    language_model = model.language_model
    frozen = _plain("language model", language_model, learns=whole)
    parts.append(frozen)
    if design.quantisation:
        parts[-1] = Part(frozen.name, frozen.parameters, _quantised(language_model), design.quantisation.weights)
    if design.adapter:
        parts.append(_adapter(language_model, design.adapter))
    learning = sum(part.parameters for part in parts if part.kept == "float32")
    parts.append(Part("gradients", learning, 4 * learning, "float32"))
    if optimizer == "adamw":
        return [*parts, Part("optimiser", 2 * learning, 8 * learning, "float32")]
    # Two moments of a byte, and for each of them a float32 scale a block.
    return [*parts, Part("optimiser", 2 * learning, 2 * learning + 8 * (learning // MOMENTS), "8 bits")]


def design_config(design: Design, placeholders: Mapping[str, int], **text: Any) -> TrisenseConfig:
    """The config of a design's model. text: what a tokenizer decides about a language model that begins from nothing.

    Raises BadInput for a pretrained part that cannot be found, and for whatever `TrisenseConfig` refuses.
    """
    return TrisenseConfig(
        text_config=_config("design.text", {**({} if "pretrained" in design.text else text), **design.text}),
        vision_config=design.vision and _config("design.vision", design.vision),
        audio_config=design.audio and _config("design.audio", design.audio),
        senses={sense: dict(options) for sense, options in design.senses.items()},
        placeholders=dict(placeholders),
    )


def _config(where: str, part: dict[str, Any]) -> PreTrainedConfig:
    """From nothing: the config that the part spells out. Pretrained: that of its folder; else, for the parts of the
    packaged recipes, the published one that the package holds; else that of the Hub."""
    if "pretrained" not in part:
        return sub_config(where, part)
    name = part["pretrained"]
    if not isinstance(name, str) or set(part) != {"pretrained"}:
        raise BadInput(f"{where}: expected only pretrained: a Hub id or a folder, got {part}")
    if not Path(name).is_dir() and name in published():
        return sub_config(where, published()[name])
    try:
        config = AutoConfig.from_pretrained(located(name), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{where}.pretrained: {name!r} is neither a folder with a config nor to be had from the Hub "
            f"({str(error).splitlines()[0][:100]}); give the folder of a model of transformers"
        ) from None
    if isinstance(config, TrisenseConfig):
        if (own := getattr(config, f"{where.removeprefix('design.')}_config")) is None:
            raise BadInput(f"{where}.pretrained: {name!r} is a model of this package without such a part")
        return own
    return getattr(config, "vision_config", config) if where == "design.vision" else config


def located(name: str) -> str:
    """Where a pretrained part is: `spark` means the model in the package, all else is a folder or a Hub id."""
    return str(PACKAGED) if name == "spark" else name


@cache
def published() -> dict[str, dict[str, Any]]:
    """Hub id -> the published shape of that part."""
    return yaml.safe_load((files("trisense.model") / "architectures.yaml").read_text(encoding="utf-8"))


def _check_features(model: TrisenseForConditionalGeneration, design: Design, name: str) -> None:
    """Runs a picture or a sound without values through the encoder: its features have a shape all the same."""
    sense, what = model.senses[name], "pictures" if name == "image" else "sounds"
    assert isinstance(sense, Sense)
    if getattr(design, what) is None:
        raise BadInput(f"design.{what} is missing: how {what} become what the encoder reads, and how many tokens")
    if design.pictures and name == "image":
        values = torch.empty(1, 3, design.pictures.height, design.pictures.width, device="meta")
        expected = design.pictures.tokens
    else:
        assert design.sounds
        seconds = design.sounds.chunk_seconds or 2.0
        frames = round(seconds * design.sounds.sampling_rate) // design.sounds.hop_length
        values = torch.empty(1, design.sounds.mel_bins, frames, device="meta")  # [1, M, F]
        expected = design.sounds.num_tokens(frames)
    with torch.no_grad():
        _, count, width = sense.encode(values).shape  # [1, S, E]
    if count != expected:
        field = "pictures.tokens" if name == "image" else "sounds.frames_per_token"
        raise BadInput(
            f"design.{field}: makes {expected} tokens of a {what[:-1]}, but this encoder gives {count} features"
        )
    if width != sense.options.width:
        raise BadInput(f"design.senses.{name}.width: {sense.options.width}, but this encoder's features have {width}")


def _plain(name: str, module: nn.Module, learns: bool) -> Part:
    count = sum(parameter.numel() for parameter in module.parameters())
    return Part(name, count, count * (4 if learns else 2), "float32" if learns else "16 bits")


def _quantised(language_model: nn.Module) -> int:
    """Bytes of a language model whose linear layers, the head aside, are nf4 and the rest 16 bits."""
    head = language_model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    total = sum(parameter.numel() for parameter in language_model.parameters())
    packed = sum(
        module.weight.numel()
        for module in language_model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    return packed // 2 + 4 * (packed // BLOCK) + 2 * (total - packed)


def linear_layers(language_model: nn.Module, targets: Sequence[str]) -> list[nn.Linear]:
    """The linear layers whose names end with one of `targets`. Raises BadInput for a target that names none."""
    linear = {name: module for name, module in language_model.named_modules() if isinstance(module, nn.Linear)}
    found: list[nn.Linear] = []
    for target in targets:
        named = [module for name, module in linear.items() if f".{name}".endswith(f".{target}")]
        if not named:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise BadInput(f"design.adapter.targets: no linear layer is called {target!r}; there are {known}")
        found += named
    return found


def _adapter(language_model: nn.Module, adapter: Adapter) -> Part:
    layers = linear_layers(language_model, adapter.targets)
    count = sum(adapter.r * (layer.in_features + layer.out_features) for layer in layers)
    return Part("adapter", count, 4 * count, "float32")
