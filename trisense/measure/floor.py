"""The matrix products that a training step cannot do without, and how long this machine takes for nothing but them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import cast

import torch
from torch import nn

from trisense.data.batches import Batch
from trisense.model.attention import visible
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense

# A product is repeated until it has done so many operations, and the median of so many such runs counts.
ENOUGH = 2e8
RUNS = 3


@dataclass(frozen=True)
class Product:
    """[rows, inner] x [inner, columns]. transposed: the second factor is kept the other way round, as torch keeps a
    weight, [out, in], that a forward multiplies with."""

    rows: int
    inner: int
    columns: int
    transposed: bool

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True)
class Work:
    """products: of the linear layers, and how often each. attention: floating-point operations of scores and sums, for
    pairs of positions that see each other, forward and backward."""

    products: Counter[Product]
    attention: int

    @property
    def flops(self) -> int:
        return self.attention + sum(product.flops * count for product, count in self.products.items())


def work_of(model: TrisenseForConditionalGeneration, batch: Batch) -> Work:
    """What one forward and backward over a packed batch needs.

    Every linear layer at every token, the head at supervised ones, the projector at the pictures; gradients of inputs
    everywhere but before the projector, gradients of weights where they learn. Nothing is computed twice; norms,
    activations and softmax cost nothing.
    """
    sense = cast(Sense, model.senses["image"])
    segments, branches = batch.inputs["segments"], batch.inputs["branches"]
    pictures, vectors = batch.inputs["image_features"].shape[:2]
    products: Counter[Product] = Counter()

    def add(layer: nn.Linear, rows: int, into_inputs: bool = True) -> None:
        out, wide = layer.weight.shape
        products[Product(rows, wide, out, True)] += 1
        if into_inputs:
            products[Product(rows, out, wide, False)] += 1
        if layer.weight.requires_grad:
            products[Product(out, rows, wide, False)] += 1

    head = model.get_output_embeddings()
    for module in model.language_model.modules():
        if isinstance(module, nn.Linear):
            add(module, batch.items if module is head else int((segments >= 0).sum()))
    for place, layer in enumerate(m for m in sense.projector.modules() if isinstance(m, nn.Linear)):
        add(layer, pictures * vectors, into_inputs=place > 0)
    config = model.config.text_config
    seen = visible(segments, branches)[:, 0] & (segments >= 0)[..., None]
    # Scores and sums are two products forward and four backward.
    attention = config.num_hidden_layers * 6 * 2 * int(seen.sum()) * config.hidden_size
    return Work(products, attention)


def floor_of(work: Work, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds that this machine takes, now, for the products of some work alone; and its best floating-point operations
    a second among them. Attention counts at the mean speed of the others."""
    total, best = 0.0, 0.0
    for product, count in work.products.items():
        left = torch.randn(product.rows, product.inner, device=device).to(dtype)
        shape = (product.columns, product.inner) if product.transposed else (product.inner, product.columns)
        right = torch.randn(shape, device=device).to(dtype)
        out = torch.empty(product.rows, product.columns, device=device, dtype=dtype)
        factor = right.T if product.transposed else right
        times = max(1, round(ENOUGH / product.flops))
        run = partial(_repeat, times, left, factor, out)
        run()
        seconds = median(timed(run, device) for _ in range(RUNS)) / times
        total += seconds * count
        best = max(best, product.flops / seconds)
    linear = work.flops - work.attention
    return total * work.flops / linear, best


def _repeat(times: int, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    for _ in range(times):
        torch.mm(left, right, out=out)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
