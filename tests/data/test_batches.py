"""Batches: what a naive loop would build, and a loss that padding and company do not change."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch

from trisense.chat import Audio, Image, Text
from trisense.data.batches import Batch, collate
from trisense.data.world.feed import converse, featured
from trisense.data.world.single import Question
from trisense.prompt import Prompt

WIDTH = 16  # of both encoders of the tiny model
WORDS = ("yes", "no", "top left", "the red cup", "Anna")


def prompt(seed: int, pictures: int, sounds: int, turns: int) -> Prompt:
    """A conversation about pictures of 16 vectors, sounds of 1 to 5 and a text."""
    rng = np.random.default_rng(seed)
    images = [Image(image=rng.normal(size=(16, WIDTH)).astype(np.float16)) for _ in range(pictures)]
    audios = [Audio(audio=rng.normal(size=(rng.integers(1, 6), WIDTH)).astype(np.float16)) for _ in range(sounds)]
    text = (Text(text=f"note {seed}"),) if seed % 2 else ()
    questions = [Question(f"What is {seed}.{turn}?", str(rng.choice(WORDS)), ()) for turn in range(turns)]
    return featured(converse((*images, *audios, *text), questions), tiny_models.processor())


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [prompt(0, 1, 1, 2), prompt(1, 0, 2, 1), prompt(2, 2, 0, 3), prompt(3, 0, 0, 1), prompt(4, 1, 1, 1)]


def test_it_is_what_a_naive_loop_builds(prompts: list[Prompt]) -> None:
    batch = collate(prompts)
    longest = max(len(one.ids) for one in prompts)
    items = 0
    images: list[np.ndarray] = []
    audios: list[np.ndarray] = []
    for row, one in enumerate(prompts):
        for column in range(longest):
            inside = column < len(one.ids)
            supervised = inside and bool(one.mask[column])
            assert batch.inputs["input_ids"][row, column] == (one.ids[column] if inside else 0)
            assert batch.inputs["attention_mask"][row, column] == inside
            assert batch.inputs["labels"][row, column] == (one.ids[column] if supervised else -100)
            items += supervised
        for slot, values in zip(one.media, one.values, strict=True):
            (images if slot.sense == "image" else audios).append(values)
    assert batch.items == items
    assert batch.inputs["image_features"].shape == (len(images), 16, WIDTH)
    for given, expected in zip(batch.inputs["image_features"].numpy(), images, strict=True):
        assert np.array_equal(given, expected)
    assert batch.inputs["audio_lengths"].tolist() == [len(one) for one in audios]
    for given, expected in zip(batch.inputs["audio_features"].numpy(), audios, strict=True):
        assert np.array_equal(given[: len(expected)], expected)
        assert not given[len(expected) :].any()
    assert {name: tensor.dtype for name, tensor in batch.inputs.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "image_features": torch.float32,
        "audio_features": torch.float32,
        "audio_lengths": torch.int64,
    }


def test_a_sense_that_nobody_uses_is_left_out(prompts: list[Prompt]) -> None:
    assert set(collate([prompts[3]]).inputs) == {"input_ids", "attention_mask", "labels"}
    assert "audio_features" not in collate([prompts[2]]).inputs
    assert "image_features" not in collate([prompts[1]]).inputs


def test_what_is_supervised_is_the_answers_and_their_end(prompts: list[Prompt]) -> None:
    labels = collate(prompts).inputs["labels"][2]
    said = tiny_models.tokenizer().decode(labels[labels != -100].tolist(), skip_special=False)
    assert said.count("<|end|>") == 3
    assert all(answer in WORDS for answer in said.removesuffix("<|end|>").split("<|end|>"))


def test_a_batch_goes_to_a_device_whole(prompts: list[Prompt]) -> None:
    batch = collate(prompts)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch) and moved.items == batch.items
    assert {tensor.device.type for tensor in moved.inputs.values()} == {"meta"}
    assert batch.inputs["labels"].device.type == "cpu"


@pytest.fixture(scope="module")
def model():
    from trisense.model import TrisenseForConditionalGeneration

    torch.manual_seed(0)
    return TrisenseForConditionalGeneration(tiny_models.config()).train()


def gradient(model, prompts: list[Prompt], items: int) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model(**collate(prompts).inputs, num_items_in_batch=torch.tensor(float(items))).loss
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_loss_of_a_batch_is_the_sum_of_its_prompts(model, prompts: list[Prompt]) -> None:
    items = collate(prompts).items
    together, _ = gradient(model, prompts, items)
    alone = [gradient(model, [one], items)[0] for one in prompts]
    assert together == pytest.approx(sum(alone), abs=1e-4)
    assert min(alone) > 0


def test_a_conversation_without_a_question_costs_nothing(model, prompts: list[Prompt]) -> None:
    """The world now and then asks nothing about a context: such a row is empty, and must not poison the others."""
    empty = prompt(0, 0, 0, 0)
    assert len(empty.ids) == 0
    items = collate(prompts).items
    assert collate([*prompts, empty]).items == items
    loss, gradients = gradient(model, [*prompts, empty], items)
    expected, expected_gradients = gradient(model, prompts, items)
    assert loss == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-4)
