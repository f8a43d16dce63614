"""Media written in words: which tokens, and a model that reads them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trisense.data.world.bank import scene_at
from trisense.data.world.facts import NUMBERS
from trisense.data.world.feed import Features
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.recipe import read
from trisense.train.spark import sense_of, world_texts
from trisense.train.warmup import Hear, cell_targets
from trisense.train.words import Read, Words, embed_words


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """spark's own design with random weights."""
    design = read("spark").design
    tokenizer = train_tokenizer(world_texts(0, 50), design)
    torch.manual_seed(0)
    model: Any = build_model(design, build_processor(design, tokenizer)).eval()
    hear = Hear(sense_of(model, "audio"), tokenizer.size)
    scenes = [scene_at(0, "train", i) for i in range(4)]
    return SimpleNamespace(model=model, hear=hear, tokenizer=tokenizer, words=Words(hear, tokenizer, 6), scenes=scenes)


def tokens(parts: SimpleNamespace, ids: torch.Tensor) -> list[int]:
    return sorted(id for id in ids.tolist() if id < parts.tokenizer.size)


def test_a_cell_is_the_words_of_its_thing(parts: SimpleNamespace):
    for scene in parts.scenes:
        words = parts.words.of_cells(torch.from_numpy(cell_targets(scene, 6)[0]))  # [36, K]
        taken = {}
        for thing in scene.things:
            x, y = thing.centre
            text = f" {NUMBERS[int(thing.text)]}" if thing.kind == "number" else f" {thing.text}" if thing.text else ""
            taken[int(y * 6) * 6 + int(x * 6)] = f"{thing.kind} {thing.colour} {thing.size}{text} {thing.place}"
        for cell in range(36):
            assert tokens(parts, words[cell]) == sorted(parts.tokenizer.plain(taken.get(cell, "nothing")))


def test_a_moment_is_the_word_that_is_heard_in_it(parts: SimpleNamespace):
    sounds = torch.randn(50, 128)
    with torch.no_grad():
        parts.hear.head.bias[-1] = 1.5  # so that some are blank
        best = parts.hear.head(sounds).argmax(-1).tolist()
    blank = parts.tokenizer.size
    assert 0 < best.count(blank) < 50
    for moment, words in enumerate(parts.words.of_sounds(sounds)):
        expected = parts.tokenizer.plain("nothing") if best[moment] == blank else [best[moment]]
        assert tokens(parts, words) == sorted(expected)


def test_a_bank_is_written_as_its_parts_are(parts: SimpleNamespace):
    rng = np.random.default_rng(0)
    features = Features(
        images=rng.normal(size=(4, 36, 160)).astype(np.float16),
        audios=rng.normal(size=(25_000, 128)).astype(np.float16),
        offsets=np.array([0, 4, 25_000]),
    )
    bank: Any = SimpleNamespace(scenes=parts.scenes)
    written = parts.words.of_bank(bank, features)
    for index, scene in enumerate(parts.scenes):
        cells = torch.from_numpy(cell_targets(scene, 6)[0])
        assert np.array_equal(written.images[index], parts.words.of_cells(cells).numpy())
    sounds = torch.from_numpy(features.audios.astype(np.float32))
    assert np.array_equal(written.audio(0), parts.words.of_sounds(sounds[:4]).numpy())
    assert np.array_equal(written.audio(1)[-3:], parts.words.of_sounds(sounds[-3:]).numpy())


def test_the_sum_of_words_is_that_of_a_loop():
    table, ids = torch.randn(5, 3), torch.tensor([[[0, 2, 5], [4, 5, 5]], [[1, 1, 1], [5, 5, 5]]])
    summed = embed_words(table, ids)
    for row in range(2):
        for vector in range(2):
            expected = sum((table[id] for id in ids[row, vector].tolist() if id < 5), torch.zeros(3))
            torch.testing.assert_close(summed[row, vector], expected)


def test_reading_words_is_reading_what_a_projector_would_write(parts: SimpleNamespace):
    """With the words of media spliced in by hand, in the order of the prompt, the model itself says the same."""
    model, placeholders = parts.model, parts.model.placeholders
    image = parts.words.of_cells(torch.from_numpy(cell_targets(parts.scenes[0], 6)[0]))[None].float()  # [1, 36, K]
    audio = torch.tensor([[[7.0], [8.0], [9.0]], [[10.0], [0.0], [0.0]]])  # the second is one moment long
    first = [*[placeholders["image"]] * 36, *[placeholders["audio"]] * 3, 20, 21, 22]
    second = [*[placeholders["audio"]], 23, 24, *[0] * (len(first) - 3)]
    ids = torch.tensor([first, second])
    mask = torch.tensor([[1] * len(first), [1] * 3 + [0] * (len(first) - 3)])
    with torch.no_grad():
        said = Read(model)(ids, image, audio, torch.tensor([3, 1]), attention_mask=mask).logits
        table = model.get_input_embeddings().weight
        by_hand = model.get_input_embeddings()(ids)
        by_hand[0, :36] = embed_words(table, image[0].long())
        by_hand[0, 36:39] = table[[7, 8, 9]]
        by_hand[1, 0] = table[10]
        expected = model(inputs_embeds=by_hand, attention_mask=mask).logits
    torch.testing.assert_close(said[0], expected[0])
    torch.testing.assert_close(said[1, :3], expected[1, :3])


def test_words_learn_from_standing_for_media(parts: SimpleNamespace):
    ids = torch.tensor([[parts.model.placeholders["audio"], 20, 21]])
    labels = torch.tensor([[-100, -100, 21]])
    loss = Read(parts.model)(ids, audio_features=torch.tensor([[[30.0]]]), labels=labels).loss
    loss.backward()
    gradient = parts.model.get_input_embeddings().weight.grad
    parts.model.zero_grad()
    assert gradient[30].abs().sum() > 0
