"""A sense: an unchanged transformers encoder, the choice of its features, and the projector."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModelWithProjection, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from trisense.errors import BadInput
from trisense.model.configuration import SenseOptions
from trisense.model.projector import build_projector

# Letters: N media, S feature vectors of one medium, E width of the features, D width of the language model,
# M mel bins, F log-mel frames, H x W pixels.


class Summary(nn.Module):
    """What all places of a picture say together: which of many names it has, and a code of that name in K vectors.

    A name is one of a list: where one is sure, its parts are its own, and where several may be, the vectors are a blur
    of theirs. `codes` holds CODE numbers for each of the K vectors of a name.
    """

    CODE = 64

    def __init__(self, width: int, names: int, count: int):
        super().__init__()
        self.count = count
        self.names = nn.Linear(width, names)
        self.codes = nn.Linear(names, count * self.CODE, bias=False)
        self.write = nn.Linear(self.CODE, width)

    def forward(self, whole: torch.Tensor) -> torch.Tensor:
        """The mean of all places [N, 1, E] -> [N, K, E]."""
        found = self.names(whole).softmax(-1)  # [N, 1, names]
        return self.write(self.codes(found).unflatten(-1, (self.count, self.CODE)).flatten(1, 2))


class Sense(nn.Module):
    """Encoder, feature choice and projector of one sense (`image` or `audio`)."""

    def __init__(self, name: str, options: SenseOptions, encoder_config: PreTrainedConfig, hidden_size: int):
        super().__init__()
        self.name = name
        self.options = options
        self.encoder = build_encoder(name, options, encoder_config)
        self.projector = build_projector(options.projector, options.width, hidden_size, options.classes)
        self.summary = Summary(options.width, options.names, options.summary) if options.summary else None

    def encode(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Chosen features [N, S, E] of `pixel_values` [N, 3, H, W] or `input_features` [N, M, F].

        mask: [N, F], 1 or True on real frames; only for encoders that take one (`time_first`).
        """
        options = self.options
        values = values.to(self.encoder.dtype)
        if options.select == "projected":
            return self.encoder(values).image_embeds[:, None]  # [N, 1, E]
        deep = options.layer != -1
        if options.time_first:
            out = self.encoder(values.transpose(1, 2), attention_mask=mask, output_hidden_states=deep)
        else:
            out = self.encoder(values, output_hidden_states=deep)
        if options.select == "pooled":
            return out.pooler_output.flatten(1)[:, None]  # [N, 1, E]
        if deep and not -len(out.hidden_states) <= options.layer < len(out.hidden_states):
            count = len(out.hidden_states)
            raise BadInput(f"senses.{self.name}.layer: {options.layer} is not one of the {count} hidden states")
        features = out.hidden_states[options.layer] if deep else out.last_hidden_state
        if features.dim() == 4:  # a convolutional map [N, E, h, w], read row by row
            features = features.flatten(2).transpose(1, 2)
        if options.stack > 1:
            return self._stacked(features, mask)
        if self.summary is not None:
            return torch.cat([features, self.summary(features.mean(1, keepdim=True))], 1)
        return features[:, 1:] if options.select == "patches" else features  # [N, S, E]

    def _stacked(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Vectors [N, S, E], `stack` neighbours joined to one: [N, S / stack, stack * E], the last filled with zeros.

        What the encoder made of padding is zeros too, so a sound is the same beside a longer one.
        """
        stack = self.options.stack
        if mask is not None:
            frames = self.options.frames_per_token // stack
            real = (mask.sum(1) + frames - 1) // frames
            places = torch.arange(features.shape[1], device=features.device)
            features = features * (places < real[:, None])[..., None]
        features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % stack))
        return features.reshape(len(features), features.shape[1] // stack, -1)

    def lengths(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """How many of the S feature vectors are real, [N] int64: all of them, or what the frames' mask allows."""
        count, longest = features.shape[:2]
        if self.name != "audio" or mask is None:
            return torch.full((count,), longest, device=features.device)
        return (mask.sum(1) + self.options.frames_per_token - 1) // self.options.frames_per_token

    def forward(
        self,
        values: torch.Tensor | None,
        mask: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Vectors for the placeholders of all media, in order, padding left out: [sum of lengths, D].

        Pass either `values` (with `mask`) or `features` [N, S, E] of a frozen encoder, computed before, with `lengths`
        [N] where they differ. Raises ValueError when both or neither are given.
        """
        if (values is None) == (features is None):
            raise ValueError(f"{self.name}: give either what the encoder reads or features that it made before")
        if values is not None:
            features = self.encode(values, mask)
        features = cast(torch.Tensor, features)
        if lengths is None:
            lengths = self.lengths(features, mask)
        real = torch.arange(features.shape[1], device=features.device) < lengths[:, None]  # [N, S]
        return self.projector(features[real].to(next(self.projector.parameters()).dtype))


def build_encoder(name: str, options: SenseOptions, config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder that a config describes, as the class of transformers that gives the chosen features.

    Raises BadInput for a choice that this encoder cannot give.
    """
    if options.select == "projected":
        if not isinstance(config, CLIPVisionConfig):
            raise BadInput(f"senses.{name}.select: 'projected' needs a clip_vision_model, not {config.model_type!r}")
        return CLIPVisionModelWithProjection(config)
    if hasattr(config, "vision_config"):
        raise BadInput(f"senses.{name}: {config.model_type!r} is more than an encoder; give its vision_config")
    attends = hasattr(config, "num_attention_heads")
    if options.select == "patches" and not attends:
        raise BadInput(f"senses.{name}.select: 'patches' drops a CLS token, and a {config.model_type} has none")
    # Without attention (ResNet) an encoder refuses every implementation but this, whatever the others are to use.
    encoder = AutoModel.from_config(config, **({} if attends else {"attn_implementation": "eager"}))
    # The checkpoint of a speech model holds a text decoder as well; the sense is its encoder only.
    return encoder.get_encoder() if getattr(encoder.config, "is_encoder_decoder", False) else encoder
