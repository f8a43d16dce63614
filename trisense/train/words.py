"""Pictures and sounds written in words: what a cell of a picture and a moment of speech stand for.

The stage `read` teaches the language model on them, before it meets an encoder: looking things up is learned faster
from words than from vectors that only resemble them. Then the projectors are given the same words to write.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisense.data.world.bank import Bank
from trisense.data.world.facts import NUMBERS, Scene
from trisense.data.world.feed import Features
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.projector import Naming
from trisense.model.senses import Sense
from trisense.tokens import TextTokenizer
from trisense.train.warmup import CELL, NAME, cell_targets, name_targets

# Letters: N vectors or media, S feature vectors of one medium, B rows, T positions, D width of the language model,
# V vocabulary, E width of an encoder, K tokens of one vector.


class Words:
    """The tokens of a vector: ids int64 [.., K], filled up with V.

    A cell with a red cup is ` cup`, ` red`, its size and its place; a vector of a picture's summary is a token of its
    name; a moment of speech is the token that ends in it. Where there is nothing, it is the word `nothing`.
    """

    def __init__(self, tokenizer: TextTokenizer, side: int, summary: int = 0):
        def table(rows: list[list[int]]) -> torch.Tensor:
            longest = max(1, *map(len, rows))
            return torch.tensor([row + [tokenizer.size] * (longest - len(row)) for row in rows])

        spoken = {NAME: "", **{str(digit): word for digit, word in enumerate(NUMBERS)}}

        def written(value: str) -> list[int]:
            word = spoken.get(value, value)
            return tokenizer.plain(word) if word else []

        nothing, tokens = tokenizer.plain("nothing"), [[token] for token in range(tokenizer.size)]
        # Of every target of a picture's vector, the tokens of its classes; the first class is "does not apply", which
        # is of the kind the word for a vector that holds nothing.
        rows = [*([written(value) for value in values] for values in CELL.values()), tokens]
        self.cells = [table([[] if target else nothing, *row]) for target, row in enumerate(rows)]
        self.heard = table([*tokens, nothing])  # the last class is CTC's blank
        self.tokenizer = tokenizer
        self.side = side
        self.summary = summary

    def of_cells(self, targets: torch.Tensor) -> torch.Tensor:
        """Classes int64 [.., S, targets] -> ids [.., S, K]."""
        return torch.cat([table[targets[..., target]] for target, table in enumerate(self.cells)], -1)

    def of_scene(self, scene: Scene, name: str | None = None) -> np.ndarray:
        """ids [S, K] of a drawn picture, or with no things in it of any that is called so."""
        targets = cell_targets(scene, self.side, self.summary)[0]
        if name:
            targets[self.side**2 :] = name_targets(self.tokenizer.plain(name), self.side, self.summary)[self.side**2 :]
        return self.of_cells(torch.from_numpy(targets)).numpy()

    def of_speech(self, words: str, rng: np.random.Generator, count: int | None = None) -> np.ndarray:
        """ids [S, K] of somebody who says the words, as CTC would hear them: their tokens in order at any of S =
        `count` moments; by default as many as it may take, from slow to fast."""
        tokens = self.tokenizer.plain(words)
        if count is None:
            count = 3 + round(len(tokens) * rng.uniform(1.5, 5))
        places = np.sort(rng.permutation(count)[: len(tokens)])
        moments = torch.full((count,), len(self.heard) - 1)
        moments[torch.from_numpy(places)] = torch.tensor(tokens[: len(places)], dtype=torch.int64)
        return self.heard[moments].numpy()

    def of_bank(self, bank: Bank, frames: int) -> Features:
        """A whole bank written so: ids in place of its features. frames: of a log-mel that become one vector."""
        rng = np.random.default_rng(bank.seed)
        pictures = [self.of_scene(scene) for scene in bank.scenes]
        counts = -(-np.diff(bank.offsets) // frames)
        said = zip(bank.utterances, counts, strict=True)
        sounds = [self.of_speech(utterance.words, rng, int(count)) for utterance, count in said]
        return Features(np.stack(pictures), np.concatenate(sounds), np.concatenate([[0], counts.cumsum()]))

    @torch.no_grad()
    def write(self, model: TrisenseForConditionalGeneration) -> None:
        """Has the projectors write the language model's embeddings [V, D] of what their heads say, and nothing else."""
        embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight
        for sense, tables in (("image", self.cells), ("audio", [self.heard])):
            naming = cast(Naming, cast(Sense, model.senses[sense]).projector)
            naming.rest.weight.zero_()
            naming.rest.bias.zero_()
            for table, vectors in zip(tables, naming.words.weight.T.split(naming.classes), strict=True):
                found = embed_words(embeddings, table.to(embeddings.device))  # [C of a group, D]
                vectors[: len(found)] = found
                vectors[len(found) - 1 :] = found[-1]  # a tokenizer may know fewer tokens than there are classes


def embed_words(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The sum of the embeddings of the tokens of each vector: table [V, D], ids [.., K] -> [.., D]."""
    padded = torch.cat([table, table.new_zeros(1, table.shape[1])])
    bags = nn.functional.embedding_bag(ids.flatten(0, -2), padded, mode="sum")
    return bags.view(*ids.shape[:-1], table.shape[1])


class Read(nn.Module):
    """A model that reads its media written in words: `image_features` and `audio_features` hold ids [N, S, K]."""

    def __init__(self, model: TrisenseForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        image_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
        **inputs: Any,
    ) -> CausalLMOutputWithPast:
        """As the model's own forward; the words' embeddings [V, D] learn from where they stand for media too."""
        words = cast(nn.Embedding, self.model.get_input_embeddings())
        embeddings = words(input_ids)  # [B, T, D]
        for sense, ids in (("image", image_features), ("audio", audio_features)):
            if ids is None:
                continue
            if sense == "audio" and audio_lengths is not None:
                ids = ids[torch.arange(ids.shape[1], device=ids.device) < audio_lengths[:, None]]
            vectors = embed_words(words.weight, ids.long()).to(embeddings)
            embeddings = embeddings.masked_scatter((input_ids == self.model.placeholders[sense])[..., None], vectors)
        return self.model(inputs_embeds=embeddings, **inputs)
