"""Warming an encoder up alone, with a linear head that is thrown away: pictures by cells or names, sounds by CTC.

An encoder from nothing learns slowly through a language model that is also from nothing. The world knows its facts, so
each encoder first learns to say them itself; its features are then worth reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from trisense.data.batches import Batch
from trisense.data.real.augment import redrawn
from trisense.data.real.bank import RealBank
from trisense.data.real.sample import edit_distance
from trisense.data.world.bank import Bank
from trisense.data.world.facts import COLOURS, KINDS, SIGNS, SIZES, Scene
from trisense.model.senses import Sense
from trisense.preprocess import ImageProcessor
from trisense.tokens import TextTokenizer

# Letters: N media, S feature vectors of one medium, E width of the encoder, M mel bins, F frames, V vocabulary,
# K targets.

# What a cell of a picture holds, in the order of its targets: each has one class more, 0, for "does not apply".
CELL = {
    "kind": (*KINDS, "number", "word"),
    "colour": tuple(COLOURS),
    "size": SIZES,
    "text": (*"0123456789", *SIGNS),
}


# A log-mel [frames, M] and the words in it.
Sound = tuple[np.ndarray, str]


class See(nn.Module):
    """Says of each cell of a drawn picture which thing has its centre there, and where exactly; of a real one which of
    `names` it has as a whole."""

    def __init__(self, sense: Sense, names: Sequence[str] = ()):
        super().__init__()
        self.sense = sense
        self.sizes = [len(classes) + 1 for classes in CELL.values()]
        self.head = nn.Linear(sense.options.width, sum(self.sizes) + 2)
        self.names = nn.Linear(sense.options.width, len(names)) if names else None

    def forward(
        self,
        pixel_values: torch.Tensor,
        cells: torch.Tensor,
        centres: torch.Tensor,
        num_items_in_batch: torch.Tensor,
        named: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """pixel_values [N, 3, H, W], drawn pictures before real ones; cells int64 [drawn, S, K], the class of every
        target, centres [drawn, S, 2], 0 to 1; named int64 [real]. Both in one batch, since an encoder with batch
        normalisation would learn each by statistics of its own, and be asked with those of both."""
        features = self.sense.encode(pixel_values)  # [N, S, E]
        real = 0 if named is None else len(named)
        said = self.head(features[: len(features) - real])  # [drawn, S, classes + 2]
        taken = cells[..., 0] > 0  # [N, S]
        *logits, where = said.float().split([*self.sizes, 2], -1)
        # Every cell says whether something is there; the rest is asked only where something is.
        loss = nn.functional.cross_entropy(logits[0].flatten(0, 1), cells[..., 0].flatten(), reduction="sum")
        for target, one in enumerate(logits[1:], 1):
            loss = loss + nn.functional.cross_entropy(one[taken], cells[taken][:, target], reduction="sum")
        loss = loss + 20 * nn.functional.mse_loss(where[taken], centres[taken], reduction="sum")
        if named is not None and self.names is not None:
            called = self.names(features[-real:].mean(1)).float()  # [real, names]
            loss = loss + nn.functional.cross_entropy(called, named, reduction="sum", label_smoothing=0.1)
        return CausalLMOutput(loss=loss / num_items_in_batch, logits=said)


def cell_targets(scene: Scene, side: int) -> tuple[np.ndarray, np.ndarray]:
    """(classes int64 [side * side, K], centres float32 [side * side, 2]) of a scene on a grid of side x side cells."""
    cells = np.zeros((side * side, len(CELL)), np.int64)
    centres = np.zeros((side * side, 2), np.float32)
    for thing in scene.things:
        x, y = thing.centre
        cell = min(int(y * side), side - 1) * side + min(int(x * side), side - 1)
        values = (thing.kind, thing.colour, thing.size, thing.text)
        cells[cell] = [
            classes.index(value) + 1 if value in classes else 0
            for value, classes in zip(values, CELL.values(), strict=True)
        ]
        centres[cell] = x, y
    return cells, centres


def picture_batch(bank: Bank, indices: np.ndarray, processor: ImageProcessor) -> Batch:
    """Pictures of a bank with the targets of their cells."""
    side = round(processor.tokens**0.5)
    targets = [cell_targets(bank.scenes[i], side) for i in indices]
    inputs = {
        "pixel_values": torch.from_numpy(pixels(bank, indices, processor)),
        "cells": torch.from_numpy(np.stack([cells for cells, _ in targets])),
        "centres": torch.from_numpy(np.stack([centres for _, centres in targets])),
    }
    return Batch(inputs, items=sum(len(bank.scenes[i].things) for i in indices))


def pixels(bank: Bank, indices: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """`pixel_values` [N, 3, H, W] of a bank's pictures, which are already of the size that the processor wants."""
    raw = np.stack([bank.picture(int(i)) for i in indices]).transpose(0, 3, 1, 2).astype(np.float32)  # [N, 3, H, W]
    return normalised(raw / 255, processor)


def normalised(pictures: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Pictures [N, 3, H, W], 0 to 1 -> `pixel_values`."""
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (processor.mean, processor.std))
    return np.ascontiguousarray((pictures - mean) / std)


def named_batch(
    bank: RealBank,
    indices: np.ndarray,
    names: Mapping[str, int],
    processor: ImageProcessor,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Real pictures with the classes of their names; `rng` redraws them by chance."""
    raw = np.stack([bank.picture(int(i)) for i in indices]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    if rng is not None:
        raw = redrawn(torch.from_numpy(raw), rng).numpy()
    inputs = {
        "pixel_values": torch.from_numpy(normalised(raw, processor)),
        "named": torch.tensor([names[bank.names[i]] for i in indices]),
    }
    return Batch(inputs, items=len(indices))


def beside(drawn: Batch, named: Batch) -> Batch:
    """Drawn pictures and real ones as one batch, as `See` takes them."""
    pixel_values = torch.cat([drawn.inputs["pixel_values"], named.inputs["pixel_values"]])
    return Batch(drawn.inputs | named.inputs | {"pixel_values": pixel_values}, items=drawn.items + named.items)


@torch.inference_mode()
def named_accuracy(model: See, bank: RealBank, names: Mapping[str, int], processor: ImageProcessor) -> dict[str, float]:
    """By kind of picture, how often a held-out one gets its name among all; those whose name was never learned are left
    out."""
    assert model.names is not None
    device = next(model.parameters()).device
    right: dict[str, list[bool]] = {}
    known = np.array([i for i, name in enumerate(bank.names) if name in names])
    for part in np.array_split(known, max(1, len(known) // 256)):
        batch = named_batch(bank, part, names, processor)
        said = model.names(model.sense.encode(batch.inputs["pixel_values"].to(device)).mean(1)).argmax(-1).cpu()
        for index, hit in zip(part, said == batch.inputs["named"], strict=True):
            right.setdefault(PurePosixPath(bank.files[0][index]).name, []).append(bool(hit))
    return {f"named_{kind}": sum(hits) / len(hits) for kind, hits in right.items()}


@torch.inference_mode()
def picture_accuracy(model: See, bank: Bank, indices: np.ndarray, processor: ImageProcessor) -> dict[str, float]:
    """How often a held-out thing's kind, colour, size and text are said right, each alone and all at once."""
    batch = picture_batch(bank, indices, processor)
    device = next(model.parameters()).device
    said = model.head(model.sense.encode(batch.inputs["pixel_values"].to(device))).float().cpu()
    cells = batch.inputs["cells"]
    taken = cells[..., 0] > 0
    right = [
        one[taken].argmax(-1) == cells[taken][:, target]
        for target, one in enumerate(said.split([*model.sizes, 2], -1)[:-1])
    ]
    shares = {name: float(one.float().mean()) for name, one in zip(CELL, right, strict=True)}
    shares["all"] = float(torch.stack(right).all(0).float().mean())
    return shares


class Hear(nn.Module):
    """Says the tokens of an utterance in order (CTC, Graves et al. 2006); the last class of the head is the blank."""

    def __init__(self, sense: Sense, vocabulary: int):
        super().__init__()
        self.sense = sense
        self.head = nn.Linear(sense.options.width, vocabulary + 1)

    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor,
        tokens: torch.Tensor,
        token_lengths: torch.Tensor,
        num_items_in_batch: torch.Tensor,
    ) -> CausalLMOutput:
        """input_features [N, M, F], input_features_mask [N, F]; tokens int64 [N, longest], token_lengths [N]."""
        features = self.sense.encode(input_features, input_features_mask)  # [N, S, E]
        logits = self.head(features).float()  # [N, S, V + 1]
        heard = self.sense.lengths(features, input_features_mask)
        loss = nn.functional.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            tokens,
            heard,
            token_lengths,
            blank=logits.shape[-1] - 1,
            reduction="sum",
            zero_infinity=True,
        )
        return CausalLMOutput(loss=loss / num_items_in_batch, logits=logits)


def sound_batch(sounds: Sequence[Sound], tokenizer: TextTokenizer, rng: np.random.Generator | None) -> Batch:
    """Sounds with the tokens of their words; `rng` masks bands of time and pitch (SpecAugment, Park et al. 2019)."""
    values, mask = mels([mel for mel, _ in sounds])
    if rng is not None:
        for row in range(len(values)):
            band, length = rng.integers(0, 12), rng.integers(0, 16)
            low, start = rng.integers(0, values.shape[1] - band), rng.integers(0, values.shape[2] - length)
            values[row, low : low + band] = 0
            values[row, :, start : start + length] = 0
        values += rng.normal(0, rng.uniform(0, 0.1), values.shape).astype(np.float32)
    said = [tokenizer.plain(words) for _, words in sounds]
    longest = max(len(one) for one in said)
    inputs = {
        "input_features": torch.from_numpy(values),
        "input_features_mask": torch.from_numpy(mask),
        "tokens": torch.tensor([one + [0] * (longest - len(one)) for one in said]),
        "token_lengths": torch.tensor([len(one) for one in said]),
    }
    return Batch(inputs, items=sum(len(one) for one in said))


def mels(sounds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(`input_features` [N, M, F] padded with zeros, mask bool [N, F]) of log-mels [frames, M]."""
    longest = max(len(sound) for sound in sounds)
    values = np.zeros((len(sounds), sounds[0].shape[1], longest), np.float32)
    mask = np.zeros((len(sounds), longest), np.bool_)
    for row, sound in enumerate(sounds):
        values[row, :, : len(sound)] = sound.T
        mask[row, : len(sound)] = True
    return values, mask


@torch.inference_mode()
def sound_accuracy(model: Hear, bank: Bank, indices: np.ndarray, tokenizer: TextTokenizer) -> dict[str, float]:
    """The share of held-out utterances whose transcript, read off greedily, is right to the letter."""
    sounds = [bank.sound(int(i)) for i in indices]
    read = transcribed(model, [mel for mel, _ in sounds])
    return {"exact": sum(said == tokenizer.plain(words) for said, (_, words) in zip(read, sounds)) / len(indices)}


@torch.inference_mode()
def transcribed(model: Hear, sounds: Sequence[np.ndarray]) -> list[list[int]]:
    """The tokens in each log-mel [frames, M], read off greedily."""
    values, mask = mels(sounds)
    device = next(model.parameters()).device
    features = model.sense.encode(torch.from_numpy(values).to(device), torch.from_numpy(mask).to(device))
    best = model.head(features).argmax(-1).cpu()  # [N, S]
    heard = model.sense.lengths(features, torch.from_numpy(mask)).cpu()
    blank = model.head.out_features - 1
    paths = (row[:length].unique_consecutive().tolist() for row, length in zip(best, heard))
    return [[token for token in path if token != blank] for path in paths]


def heard_errors(model: Hear, bank: RealBank, tokenizer: TextTokenizer) -> dict[str, float]:
    """By kind of recording, the word error rate of what is read off greedily in a bank's sounds."""
    errors: dict[str, int] = defaultdict(int)
    spoken: dict[str, int] = defaultdict(int)
    order = np.argsort(np.diff(bank.offsets)[: bank.recorded], kind="stable")
    for part in np.array_split(order, max(1, len(order) // 32)):
        for index, tokens in zip(part, transcribed(model, [bank.mel(int(i)) for i in part]), strict=True):
            kind, words = PurePosixPath(bank.files[1][index]).name, bank.words[index].split()
            errors[kind] += edit_distance(tokenizer.decode(tokens).split(), words)
            spoken[kind] += len(words)
    return {f"wer_{kind}": errors[kind] / spoken[kind] for kind in spoken}
