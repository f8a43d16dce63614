"""Attention in packed rows: a sample never sees another, a branch of a fan sees its beginning and itself.

Two ways that give the same: `visible`, one dense mask for any attention of transformers and any device; and the
attention implementation `SEGMENTS`, which runs sample by sample and computes little of what the mask would throw away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# The name under which transformers knows `segment_attention`: `model.set_attn_implementation(SEGMENTS)`.
SEGMENTS = "trisense_segments"
# Branches of a fan are computed together up to so many positions: few products, and little in them that is masked.
TOGETHER = 128

# Letters: B rows, T positions, H heads, K heads of keys and values, D width of a head; of one piece L positions that
# look, P shared positions before them.


@dataclass(frozen=True)
class Piece:
    """The positions `start` to `end` of a row, which look at themselves and at `shared` to `shared_end` before them.

    bias: float [L, P + L], -inf where one may not look, else 0.
    """

    row: int
    start: int
    end: int
    shared: int
    shared_end: int
    bias: torch.Tensor


@dataclass(frozen=True)
class Packed:
    """The pieces of a batch, as one thing that `torch.compile` hands on without looking into: it would compile anew for
    every number of them."""

    pieces: list[Piece]


def visible(segments: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    """Who may look at whom, bool [B, 1, T, T]: True where a row's position may look at a column's.

    segments: int64 [B, T], equal where positions belong to one sample, -1 on padding. branches: int64 [B, T], 0 in a
    sample and in the shared beginning of a fan, k in its k-th branch.
    """
    same = segments[:, :, None] == segments[:, None, :]
    open_to = (branches[:, :, None] == branches[:, None, :]) | (branches[:, None, :] == 0)
    return (same & open_to).tril()[:, None]


def pieces(segments: torch.Tensor, branches: torch.Tensor) -> list[Piece]:
    """What `segment_attention` computes one after the other; arguments as of `visible`. Padding is in no piece."""
    found = []
    for row in range(len(segments)):
        ends = (torch.unique_consecutive(segments[row], return_counts=True)[1]).cumsum(0).tolist()
        for start, end in zip([0, *ends], ends):
            if segments[row, start] < 0:
                continue
            own = branches[row, start:end]
            numbers, lengths = torch.unique_consecutive(own, return_counts=True)
            shared = start + int(lengths[0]) if numbers[0] == 0 and len(numbers) > 1 else start
            cuts = [start]
            for stop, length in zip((start + lengths.cumsum(0)).tolist(), lengths.tolist()):
                if stop - cuts[-1] > TOGETHER and stop - length > max(cuts[-1], shared):
                    cuts.append(stop - length)
            for begin, stop in zip(cuts, [*cuts[1:], end]):
                first = begin == start
                looked = torch.arange(begin, stop)
                if not first:
                    looked = torch.cat([torch.arange(start, shared), looked])
                seen = visible(segments[row : row + 1, looked], branches[row : row + 1, looked])[0, 0, begin - stop :]
                bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
                found.append(Piece(row, begin, stop, start, start if first else shared, bias))
    return found


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention of transformers: query [B, H, T, D], key and value [B, K, T, D] -> [B, T, H, D].

    packed: of `pieces`; nothing is dropped out then, and padding gives zeros. Without it, as when a model answers, this
    is transformers' `sdpa`.
    """
    if packed is None:
        options = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _in_pieces(query, key, value, packed, scale), None


@torch.compiler.disable()
def _in_pieces(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, scale: float
) -> torch.Tensor:
    # Under autocast values are bfloat16, queries and keys float32 by their rotary embedding; backward is outside of it.
    with torch.autocast(query.device.type, enabled=False):
        alike = (t.to(value.dtype) for t in (query, key, value))
        return cast(torch.Tensor, _Pieces.apply(*alike, packed.pieces, scale))


class _Pieces(torch.autograd.Function):
    """Softmax attention of each piece, [B, H, T, D] -> [B, T, H, D]. In autograd's own steps the same takes half as
    long again: it copies every slice's gradient into a whole tensor."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: list[Piece], scale: float
    ) -> torch.Tensor:
        out = query.new_zeros(query.transpose(1, 2).shape)
        weights = []
        for piece in packed:
            q, k, v = query[piece.row, :, piece.start : piece.end], _keys(key, piece), _keys(value, piece)
            bias = piece.bias.to(q.dtype).expand(len(q), -1, -1)
            weights.append(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1))  # [H, L, P + L]
            out[piece.row, piece.start : piece.end] = torch.bmm(weights[-1], v).transpose(0, 1)
        ctx.save_for_backward(query, key, value, out, *weights)
        ctx.packed, ctx.scale = packed, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, *weights = ctx.saved_tensors
        grad = grads[0].transpose(1, 2)  # [B, H, T, D]
        of_query, of_key, of_value = (torch.zeros_like(t) for t in (query, key, value))
        inner = (grads[0] * out).sum(-1).transpose(1, 2)[..., None]  # [B, H, T, 1]
        for piece, p in zip(ctx.packed, weights):
            here = (piece.row, slice(None), slice(piece.start, piece.end))
            of_scores = torch.bmm(grad[here], _keys(value, piece).transpose(1, 2))
            of_scores.sub_(inner[here]).mul_(p).mul_(ctx.scale)
            of_query[here] = torch.bmm(of_scores, _keys(key, piece))
            _add(of_key, piece, torch.bmm(of_scores.transpose(1, 2), query[here]))
            _add(of_value, piece, torch.bmm(p.transpose(1, 2), grad[here]))
        return of_query, of_key, of_value, None, None


def _keys(values: torch.Tensor, piece: Piece) -> torch.Tensor:
    """What a piece looks at, [H, P + L, D]."""
    own = values[piece.row, :, piece.start : piece.end]
    if piece.shared == piece.shared_end:
        return own
    return torch.cat([values[piece.row, :, piece.shared : piece.shared_end], own], 1)


def _add(total: torch.Tensor, piece: Piece, grad: torch.Tensor) -> None:
    """Adds the gradient [H, P + L, D] of what a piece looks at to where that stands."""
    before = piece.shared_end - piece.shared
    total[piece.row, :, piece.start : piece.end] += grad[:, before:]
    if before:
        total[piece.row, :, piece.shared : piece.shared_end] += grad[:, :before]


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
