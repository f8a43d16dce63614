"""How fast a run is: floating-point operations of a batch, the peak of the device, memory.

MFU, the share of the peak that the model's own multiplications make up, is that of PaLM (Chowdhery et al. 2022,
arXiv:2204.02311): what is computed twice to save memory does not count, and neither does attention between tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch
from torch import nn

# Dense bfloat16 multiplications and additions a second, from NVIDIA's data sheets; a name's first match counts.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 125e12,
    "RTX 4090": 165e12,
}

# Gigabytes of memory of these, the larger where there are two.
MEMORIES = {"H200": 141, "H100 PCIe": 80, "H100": 80, "A100": 80, "L40S": 48, "L4": 24, "A10G": 24, "RTX 4090": 24}


@dataclass
class Operations:
    """Floating-point operations, a multiplication and an addition being two."""

    count: float = 0.0


@contextmanager
def counting(model: nn.Module, supervised: int = 0) -> Iterator[Operations]:
    """Counts the operations of the linear layers and convolutions that run within, and of their backward pass.

    A layer of N weights on R rows takes 2NR forward, 2NR more where its input has a gradient, and 2NR more where its
    weights learn: the 6N of a token where everything learns (Kaplan et al. 2020, arXiv:2001.08361), 4N for a frozen
    layer above something that learns, 2N for one below. supervised: rows of a language model's head, for a loss that
    multiplies with its weights and never calls it.
    """
    found, called = Operations(), set[nn.Module]()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        called.add(module)
        if isinstance(module, nn.Linear):  # a quantised layer's weight has another shape
            weights, rows = module.in_features * module.out_features, output.numel() // module.out_features
        else:
            weight, channels = module.weight, output.shape[1]
            assert isinstance(weight, torch.Tensor)
            weights, rows = weight.numel(), output.numel() // channels
        learns = any(p.requires_grad for p in module.parameters(recurse=False))
        backward = int(bool(inputs) and inputs[0].requires_grad) + int(learns) if output.requires_grad else 0
        found.count += 2.0 * weights * rows * (1 + backward)

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    getters = (getattr(module, "get_output_embeddings", None) for module in model.modules())
    heads = (getter() for getter in getters if callable(getter))
    head: Any = next((head for head in heads if isinstance(head, nn.Linear)), None)
    if called and head is not None and head not in called:
        learns = int(head.weight.requires_grad)
        found.count += 2.0 * head.in_features * head.out_features * supervised * (2 + learns)


@cache
def peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second that a device can do, and whether that is `known` or `measured`: the best of a few matrix
    products, with the threads that torch has."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, value in PEAKS.items():
            if known in name:
                return value, "known"
    side = 768 if device.type == "cpu" else 8192
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(5):
        _settle(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        _settle(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times), "measured"


def memory(device: torch.device) -> int:
    """Bytes: the most that torch has held on a GPU, the resident set of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _settle(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
