"""A sense: an unchanged transformers encoder, the choice of its features, and the projector."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoModel
from transformers.configuration_utils import PreTrainedConfig

from trisense.model.configuration import SenseOptions
from trisense.model.projector import build_projector

# Letters: N media, S feature vectors of one medium, E width of the features, D width of the language model,
# M mel bins, F log-mel frames, H x W pixels.


class Sense(nn.Module):
    """Encoder, feature choice and projector of one sense (`image` or `audio`)."""

    def __init__(self, name: str, options: SenseOptions, encoder_config: PreTrainedConfig, hidden_size: int):
        super().__init__()
        self.name = name
        self.options = options
        encoder = AutoModel.from_config(encoder_config)
        # The checkpoint of a speech model holds a text decoder as well; the sense is its encoder only.
        self.encoder = encoder.get_encoder() if getattr(encoder.config, "is_encoder_decoder", False) else encoder
        self.projector = build_projector(options.projector, options.width, hidden_size)

    def encode(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Chosen features [N, S, E] of `pixel_values` [N, 3, H, W] or `input_features` [N, M, F].

        mask: [N, F] bool, True on real frames; only for encoders that take one (`time_first`).
        """
        options = self.options
        if options.select == "projected":
            pooled = self.encoder.get_image_features(values)
            return (pooled if isinstance(pooled, torch.Tensor) else pooled.pooler_output)[:, None]
        deep = options.layer != -1
        if options.time_first:
            out = self.encoder(values.transpose(1, 2), attention_mask=mask, output_hidden_states=deep)
        else:
            out = self.encoder(values, output_hidden_states=deep)
        if options.select == "pooled":
            return out.pooler_output.flatten(1)[:, None]  # [N, 1, E]
        features = out.hidden_states[options.layer] if deep else out.last_hidden_state
        if features.dim() == 4:  # a convolutional map [N, E, h, w], read row by row
            features = features.flatten(2).transpose(1, 2)
        return features[:, 1:] if options.select == "patches" else features  # [N, S, E]

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

        Pass either `values` (with `mask`) or `features` [N, S, E] of a frozen encoder, computed before, with `lengths` [N].
        """
        if features is None:
            assert values is not None
            features = self.encode(values, mask)
            lengths = self.lengths(features, mask)
        elif lengths is None:
            lengths = self.lengths(features, None)
        assert lengths is not None
        real = torch.arange(features.shape[1], device=features.device) < lengths[:, None]  # [N, S]
        return self.projector(features[real])
