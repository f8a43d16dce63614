"""Rendered conversations -> the tensors of one training step."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    batches are weighted by tokens and not by batches. `prompts`: what it was made of, so that it can be checked."""

    inputs: dict[str, torch.Tensor]
    items: int
    prompts: tuple[Prompt, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return replace(self, inputs={name: tensor.to(device) for name, tensor in self.inputs.items()})


def collate(prompts: Sequence[Prompt]) -> Batch:
    """Pads prompts on the right, one a row, and gathers their media's frozen features.

    Each `values[i]` of a prompt is the features [S, E] of its medium i, computed before by a frozen encoder. Gives
    input_ids, attention_mask, labels (-100 where nothing is supervised), all [B, T] int64; image_features [N, S, E];
    audio_features [N, S, E] padded with zeros, audio_lengths [N]. Where a prompt is a fan, segments, branches,
    position_ids and predicted_from, [B, T] int64, as the model's forward takes them, stand for attention_mask.
    """
    rows = [[prompt] for prompt in prompts]
    if any(prompt.branches is not None for prompt in prompts):
        return _batch(prompts, _packed(rows))
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)  # [B, T]
    attention = np.zeros_like(ids)
    labels = np.full_like(ids, -100)
    for row, prompt in enumerate(prompts):
        length = len(prompt.ids)
        ids[row, :length] = prompt.ids
        attention[row, :length] = 1
        labels[row, :length] = np.where(prompt.mask, prompt.ids, -100)
    # The first position predicts nothing, so a label there is no item; layouts never supervise it.
    labels[:, :1] = -100
    return _batch(prompts, {"input_ids": ids, "attention_mask": attention, "labels": labels})


def pack(rows: Sequence[Sequence[Prompt]]) -> Batch:
    """Prompts, fans among them, one behind the other in each row: as `collate`, but the positions of each begin at 0
    and none sees another, so the model computes for each what it would compute for it alone."""
    return _batch([prompt for row in rows for prompt in row], _packed(rows))


def _packed(rows: Sequence[Sequence[Prompt]]) -> dict[str, np.ndarray]:
    """Everything of packed rows but their media, [B, T]; padding is a segment of its own."""
    longest = max(sum(len(prompt.ids) for prompt in row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    labels, segments, predicted_from = (np.full_like(ids, fill) for fill in (-100, -1, -1))
    branches, positions = np.zeros_like(ids), np.zeros_like(ids)
    for index, row in enumerate(rows):
        start = 0
        for number, prompt in enumerate(row):
            here = (index, slice(start, start + len(prompt.ids)))
            ids[here], segments[here] = prompt.ids, number
            branches[here] = 0 if prompt.branches is None else prompt.branches
            positions[here], before = _places(branches[here])
            predicted_from[here] = np.where(before < 0, -1, start + before)
            # What nothing comes before cannot be predicted.
            labels[here] = np.where(prompt.mask & (before >= 0), prompt.ids, -100)
            start += len(prompt.ids)
    return {
        "input_ids": ids,
        "labels": labels,
        "segments": segments,
        "branches": branches,
        "position_ids": positions,
        "predicted_from": predicted_from,
    }


def _places(branches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of each token of a prompt, and the place of the token before it, -1 for none, int64 [T]."""
    places = np.arange(len(branches))
    shared = int((branches == 0).sum())
    # A branch starts where its number first appears; it goes on from the shared beginning.
    starts = np.searchsorted(branches, branches)
    first = (places == starts) & (branches > 0)
    return places - np.where(branches > 0, starts - shared, 0), np.where(first, shared, places) - 1


def _batch(prompts: Sequence[Prompt], inputs: dict[str, np.ndarray]) -> Batch:
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
    return Batch(tensors, items=int((inputs["labels"] != -100).sum()), prompts=tuple(prompts))


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
