"""From an encoder's features to the language model's embeddings: the four projectors of the recipes."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from trisense.errors import BadInput
from trisense.model.configuration import Kind

# Letters: N media, S feature vectors of one medium, E width of the encoder, D width of the language model.


class ResidualBlock(nn.Module):
    """The block of `jnana` after LLaVA-1.5: x = LN(x); x + Linear(GELU(Linear(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)  # [N, S, D]
        return x + self.mlp(x)


def build_projector(kind: Kind, width: int, hidden_size: int) -> nn.Module:
    """A projector [N, S, E=width] -> [N, S, D=hidden_size], as an `nn.Sequential`.

    linear: Linear (`context-gpt`, `tinyclip-phi2`); residual: Linear, ResidualBlock (`jnana`);
    norm-mlp: LayerNorm, Linear, GELU, Linear (`ft35`, `eden`); mlp: Linear, GELU, Linear (LLaVA-1.5).
    """
    linear = nn.Linear(width, hidden_size)
    match kind:
        case "linear":
            return nn.Sequential(linear)
        case "residual":
            return nn.Sequential(linear, ResidualBlock(hidden_size))
        case "norm-mlp":
            return nn.Sequential(nn.LayerNorm(width), linear, nn.GELU(), nn.Linear(hidden_size, hidden_size))
        case "mlp":
            return nn.Sequential(linear, nn.GELU(), nn.Linear(hidden_size, hidden_size))
        case unknown:
            raise BadInput(f"projector: {unknown!r} is unknown; expected {', '.join(get_args(Kind))}")
