"""Cross-entropy through a frozen head: its gradient is made while its loss is, and no logits are kept."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

# Positions whose logits are in memory at once.
CHUNK = 256

# Letters: N supervised positions, D width of the language model, V vocabulary.


def head_loss(
    hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, label_smoothing: float = 0.0, chunk: int = CHUNK
) -> torch.Tensor:
    """The cross-entropy of `head(hidden)`, summed over the positions, in float32; its gradient reaches `hidden` only.

    hidden: [N, D]; targets: int64 [N]. The logits are float32 for `chunk` positions at a time and become their own
    gradient in place (as Hsu et al. 2024, arXiv:2410.10989, do on a GPU), so backward has nothing left to multiply.
    """
    loss = _HeadLoss.apply(hidden, head.weight, head.bias, targets, label_smoothing, chunk)
    return cast(torch.Tensor, loss)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        smoothing: float,
        chunk: int,
    ) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        learns = ctx.needs_input_grad[0]
        grad = torch.empty_like(hidden) if learns else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            own = targets[part, None]
            logits = nn.functional.linear(hidden[part], weight, bias)  # [chunk, V]
            kept = logits.dtype
            logits = logits.float()
            norm = logits.logsumexp(-1, keepdim=True)
            total += norm.sum() - (1 - smoothing) * logits.gather(1, own).sum()
            if smoothing:
                total -= smoothing * logits.mean(-1).sum()
            if grad is None:
                continue
            logits.sub_(norm).exp_()
            if smoothing:
                logits.sub_(smoothing / logits.shape[1])
            logits.scatter_add_(1, own, torch.full_like(own, smoothing - 1, dtype=logits.dtype))
            grad[part] = logits.to(kept) @ weight.to(kept)
        ctx.save_for_backward(*(() if grad is None else (grad,)))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None, None
