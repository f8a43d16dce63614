"""Aligning: targets are sums of word embeddings, and projectors come to write them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trisense.data.world.bank import scene_at
from trisense.data.world.facts import NUMBERS
from trisense.data.world.feed import Features
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.recipe import read
from trisense.train.align import Align, Words, align_accuracy, align_batch
from trisense.train.spark import sense_of, world_texts
from trisense.train.warmup import Hear, cell_targets


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """spark's own design with random weights, and a bank of four pictures and two sounds with random features."""
    design = read("spark").design
    tokenizer = train_tokenizer(world_texts(0, 50), design)
    torch.manual_seed(0)
    model = build_model(design, build_processor(design, tokenizer))
    hear = Hear(sense_of(model, "audio"), tokenizer.size)
    rng = np.random.default_rng(0)
    features = Features(
        images=rng.normal(size=(4, 36, 160)).astype(np.float16),
        audios=rng.normal(size=(9, 128)).astype(np.float16),
        offsets=np.array([0, 4, 9]),
    )
    bank = SimpleNamespace(scenes=[scene_at(0, "train", i) for i in range(4)], utterances=[None, None])
    return SimpleNamespace(
        model=model,
        hear=hear,
        tokenizer=tokenizer,
        features=features,
        bank=bank,
        words=Words(model, hear, tokenizer, 6),
    )


def embedded(model: TrisenseForConditionalGeneration, ids: list[int]) -> torch.Tensor:
    return model.get_input_embeddings()(torch.tensor(ids)).sum(0).detach()


def test_a_cell_is_the_sum_of_its_words(parts: SimpleNamespace):
    for scene in parts.bank.scenes:
        words = parts.words.of_cells(torch.from_numpy(cell_targets(scene, 6)[0]))  # [36, D]
        taken = {}
        for thing in scene.things:
            x, y = thing.centre
            text = {"number": f" {NUMBERS[int(thing.text)]}" if thing.text.isdigit() else ""}.get(thing.kind, "")
            text = text or (f" {thing.text}" if thing.text else "")
            said = f"{thing.kind} {thing.colour} {thing.size}{text} {thing.place}"
            taken[int(y * 6) * 6 + int(x * 6)] = said
        for cell in range(36):
            ids = parts.tokenizer.plain(taken.get(cell, "nothing"))
            torch.testing.assert_close(words[cell], embedded(parts.model, ids))


def test_a_moment_is_the_word_that_is_heard_in_it(parts: SimpleNamespace):
    sounds = torch.randn(5, 128)
    with torch.no_grad():
        best = parts.hear.head(sounds).argmax(-1).tolist()
    nothing = embedded(parts.model, parts.tokenizer.plain("nothing"))
    blank = parts.tokenizer.size
    for moment, words in enumerate(parts.words.of_sounds(sounds)):
        expected = nothing if best[moment] == blank else embedded(parts.model, [best[moment]])
        torch.testing.assert_close(words, expected)


def test_projectors_come_to_write_the_words(parts: SimpleNamespace):
    """Until a thing's own words are the nearest: to have written what all things have in common is not enough."""
    learner = Align(parts.model)
    pictures = np.arange(4)
    before = align_accuracy(learner, parts.bank, parts.features, parts.words, pictures)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    batch = align_batch(parts.bank, parts.features, parts.words, np.random.default_rng(0), 16)
    for _ in range(150):
        loss = learner(**batch.inputs, num_items_in_batch=torch.tensor(float(batch.items))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = align_accuracy(learner, parts.bank, parts.features, parts.words, pictures)
    assert all(parameter.grad is None for parameter in parts.model.language_model.parameters())
    assert before["kind"] < 0.5
    assert (after["kind"], after["colour"], after["size"]) == (1.0, 1.0, 1.0)


def test_the_loss_is_in_units_of_the_words_variance(parts: SimpleNamespace):
    """So it does not depend on how small embeddings are; a projector that writes nothing has about 5 for a thing."""
    learner = Align(parts.model)
    cells = torch.from_numpy(cell_targets(parts.bank.scenes[0], 6)[0])
    wanted = parts.words.of_cells(cells)[cells[:, 0] > 0]
    for parameter in learner.parameters():
        torch.nn.init.zeros_(parameter)
    loss = learner(
        torch.zeros(len(wanted), 160),
        wanted,
        torch.ones(len(wanted)),
        torch.zeros(1, 128),
        torch.zeros(1, wanted.shape[1]),
        torch.tensor(float(len(wanted))),
    ).loss
    variance = parts.model.get_input_embeddings().weight.detach().var()
    assert float(loss.detach()) == pytest.approx(float(wanted.square().mean() / variance), rel=1e-4)
    assert 3 < float(loss.detach()) < 7
