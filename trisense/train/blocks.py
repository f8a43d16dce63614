"""The blocks that a model is made of: what is sharded one by one, and what `torch.compile` makes one kernel of."""

from __future__ import annotations

import torch
from torch import nn

from trisense.errors import BadInput


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of a model's lists, outer ones before those within them: layers of a language model, stages of an
    encoder."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for module in lists for block in module if not isinstance(block, nn.ModuleList | nn.ModuleDict)]


class Compiled:
    """While it is entered, the forward of each outermost block of a model that is more than a module of torch's is
    compiled, or of the whole model where there is none; afterwards it is what it was before.

    Shapes are dynamic from the start: a batch is as long as its longest. Blocks alike share their code, so the time
    it takes is that of one. Raises BadInput, naming `key`, where `torch.compile` cannot build on `device`.
    """

    def __init__(self, model: nn.Module, device: torch.device, key: str) -> None:
        try:
            torch.compile(torch.exp)(torch.ones(2, device=device))
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0][:200]
            raise BadInput(f"{key}=true: torch.compile cannot build here ({why}); give {key}=false") from None
        # A module of torch's alone has nothing to fuse, and the kernel of a convolution over a map of another length
        # fails on its strides (torch 2.13, the subsampling of Parakeet's encoder).
        composed = [block for block in blocks(model) if not type(block).__module__.startswith("torch.nn.")]
        inner = {id(one) for block in composed for one in block.modules() if one is not block}
        outer = dict.fromkeys(block for block in composed if id(block) not in inner) or [model]
        self._own = {block: vars(block).get("forward") for block in outer}
        self._compiled = {block: torch.compile(block.forward, dynamic=True) for block in outer}

    def __enter__(self) -> None:
        for block, forward in self._compiled.items():
            block.forward = forward

    def __exit__(self, *_: object) -> None:
        for block, forward in self._own.items():
            del block.forward  # that of its class is found again
            if forward is not None:
                block.forward = forward
