"""The loss as a textbook has it, to hold the one of training against: a sample at a time, no padding, no packing, every
logit.

Letters: T positions, V vocabulary, N media, S feature vectors of one medium, E width of an encoder.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.prompt import Prompt


@torch.no_grad()
def plain_loss(model: TrisenseForConditionalGeneration, prompt: Prompt, smoothing: float = 0.0) -> tuple[float, int]:
    """Cross-entropy of the supervised tokens of one sample, summed, and their number; each token is predicted from the
    place before it. smoothing: share of a target's probability that is spread over all tokens."""
    device = next(model.parameters()).device
    media: dict[str, torch.Tensor] = {}
    for name in ("image", "audio"):
        values = [v for slot, v in zip(prompt.media, prompt.values, strict=True) if slot.sense == name]
        if not values:
            continue
        rows = [torch.from_numpy(np.array(one, np.float32)) for one in values]
        media[f"{name}_features"] = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # [N, S, E]
        if name == "audio":
            media["audio_lengths"] = torch.tensor([len(row) for row in rows], device=device)
    ids = torch.from_numpy(prompt.ids).to(device)
    logits = model(input_ids=ids[None], use_cache=False, **media).logits[0]  # [T, V]
    total, count = 0.0, 0
    for t in np.flatnonzero(prompt.mask[1:]).tolist():
        logs = logits[t].float().log_softmax(-1)
        total -= float((1 - smoothing) * logs[prompt.ids[t + 1]] + smoothing * logs.mean())
        count += 1
    return total, count


def branches(prompt: Prompt) -> Iterator[Prompt]:
    """The samples that a fan was made of; a prompt that is none is its own."""
    if prompt.branches is None:
        yield prompt
        return
    for number in range(1, int(prompt.branches.max()) + 1):
        own = (prompt.branches == 0) | (prompt.branches == number)
        yield Prompt(prompt.ids[own], prompt.mask[own], prompt.media, prompt.values)
