"""Packed rows: every sample of a pack costs and teaches what it would alone, whichever attention computes it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AttentionInterface, CLIPVisionConfig, LlamaConfig, Phi3Config, PhiConfig

from trisense.chat import Conversation, Image
from trisense.data.batches import Batch, collate, pack
from trisense.model import TrisenseConfig, TrisenseForConditionalGeneration
from trisense.model.attention import SEGMENTS, TOGETHER, pieces, visible
from trisense.prompt import Prompt, fan, featured

WAYS = ("eager", "sdpa", SEGMENTS)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": tiny_models.VOCABULARY + 3,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LANGUAGE_MODELS = {
    "phi": PhiConfig(partial_rotary_factor=0.5, **SHAPE),
    "phi3": Phi3Config(num_key_value_heads=2, **SHAPE),
    "llama": LlamaConfig(num_key_value_heads=2, **SHAPE),
}


@cache
def model(kind: str) -> TrisenseForConditionalGeneration:
    vision = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    return TrisenseForConditionalGeneration(
        TrisenseConfig(
            text_config=LANGUAGE_MODELS[kind],
            vision_config=vision,
            senses={"image": {"width": 16, "select": "patches", "projector": "norm-mlp"}},
            placeholders={"image": 256},
        )
    ).train()


def about(seed: int, *chats: tuple[str, str]) -> list[Prompt]:
    """A prompt for each question and answer, all about one picture."""
    picture = np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float16)
    asked = [Conversation.ask(question, images=[]).answered(answer) for question, answer in chats]
    shown = [
        one.model_copy(
            update={
                "messages": (
                    one.messages[0].model_copy(update={"content": (Image(image=picture), *one.messages[0].content)}),
                    *one.messages[1:],
                )
            }
        )
        for one in asked
    ]
    return [featured(one, tiny_models.processor()) for one in shown]


def rows() -> tuple[list[list[Prompt]], list[Prompt]]:
    """Two rows of samples, fans with long and short branches among them; and each of their prompts alone."""
    same = about(0, ("", "a dog"), ("", "a black dog that runs"), ("", "a dog"), ("", "x" * 90), ("", "y" * 70))
    questions = about(1, ("What is it?", "a cat"), ("Who?", "Anna"), ("What is that?", "a cup"))
    single = about(2, ("Where?", "top left"))
    text = [featured(Conversation.ask("Why?").answered("because"), tiny_models.processor())]
    twice = about(3, ("Is it?", "yes"), ("Is it?", "no"))
    packed = [[*single, fan(same), *text], [fan(questions), fan(twice), *single]]
    return packed, [*single, *same, *text, *questions, *twice, *single]


def learn(kind: str, way: str, batch: Batch, items: int) -> tuple[float, dict[str, torch.Tensor]]:
    one = model(kind)
    one.language_model.set_attn_implementation(way)
    one.zero_grad()
    loss = one(**batch.inputs, num_items_in_batch=items).loss
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_pack_costs_and_teaches_what_its_samples_do_alone(kind: str, way: str):
    packed, alone = rows()
    batch = pack(packed)
    assert batch.items == sum(int(prompt.mask.sum()) for prompt in alone)
    loss, gradients = learn(kind, way, batch, batch.items)
    total, expected = 0.0, {}
    for prompt in alone:
        own, theirs = learn(kind, "eager", collate([prompt]), batch.items)
        total += own
        expected |= {name: theirs[name] + expected.get(name, 0) for name in theirs}
    assert loss == pytest.approx(total, abs=1e-5)
    assert set(gradients) == set(expected)
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_in_half_precision_pieces_teach_what_the_mask_does(kind: str):
    """Under autocast queries and values may differ in their dtype, and backward runs outside of it."""
    batch = pack(rows()[0])
    found = []
    for way in ("sdpa", SEGMENTS):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(learn(kind, way, batch, batch.items))
    (loss, expected), (own, gradients) = found
    assert own == pytest.approx(loss, rel=1e-2)
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).norm()) < 0.1 * float(expected[name].norm()) + 1e-3, name


@pytest.mark.parametrize("way", WAYS)
def test_what_one_sample_says_reaches_no_other(way: str):
    """Every id of one sample changed: the logits of the others stay, to the bit where they are computed apart."""
    packed, _ = rows()
    batch = pack(packed)
    one = model("phi3")
    one.language_model.set_attn_implementation(way)
    own = (batch.inputs["segments"] == 1) & (batch.inputs["input_ids"] != 256)
    changed = torch.where(own, (batch.inputs["input_ids"] + 1) % 250, batch.inputs["input_ids"])
    with torch.inference_mode():
        before, after = (
            one(**{**batch.inputs, "input_ids": ids}).logits for ids in (batch.inputs["input_ids"], changed)
        )
    others = (batch.inputs["segments"] != 1)[batch.inputs["labels"] != -100]
    assert 0 < int(others.sum()) < len(others)
    torch.testing.assert_close(before[others], after[others], atol=1e-6, rtol=0)
    assert not torch.allclose(before[~others], after[~others], atol=1e-2)


def test_the_pieces_are_the_mask_cut_up():
    """Who sees whom by a loop over tokens, by the dense mask, and by the pieces put together again."""
    inputs = pack(rows()[0]).inputs
    segments, branches = inputs["segments"], inputs["branches"]
    count = segments.shape[1]
    naive = torch.zeros(len(segments), count, count, dtype=torch.bool)
    for row in range(len(segments)):
        for here in range(count):
            for there in range(here + 1):
                same = segments[row, here] == segments[row, there]
                naive[row, here, there] = same and branches[row, there] in (0, branches[row, here])
    assert torch.equal(visible(segments, branches)[:, 0], naive)
    put = torch.zeros_like(naive)
    cut = pieces(segments, branches)
    for piece in cut:
        looked = [*range(piece.shared, piece.shared_end), *range(piece.start, piece.end)]
        seen = torch.zeros(piece.end - piece.start, count, dtype=torch.bool)
        seen[:, looked] = piece.bias == 0
        assert not put[piece.row, piece.start : piece.end].any(), "no position twice"
        put[piece.row, piece.start : piece.end] = seen
    assert torch.equal(put, naive & (segments >= 0)[:, :, None])
    assert any(piece.shared_end > piece.shared for piece in cut)
    assert all(piece.end - piece.start <= TOGETHER for piece in cut if piece.shared_end > piece.shared)
    for row, positions in enumerate(inputs["position_ids"]):
        real = segments[row] >= 0
        assert positions[real].tolist() == (naive[row].sum(1) - 1)[real].tolist()


def test_without_packs_it_is_transformers_own_attention():
    batch = collate(rows()[1])
    one = model("llama")
    with torch.inference_mode():
        logits = []
        for way in ("sdpa", SEGMENTS):
            one.language_model.set_attn_implementation(way)
            logits.append(one(**batch.inputs).logits)
    assert torch.equal(*logits)
    assert SEGMENTS in AttentionInterface()


def test_a_window_shorter_than_a_sample_is_refused():
    batch = pack(rows()[0])
    one = model("phi3")
    one.language_model.config.sliding_window = 20
    try:
        with pytest.raises(ValueError, match="the window 20"):
            one(**batch.inputs)
    finally:
        one.language_model.config.sliding_window = None


def test_rows_are_computed_alone():
    packed, _ = rows()
    whole = pack(packed)
    apart = [pack([row]) for row in packed]
    one = model("phi")
    one.language_model.set_attn_implementation(SEGMENTS)
    with torch.inference_mode():
        together = one(**whole.inputs).logits
        each = torch.cat([one(**batch.inputs).logits for batch in apart])
    torch.testing.assert_close(together, each, atol=1e-5, rtol=1e-5)
    assert whole.items == sum(batch.items for batch in apart)
