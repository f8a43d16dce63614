"""Aligning: projectors come to write the words of what they are given."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trisense.data.world.bank import scene_at
from trisense.data.world.feed import Features
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.recipe import read
from trisense.train.align import Align, align_accuracy, align_batch
from trisense.train.spark import sense_of, world_texts
from trisense.train.warmup import Hear, cell_targets
from trisense.train.words import Words, embed_words


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
        words=Words(hear, tokenizer, 6),
    )


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


def test_drawn_text_weighs_most_and_emptiness_least(parts: SimpleNamespace):
    batch = align_batch(parts.bank, parts.features, parts.words, np.random.default_rng(0), 16)
    pictures = np.random.default_rng(0).integers(0, 4, 16)
    cells = np.concatenate([cell_targets(parts.bank.scenes[i], 6)[0] for i in pictures])
    expected = [360 if text else 60 if kind else 1 for kind, _, _, text in cells]
    assert batch.inputs["image_weights"].tolist() == expected
    assert {1, 60, 360} == set(expected)


def test_the_loss_is_in_units_of_the_words_variance(parts: SimpleNamespace):
    """So it does not depend on how small embeddings are; a projector that writes nothing has about 5 for a thing."""
    learner = Align(parts.model)
    cells = torch.from_numpy(cell_targets(parts.bank.scenes[0], 6)[0])
    wanted = parts.words.of_cells(cells)[cells[:, 0] > 0]  # [N, K]
    for parameter in learner.parameters():
        torch.nn.init.zeros_(parameter)
    loss = learner(
        torch.zeros(len(wanted), 160),
        wanted,
        torch.ones(len(wanted)),
        torch.zeros(1, 128),
        torch.full((1, 1), parts.tokenizer.size),
        torch.tensor(float(len(wanted))),
    ).loss
    table = parts.model.get_input_embeddings().weight.detach()
    expected = embed_words(table, wanted).square().mean() / table.var()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert 3 < float(loss.detach()) < 7


def test_real_pictures_are_aligned_with_their_names_beside_drawn_ones(parts: SimpleNamespace):
    words = Words(parts.hear, parts.tokenizer, 6, ["red apple", "the house of the red fish"])
    rng = np.random.default_rng(1)
    named = [("red apple", rng.normal(size=(36, 160)).astype(np.float16))]
    batch = align_batch(parts.bank, parts.features, words, np.random.default_rng(0), 8, named, 0.25)
    plain = align_batch(parts.bank, parts.features, words, np.random.default_rng(0), 6)
    inputs = batch.inputs
    assert len(inputs["image_features"]) == 8 * 36 and len(inputs["image_weights"]) == 8 * 36
    assert torch.equal(inputs["image_words"][: 6 * 36], plain.inputs["image_words"]), "six of eight are drawn"
    assert np.array_equal(inputs["image_features"][-36:].numpy(), named[0][1].astype(np.float32))
    said = [token for token in inputs["image_words"][-1].tolist() if token != parts.tokenizer.size]
    assert parts.tokenizer.decode(said).strip() == "red apple"
    longest = len(parts.tokenizer.plain("the house of the red fish"))
    assert (
        words.of_name("red apple").shape == (36, inputs["image_words"].shape[1])
        and longest <= inputs["image_words"].shape[1]
    )
    Align(parts.model)(**inputs, num_items_in_batch=torch.tensor(float(batch.items))).loss.backward()
