"""A plan is held against what was measured, and says in one line what it cannot plan."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from trisense.cli import commands, main
from trisense.errors import BadInput
from trisense.measure import memory
from trisense.measure.plan import bytes_of, look_at, plan_stage, slowest
from trisense.measure.published import PUBLISHED
from trisense.measure.recorded import RUNS, lay_out, recorded
from trisense.recipe import read


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_memory_is_within_15_percent_of_what_was_measured(name: str, tmp_path: Path):
    run, measured = RUNS[name], recorded()[name]
    data = lay_out(run, tmp_path, weights=False)
    recipe = run.resolved(tmp_path)
    plan = plan_stage(recipe, run.stage, look_at(recipe, run.stage, data), device="cpu", speed=1e11)
    assert plan.memory.total == pytest.approx(measured, rel=0.15)


def small(tmp_path: Path, *overrides: str):
    """A recipe over parts of which only configurations are there, and its data."""
    run = replace(RUNS["LoRA"], samples=12)
    data = lay_out(run, tmp_path, weights=False)
    flat = [f"design.text.pretrained={tmp_path / 'text'}", f"design.vision.pretrained={tmp_path / 'vision'}"]
    flat += ["design.senses.image.width=256", "design.quantisation=null", "stages.instruct.precision=float32"]
    return read("context-gpt", [*flat, *overrides]), data


def test_layers_are_alike_so_two_depths_say_what_any_other_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe, data = small(tmp_path)
    found = look_at(recipe, "instruct", data)
    batch = found.batches(recipe.stages["instruct"])[0]
    far = memory.step_of(recipe.design, recipe.stages["instruct"], batch, "cpu")
    monkeypatch.setattr(memory, "DEPTHS", (2, 8))
    whole = memory.step_of(recipe.design, recipe.stages["instruct"], batch, "cpu")
    assert vars(far) == pytest.approx(vars(whole), rel=1e-3)


def test_gradients_are_what_learns(tmp_path: Path):
    recipe, data = small(tmp_path)
    stage = recipe.stages["instruct"]
    costs = memory.Costs.of(recipe.design, stage, "cpu")
    step = memory.step_of(recipe.design, stage, look_at(recipe, "instruct", data).batches(stage)[0], "cpu")
    assert step.gradients == pytest.approx(4 * costs.learned(stage), rel=1e-3)


def test_more_rows_take_more_and_checkpointing_less(tmp_path: Path):
    recipe, data = small(tmp_path)
    found, stage = look_at(recipe, "instruct", data), recipe.stages["instruct"]

    def peak(**options: object) -> float:
        one = stage.model_copy(update=options)
        batch = max(found.batches(one), key=lambda batch: batch.inputs["input_ids"].numel())
        return memory.step_of(recipe.design, one, batch, "cpu").peak

    assert peak(batch_size=4) > 1.5 * peak(batch_size=2) > 2 * peak(batch_size=2, gradient_checkpointing=True)


def test_the_largest_batch_fits_and_twice_as_large_a_one_does_not(tmp_path: Path):
    recipe, data = small(tmp_path)
    found, room = look_at(recipe, "instruct", data), 2 * 10**9
    plan = plan_stage(recipe, "instruct", found, room=room)
    assert plan.fit and plan.fit.key == "batch_size" and plan.fit.now == 2 < plan.fit.most
    for size, fits in ((plan.fit.most, True), (2 * plan.fit.most, False)):
        stage = recipe.stages["instruct"].model_copy(update={"batch_size": size})
        larger = recipe.model_copy(update={"stages": {"instruct": stage}})
        assert (plan_stage(larger, "instruct", found).memory.total <= 1.02 * room) == fits


def test_published_counts_need_no_file(tmp_path: Path):
    recipe, _ = small(tmp_path)
    found = look_at(recipe, "align", "coco")
    assert (found.samples, found.pictures) == (591_753, 118_287)
    plan = plan_stage(recipe, "align", found, speed=1e12)
    assert plan.disk["features of 118,287 pictures"] == 118_287 * 49 * 256 * 2
    assert plan.tokens < 49 + 40 and plan.hours > 0
    assert PUBLISHED["llava"].samples == pytest.approx(356_752, rel=0.01), "what jnana's authors count"


@given(st.integers(1, 999), st.sampled_from(["GB", "gb", "GiB", " GB", "MB"]))
def test_an_amount_of_memory_has_a_unit(number: int, unit: str):
    scale = {"gb": 10**9, "gib": 2**30, "mb": 10**6}[unit.strip().lower()]
    assert bytes_of(f"{number}{unit}") == number * scale


@pytest.mark.parametrize("text", ["24", "", "GB", "0GB", "-3GB", "24XB", "24 G B"])
def test_anything_else_is_none(text: str):
    with pytest.raises(BadInput, match="expected the memory of one GPU with its unit, such as 24GB"):
        bytes_of(text)


def test_a_gpu_of_unknown_kind_is_as_slow_as_the_slowest_of_its_size():
    assert slowest(24 * 10**9) == 121e12 and slowest(80 * 10**9) == 312e12 and slowest(None) == 121e12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "24"], "--gpu 24: expected the memory of one GPU with its unit, such as 24GB"),
        (["--gpu", "24GB", "--gpus", "0"], "--gpus"),
        (["--data", "cocoo"], "--data cocoo: neither coco nor llava, whose counts are known, nor a file"),
        (["--data", "none/such.json"], "none: no such folder or zip"),
        (["--stage", "aling"], "has no stage 'aling' that learns from conversations; it has align, instruct"),
        (["--device", "cpu", "--gpu", "24GB"], "--device cpu"),
        (["--stage", "align", "--gpu", "0.6GB"], "GB more than there are"),
    ],
)
def test_bad_input_is_one_line(options: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    small(tmp_path)
    parts = [f"design.text.pretrained={tmp_path / 'text'}", f"design.vision.pretrained={tmp_path / 'vision'}"]
    given_data = [] if "--data" in options else ["--data", "coco"]
    assert main(["plan", "context-gpt", *parts, "design.senses.image.width=256", *given_data, *options]) == 2
    error = capfd.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_the_command_prints_every_stage_or_json(tmp_path: Path):
    small(tmp_path)
    parts = [f"design.text.pretrained={tmp_path / 'text'}", f"design.vision.pretrained={tmp_path / 'vision'}"]
    command = ["plan", "context-gpt", *parts, "design.senses.image.width=256", "--data", "coco", "--gpu", "24GB"]
    shown = CliRunner().invoke(commands, command, catch_exceptions=False).output
    assert "align (caption)" in shown and "instruct (instruct)" in shown and "never yet measured" in shown
    told = json.loads(CliRunner().invoke(commands, [*command, "--json", "--stage", "align"]).output.splitlines()[-1])
    (stage,) = told["stages"]
    assert stage["memory"]["total"] == pytest.approx(sum(stage["memory"]["parts"].values()), abs=1)
    assert stage["fit"]["most"] > stage["fit"]["now"]
