"""Is it looking? The samples held back, shown something else than what they are about.

A model that answers from what is asked alone has the same loss whatever it is shown.

Letters: S feature vectors of one medium, E width of an encoder, M mel bins, F frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from trisense.chat import Slot
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.prompt import Processor, Prompt

GREY = 128  # of a blank picture: the middle, near the mean that preprocessing takes away
# What each sense is shown in place of its own, as the log calls it.
NOTHING = {"image": "held_loss_blank", "audio": "held_loss_silence"}


def misled(
    model: TrisenseForConditionalGeneration, processor: Processor, held: Sequence[Prompt]
) -> dict[str, list[Prompt]]:
    """The samples held back with other media, by the name that their loss gets in the log.

    `held_loss_shuffled`: their pictures exchanged among them, none keeping its own; not there where all are the same.
    `held_loss_blank`: a grey picture. `held_loss_silence`: silence as long as each sound. Only for senses that these
    samples use. Needs the model's encoders, once.
    """
    found: dict[str, list[Prompt]] = {}
    if exchanged := _exchanged(held):
        found["held_loss_shuffled"] = _with(held, "image", lambda slot, own: exchanged[_key(own)])
    for name, called in NOTHING.items():
        lengths = {slot.length for prompt in held for slot in prompt.media if slot.sense == name}
        if lengths:
            nothing = {length: nothing_to(model.senses[name], processor, length) for length in lengths}
            found[called] = _with(held, name, lambda slot, own, nothing=nothing: nothing[slot.length])
    return found


@torch.inference_mode()
def nothing_to(sense: torch.nn.Module, processor: Processor, length: int) -> np.ndarray:
    """What a frozen encoder makes of a grey picture or of silence, float16 [length, E]."""
    assert isinstance(sense, Sense)
    mask = None
    if sense.name == "image":
        assert processor.image
        from PIL import Image

        reads = processor.image
        values = reads(Image.new("RGB", (reads.width, reads.height), (GREY, GREY, GREY)))  # [3, H, W]
    else:
        assert processor.audio
        ears = processor.audio
        values = ears(np.zeros(length * ears.frames_per_token * ears.hop_length, np.float32))  # [M, F]
        mask = torch.ones(1, values.shape[-1], dtype=torch.bool)
    parameter = next(sense.encoder.parameters())
    features = sense.encode(
        torch.from_numpy(values)[None].to(parameter.device), None if mask is None else mask.to(parameter.device)
    )
    return features[0, :length].float().cpu().numpy().astype(np.float16)


def _exchanged(held: Sequence[Prompt]) -> Mapping[bytes, np.ndarray]:
    """For every picture, by its features, another one; empty where there are not two. The order is always the same."""
    pictures = {
        _key(values): values
        for prompt in held
        for slot, values in zip(prompt.media, prompt.values, strict=True)
        if slot.sense == "image"
    }
    keys = list(pictures)
    if len(keys) < 2:
        return {}
    random.Random(0).shuffle(keys)
    return {key: pictures[other] for key, other in zip(keys, keys[1:] + keys[:1], strict=True)}


def _with(held: Sequence[Prompt], sense: str, other: Callable[[Slot, np.ndarray], np.ndarray]) -> list[Prompt]:
    """The prompts with what `other` gives in place of every medium of a sense."""
    return [
        replace(
            prompt,
            values=tuple(
                other(slot, values) if slot.sense == sense else values
                for slot, values in zip(prompt.media, prompt.values, strict=True)
            ),
        )
        for prompt in held
    ]


def _key(values: np.ndarray) -> bytes:
    return np.asarray(values).tobytes()
