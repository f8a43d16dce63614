"""The warm-ups: targets that say what the facts say, and projectors that learn to name a toy."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from torch import nn

from trisense.data.world.bank import Bank, scene_at
from trisense.data.world.draw import draw
from trisense.data.world.facts import COLOURS, KINDS, SIGNS, Scene, Thing, Utterance
from trisense.errors import BadInput
from trisense.model.build import _wake
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.projector import Naming
from trisense.model.senses import Sense, Summary
from trisense.preprocess import ImageProcessor
from trisense.train.warmup import (
    CELL,
    Hear,
    Named,
    See,
    beside,
    cell_targets,
    mels,
    name_targets,
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
    """A tiny encoder with the projector that warm-ups learn by."""
    torch.manual_seed(0)
    plain = tiny_models.config()
    options = dataclasses.replace(plain.options(name), projector="naming", classes=tuple(SIZES[-1:]))
    if name == "image":
        options = dataclasses.replace(options, select="all", layer=-1, classes=tuple(SIZES), summary=SUMMARY, names=3)
    found = Sense(name, options, plain.encoder_config(name), 8)
    if name == "audio":
        _wake(found.encoder)
    return found


# --- seeing --------------------------------------------------------------------------------------------------------

SUMMARY = 2


def test_a_cell_says_what_has_its_centre_there() -> None:
    cup = Thing("cup", "red", "small", 0, 2)
    word = Thing("word", "blue", "large", 1, 1, 0.1, -0.1, text="milk")
    number = Thing("number", "black", "large", 2, 0, text="0")
    cells, centres = cell_targets(Scene((cup, word, number)), 3)
    names = [*KINDS, "number", "word"]
    texts = [*"0123456789", *SIGNS]
    assert cells.shape == (9, 6) and centres.shape == (9, 2)
    assert cells[2].tolist() == [names.index("cup") + 1, list(COLOURS).index("red") + 1, 1, 0, 3, 0]
    blue = list(COLOURS).index("blue") + 1
    assert cells[4].tolist() == [names.index("word") + 1, blue, 2, texts.index("milk") + 1, 5, 0]
    assert cells[6].tolist() == [names.index("number") + 1, list(COLOURS).index("black") + 1, 2, 1, 7, 0]
    assert CELL["place"][6] == "bottom left"
    assert not np.delete(cells, (2, 4, 6), 0).any()
    assert centres[2] == pytest.approx((2.5 / 3, 0.5 / 3))
    assert centres[4] == pytest.approx((1.6 / 3, 1.4 / 3))


@pytest.mark.parametrize("side", [3, 6])
def test_no_thing_is_lost_between_the_cells(side: int) -> None:
    for index in range(300):
        scene = scene_at(1, "train", index)
        cells, centres = cell_targets(scene, side, SUMMARY)
        assert (cells[:, 0] > 0).sum() == len(scene.things) and not cells[side * side :].any()
        for thing in scene.things:
            x, y = thing.centre
            cell = int(y * side) * side + int(x * side)
            assert CELL["kind"][cells[cell, 0] - 1] == thing.kind
            assert CELL["place"][cells[cell, 4] - 1] == thing.place
            assert centres[cell] == pytest.approx((x, y))


def test_a_name_is_its_first_tokens_after_cells_that_hold_nothing() -> None:
    targets = name_targets([7, 0, 9], side=2, summary=2)
    assert targets.shape == (6, 6) and not targets[:4].any()
    named = CELL["kind"].index("name") + 1
    assert targets[4:].tolist() == [[named, 0, 0, 0, 0, 8], [named, 0, 0, 0, 0, 1]]
    assert not name_targets([], 2, 2).any()


def test_pixels_are_what_the_processor_gives() -> None:
    source = bank(3)
    values = pixels(source, np.array([2, 0]), EYE)
    for given, index in zip(values, (2, 0), strict=True):
        np.testing.assert_allclose(given, EYE(Image.fromarray(source.picture(index))), atol=1e-5)


def test_a_batch_of_pictures_counts_their_things() -> None:
    source = bank()
    batch = picture_batch(source, np.array([1, 4]), EYE, SUMMARY)
    assert batch.items == len(source.scenes[1].things) + len(source.scenes[4].things)
    assert {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()} == {
        "pixel_values": (2, 3, 48, 48),
        "targets": (2, 38, 6),
        "centres": (2, 38, 2),
        "named": (2,),
    }


SIZES = [*(len(classes) + 1 for classes in CELL.values()), tiny_models.tokenizer().size + 1]


class _Memory(nn.Module):
    """In the place of a picture's sense: features of its pictures, learned by heart."""

    def __init__(self, pictures: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.options = SimpleNamespace(width=64, summary=SUMMARY)
        self.features = nn.Parameter(torch.randn(pictures, 36 + SUMMARY, 64))
        self.projector = Naming(64, 8, SIZES)
        self.summary = Summary(64, names=3, count=SUMMARY)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.features[: len(pixel_values)]


class _Named:
    """In the place of a bank of real pictures."""

    names = ["cup", "bear", "cup"]
    files = (["pictures/a", "pictures/b", "pictures/a"], [])

    def picture(self, index: int) -> np.ndarray:
        return np.full((48, 48, 3), 80 * index, np.uint8)


REAL: Any = _Named()
NAMES = Named({"bear": 1, "cup": 2}, tiny_models.tokenizer(), SUMMARY)


def test_see_s_loss_is_the_sum_of_its_parts() -> None:
    """Of two drawn pictures and three real ones, against a loop over vectors, with the head's own words."""
    batch = beside(picture_batch(bank(2), np.arange(2), EYE, SUMMARY), NAMES.batch(REAL, np.arange(3), EYE))
    model: Any = See(_Memory()).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        out = model(**batch.inputs, num_items_in_batch=torch.tensor(7.0))
        said = model.naming.head(model.sense.features[:5])  # [5, S, classes]
        where = model.where(model.sense.features[:5])
        called = model.sense.summary.names(model.sense.features[:5, :36].mean(1)).log_softmax(-1)  # [5, names]
    expected = 0.0
    for picture in range(5):
        for vector in range(36 + SUMMARY):
            targets = batch.inputs["targets"][picture, vector].tolist()
            parts = said[picture, vector].split(SIZES)
            losses = [-float(part.log_softmax(0)[target]) for part, target in zip(parts, targets, strict=True)]
            expected += losses[0] + (sum(losses[1:]) if targets[0] else 0.0)
            if targets[0] and vector < 36:
                off = where[picture, vector] - batch.inputs["centres"][picture, vector]
                expected += 20 * float((off**2).sum())
        right, smooth = called[picture, batch.inputs["named"][picture]], called[picture].mean()
        expected -= float(0.9 * right + 0.1 * smooth)
    assert float(out.loss) == pytest.approx(expected / 7, rel=1e-5)


def test_see_learns_a_few_pictures_by_heart() -> None:
    source, indices = bank(), np.arange(6)
    model: Any = See(_Memory())  # pyright: ignore[reportArgumentType]
    before = picture_accuracy(model, source, indices, EYE, SUMMARY)
    assert set(before) == {*CELL, "all", "nothing"}
    batch = picture_batch(source, indices, EYE, SUMMARY)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch.inputs, num_items_in_batch=torch.tensor(float(batch.items))).loss.backward()
        optimizer.step()
    after = picture_accuracy(model, source, indices, EYE, SUMMARY)
    assert before["all"] < 0.5 < 0.9 < after["all"] and before["nothing"] < 0.5 < 0.9 < after["nothing"]


def test_real_pictures_have_numbers_and_tokens_of_their_names() -> None:
    batch = NAMES.batch(REAL, np.array([0, 1, 2]), EYE)
    assert batch.items == 3 and batch.inputs["named"].tolist() == [2, 1, 2]
    expected = torch.from_numpy(EYE(Image.fromarray(REAL.picture(1))))
    torch.testing.assert_close(batch.inputs["pixel_values"][1], expected, atol=1e-5, rtol=0)
    tokens = batch.inputs["targets"][1, 36:, -1]
    assert [token - 1 for token in tokens.tolist()] == NAMES.tokenizer.plain("bear")[:SUMMARY]
    redrawn = NAMES.batch(REAL, np.array([1]), EYE, np.random.default_rng(0))
    assert not torch.equal(redrawn.inputs["pixel_values"][0], batch.inputs["pixel_values"][1])


def test_it_is_said_which_pictures_are_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[bool]] = []

    def kept(pictures: torch.Tensor, rng: np.random.Generator, photographs: torch.Tensor) -> torch.Tensor:
        said.append(photographs.tolist())
        return pictures

    monkeypatch.setattr("trisense.train.warmup.redrawn", kept)
    monkeypatch.setattr(REAL, "files", (["pictures/noto72", "pictures/grocery", "pictures/tuxpaint"], []))
    NAMES.batch(REAL, np.array([1, 0, 1, 2]), EYE, np.random.default_rng(0))
    assert said == [[True, False, True, False]]


def test_spoilt_pictures_have_no_name() -> None:
    batch = NAMES.batch(REAL, np.array([0, 1, 2]), EYE, np.random.default_rng(0), nothing=1.0)
    assert batch.inputs["named"].tolist() == [0, 0, 0] and not batch.inputs["targets"].any()
    assert torch.isfinite(batch.inputs["pixel_values"]).all()


def test_a_drawn_number_is_its_name() -> None:
    named = Named({"forty two": 1}, tiny_models.tokenizer(), SUMMARY)
    scene = Scene((Thing("number", "red", "large", 1, 1, text="42"),), 5)
    batch = named.lettered([(scene, "forty two")], EYE)
    assert batch.inputs["named"].tolist() == [1]
    targets = batch.inputs["targets"][0]
    assert [t - 1 for t in targets[36:, -1].tolist()] == named.tokenizer.plain("forty two")[:SUMMARY]
    assert CELL["kind"][int(targets[:36, 0].max()) - 1] == "number"


def test_drawn_and_real_pictures_stand_in_one_batch() -> None:
    drawn, real = picture_batch(bank(2), np.arange(2), EYE, SUMMARY), NAMES.batch(REAL, np.array([1]), EYE)
    batch = beside(drawn, real)
    assert batch.items == drawn.items + 1
    for name, values in batch.inputs.items():
        assert torch.equal(values, torch.cat([drawn.inputs[name], real.inputs[name]]))


def test_named_pictures_are_counted_by_where_they_come_from() -> None:
    """A model that takes everything for a cup, in name and in tokens."""
    model: Any = See(_Memory(3))  # pyright: ignore[reportArgumentType]
    sense, targets = model.sense, name_targets(NAMES.tokenizer.plain("cup"), 6, SUMMARY)
    with torch.no_grad():
        sense.summary.names.weight.zero_()
        sense.summary.names.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))
        sense.features.zero_()
        for place in range(SUMMARY):  # every vector of the summary in a direction of its own
            sense.features[:, 36 + place, place] = 1.0
            for group, target in zip(model.naming.head.weight.split(SIZES), targets[36 + place], strict=True):
                group[:, place] = 0.0
                group[target, place] = 100.0
    found = NAMES.accuracy(model, REAL, EYE)
    assert found == {"named_a": 1.0, "told_a": 1.0, "named_b": 0.0, "told_b": 0.0}


def test_see_takes_a_real_encoder() -> None:
    model = See(sense("image"))
    side = round((model.sense.encode(torch.zeros(1, 3, 48, 48)).shape[1] - SUMMARY) ** 0.5)
    processor = ImageProcessor(height=48, width=48, crop=False, tokens=side * side + SUMMARY)
    batch = beside(picture_batch(bank(2), np.arange(2), processor, SUMMARY), NAMES.batch(REAL, np.arange(3), processor))
    model(**batch.inputs, num_items_in_batch=torch.tensor(1.0)).loss.backward()
    learned = (model.sense.encoder, model.sense.summary, model.naming.head)
    assert all(p.grad is not None for part in learned for p in cast(nn.Module, part).parameters())
    assert model.naming.words.weight.grad is None, "which are the language model's, and written later"


def test_a_sense_that_cannot_name_is_refused() -> None:
    plain = TrisenseForConditionalGeneration(tiny_models.config()).senses
    with pytest.raises(BadInput, match=r"design.senses.image: to see, it takes projector: naming and classes: \[22,"):
        See(cast(Sense, plain["image"]))
    with pytest.raises(BadInput, match=r"design.senses.audio: to hear, it takes projector: naming and classes: \["):
        Hear(cast(Sense, plain["audio"]), 10)
    without = _Memory()
    without.options.summary = 0
    with pytest.raises(BadInput, match="to see, it takes a summary"):
        See(without)  # pyright: ignore[reportArgumentType]


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
