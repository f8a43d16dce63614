"""The loss through a frozen head against torch's own, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from trisense.model.loss import fuse_activations, head_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [4, 11, 100])
def test_loss_and_gradient_are_those_of_the_whole_logits(smoothing: float, bias: bool, chunk: int):
    torch.manual_seed(0)
    head = nn.Linear(8, 50, bias=bias).requires_grad_(False)
    hidden = torch.randn(11, 8, requires_grad=True)
    targets = torch.randint(50, (11,))
    expected = nn.functional.cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(expected / 7, hidden)
    loss = head_loss(hidden, head, targets, smoothing, chunk)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    (own,) = torch.autograd.grad(loss / 7, hidden)
    torch.testing.assert_close(own, gradient, atol=1e-6, rtol=1e-5)
    assert head.weight.grad is None


def test_in_bf16_it_is_as_near_as_torch_is():
    torch.manual_seed(0)
    head = nn.Linear(64, 300).requires_grad_(False)
    hidden = torch.randn(20, 64, requires_grad=True)
    targets = torch.randint(300, (20,))
    expected = nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(expected, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss(hidden, head, targets)
    (own,) = torch.autograd.grad(loss, hidden)
    assert loss.dtype == own.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0, rtol=2e-2)
    torch.testing.assert_close(own, gradient, atol=2e-2, rtol=0.1)


def test_nothing_supervised_costs_nothing():
    head = nn.Linear(8, 50).requires_grad_(False)
    hidden = torch.randn(0, 8, requires_grad=True)
    loss = head_loss(hidden, head, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0 and hidden.grad is not None


def test_without_gradient_it_is_the_loss_alone():
    head = nn.Linear(8, 50).requires_grad_(False)
    hidden = torch.randn(5, 8)
    targets = torch.arange(5)
    with torch.inference_mode():
        loss = head_loss(hidden, head, targets)
        expected = nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_a_target_that_nothing_speaks_for_still_has_a_loss():
    head = nn.Linear(1, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[200.0], [0.0], [-200.0]]))
    loss = head_loss(torch.ones(1, 1, requires_grad=True), head, torch.tensor([2]))
    assert float(loss.detach()) == pytest.approx(400.0)


def test_the_fused_activation_is_the_same_function():
    slow = nn.Sequential(nn.Sequential(NewGELUActivation()))
    fused = nn.Sequential(nn.Sequential(NewGELUActivation()))
    fuse_activations(fused)
    assert isinstance(fused[0][0], nn.GELU)
    x = torch.linspace(-12, 12, 2001)
    given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    out = [model(value) for model, value in zip((slow, fused), given, strict=True)]
    torch.testing.assert_close(*out, atol=5e-6, rtol=1e-5)
    for value in out:
        value.sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad, atol=5e-6, rtol=1e-5)
