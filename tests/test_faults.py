"""The faults of the five published programs, each with a test that it would fail.

Three have theirs elsewhere: labels shifted twice (`test_labels_are_shifted_once`), answers written without a cache and
without some words of the prompt (`test_generate_is_what_a_loop_without_a_cache_would_say`), and a "base model" that
held the adapter (`test_the_base_is_the_model_as_it_was_loaded`).
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image as Pictures
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from trisense.chat import Conversation, Image, Message
from trisense.data.answers import STOP_WORDS
from trisense.data.batches import Batch, collate
from trisense.errors import BadInput
from trisense.model.parts import count_parts
from trisense.model.pretrained import load_design
from trisense.model.trained import staged
from trisense.prompt import Prompt, featured
from trisense.recipe import Recipe, read
from trisense.stage import WarmupStage
from trisense.train.files import train_stage
from trisense.train.learner import Learner
from trisense.train.loop import train

FIVE = ["context-gpt", "tinyclip-phi2", "jnana", "ft35", "eden"]


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.pretrained(tmp_path_factory.mktemp("parts"))


def tiny(name: str, parts: Path, *overrides: str) -> Recipe:
    return read(name, [*tiny_models.pretrained_overrides(name, parts), *overrides])


def captioned(recipe: Recipe, stage: str, text: str) -> tuple[Any, Prompt, frozenset[int]]:
    """A model of a stage's design, one sample with features in place of the picture, and what ends an answer."""
    torch.manual_seed(2)
    model, processor = load_design(staged(recipe, stage))
    assert recipe.design.pictures
    shape = recipe.design.pictures.tokens, recipe.design.senses["image"]["width"]
    picture = Image(image=np.random.default_rng(0).normal(size=shape).astype(np.float32))
    asked = Conversation(messages=(Message(role="user", content=(picture,)),))
    return model, featured(asked.answered(text), processor), processor.end_ids


def test_stop_words_and_punctuation_are_gone_from_what_is_really_trained_on(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Seeds 3 and 4 computed the shorter answers, then trained on the long ones."""
    Pictures.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    said = "There is a red bus, and it's on the street."
    turn = [{"from": "human", "value": "<image>\nWhat is there?"}, {"from": "gpt", "value": said}]
    records = [{"image": "a.png", "conversations": turn}] * 4
    (tmp_path / "data.json").write_text(json.dumps(records))
    learned: list[str] = []
    real, decode = Learner.forward, tiny_models.tokenizer(tiny_models.PHI_SPECIAL).decode

    def watched(self: Learner, **inputs: Any) -> Any:
        labels = inputs["labels"]
        learned.extend(decode(row[row != -100].tolist()) for row in labels)
        return real(self, **inputs)

    monkeypatch.setattr(Learner, "forward", watched)
    short = ["stages.instruct.steps=2", "stages.instruct.precision=float32"]
    train_stage(tiny("ft35", parts, *short), "instruct", tmp_path / "data.json", tmp_path / "run", device="cpu")
    assert set(learned) == {"red bus street"}
    assert not STOP_WORDS & set(" ".join(learned).split())
    assert not set(string.punctuation) & set("".join(learned))


@pytest.mark.parametrize("name", FIVE)
def test_every_stage_learns_where_an_answer_ends(name: str, parts: Path):
    """Seed 1 left the end out of the loss, so its model never stopped."""
    recipe = tiny(name, parts)
    for stage in recipe.stages:
        _, prompt, ends = captioned(recipe, stage, "a red bus")
        labels = collate([prompt, prompt]).inputs["labels"]
        assert len(ends) == 1
        assert all(int(row[row != -100][-1]) in ends for row in labels)


def test_the_log_holds_the_mean_since_its_last_line_in_full_precision(tmp_path: Path):
    """Seed 0 logged the mean of all steps so far in float16, which shows a plateau that is not there."""

    class Falling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor) -> CausalLMOutput:
            return CausalLMOutput(loss=(loss + 0 * self.weight).sum() / num_items_in_batch)

    values = [1000.1 - 100 * step for step in range(6)]
    stage = WarmupStage(learns="see", steps=6, log_every=2, precision="bf16")
    train(Falling(), lambda number: Batch({"loss": torch.tensor(values[number])}, 1), stage, tmp_path, device="cpu")
    logged = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == pytest.approx([sum(values[i : i + 2]) / 2 for i in (0, 2, 4)], rel=1e-6)


def test_padding_is_no_part_of_the_loss(parts: Path):
    """Seed 0 counted it in."""
    recipe = tiny("context-gpt", parts)
    model, short, _ = captioned(recipe, "align", "a bus")
    _, long, _ = captioned(recipe, "align", "a very long red bus that goes on and on")
    alone = [float(model(**collate([one]).inputs, num_items_in_batch=1).loss.detach()) for one in (short, long)]
    batch = collate([short, long])
    assert (batch.inputs["attention_mask"] == 0).any()
    together = float(model(**batch.inputs, num_items_in_batch=1).loss.detach())
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_one_forward_gives_the_gradient_of_one_forward_per_token(parts: Path):
    """Seeds 1 and 2 ran the model once for every token of a caption."""
    model, prompt, _ = captioned(tiny("jnana", parts), "align", "a red bus")
    inputs = collate([prompt]).inputs
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model(**inputs, num_items_in_batch=1).loss.backward()
    once = [parameter.grad.clone() for parameter in learning]
    model.zero_grad()
    for place in np.flatnonzero(prompt.mask).tolist():
        seen = {"input_ids": inputs["input_ids"][:, :place], "image_features": inputs["image_features"]}
        logits = model(**seen).logits[:, -1]
        nn.functional.cross_entropy(logits, inputs["input_ids"][:, place]).backward()
    for parameter, expected in zip(learning, once, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FIVE)
def test_a_projector_of_another_width_than_the_features_is_refused_before_training(name: str):
    """Seed 4's published trainer fed 768 numbers a patch to a projector of 512."""
    width = read(name).design.senses["image"]["width"]
    with pytest.raises(BadInput, match=rf"design\.senses\.image\.width: 4, but this encoder's features have {width}"):
        count_parts(read(name, ["design.senses.image.width=4"]).design)
