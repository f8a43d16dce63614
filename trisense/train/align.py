"""Aligning: the projectors learn to write what a feature vector holds in the language model's own words.

A picture's cell with a red cup becomes the sum of the embeddings of ` red`, ` cup`, its size and its place; a moment of
speech becomes the embedding of the word that CTC hears in it. What the language model then learns about words in a text
(find the same word again, say what stands beside it) works on pictures and sounds from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from trisense.data.batches import Batch
from trisense.data.world.bank import Bank
from trisense.data.world.feed import Features
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.train.warmup import CELL, cell_targets
from trisense.train.words import Words, embed_words

DRAWN = list(CELL).index("text")
# How much a cell of a real picture counts, beside one of a drawn picture that is empty.
NAMED = 1.0

# Letters: N vectors, S feature vectors of one picture, E width of an encoder, D width of the language model, K tokens.


class Align(nn.Module):
    """The projectors of a model and, as targets, sums of its own word embeddings, as they are at this moment."""

    words: torch.Tensor

    def __init__(self, model: TrisenseForConditionalGeneration):
        super().__init__()
        senses = {name: cast(Sense, sense) for name, sense in model.senses.items()}
        self.projectors = nn.ModuleDict({name: sense.projector for name, sense in senses.items()})
        # Errors are measured in the words' own variance. Embeddings are small; plain squared errors gave such small
        # gradients (near Adam's epsilon, most likely) that projectors stopped at what all things have in common.
        words = cast(nn.Embedding, model.get_input_embeddings()).weight.detach()
        self.register_buffer("words", words.float().clone(), persistent=False)  # [V, D]
        self.variance = float(words.float().var())

    def forward(
        self,
        image_features: torch.Tensor,
        image_words: torch.Tensor,
        image_weights: torch.Tensor,
        audio_features: torch.Tensor,
        audio_words: torch.Tensor,
        num_items_in_batch: torch.Tensor,
    ) -> CausalLMOutput:
        """features [N, E] and the ids of their words [N, K], of each sense; image_weights [N] lifts the few cells that
        hold something."""

        def error(sense: str, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:  # [N]
            return (self.projectors[sense](features).float() - embed_words(self.words, words)).square().mean(-1)

        image, audio = error("image", image_features, image_words), error("audio", audio_features, audio_words)
        total = ((image * image_weights).sum() + audio.sum()) / self.variance
        return CausalLMOutput(loss=total / num_items_in_batch)


def align_batch(
    bank: Bank,
    features: Features,
    words: Words,
    rng: np.random.Generator,
    size: int,
    named: Sequence[tuple[str, np.ndarray]] = (),
    real: float = 0.0,
) -> Batch:
    """`size` pictures and as many utterances of a bank, their vectors one after the other. named: real pictures with
    their names, features [S, E], which the share `real` of the pictures is taken from."""
    others = round(size * real) if named else 0
    pictures, side = rng.integers(0, len(bank.scenes), size - others), round(features.images.shape[1] ** 0.5)
    cells = torch.from_numpy(np.stack([cell_targets(bank.scenes[i], side)[0] for i in pictures]))  # [N, S, targets]
    heard = [features.audio(int(i)) for i in rng.integers(0, len(bank.utterances), size)]
    sounds = torch.from_numpy(np.concatenate(heard).astype(np.float32))
    # Few cells hold something, and of these few a drawn number or word.
    weights = torch.where(cells[..., DRAWN] > 0, 360.0, torch.where(cells[..., 0] > 0, 60.0, 1.0)).flatten()
    images, ids = torch.from_numpy(features.images[pictures].astype(np.float32)).flatten(0, 1), words.of_cells(cells)
    if others:
        chosen = [named[i] for i in rng.integers(0, len(named), others)]
        whole = torch.from_numpy(np.concatenate([values for _, values in chosen]).astype(np.float32))
        images, weights = torch.cat([images, whole]), torch.cat([weights, torch.full((len(whole),), NAMED)])
        ids = torch.cat([ids, torch.stack([words.of_name(name) for name, _ in chosen])])
    inputs = {
        "image_features": images,
        "image_words": ids.flatten(0, 1),
        "image_weights": weights,
        "audio_features": sounds,
        "audio_words": words.of_sounds(sounds),
    }
    return Batch(inputs, items=len(weights) + len(sounds))


@torch.inference_mode()
def align_accuracy(model: Align, bank: Bank, features: Features, words: Words, indices: np.ndarray) -> dict[str, float]:
    """How often the nearest words to what is written for a thing, by dot product, are its own kind, colour, size and
    text. A low loss does not say so: most of it is what all things have in common."""
    side = round(features.images.shape[1] ** 0.5)
    cells = torch.from_numpy(np.stack([cell_targets(bank.scenes[i], side)[0] for i in indices]))  # [N, S, targets]
    device = next(model.parameters()).device
    values = torch.from_numpy(features.images[indices].astype(np.float32)).to(device)
    written = model.projectors["image"](values).float().cpu()  # [N, S, D]
    shares = {}
    for target, (name, table) in enumerate(zip(CELL, words.cells, strict=True)):
        asked = cells[..., target] > 0
        said = (written[asked] @ embed_words(model.words.cpu(), table[1:]).T).argmax(-1) + 1
        shares[name] = float((said == cells[asked][:, target]).float().mean())
    return shares
