"""Packed rows: every sample once a round, none too long, what is about one picture together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import tiny_models

from trisense.chat import Conversation, Image, Message, Text
from trisense.data.batches import Batch
from trisense.data.packing import Bundles, packed
from trisense.prompt import Prompt, featured

TOKENS = 150
NAMES = "abcdefgh"
PICTURES = {name: np.random.default_rng(n).normal(size=(16, 16)).astype(np.float16) for n, name in enumerate(NAMES)}


def prompt(sample: int, shown: dict[str, np.ndarray] = PICTURES) -> Prompt:
    """Sample n asks about picture n mod 8 what is as long as n says; every eleventh is text alone."""
    rng = np.random.default_rng(sample)
    text = Text(text="why " * int(rng.integers(1, 6)) + f"{sample}?")
    picture = () if sample % 11 == 0 else (Image(image=shown[name_of(sample)]),)
    asked = Conversation(messages=(Message(role="user", content=(*picture, text)),))
    return featured(asked.answered("so " * int(rng.integers(1, 9))), tiny_models.processor())


def name_of(sample: int) -> str:
    return NAMES[sample % 8]


def about(sample: int) -> str | None:
    return None if sample % 11 == 0 else name_of(sample)


def bundles(share: bool = True, tokens: int = TOKENS) -> Bundles:
    return Bundles.of(range(60), prompt, about if share else lambda _: None, tokens)


def rows(seed: int, numbers: Sequence[int], share: bool = True) -> list[tuple[list[tuple[int, ...]], Batch]]:
    """The bundles of some batches, and the batches."""
    made: list[tuple[int, ...]] = []

    def prompts_of(members: Sequence[int]) -> list[Prompt]:
        made.append(tuple(members))
        return [prompt(member) for member in members]

    batch_at = packed(bundles(share), prompts_of, TOKENS, seed)
    found = []
    for number in numbers:
        made.clear()
        batch = batch_at(number)
        found.append((list(made), batch))
    return found


def test_bundles_hold_every_sample_once_and_what_belongs_together():
    whole = bundles()
    assert sorted(sample for members in whole.members for sample in members) == list(range(60))
    for members, length in zip(whole.members, whole.lengths, strict=True):
        assert len(members) == 1 or length <= TOKENS
        assert len({about(member) for member in members}) == 1
        assert length <= sum(len(prompt(member).ids) for member in members)
    assert max(len(members) for members in whole.members) > 2
    assert all(len(members) == 1 for members in bundles(share=False).members)
    assert sum(whole.lengths) < 0.8 * sum(bundles(share=False).lengths), "what is shared is there once"
    assert all(len(members) == 1 for members in bundles(tokens=10).members), "a long sample stands alone"


def test_a_round_has_every_sample_once_and_no_row_is_too_long():
    found = rows(3, range(60))
    seen: list[int] = []
    turns: list[list[int]] = []
    for made, batch in found:
        inputs = batch.inputs
        assert inputs["input_ids"].shape[0] == 1
        assert inputs["input_ids"].shape[1] <= TOKENS
        members = [sample for bundle in made for sample in bundle]
        assert batch.items == sum(int(prompt(sample).mask.sum()) for sample in members)
        assert inputs["segments"].max() + 1 == len(made)
        assert len(inputs.get("image_features", ())) == sum(about(bundle[0]) is not None for bundle in made)
        seen += members
        if len(seen) % 60 == 0 and set(Counter(seen).values()) == {len(seen) // 60}:
            turns.append(seen[-60:])
    assert len(turns) >= 2, "rounds end where every sample has come as often as every other"
    assert turns[0] != turns[1]


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    asked = rows(3, range(40))
    for number in (39, 0, 17, 39):
        ((made, batch),) = rows(3, [number])
        assert made == asked[number][0]
        assert all((batch.inputs[key] == value).all() for key, value in asked[number][1].inputs.items())
    assert [made for made, _ in rows(4, range(5))] != [made for made, _ in asked[:5]]


def test_rows_are_well_filled():
    found = rows(1, range(30))
    used = [batch.inputs["input_ids"].shape[1] for _, batch in found]
    assert np.mean(used) > 0.75 * TOKENS


def test_only_what_begins_alike_is_shared():
    """About one picture, but after other words, or with the picture after an answer: a fan would refuse these."""
    picture = Image(image=PICTURES["a"])

    def asked(*before: Text) -> Conversation:
        return Conversation(messages=(Message(role="user", content=(*before, picture, Text(text="what?"))),))

    first = asked().answered("a cup")
    later = Conversation(messages=(*Conversation.ask("hello").answered("hi").messages, *first.messages))
    other = asked(Text(text="a note")).answered("a cup")
    prompts = [featured(one, tiny_models.processor()) for one in (first, other, later, first, later)]
    whole = Bundles.of(range(5), lambda i: prompts[i], lambda _: "a", 500)
    assert sorted(whole.members) == [(0, 3), (1,), (2,), (4,)]
