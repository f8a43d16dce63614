"""The bench on tiny shapes: both sides learn the same from the same, and the floor counts what is really multiplied."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from trisense.cli import commands
from trisense.measure import bench, options
from trisense.measure.floor import work_of
from trisense.measure.sides import Kind, Ours, Theirs, TokenByToken, make_task, shapes_of
from trisense.model.attention import visible

KINDS: tuple[Kind, ...] = ("align", "instruct")


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory is measured by processes of their own, which take seconds to start: `test_memory` has them."""
    for module in (bench, options):
        monkeypatch.setattr(
            module, "in_a_process", lambda side, *_, **__: {"ours": 3_000_000, "llava": 5_000_000}[side]
        )
    yield


def sides(kind: Kind) -> tuple[Ours, Theirs, Any, bench.Rows]:
    shapes = shapes_of("tiny")
    task = make_task(kind, shapes, 12, 3)
    ours, theirs = Ours(shapes, kind, "cpu"), Theirs(shapes, kind, "cpu")
    theirs.copy(ours)
    return ours, theirs, task, bench.Rows(task, ours.features(task.pixels), 256, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_compute_the_same_loss_and_gradient(kind: Kind):
    """Against transformers' LLaVA, an independent implementation: packs, shared pictures and the frozen head's loss on
    one side, padding, a picture a sample and all logits on the other."""
    ours, theirs, task, rows = sides(kind)
    if kind == "instruct":  # LoRA begins as nothing; as something it shows whether its gradients agree
        torch.manual_seed(1)
        for name, parameter in ours.model.named_parameters():
            if ".lora_B" in name:
                parameter.data.normal_(std=0.1)
        theirs.copy(ours)
    batch, members = rows(0)
    assert len(members) > batch.inputs["segments"].max() + 1, "pictures are shared"
    own = ours.gradient(batch) / batch.items
    assert own == pytest.approx(theirs.gradient(task, members, batch.items) / batch.items, abs=1e-5)
    pairs = zip(ours.sense.projector.parameters(), theirs.model.model.multi_modal_projector.parameters(), strict=True)
    for mine, other in pairs:
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-3)
    decoder = dict(ours.model.language_model.get_decoder().named_parameters())
    adapted = 0
    for name, other in theirs.model.model.language_model.named_parameters():
        assert (decoder[name].grad is None) == (other.grad is None) == (".lora_" not in name), "frozen is frozen"
        if other.grad is not None:
            torch.testing.assert_close(decoder[name].grad, other.grad, atol=1e-6, rtol=1e-3)
            adapted += 1
    assert (adapted > 0) == (kind == "instruct")
    assert all(parameter.grad is None for parameter in ours.sense.encoder.parameters())


def test_one_forward_per_token_is_the_same_loss_and_gradient():
    _, theirs, task, rows = sides("align")
    members = rows(0)[1][:5]
    items = sum(int(task.prompts[i].mask.sum()) for i in members)
    gradients = []
    for side in (theirs, TokenByToken(theirs)):
        loss = side.gradient(task, members, items)
        gradients.append((loss, [p.grad.clone() for p in theirs.model.model.multi_modal_projector.parameters()]))
        theirs.optimizer.zero_grad()
    (loss, expected), (looped, own) = gradients
    assert looped == pytest.approx(loss, abs=1e-3)
    for mine, other in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_counts_the_products_that_torch_counts(kind: Kind):
    ours, _, _, rows = sides(kind)
    batch, _ = rows(0)
    work = work_of(ours.model, batch)
    with FlopCounterMode(display=False) as counter:
        ours.gradient(batch)
    counted = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    linear = counted["aten.mm"] + counted["aten.addmm"]
    assert work.flops - work.attention == linear
    # Attention in pieces multiplies more than the pairs that see each other, but not as much as whole rows would take.
    multiplied = counted["aten.bmm"] + counted["aten.baddbmm"]
    dense = 2 * 6 * 2 * 32 * batch.inputs["segments"].shape[1] ** 2
    assert work.attention < multiplied < 0.8 * dense


def test_attention_is_counted_for_pairs_that_see_each_other():
    ours, _, _, rows = sides("align")
    batch, _ = rows(0)
    pairs = int((visible(batch.inputs["segments"], batch.inputs["branches"])).sum())
    per_layer = 6 * 2 * pairs * 32
    assert work_of(ours.model, batch).attention == 2 * per_layer


def test_the_data_is_as_long_as_the_real_one():
    shapes = shapes_of("small")
    align, instruct = (make_task(kind, replace(shapes, vision=shapes_of("tiny").vision), 300, 5) for kind in KINDS)
    assert Counter(Counter(align.about).values()) == {5: 300}
    captions = [int(prompt.mask.sum()) for prompt in align.prompts]
    assert 11 < np.mean(captions) < 14 and max(captions) <= 21
    assert 3.9 < len(instruct.prompts) / 300 < 4.9, "356,752 pairs about 81,479 pictures"
    answers = [int(prompt.mask.sum()) for prompt in instruct.prompts]
    assert 40 < np.mean(answers) < 65
    assert {len(prompt.media) for prompt in instruct.prompts} == {1}


def test_rows_hold_whole_samples_and_every_sample_comes():
    task = make_task("align", shapes_of("tiny"), 12, 3)
    rows = bench.Rows(task, np.zeros((12, 4, 16), np.float32), 256, 0)
    seen: list[int] = []
    number = 0
    while len(seen) < len(task.prompts):
        batch, members = rows(number)
        assert batch.items == sum(int(task.prompts[i].mask.sum()) for i in members)
        assert batch.inputs["input_ids"].shape[1] <= 256
        seen += members
        number += 1
    assert sorted(seen) == list(range(len(task.prompts)))


def test_the_command_prints_a_table_and_json():
    arguments = ["bench", "train", "--size", "tiny", "--rounds", "1", "--tokens", "256", "--device", "cpu"]
    shown = CliRunner().invoke(commands, arguments, catch_exceptions=False).output
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert rows[0].endswith("| align (projector) | instruct (LoRA) |")
    assert {row.split("|")[1].strip() for row in rows[2:]} >= {
        "transformers' LLaVA, samples/s",
        "this package, samples/s",
        "ratio",
        "ratio to one forward per token",
        "share of the matrix-multiply floor",
        "memory ratio",
    }
    assert "| memory ratio | 0.60 | 0.60 |" in rows
    only = [*arguments, "--stage", "align", "--peak", "0.5", "--json"]
    record = json.loads(CliRunner().invoke(commands, only, catch_exceptions=False).output)
    assert record["peak"] == 0.5e12 and set(record["results"]) == {"align"}
    result = record["results"]["align"]
    assert set(result["samples_per_second"]) == {"ours", "llava", "token_loop"}
    assert result["loss_difference"] < 1e-4
    assert result["peak_memory"] == {"ours": 3_000_000, "llava": 5_000_000}


def test_sides_that_disagree_are_not_compared(monkeypatch: pytest.MonkeyPatch):
    real = Theirs.gradient
    monkeypatch.setattr(Theirs, "gradient", lambda *arguments: 1.01 * real(*arguments))
    with pytest.raises(RuntimeError, match="do not compute the same"):
        bench.bench_train(("align",), "tiny", rounds=1, tokens=256, pictures=8)


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from trisense.cli import main

    assert main(["bench", "train", "--device", "cuda"]) == 2
    assert main(["bench", "train", "--device", "cpu", "--options", "--peak", "1"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ours", "llava"])
def test_memory(side: str, monkeypatch: pytest.MonkeyPatch):
    """More than the weights that training holds, and not several times as much."""
    monkeypatch.undo()
    taken = bench.in_a_process(side, "align", "small", "cpu", 256, 8, 0)
    weights = 4 * 78_000_000 + (4 * 87_000_000 if side == "llava" else 0)  # LLaVA keeps its encoder
    assert weights < taken < 4 * weights


@pytest.mark.slow
def test_options_are_measured_each_beside_the_stage_without_it():
    arguments = ["bench", "train", "--options", "--size", "tiny", "--stage", "instruct", "--rounds", "1"]
    more = ["--tokens", "256", "--device", "cpu", "--json"]
    record = json.loads(CliRunner().invoke(commands, [*arguments, *more], catch_exceptions=False).output)
    worth = record["worth"]["instruct"]
    assert set(worth) == set(options.OPTIONS)
    for name, one in worth.items():
        assert min(one["speed"], one["first_step"]) > 0 and one["memory"] == 1.0
        assert (one["loss_difference"] < 1e-5) == (name != "precision: bf16"), "the others compute the same"
