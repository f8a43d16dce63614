"""The loss through a frozen head, and an activation in one step: what costs most beside matrix products."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers.activations import NewGELUActivation

# Positions whose logits are in memory at once: for phi-2's 51,200 words 26 MB, which glibc hands out again and again,
# where it gives what is above 32 MB back each time.
CHUNK = 128

# Letters: N supervised positions, D width of the language model, V vocabulary, C positions of one chunk.


def head_loss(
    hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, label_smoothing: float = 0.0, chunk: int = CHUNK
) -> torch.Tensor:
    """The cross-entropy of `head(hidden)`, summed over the positions, in float32; its gradient reaches `hidden` only.

    hidden: [N, D]; targets: int64 [N]. The logits are there for `chunk` positions at a time and become their own
    gradient at once (as Hsu et al. 2024, arXiv:2410.10989, do on a GPU), so backward has nothing left to multiply.
    """
    loss = _HeadLoss.apply(hidden, head.weight, head.bias, targets, label_smoothing, chunk)
    return cast(torch.Tensor, loss)


def fuse_activations(model: nn.Module) -> None:
    """Gives a model torch's own GELU by tanh in place of transformers' `gelu_new`, which is the same function in eight
    steps and keeps what each of them needs for its gradient."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


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
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        given, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        total = torch.zeros((), device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        room = given.new_empty(min(chunk, len(hidden)), len(weight))  # [C, V]
        spread = weight.float().mean(0) * smoothing if smoothing and grad is not None else 0.0  # [D]
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            own = targets[part]
            logits = room[: len(own)]
            if bias is None:
                torch.mm(given[part], weight.T, out=logits)
            else:
                torch.addmm(bias, given[part], weight.T, out=logits)
            powers = logits.float()
            most = powers.amax(-1, keepdim=True)
            total -= (1 - smoothing) * powers.gather(1, own[:, None]).sum()
            if smoothing:
                total -= smoothing * powers.mean(-1).sum()
            powers.sub_(most).exp_()
            weighed = powers.sum(-1, keepdim=True)
            total += (most + weighed.log()).sum()
            if grad is not None:
                # The gradient is softmax less truth, times the weights: divided after the product, where it is small.
                pull = (powers.to(dtype) @ weight).float() / weighed
                grad[part] = pull - (1 - smoothing) * weight[own].float() - spread
        ctx.save_for_backward(*(() if grad is None else (grad,)))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None, None, None
