"""Projectors against the formulas of the systems they come from, and their sizes against the published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trisense.errors import BadInput
from trisense.model.projector import build_projector

# Letters: N media, S feature vectors of one medium, E width of the encoder, D width of the language model.

PHI2, PHI35 = 2560, 3072  # widths of microsoft/phi-2 and microsoft/Phi-3.5-mini-instruct
SIZES = {
    "context-gpt": ("linear", 768, PHI2, 1_968_640),
    "tinyclip-phi2": ("linear", 640, PHI2, 1_640_960),
    "jnana": ("residual", 768, PHI2, 15_086_080),
    "ft35": ("norm-mlp", 512, PHI35, 11_017_216),
    "eden": ("norm-mlp", 512, PHI35, 11_017_216),
}


@pytest.mark.parametrize("recipe", SIZES)
def test_a_recipes_projector_has_its_published_size(recipe: str):
    kind, width, hidden_size, expected = SIZES[recipe]
    with torch.device("meta"):
        projector = build_projector(kind, width, hidden_size)  # pyright: ignore[reportArgumentType]
    assert sum(parameter.numel() for parameter in projector.parameters()) == expected


def affine(layer: Any, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def norm(layer: Any, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def residual(p: Any, x: torch.Tensor) -> torch.Tensor:
    x = norm(p[1].norm, affine(p[0], x))
    return x + affine(p[1].mlp[2], F.gelu(affine(p[1].mlp[0], x)))


FORMULAS = {
    "linear": lambda p, x: affine(p[0], x),
    "residual": residual,
    "norm-mlp": lambda p, x: affine(p[3], F.gelu(affine(p[1], norm(p[0], x)))),
    "mlp": lambda p, x: affine(p[2], F.gelu(affine(p[0], x))),
}


@pytest.mark.parametrize("kind", FORMULAS)
@torch.no_grad()
def test_a_projector_is_its_formula(kind: Any):
    torch.manual_seed(0)
    projector = build_projector(kind, 6, 10)
    for parameter in projector.parameters():
        nn.init.normal_(parameter)  # norms with weights that show
    x = torch.randn(2, 3, 6)  # [N, S, E]
    out = projector(x)  # [N, S, D]
    assert out.shape == (2, 3, 10)
    torch.testing.assert_close(out, FORMULAS[kind](projector, x), rtol=1e-5, atol=1e-5)
    # Every vector goes its own way, so media may be packed into one row.
    torch.testing.assert_close(projector(x.flatten(0, 1)), out.flatten(0, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_naming_is_the_sum_of_what_holds_in_every_group():
    """By hand: the second group is asked only as far as the first does not say "nothing"."""
    torch.manual_seed(0)
    projector: Any = build_projector("naming", 6, 10, (3, 4))
    x = torch.randn(2, 5, 6)
    for out, row in zip(projector(x).flatten(0, 1), x.flatten(0, 1), strict=True):
        said = affine(projector.head, row).exp()
        first, second = said[:3] / said[:3].sum(), said[3:] / said[3:].sum()
        expected = sum(first[i] * projector.words.weight[:, i] for i in range(3))
        expected += (1 - first[0]) * sum(second[i] * projector.words.weight[:, 3 + i] for i in range(4))
        torch.testing.assert_close(out, expected + affine(projector.rest, row))


@torch.no_grad()
def test_naming_says_nothing_alone_where_there_is_nothing():
    projector: Any = build_projector("naming", 6, 10, (3, 4))
    projector.head.bias[0] = 1e4
    x = torch.randn(7, 6)
    torch.testing.assert_close(projector(x), projector.words.weight[:, 0] + affine(projector.rest, x))


def test_an_unknown_projector_is_refused():
    with pytest.raises(
        BadInput, match="projector: 'q-former' is unknown; expected linear, residual, norm-mlp, mlp, naming"
    ):
        build_projector("q-former", 4, 4)  # pyright: ignore[reportArgumentType]
