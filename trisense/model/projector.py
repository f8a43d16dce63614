"""From an encoder's features to the language model's embeddings: the projectors of the recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from trisense.errors import BadInput
from trisense.model.configuration import Kind

# Letters: N media, S feature vectors of one medium, E width of the encoder, D width of the language model, C classes.


class ResidualBlock(nn.Module):
    """The block of `jnana` after LLaVA-1.5: x = LN(x); x + Linear(GELU(Linear(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)  # [N, S, D]
        return x + self.mlp(x)


class Naming(nn.Module):
    """The projector of `spark`: of every group of classes the one that holds, as a vector of the language model.

    `head` says which class of each group a feature is, and `words` holds a vector for each, so what is recognised
    arrives exactly as it would be written. The groups after the first apply where the first does not say its class 0,
    which is "nothing". What no class says can pass through `rest`; where the words are written there, it is zero.
    """

    def __init__(self, width: int, hidden_size: int, classes: Sequence[int]):
        super().__init__()
        self.classes = list(classes)
        self.head = nn.Linear(width, sum(classes))
        self.words = nn.Linear(sum(classes), hidden_size, bias=False)
        self.rest = nn.Linear(width, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = (one.softmax(-1) for one in self.head(x).split(self.classes, -1))  # [N, S, C of a group]
        held = torch.cat([first, *(one * (1 - first[..., :1]) for one in others)], -1)  # [N, S, C]
        return self.words(held) + self.rest(x)


def build_projector(kind: Kind, width: int, hidden_size: int, classes: Sequence[int] = ()) -> nn.Module:
    """A projector [N, S, E=width] -> [N, S, D=hidden_size], as an `nn.Sequential` or a module of its own.

    linear: Linear (`context-gpt`, `tinyclip-phi2`); residual: Linear, ResidualBlock (`jnana`);
    norm-mlp: LayerNorm, Linear, GELU, Linear (`ft35`, `eden`); mlp: Linear, GELU, Linear (LLaVA-1.5);
    naming: `Naming` with groups of so many `classes` (`spark`).
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
        case "naming":
            return Naming(width, hidden_size, classes)
        case unknown:
            raise BadInput(f"projector: {unknown!r} is unknown; expected {', '.join(get_args(Kind))}")
