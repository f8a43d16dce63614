"""Rendered conversations -> the tensors of one training step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from trisense.prompt import Prompt

# So many batches are sorted by length together.
WINDOW = 8

# Letters: B rows, T positions, N media of one sense, S feature vectors of one medium, E width of an encoder.


@dataclass(frozen=True)
class Batch:
    """`inputs`: keyword arguments of the model's forward. `items`: what the loss counts, so that gradients of several
    batches are weighted by tokens and not by batches."""

    inputs: dict[str, torch.Tensor]
    items: int

    def to(self, device: torch.device) -> Batch:
        return Batch({name: tensor.to(device) for name, tensor in self.inputs.items()}, self.items)


def collate(prompts: Sequence[Prompt]) -> Batch:
    """Pads prompts on the right and gathers their media's frozen features.

    Each `values[i]` of a prompt is the features [S, E] of its medium i, computed before by a frozen encoder. Gives
    input_ids, attention_mask, labels (-100 where nothing is supervised), all [B, T] int64; image_features [N, S, E];
    audio_features [N, S, E] padded with zeros, audio_lengths [N]. Where a prompt is a fan, attention_mask is bool
    [B, 1, T, T], True where a row may look at a column, and position_ids [B, T] come with it.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)  # [B, T]
    attention = np.zeros_like(ids)
    labels = np.full_like(ids, -100)
    for row, prompt in enumerate(prompts):
        length = len(prompt.ids)
        ids[row, :length] = prompt.ids
        attention[row, :length] = 1
        labels[row, :length] = np.where(prompt.mask, prompt.ids, -100)
    inputs: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": attention, "labels": labels}
    if any(prompt.branches is not None for prompt in prompts):
        inputs |= _branched(prompts, longest)
    for sense in ("image", "audio"):
        features = [
            values
            for prompt in prompts
            for slot, values in zip(prompt.media, prompt.values, strict=True)
            if slot.sense == sense
        ]
        if not features:
            continue
        lengths = np.array([len(one) for one in features])
        padded = np.zeros((len(features), lengths.max(), features[0].shape[1]), np.float32)  # [N, S, E]
        for row, one in enumerate(features):
            padded[row, : len(one)] = one
        inputs[f"{sense}_features"] = padded
        if sense == "audio":
            inputs["audio_lengths"] = lengths
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    # The first position predicts nothing, so a label there is no item; layouts never supervise it.
    return Batch(tensors, items=int((labels[:, 1:] != -100).sum()))


def like_length(prompt_at: Callable[[int], Prompt], size: int, seed: int) -> Callable[[int], Batch]:
    """Batches of `size` prompts of like length, so that little of them is padding: batch n of prompts 0, 1, 2, ...

    WINDOW batches are made at a time, their prompts sorted by length, and come in an order drawn with `seed`. A batch
    depends on its number alone.
    """

    @lru_cache(maxsize=2)
    def window(number: int) -> list[list[Prompt]]:
        first = number * WINDOW * size
        prompts = sorted((prompt_at(n) for n in range(first, first + WINDOW * size)), key=lambda p: len(p.ids))
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        random.Random(f"{seed}/{number}").shuffle(batches)
        return batches

    return lambda number: collate(window(number // WINDOW)[number % WINDOW])


def by_answer(
    prompt_of: Callable[[int], Prompt], lengths: Mapping[int, int], buckets: Mapping[int, int], seed: int
) -> Callable[[int], Batch]:
    """Batches of samples with answers of like length, short ones in large batches (`jnana`): batch n of no end.

    lengths: sample -> tokens of its answer. buckets: longest answer of a batch -> samples in it. Every sample comes
    once before any comes again, each time in another order. A batch depends on its number alone.
    """
    bounds = np.array(sorted(buckets))
    members = np.array(sorted(lengths))
    place = np.searchsorted(bounds, [lengths[member] for member in members.tolist()])
    groups = [(members[place == i], buckets[int(bound)]) for i, bound in enumerate(bounds)]
    count = sum(-(-len(group) // size) for group, size in groups)

    @lru_cache(maxsize=2)
    def round_of(number: int) -> list[list[int]]:
        rng = np.random.default_rng((seed, number))
        batches = []
        for group, size in groups:
            drawn = rng.permutation(group).tolist()
            batches += [drawn[start : start + size] for start in range(0, len(drawn), size)]
        return [batches[i] for i in rng.permutation(count)]

    return lambda number: collate([prompt_of(sample) for sample in round_of(number // count)[number % count]])


def _branched(prompts: Sequence[Prompt], longest: int) -> dict[str, np.ndarray]:
    """Who sees whom, and who stands where, in rows of which some are fans; padding sees and is seen by padding only."""
    branches = np.full((len(prompts), longest), -1)  # [B, T]
    positions = np.zeros_like(branches)
    for row, prompt in enumerate(prompts):
        length = len(prompt.ids)
        own = np.zeros(length, np.int64) if prompt.branches is None else prompt.branches
        branches[row, :length] = own
        shared = int((own == 0).sum())
        # A branch starts where its number first appears; it goes on from the shared beginning.
        starts = np.searchsorted(own, own)
        positions[row, :length] = np.arange(length) - np.where(own > 0, starts - shared, 0)
    of_row, of_column = branches[:, :, None], branches[:, None, :]
    sees = np.tril(np.ones((longest, longest), np.bool_)) & ((of_row == of_column) | ((of_column == 0) & (of_row >= 0)))
    return {"attention_mask": sees[:, None], "position_ids": positions}
