"""Batches: what a naive loop would build, and a loss that padding and company do not change."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models
import torch

from trisense.chat import Audio, Image, Text
from trisense.data.batches import Batch, by_answer, collate, pack
from trisense.data.world.feed import converse
from trisense.data.world.single import Question
from trisense.model.attention import visible
from trisense.prompt import Prompt, fan, featured

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


# --- many questions about one context --------------------------------------------------------------------------------


def alone(pictures: int, sounds: int, chats: list[list[str]]) -> list[Prompt]:
    """One prompt for each list of questions, all about the very same media and text."""
    rng = np.random.default_rng(5)
    context = (
        *(Image(image=rng.normal(size=(16, WIDTH)).astype(np.float16)) for _ in range(pictures)),
        *(Audio(audio=rng.normal(size=(3 + n, WIDTH)).astype(np.float16)) for n in range(sounds)),
        Text(text="Anna has the red cup."),
    )
    asked = [[Question(text, WORDS[len(text) % len(WORDS)], ()) for text in chat] for chat in chats]
    return [featured(converse(context, questions), tiny_models.processor()) for questions in asked]


CHATS = [["Where is it?"], ["What is it?", "Who has the cup?"], ["Where is the cup of Anna?"], ["Is it red?"]]


@pytest.mark.parametrize(("pictures", "sounds"), [(1, 1), (0, 2), (2, 0), (0, 0)])
def test_in_a_fan_every_question_is_answered_as_if_alone(model, pictures: int, sounds: int) -> None:
    prompts = alone(pictures, sounds, CHATS)
    one = fan(prompts)
    assert len(one.ids) < sum(len(prompt.ids) for prompt in prompts)
    other = prompt(1, 0, 1, 2)  # a row without branches beside it
    with torch.inference_mode():
        together = model(**collate([one, other]).inputs).logits
        apart = torch.cat([model(**collate([single]).inputs).logits for single in (*prompts, other)])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_a_fan_shares_what_is_alike_and_nothing_else() -> None:
    prompts = alone(1, 1, CHATS)
    one = fan(prompts)
    assert one.branches is not None
    shared = int((one.branches == 0).sum())
    for number, single in enumerate(prompts, 1):
        kept = (one.branches == 0) | (one.branches == number)
        assert one.ids[kept].tolist() == single.ids.tolist()
        assert one.mask[kept].tolist() == single.mask.tolist()
    assert len({int(single.ids[shared]) for single in prompts}) > 1, "it is shared as far as it can be"
    assert one.mask.sum() == sum(single.mask.sum() for single in prompts)


def test_who_sees_whom_is_what_a_naive_loop_says() -> None:
    rows = [fan(alone(0, 1, CHATS)), prompt(2, 1, 0, 2)]
    inputs = collate(rows).inputs
    mask = visible(inputs["segments"], inputs["branches"])
    for row, one in enumerate(rows):
        branches = one.branches if one.branches is not None else np.zeros(len(one.ids), int)
        for here in range(len(branches)):
            seen = [there for there in range(here + 1) if branches[there] in (0, branches[here])]
            assert np.flatnonzero(mask[row, 0, here]).tolist() == seen
            assert int(inputs["position_ids"][row, here]) == len(seen) - 1
            assert int(inputs["predicted_from"][row, here]) == (seen[-2] if here else -1)


def test_a_fan_of_one_is_the_prompt_itself(model) -> None:
    (single,) = alone(1, 0, [["Where is it?", "Who?"]])
    one = fan([single])
    assert one.ids.tolist() == single.ids.tolist()
    with torch.inference_mode():
        losses = [float(model(**collate([given]).inputs).loss) for given in (one, single)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_branches_may_begin_with_their_answers(model) -> None:
    """The same question twice, as with captions: the first token of each answer comes after the shared beginning."""
    prompts = [*alone(1, 0, [["Where is it?"]]), *alone(1, 0, [["Where is it?"]]), *alone(1, 0, [["Where is it?"]])]
    prompts = [Prompt(one.ids.copy(), one.mask, one.media, prompts[0].values) for one in prompts]
    for number, one in enumerate(prompts):
        one.ids[np.flatnonzero(one.mask)[:2]] += number
    one = fan(prompts)
    assert one.branches is not None and one.mask[one.branches == 1].all()
    with torch.inference_mode():
        together = model(**collate([one]).inputs).logits
        apart = torch.cat([model(**collate([single]).inputs).logits for single in prompts])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_a_pack_holds_what_its_prompts_hold(prompts: list[Prompt]) -> None:
    batch = pack([prompts[:2], prompts[2:]])
    inputs = batch.inputs
    assert batch.items == sum(int(one.mask.sum()) for one in prompts)
    for row, members in enumerate((prompts[:2], prompts[2:])):
        real = inputs["segments"][row] >= 0
        assert inputs["input_ids"][row, real].tolist() == np.concatenate([one.ids for one in members]).tolist()
        assert inputs["position_ids"][row, real].tolist() == [n for one in members for n in range(len(one.ids))]
        supervised = np.concatenate([np.where(one.mask, one.ids, -100) for one in members])
        assert inputs["labels"][row, real].tolist() == supervised.tolist()
        assert (inputs["labels"][row, ~real] == -100).all()
    images = [v for one in prompts for slot, v in zip(one.media, one.values, strict=True) if slot.sense == "image"]
    assert np.array_equal(inputs["image_features"].numpy(), np.stack(images))


def test_a_fan_is_about_one_context() -> None:
    with pytest.raises(ValueError, match="at least one"):
        fan([])
    with pytest.raises(ValueError, match="same media"):
        fan([prompt(0, 1, 0, 1), prompt(2, 1, 0, 1)])
    with pytest.raises(ValueError, match="same media"):
        fan([*alone(1, 0, [["Where?"]]), *alone(0, 1, [["Where?"]])])


def test_answers_of_like_length_share_a_batch_of_the_size_that_their_length_allows() -> None:
    """Seed 2's buckets, and every sample once a round, against what a loop over the samples finds."""
    lengths = {number: 1 + number * 7 % 40 for number in range(5, 75)}
    buckets = {10: 6, 20: 4, 40: 3}
    made: list[int] = []

    def prompt_of(number: int) -> Prompt:
        made.append(number)
        return prompt(number, 0, 0, 1)

    batch_at = by_answer(prompt_of, lengths, buckets, seed=2)
    count = sum(
        -(-sum(low < length <= high for length in lengths.values()) // size)
        for low, (high, size) in zip((0, 10, 20), buckets.items(), strict=True)
    )
    rounds = []
    for number in range(2 * count):
        made.clear()
        batch = batch_at(number)
        assert len(batch.inputs["input_ids"]) == len(made)
        bounds = {min(bound for bound in buckets if lengths[sample] <= bound) for sample in made}
        assert len(bounds) == 1 and len(made) <= buckets[bounds.pop()]
        rounds.append(list(made))
    first, second = ([sample for batch in half for sample in batch] for half in (rounds[:count], rounds[count:]))
    assert sorted(first) == sorted(second) == sorted(lengths)
    assert first != second
    made.clear()
    by_answer(prompt_of, lengths, buckets, seed=2)(count + 3)
    assert made == rounds[count + 3], "a batch depends on its number alone"
