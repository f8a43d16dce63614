"""Media written in words: which tokens, a model that reads them, projectors that write them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from trisense.data.world.bank import scene_at
from trisense.data.world.facts import NUMBERS, Scene, Utterance
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.recipe import read
from trisense.train.spark import sense_of, world_texts
from trisense.train.warmup import cell_targets, name_targets
from trisense.train.words import Read, Words, embed_words


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """spark's own design with random weights."""
    design = read("spark").design
    tokenizer = train_tokenizer(world_texts(0, 50), design)
    torch.manual_seed(0)
    model: Any = build_model(design, build_processor(design, tokenizer)).eval()
    scenes = [scene_at(0, "train", i) for i in range(4)]
    return SimpleNamespace(model=model, tokenizer=tokenizer, words=Words(tokenizer, 6, 2), scenes=scenes)


def tokens(parts: SimpleNamespace, ids: Any) -> list[int]:
    return sorted(id for id in ids.tolist() if id < parts.tokenizer.size)


def test_a_cell_is_the_words_of_its_thing(parts: SimpleNamespace):
    nothing = parts.tokenizer.plain("nothing")
    for scene in parts.scenes:
        words = parts.words.of_scene(scene)  # [38, K]
        taken = {}
        for thing in scene.things:
            x, y = thing.centre
            text = f" {NUMBERS[int(thing.text)]}" if thing.kind == "number" else f" {thing.text}" if thing.text else ""
            taken[int(y * 6) * 6 + int(x * 6)] = f"{thing.kind} {thing.colour} {thing.size}{text} {thing.place}"
        for cell in range(36):
            assert tokens(parts, words[cell]) == sorted(parts.tokenizer.plain(taken.get(cell, "nothing")))
        assert tokens(parts, words[36]) == tokens(parts, words[37]) == sorted(nothing)


def test_a_picture_that_has_a_name_is_its_tokens_one_by_one(parts: SimpleNamespace):
    name = parts.tokenizer.plain("gray triangle")
    words = parts.words.of_scene(Scene((), 0), "gray triangle")
    assert all(tokens(parts, cell) == sorted(parts.tokenizer.plain("nothing")) for cell in words[:36])
    assert len(name) >= 2 and [tokens(parts, vector) for vector in words[36:]] == [[name[0]], [name[1]]]


def test_speech_is_its_tokens_in_order_between_moments_of_nothing(parts: SimpleNamespace):
    rng = np.random.default_rng(0)
    said, nothing = parts.tokenizer.plain("the red cup is here"), parts.tokenizer.plain("nothing")
    heard = [parts.words.of_speech("the red cup is here", rng, 40) for _ in range(3)]
    for moments in heard:
        found = [tokens(parts, moment) for moment in moments]
        assert len(found) == 40 and [one[0] for one in found if one != sorted(nothing)] == said
    assert not np.array_equal(heard[0], heard[1])
    assert len(parts.words.of_speech("the red cup is here", rng)) > len(said)
    short = parts.words.of_speech("the red cup is here", rng, 2)
    assert [tokens(parts, moment)[0] for moment in short] == said[:2], "what does not fit is left out"


def test_a_bank_is_written_as_its_parts_are(parts: SimpleNamespace):
    words = ("the red cup is here", "a hat")
    bank: Any = SimpleNamespace(
        seed=3,
        scenes=parts.scenes,
        utterances=[Utterance(said, "thing") for said in words],
        offsets=np.array([0, 79, 79 + 160]),
    )
    written = parts.words.of_bank(bank, 8)
    for index, scene in enumerate(parts.scenes):
        assert np.array_equal(written.images[index], parts.words.of_scene(scene))
    assert [len(written.audio(index)) for index in range(2)] == [10, 20]
    for index, said in enumerate(words):
        found = [tokens(parts, moment) for moment in written.audio(index)]
        nothing = sorted(parts.tokenizer.plain("nothing"))
        assert [one[0] for one in found if one != nothing] == parts.tokenizer.plain(said)


@torch.no_grad()
def written(parts: SimpleNamespace, sense: str) -> tuple[Any, torch.Tensor]:
    """A projector that the words were written to, whatever it was before, and their embeddings [V, D]."""
    model = copy.deepcopy(parts.model)
    naming: Any = sense_of(model, sense).projector
    for parameter in naming.parameters():
        parameter.normal_()
    parts.words.write(model)
    return naming, model.get_input_embeddings().weight


@torch.no_grad()
def sure_of(naming: Any, *classes: int) -> torch.Tensor:
    """What it writes of a feature, its head made sure of one class of each group."""
    naming.head.weight.zero_()
    for group, chosen in zip(naming.head.bias.split(naming.classes), classes, strict=True):
        group.zero_()
        group[chosen] = 100.0
    return naming(torch.randn(naming.head.in_features))


@torch.no_grad()
def test_the_eye_writes_the_words_of_what_it_is_sure_of(parts: SimpleNamespace):
    """Of all vectors of scenes, with a name in the summary: exactly what stands for them in words."""
    naming, table = written(parts, "image")
    name, seen = parts.tokenizer.plain("gray triangle"), set()
    for scene in parts.scenes:
        targets = cell_targets(scene, 6, 2)[0]
        targets[36:] = name_targets(name, 6, 2)[36:]
        expected = embed_words(table, torch.from_numpy(parts.words.of_scene(scene, "gray triangle")))
        for vector, classes in enumerate(targets.tolist()):
            torch.testing.assert_close(sure_of(naming, *classes), expected[vector])
            seen.add(classes[0])
    assert len(seen) > 4, "nothing, a name, and things of several kinds"


@torch.no_grad()
def test_the_eye_writes_nothing_alone_where_it_sees_nothing(parts: SimpleNamespace):
    """Whatever the groups after the first are sure of."""
    naming, table = written(parts, "image")
    nothing = table[parts.tokenizer.plain("nothing")].sum(0)
    torch.testing.assert_close(sure_of(naming, 0, 3, 1, 12, 5, 77), nothing)
    cup = sure_of(naming, 1, 3, 1, 12, 5, 0)
    assert not torch.allclose(cup, nothing, atol=1e-2)


@torch.no_grad()
def test_the_ear_writes_the_tokens_that_it_hears(parts: SimpleNamespace):
    """The last class is CTC's blank, however many tokens the tokenizer has learned of those that there may be."""
    naming, table = written(parts, "audio")
    (classes,), known = naming.classes, parts.tokenizer.size
    assert classes - 1 > known, "else the blank were where it is in the table"
    said = parts.words.of_speech("the red cup is here", np.random.default_rng(0), 30)
    for moment in said:
        heard = classes - 1 if tokens(parts, moment) == sorted(parts.tokenizer.plain("nothing")) else int(moment[0])
        torch.testing.assert_close(sure_of(naming, heard), embed_words(table, torch.from_numpy(moment)[None])[0])


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
    image = torch.from_numpy(parts.words.of_scene(parts.scenes[0]))[None, :36].float()  # [1, 36, K]
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
