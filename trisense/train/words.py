"""Pictures and sounds written in words: what a cell of a picture and a moment of speech stand for.

The stage `read` teaches the language model on them, before it meets an encoder: looking things up is learned faster
from words than from vectors that only resemble them. `align` then teaches the projectors to write the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisense.data.world.bank import Bank
from trisense.data.world.facts import NUMBERS, place_name
from trisense.data.world.feed import Features
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.tokens import TextTokenizer
from trisense.train.warmup import CELL, Hear, cell_targets

# Letters: N vectors or media, S feature vectors of one medium, B rows, T positions, D width of the language model,
# V vocabulary, E width of an encoder, K tokens of one vector.


class Words:
    """The tokens of a vector: ids int64 [.., K], filled up with V.

    A cell with a red cup is ` cup`, ` red`, its size and its place; a moment of an utterance is the token that the head
    of `hear` finds there. Where there is nothing, it is the word `nothing`. Every cell of a real picture is its whole
    name, one of `names`.
    """

    def __init__(self, hear: Hear, tokenizer: TextTokenizer, side: int, names: Iterable[str] = ()):
        def table(rows: list[list[int]]) -> torch.Tensor:
            longest = max(map(len, rows))
            return torch.tensor([row + [tokenizer.size] * (longest - len(row)) for row in rows])

        spoken = {str(digit): word for digit, word in enumerate(NUMBERS)}
        nothing = tokenizer.plain("nothing")
        # Of every target of a cell, the tokens of its classes; the first class is "does not apply".
        self.cells = [
            table([[], *(tokenizer.plain(spoken.get(value) or value) for value in values)]) for values in CELL.values()
        ]
        thirds = [(row * 3 // side, column * 3 // side) for row in range(side) for column in range(side)]
        self.places = table([tokenizer.plain(place_name(*third)) for third in thirds])  # [S, K]
        self.heard = table([*([token] for token in range(tokenizer.size)), nothing])  # the last class is CTC's blank
        called = {name: tokenizer.plain(name) for name in names}
        cell = sum(one.shape[1] for one in self.cells) + self.places.shape[1]
        width = max(cell, *map(len, called.values())) if called else cell
        self.filling = torch.full((width - cell,), tokenizer.size)
        self.nothing = torch.tensor(nothing + [tokenizer.size] * (width - len(nothing)))
        self.names = {
            name: torch.tensor(tokens + [tokenizer.size] * (width - len(tokens))) for name, tokens in called.items()
        }  # [K] each
        self.side = side
        self.head = hear.head

    def of_cells(self, cells: torch.Tensor) -> torch.Tensor:
        """classes int64 [.., S, targets] -> ids [.., S, K]."""
        places = self.places.expand(*cells.shape[:-1], -1)
        filling = self.filling.expand(*cells.shape[:-1], -1)
        ids = torch.cat([*(table[cells[..., target]] for target, table in enumerate(self.cells)), places, filling], -1)
        return torch.where(cells[..., :1] > 0, ids, self.nothing)

    def of_name(self, name: str) -> torch.Tensor:
        """ids [S, K] of a picture that is called so."""
        return self.names[name].expand(self.side**2, -1)

    @torch.inference_mode()
    def of_sounds(self, features: torch.Tensor) -> torch.Tensor:
        """features [N, E] -> ids [N, K]."""
        return self.heard[self.head(features.to(self.head.weight.device)).argmax(-1).cpu()].clone()

    def of_bank(self, bank: Bank, features: Features) -> Features:
        """A whole bank written so: ids in place of its features."""
        side = round(features.images.shape[1] ** 0.5)
        classes = np.stack([cell_targets(scene, side)[0] for scene in bank.scenes])  # [P, S, targets]
        sounds = [
            self.of_sounds(torch.from_numpy(part.astype(np.float32))).numpy()
            for part in np.array_split(features.audios, max(1, len(features.audios) // 10_000))
        ]
        return Features(self.of_cells(torch.from_numpy(classes)).numpy(), np.concatenate(sounds), features.offsets)


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
