"""Warming an encoder up alone, with the head of its own projector: pictures by cells and names, sounds by CTC.

An encoder from nothing learns slowly through a language model that is also from nothing. The world knows its facts, so
each encoder first learns to say them itself; its features are then worth reading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from trisense.data.batches import Batch
from trisense.data.real.augment import nameless, redrawn
from trisense.data.real.bank import PHOTOGRAPHS, RealBank
from trisense.data.real.sample import edit_distance
from trisense.data.world.bank import Bank
from trisense.data.world.draw import draw
from trisense.data.world.facts import COLOURS, KINDS, SIGNS, SIZES, Scene, place_name
from trisense.errors import BadInput
from trisense.model.projector import Naming
from trisense.model.senses import Sense, Summary
from trisense.preprocess import ImageProcessor
from trisense.tokens import TextTokenizer

# Letters: N media, S feature vectors of one medium, E width of the encoder, M mel bins, F frames, V vocabulary,
# K targets of a vector.

# What a vector of a picture says, in the order of its targets: each has one class more, 0, for "does not apply". After
# them stands the token, one class more than there are tokens. A vector of the summary is of the kind `name` and has a
# token of the name; a cell has none.
NAME = "name"
CELL = {
    "kind": (*KINDS, "number", "word", NAME),
    "colour": tuple(COLOURS),
    "size": SIZES,
    "text": (*"0123456789", *SIGNS),
    "place": tuple(place_name(row, column) for row in range(3) for column in range(3)),
}

# So much of what the head of names reads is left out while it learns: there are few pictures for each name.
LACKING = 0.2

# A log-mel [frames, M] and the words in it.
Sound = tuple[np.ndarray, str]


class See(nn.Module):
    """Says of each cell of a picture which thing has its centre there, and where exactly, and of the whole picture the
    tokens of its name, all by the head of the sense's own projector (`Naming`); and, by the sense's own `Summary`,
    which name that is. Raises BadInput for a projector that names other things, and for a sense without a summary."""

    def __init__(self, sense: Sense):
        super().__init__()
        self.sense = sense
        naming = sense.projector
        said = [len(classes) + 1 for classes in CELL.values()]
        if not isinstance(naming, Naming) or naming.classes[:-1] != said:
            raise BadInput(f"design.senses.image: to see, it takes projector: naming and classes: {[*said, '...']}")
        if not sense.options.summary:
            raise BadInput("design.senses.image: to see, it takes a summary of some vectors, for some names")
        self.where = nn.Linear(sense.options.width, 2)

    @property
    def naming(self) -> Naming:
        return cast(Naming, self.sense.projector)

    def called(self, features: torch.Tensor) -> torch.Tensor:
        """How likely each name is, as logits [N, names], of pictures with the features [N, S, E]."""
        summary = cast(Summary, self.sense.summary)
        whole = features[:, : -summary.count].mean(1)
        return summary.names(nn.functional.dropout(whole, LACKING, self.training)).float()

    def forward(
        self,
        pixel_values: torch.Tensor,
        targets: torch.Tensor,
        centres: torch.Tensor,
        named: torch.Tensor,
        num_items_in_batch: torch.Tensor,
    ) -> CausalLMOutput:
        """pixel_values [N, 3, H, W], drawn and real ones in one batch, since an encoder with batch normalisation would
        learn each by statistics of its own, and be asked with those of both; targets int64 [N, S, K], classes as in
        CELL, the token last; centres [N, S, 2], 0 to 1, of things; named int64 [N], 0 for pictures without a name."""
        features = self.sense.encode(pixel_values)  # [N, S, E]
        # Every vector says whether something is there; the rest is asked only where something is.
        kind = targets[..., 0]
        first = self.naming.classes[0]
        weight, bias = self.naming.head.weight, self.naming.head.bias
        loss = nn.functional.cross_entropy(
            nn.functional.linear(features, weight[:first], bias[:first]).float().flatten(0, 1),
            kind.flatten(),
            reduction="sum",
        )
        taken = features[kind > 0]  # [things, E]
        said = nn.functional.linear(taken, weight[first:], bias[first:]).float()
        for target, one in enumerate(said.split(self.naming.classes[1:], -1), 1):
            loss = loss + nn.functional.cross_entropy(one, targets[kind > 0][:, target], reduction="sum")
        thing = (kind > 0) & (kind < first - 1)
        where = self.where(features[thing]).float()
        loss = loss + 20 * nn.functional.mse_loss(where, centres[thing], reduction="sum")
        loss = loss + nn.functional.cross_entropy(self.called(features), named, reduction="sum", label_smoothing=0.1)
        return CausalLMOutput(loss=loss / num_items_in_batch, logits=said)


def cell_targets(scene: Scene, side: int, summary: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(classes int64 [S, K], centres float32 [S, 2]) of a scene on a grid of side x side cells, and of `summary`
    vectors that name nothing."""
    targets = np.zeros((side * side + summary, len(CELL) + 1), np.int64)
    centres = np.zeros((side * side + summary, 2), np.float32)
    for thing in scene.things:
        x, y = thing.centre
        row, column = min(int(y * side), side - 1), min(int(x * side), side - 1)
        values = (thing.kind, thing.colour, thing.size, thing.text, place_name(row * 3 // side, column * 3 // side))
        targets[row * side + column, :-1] = [
            classes.index(value) + 1 if value in classes else 0
            for value, classes in zip(values, CELL.values(), strict=True)
        ]
        centres[row * side + column] = x, y
    return targets, centres


def name_targets(tokens: Sequence[int], side: int, summary: int) -> np.ndarray:
    """Classes int64 [S, K] of a picture whose name has these tokens: cells that hold nothing, and a summary of its
    first tokens."""
    targets = np.zeros((side * side + summary, len(CELL) + 1), np.int64)
    for place, token in enumerate(tokens[:summary], side * side):
        targets[place, 0], targets[place, -1] = len(CELL["kind"]), token + 1
    return targets


def grid(processor: ImageProcessor, summary: int) -> int:
    """Cells on one side of a picture of `processor.tokens` vectors."""
    return round((processor.tokens - summary) ** 0.5)


def picture_batch(bank: Bank, indices: np.ndarray, processor: ImageProcessor, summary: int) -> Batch:
    """Pictures of a bank with the targets of their cells."""
    return drawn_batch(pixels(bank, indices, processor), [bank.scenes[i] for i in indices], processor, summary)


def drawn_batch(values: np.ndarray, scenes: Sequence[Scene], processor: ImageProcessor, summary: int) -> Batch:
    """`pixel_values` [N, 3, H, W] of scenes with the targets of their cells."""
    found = [cell_targets(scene, grid(processor, summary), summary) for scene in scenes]
    inputs = {
        "pixel_values": torch.from_numpy(values),
        "targets": torch.from_numpy(np.stack([targets for targets, _ in found])),
        "centres": torch.from_numpy(np.stack([centres for _, centres in found])),
        "named": torch.zeros(len(scenes), dtype=torch.int64),
    }
    return Batch(inputs, items=sum(len(scene.things) for scene in scenes))


def pixels(bank: Bank, indices: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """`pixel_values` [N, 3, H, W] of a bank's pictures, which are already of the size that the processor wants."""
    raw = np.stack([bank.picture(int(i)) for i in indices]).transpose(0, 3, 1, 2).astype(np.float32)  # [N, 3, H, W]
    return normalised(raw / 255, processor)


def normalised(pictures: np.ndarray, processor: ImageProcessor) -> np.ndarray:
    """Pictures [N, 3, H, W], 0 to 1 -> `pixel_values`."""
    mean, std = (np.array(one, np.float32)[:, None, None] for one in (processor.mean, processor.std))
    return np.ascontiguousarray((pictures - mean) / std)


@dataclass(frozen=True)
class Named:
    """Names of pictures: their numbers, from 1, among those that are learned, and their tokens."""

    numbers: Mapping[str, int]
    tokenizer: TextTokenizer
    summary: int

    def batch(
        self,
        bank: RealBank,
        indices: np.ndarray,
        processor: ImageProcessor,
        rng: np.random.Generator | None = None,
        nothing: float = 0.0,
    ) -> Batch:
        """Real pictures with the targets of their names; `rng` redraws them by chance, and makes the share `nothing` of
        them pictures that have no name."""
        raw = np.stack([bank.picture(int(i)) for i in indices]).transpose(0, 3, 1, 2).astype(np.float32) / 255
        spoilt = np.zeros(len(indices), bool)
        if rng is not None:
            spoilt = rng.random(len(indices)) < nothing
            taken = torch.tensor([bank.files[0][i] == PHOTOGRAPHS for i in indices])
            pictures = redrawn(torch.from_numpy(raw), rng, photographs=taken)
            lost = torch.from_numpy(spoilt)
            pictures[lost] = nameless(pictures[lost], rng)
            raw = pictures.numpy()
        side = grid(processor, self.summary)
        names = [None if gone else bank.names[i] for i, gone in zip(indices, spoilt, strict=True)]
        targets = [name_targets(self.tokenizer.plain(name) if name else [], side, self.summary) for name in names]
        inputs = {
            "pixel_values": torch.from_numpy(normalised(raw, processor)),
            "targets": torch.from_numpy(np.stack(targets)),
            "centres": torch.zeros(len(indices), side * side + self.summary, 2),
            "named": torch.tensor([self.numbers[name] if name else 0 for name in names]),
        }
        return Batch(inputs, items=len(indices))

    def lettered(self, texts: Sequence[tuple[Scene, str]], processor: ImageProcessor) -> Batch:
        """Drawn pictures of a number, which is their name."""
        side = grid(processor, self.summary)
        raw = np.stack([np.asarray(draw(scene, processor.height)[0]) for scene, _ in texts]).transpose(0, 3, 1, 2)
        batch = drawn_batch(
            normalised(raw.astype(np.float32) / 255, processor), [scene for scene, _ in texts], processor, self.summary
        )
        for row, (_, text) in enumerate(texts):
            said = torch.from_numpy(name_targets(self.tokenizer.plain(text), side, self.summary))
            batch.inputs["targets"][row, side * side :] = said[side * side :]
            batch.inputs["named"][row] = self.numbers[text]
        return batch

    @torch.inference_mode()
    def accuracy(self, model: See, bank: RealBank, processor: ImageProcessor) -> dict[str, float]:
        """By kind of picture, how often a held-out one gets all tokens of its name in its summary (`told`) and its name
        among all (`named`); those whose name was never learned are left out."""
        device = next(model.parameters()).device
        right: dict[str, list[bool]] = defaultdict(list)
        known = np.array([i for i, name in enumerate(bank.names) if name in self.numbers])
        for part in np.array_split(known, max(1, len(known) // 256)):
            batch = self.batch(bank, part, processor)
            features = model.sense.encode(batch.inputs["pixel_values"].to(device))
            called = model.called(features).argmax(-1).cpu()
            kind, *_, token = model.naming.head(features[:, -self.summary :]).split(model.naming.classes, -1)
            said = torch.where(kind.argmax(-1) > 0, token.argmax(-1), 0).cpu()  # [N, summary]
            told = (said == batch.inputs["targets"][:, -self.summary :, -1]).all(1)
            for index, name, tokens in zip(part, called == batch.inputs["named"], told, strict=True):
                kind_of = PurePosixPath(bank.files[0][index]).name
                right[f"named_{kind_of}"].append(bool(name))
                right[f"told_{kind_of}"].append(bool(tokens))
        return {name: sum(hits) / len(hits) for name, hits in right.items()}


def beside(*parts: Batch) -> Batch:
    """Drawn pictures and real ones as one batch, as `See` takes them."""
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return Batch(inputs, items=sum(part.items for part in parts))


@torch.inference_mode()
def picture_accuracy(
    model: See, bank: Bank, indices: np.ndarray, processor: ImageProcessor, summary: int
) -> dict[str, float]:
    """How often a held-out thing's kind, colour, size, text and place are said right, each alone and all at once, and
    how often a cell that holds nothing is said to."""
    batch = picture_batch(bank, indices, processor, summary)
    device = next(model.parameters()).device
    said = model.naming.head(model.sense.encode(batch.inputs["pixel_values"].to(device))).float().cpu()
    groups, targets = said.split(model.naming.classes, -1)[:-1], batch.inputs["targets"]
    taken = targets[..., 0] > 0
    right = [one[taken].argmax(-1) == targets[taken][:, target] for target, one in enumerate(groups)]
    shares = {name: float(one.float().mean()) for name, one in zip(CELL, right, strict=True)}
    shares["all"] = float(torch.stack(right).all(0).float().mean())
    shares["nothing"] = float((groups[0][~taken].argmax(-1) == 0).float().mean())
    return shares


class Hear(nn.Module):
    """Says the tokens of an utterance in order (CTC, Graves et al. 2006), by the head of the sense's own projector,
    whose last class is the blank. Raises BadInput for a projector that does not name `vocabulary` tokens."""

    def __init__(self, sense: Sense, vocabulary: int):
        super().__init__()
        self.sense = sense
        if not isinstance(sense.projector, Naming) or sense.projector.classes[0] <= vocabulary:
            raise BadInput(f"design.senses.audio: to hear, it takes projector: naming and classes: [{vocabulary + 1}]")

    @property
    def head(self) -> nn.Linear:
        return cast(Naming, self.sense.projector).head

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
    """Sounds with the tokens of their words; `rng` masks two bands of pitch and, for every 1.5 seconds, a span of up to
    a quarter of one (SpecAugment, Park et al. 2019)."""
    values, mask = mels([mel for mel, _ in sounds])
    if rng is not None:
        bins, frames = values.shape[1], mask.sum(1)
        for row, count in enumerate(frames.tolist()):
            for band in rng.integers(0, max(1, bins // 5), 2):
                low = rng.integers(0, bins - band + 1)
                values[row, low : low + band] = 0
            for span in rng.integers(0, max(1, min(25, count // 5)), 1 + count // 150):
                start = rng.integers(0, count - span + 1)
                values[row, :, start : start + span] = 0
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
