"""The warm-ups: targets that say what the facts say, and heads that learn a toy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from torch import nn

from trisense.data.world.bank import Bank, scene_at
from trisense.data.world.draw import draw
from trisense.data.world.facts import COLOURS, KINDS, SIGNS, Scene, Thing, Utterance
from trisense.model.build import _wake
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.preprocess import ImageProcessor
from trisense.train.warmup import (
    CELL,
    Hear,
    See,
    beside,
    cell_targets,
    mels,
    named_accuracy,
    named_batch,
    picture_accuracy,
    picture_batch,
    pixels,
    sound_accuracy,
    sound_batch,
)

EYE = ImageProcessor(height=48, width=48, crop=False, tokens=36)
WORDS = ("cup", "a hat", "it")


def bank(pictures: int = 6) -> Bank:
    """Real pictures, and sounds that are three clear patterns, of 40 to 56 frames."""
    made = object.__new__(Bank)
    made.scenes = [scene_at(0, "train", i) for i in range(pictures)]
    made.pictures = [np.stack([np.asarray(draw(scene, 48)[0]) for scene in made.scenes])]
    made.utterances = [Utterance(words, "thing") for words in WORDS]
    rng = np.random.default_rng(0)
    patterns = [np.repeat(rng.normal(size=(5 + i, 80)), 8, 0).astype(np.float16) for i in range(3)]
    made.mels = np.concatenate(patterns)
    made.offsets = np.concatenate([[0], np.cumsum([len(one) for one in patterns])])
    return made


def sounds(*indices: int) -> list[tuple[np.ndarray, str]]:
    source = bank()
    return [source.sound(index) for index in indices]


def sense(name: str) -> Sense:
    torch.manual_seed(0)
    found = TrisenseForConditionalGeneration(tiny_models.config()).senses[name]
    assert isinstance(found, Sense)
    if name == "audio":
        _wake(found.encoder)
    return found


# --- seeing --------------------------------------------------------------------------------------------------------


def test_a_cell_says_what_has_its_centre_there() -> None:
    cup = Thing("cup", "red", "small", 0, 2)
    word = Thing("word", "blue", "large", 1, 1, 0.1, -0.1, text="milk")
    number = Thing("number", "black", "large", 2, 0, text="0")
    cells, centres = cell_targets(Scene((cup, word, number)), 3)
    names = [*KINDS, "number", "word"]
    texts = [*"0123456789", *SIGNS]
    assert cells.shape == (9, 4) and centres.shape == (9, 2)
    assert cells[2].tolist() == [names.index("cup") + 1, list(COLOURS).index("red") + 1, 1, 0]
    assert cells[4].tolist() == [names.index("word") + 1, list(COLOURS).index("blue") + 1, 2, texts.index("milk") + 1]
    assert cells[6].tolist() == [names.index("number") + 1, list(COLOURS).index("black") + 1, 2, 1]
    assert not np.delete(cells, (2, 4, 6), 0).any()
    assert centres[2] == pytest.approx((2.5 / 3, 0.5 / 3))
    assert centres[4] == pytest.approx((1.6 / 3, 1.4 / 3))


@pytest.mark.parametrize("side", [3, 6])
def test_no_thing_is_lost_between_the_cells(side: int) -> None:
    for index in range(300):
        scene = scene_at(1, "train", index)
        cells, centres = cell_targets(scene, side)
        assert (cells[:, 0] > 0).sum() == len(scene.things)
        for thing in scene.things:
            x, y = thing.centre
            cell = int(y * side) * side + int(x * side)
            assert [*CELL["kind"]][cells[cell, 0] - 1] == thing.kind
            assert centres[cell] == pytest.approx((x, y))


def test_pixels_are_what_the_processor_gives() -> None:
    source = bank(3)
    values = pixels(source, np.array([2, 0]), EYE)
    for given, index in zip(values, (2, 0), strict=True):
        np.testing.assert_allclose(given, EYE(Image.fromarray(source.picture(index))), atol=1e-5)


def test_a_batch_of_pictures_counts_their_things() -> None:
    source = bank()
    batch = picture_batch(source, np.array([1, 4]), EYE)
    assert batch.items == len(source.scenes[1].things) + len(source.scenes[4].things)
    assert {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()} == {
        "pixel_values": (2, 3, 48, 48),
        "cells": (2, 36, 4),
        "centres": (2, 36, 2),
    }


def test_see_s_loss_is_the_sum_of_its_parts() -> None:
    """Against a loop over cells, with the head's own words."""
    batch = picture_batch(bank(2), np.arange(2), EYE)
    torch.manual_seed(0)
    model = See(_Memory())
    with torch.no_grad():
        out = model(**batch.inputs, num_items_in_batch=torch.tensor(7.0))
    sizes = [len(classes) + 1 for classes in CELL.values()]
    expected = 0.0
    for said, cells, centres in zip(
        out.logits.flatten(0, 1),
        batch.inputs["cells"].flatten(0, 1),
        batch.inputs["centres"].flatten(0, 1),
        strict=True,
    ):
        *parts, where = said.split([*sizes, 2])
        losses = [-float(part.log_softmax(0)[int(target)]) for part, target in zip(parts, cells, strict=True)]
        expected += losses[0]
        if cells[0]:
            expected += sum(losses[1:]) + 20 * float(((where - centres) ** 2).sum())
    assert float(out.loss) == pytest.approx(expected / 7, rel=1e-5)


class _Memory(nn.Module):
    """In the place of a picture's sense: features of six pictures, learned by heart."""

    def __init__(self) -> None:
        super().__init__()
        self.options = SimpleNamespace(width=64)
        self.features = nn.Parameter(torch.randn(6, 36, 64))

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.features[: len(pixel_values)]


def test_see_learns_a_few_pictures_by_heart() -> None:
    source, indices = bank(), np.arange(6)
    torch.manual_seed(0)
    model = See(_Memory())
    before = picture_accuracy(model, source, indices, EYE)
    assert set(before) == {*CELL, "all"}
    batch = picture_batch(source, indices, EYE)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch.inputs, num_items_in_batch=torch.tensor(float(batch.items))).loss.backward()
        optimizer.step()
    after = picture_accuracy(model, source, indices, EYE)
    assert before["all"] < 0.5 < 0.9 < after["all"]


class _Named:
    """In the place of a bank of real pictures."""

    names = ["cup", "bear", "cup"]
    files = (["pictures/a", "pictures/b", "pictures/a"], [])

    def picture(self, index: int) -> np.ndarray:
        return np.full((48, 48, 3), 80 * index, np.uint8)


def test_real_pictures_stand_behind_drawn_ones_in_a_batch_and_are_called_by_their_names() -> None:
    real: Any = _Named()
    names = {"bear": 0, "cup": 1}
    drawn = picture_batch(bank(2), np.arange(2), EYE)
    batch = beside(drawn, named_batch(real, np.array([0, 1, 2]), names, EYE))
    assert batch.items == drawn.items + 3 and len(batch.inputs["pixel_values"]) == 5
    expected = torch.from_numpy(EYE(Image.fromarray(real.picture(1))))
    torch.testing.assert_close(batch.inputs["pixel_values"][3], expected, atol=1e-5, rtol=0)
    assert batch.inputs["named"].tolist() == [1, 0, 1]
    redrawn = named_batch(real, np.array([1]), names, EYE, np.random.default_rng(0))
    assert not torch.equal(redrawn.inputs["pixel_values"][0], batch.inputs["pixel_values"][3])

    torch.manual_seed(0)
    model = See(_Memory(), list(names))
    one = torch.tensor(1.0)
    with torch.no_grad():
        alone = model(**drawn.inputs, num_items_in_batch=one).loss
        both = model(**batch.inputs, num_items_in_batch=one).loss
        said = model.names(model.sense.features[2:5].mean(1))
        expected = nn.functional.cross_entropy(said, torch.tensor([1, 0, 1]), reduction="sum", label_smoothing=0.1)
    assert float(both) == pytest.approx(float(alone + expected), rel=1e-5)


def test_named_pictures_are_counted_by_where_they_come_from() -> None:
    class Sure(nn.Module):
        """Sees cups everywhere."""

        names, head = nn.Identity(), nn.Identity()

        def __init__(self) -> None:
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))
            self.sense = SimpleNamespace(encode=lambda values: torch.tensor([0.0, 1.0]).expand(len(values), 36, 2))

    model: Any = Sure()
    found = named_accuracy(model, _Named(), {"bear": 0, "cup": 1}, EYE)  # pyright: ignore[reportArgumentType]
    assert found == {"named_a": 1.0, "named_b": 0.0}


def test_see_takes_a_real_encoder() -> None:
    model = See(sense("image"))
    processor = ImageProcessor(height=48, width=48, crop=False, tokens=36)
    encoded = model.sense.encode(torch.from_numpy(pixels(bank(2), np.arange(2), processor)))
    side = round(encoded.shape[1] ** 0.5)
    processor = ImageProcessor(height=48, width=48, crop=False, tokens=side * side)
    batch = picture_batch(bank(2), np.arange(2), processor)
    model(**batch.inputs, num_items_in_batch=torch.tensor(1.0)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.sense.encoder.parameters())
    assert all(parameter.grad is None for parameter in model.sense.projector.parameters())


# --- hearing -------------------------------------------------------------------------------------------------------


def test_sounds_are_padded_and_masked() -> None:
    source = bank()
    values, mask = mels([source.mel(2), source.mel(0)])
    assert values.shape == (2, 80, 56) and values.dtype == np.float32
    assert mask.sum(1).tolist() == [56, 40]
    assert np.array_equal(values[1, :, :40], source.mel(0).T.astype(np.float32))
    assert not values[1, :, 40:].any()


def test_a_batch_of_sounds_holds_their_tokens() -> None:
    words = tiny_models.tokenizer()
    batch = sound_batch(sounds(0, 1), words, None)
    assert batch.inputs["token_lengths"].tolist() == [3, 5]
    assert batch.items == 8
    for row, text in enumerate(("cup", "a hat")):
        length = batch.inputs["token_lengths"][row]
        assert words.decode(batch.inputs["tokens"][row, :length].tolist()) == text
    plain, _ = mels([mel for mel, _ in sounds(0, 1)])
    assert np.array_equal(batch.inputs["input_features"].numpy(), plain), "without chance nothing is masked"


def test_masking_is_chance_that_is_given() -> None:
    words = tiny_models.tokenizer()
    one, same, other = (
        sound_batch(sounds(0, 1), words, np.random.default_rng(seed)).inputs["input_features"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    plain = sound_batch(sounds(0, 1), words, None).inputs["input_features"]
    assert ((one - plain).abs() < 1).float().mean() > 0.5, "most of the sound is still there"


def test_hear_s_encoder_and_lengths_are_the_sense_s() -> None:
    model = Hear(sense("audio"), tiny_models.tokenizer().size)
    batch = sound_batch(sounds(0, 1, 2), tiny_models.tokenizer(), None)
    out = model(**batch.inputs, num_items_in_batch=torch.tensor(float(batch.items)))
    assert out.logits.shape == (3, 7, tiny_models.tokenizer().size + 1)
    values = {name: batch.inputs[name] for name in ("input_features", "input_features_mask")}
    features = model.sense.encode(*values.values())
    assert model.sense.lengths(features, values["input_features_mask"]).tolist() == [5, 6, 7]
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_ctc_learns_a_toy_in_a_few_steps() -> None:
    words, source, indices = tiny_models.tokenizer(), bank(), np.arange(3)
    model = Hear(sense("audio"), words.size)
    assert sound_accuracy(model.eval(), source, indices, words) == {"exact": 0.0}
    batch = sound_batch(sounds(0, 1, 2), words, None)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(70):
        optimizer.zero_grad()
        model(**batch.inputs, num_items_in_batch=torch.tensor(float(batch.items))).loss.backward()
        optimizer.step()
    assert sound_accuracy(model.eval(), source, indices, words) == {"exact": 1.0}
