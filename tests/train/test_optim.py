"""What learns at which rate with which momentum, held against torch's own schedulers."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import batch_at, stage, toy

from trisense.errors import BadInput
from trisense.recipe import Recipe, read
from trisense.stage import FileStage
from trisense.train.checkpoints import CHECKPOINT
from trisense.train.loop import train
from trisense.train.optim import Schedule, learning_rate, make_optimizer, momentum, parameter_groups, part_of


def test_matrices_decay_and_vectors_do_not() -> None:
    model = toy()
    model.spare.requires_grad_(False)
    matrices, vectors = parameter_groups(model, stage(weight_decay=0.1))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in matrices["params"]} == {id(part.weight) for part in (model.first, model.extra, model.last)}
    assert {id(p) for p in vectors["params"]} == {id(part.bias) for part in (model.first, model.extra, model.last)}


class Parts(nn.Module):
    """A model with every part, by the names that ours have."""

    def __init__(self) -> None:
        super().__init__()
        sense = nn.ModuleDict({"encoder": nn.Linear(2, 2), "projector": nn.Linear(2, 2)})
        attention = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "lora_A": nn.Linear(2, 2, bias=False)})
        inner = nn.ModuleDict({"senses": nn.ModuleDict({"image": sense}), "language_model": attention})
        self.model = inner
        self.head = nn.Linear(2, 2)


def instruct(**options: Any) -> FileStage:
    return FileStage.model_validate({"learns": "instruct", "steps": 1, "lr": 1e-6, "weight_decay": 0.1, **options})


def rates(model: nn.Module, options: FileStage) -> dict[str, tuple[float, float]]:
    """Parameter -> (learning rate, weight decay)."""
    groups = parameter_groups(model, options)
    found = {id(p): (group.get("lr", options.lr), group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found), "none in two groups"
    return {name: found[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_every_part_may_have_a_rate_of_its_own() -> None:
    lrs = {"encoder": 1e-2, "projector": 1e-3, "adapter": 1e-4, "language_model": 1e-5}
    assert rates(Parts(), instruct(lrs=lrs)) == {
        "model.senses.image.encoder.weight": (1e-2, 0.1),
        "model.senses.image.encoder.bias": (1e-2, 0.0),
        "model.senses.image.projector.weight": (1e-3, 0.1),
        "model.senses.image.projector.bias": (1e-3, 0.0),
        "model.language_model.q_proj.weight": (1e-5, 0.1),
        "model.language_model.q_proj.bias": (1e-5, 0.0),
        "model.language_model.lora_A.weight": (1e-4, 0.1),
        "head.weight": (1e-6, 0.1),
        "head.bias": (1e-6, 0.0),
    }
    one = rates(Parts(), instruct(lrs={"projector": 1e-5}))
    assert {name for name, (rate, _) in one.items() if rate == 1e-5} == {
        "model.senses.image.projector.weight",
        "model.senses.image.projector.bias",
    }


def test_parts_are_told_by_where_they_stand_in_a_real_model() -> None:
    import tiny_models

    from trisense.model.modeling import TrisenseForConditionalGeneration

    names = [name for name, _ in TrisenseForConditionalGeneration(tiny_models.config()).named_parameters()]
    for name in names:
        top, *rest = name.split(".")
        assert part_of(name) == (rest[1] if top == "senses" else "language_model"), name
    assert part_of("language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight") == "adapter"
    assert part_of("sense.encoder.layers.0.weight") == "encoder", "as a warm-up holds it"
    assert part_of("head.weight") is None


def test_a_rate_for_what_does_not_learn_is_refused() -> None:
    model = Parts()
    model.model["language_model"].requires_grad_(False)
    with pytest.raises(BadInput, match=r"lrs\.adapter: nothing of that part learns .* but encoder, projector"):
        make_optimizer(model, instruct(lrs={"adapter": 1e-3}))


def test_parts_follow_one_schedule_each_from_its_own_rate() -> None:
    options = instruct(lrs={"projector": 1e-3}, steps=10, warmup_steps=5)
    optimizer = make_optimizer(Parts(), options)
    Schedule(optimizer, options)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-7, 2e-7, 2e-4, 2e-4])


def test_a_recipe_saved_with_the_projectors_rate_under_its_older_name_is_read() -> None:
    saved = read("tinyclip-phi2").model_dump(mode="json")
    options = saved["stages"]["instruct"]
    assert options.pop("lrs") == {"projector": 1e-5}
    saved["stages"]["align"].pop("lrs")
    saved["stages"]["align"]["projector_lr"] = None
    options["projector_lr"] = 1e-5
    assert Recipe.model_validate(saved) == read("tinyclip-phi2")
    with pytest.raises(BadInput, match=r"older name of lrs\.projector, which is given too"):
        read("tinyclip-phi2", ["stages.instruct.projector_lr=1e-3"])
    with pytest.raises(BadInput, match=r"lrs\.projecter"):
        read("tinyclip-phi2", ["stages.instruct.lrs.projecter=1e-3"])


def test_betas_and_eps_are_a_stage_s_own() -> None:
    for optimizer in ("adamw", "adamw8bit"):
        if optimizer == "adamw8bit":
            pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this machine")
        made = make_optimizer(toy(), stage(optimizer=optimizer))
        assert {(group["betas"], group["eps"]) for group in made.param_groups} == {((0.9, 0.98), 1e-8)}
        made = make_optimizer(toy(), stage(optimizer=optimizer, betas=[0.8, 0.95], eps=1e-6))
        Schedule(made, stage(optimizer=optimizer, betas=[0.8, 0.95], eps=1e-6))
        assert {(group["betas"], group["eps"]) for group in made.param_groups} == {((0.8, 0.95), 1e-6)}


def test_fused_adamw_is_adamw() -> None:
    ends = []
    for optimizer in ("adamw", "adamw-fused"):
        options = stage(optimizer=optimizer, weight_decay=0.1)
        model = toy(width=16)
        made = make_optimizer(model, options)
        assert made.defaults["fused"] is (True if optimizer == "adamw-fused" else None)
        schedule = Schedule(made, options)
        for number in range(6):
            batch = batch_at(number)
            model(**batch.inputs, num_items_in_batch=torch.tensor(1.0)).loss.backward()
            made.step()
            schedule.step()
            made.zero_grad()
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", [6, 24, 100])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"anneal_strategy": "linear"},
        {"three_phase": True},
        {"three_phase": True, "anneal_strategy": "linear", "pct_start": 0.45},
        {"pct_start": 0.2, "div_factor": 10, "final_div_factor": 100, "base_momentum": 0.8, "max_momentum": 0.9},
        {"cycle_momentum": False},
    ],
)
def test_one_cycle_is_torchs(steps: int, options: dict[str, Any]) -> None:
    ours = stage(schedule="one-cycle", steps=steps, lr=0.05, one_cycle=options)
    theirs_optimizer, ours_optimizer = (make_optimizer(toy(), ours) for _ in range(2))
    theirs = torch.optim.lr_scheduler.OneCycleLR(theirs_optimizer, max_lr=0.05, total_steps=steps, **options)
    schedule = Schedule(ours_optimizer, ours)
    for step in range(steps):
        for one, other in zip(ours_optimizer.param_groups, theirs_optimizer.param_groups, strict=True):
            assert one["lr"] == pytest.approx(other["lr"], rel=1e-9, abs=1e-12), step
            assert one["betas"] == pytest.approx(other["betas"], rel=1e-9), step
        ours_optimizer.step()
        theirs_optimizer.step()
        schedule.step()
        if step + 1 < steps:
            theirs.step()
    assert schedule.get_last_lr()[0] == pytest.approx(0.05 * learning_rate(ours, steps - 1)), "and stays there"


def test_adam_in_8_bits_takes_the_momentum_that_the_schedule_sets(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this machine")
    ends = []
    for cycling in (True, False):
        options = {"schedule": "one-cycle", "one_cycle": {"cycle_momentum": cycling}, "optimizer": "adamw8bit"}
        end = train(toy(width=128), batch_at, stage(**options), tmp_path / str(cycling), device="cpu", seed=7)
        ends.append(end.last.weight)
    assert not torch.allclose(*ends, rtol=1e-3), "the same rates, another momentum"


def test_a_cycle_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match=r"pct_start: 0\.6 twice is more than all"):
        read("spark", ["stages.see.one_cycle={three_phase: true, pct_start: 0.6}"])
    assert learning_rate(stage(schedule="one-cycle", steps=1), 0) > 0


def test_a_stopped_cycle_goes_on_with_its_rate_and_momentum(tmp_path: Path) -> None:
    options = stage(schedule="one-cycle", steps=12, save_every=1, log_every=1)
    whole = train(toy(), batch_at, options, tmp_path / "whole", device="cpu", seed=7)

    def broken(number: int):
        if number == 7:
            raise OSError("disk gone")
        return batch_at(number)

    with pytest.raises(OSError, match="disk gone"):
        train(toy(), broken, options, tmp_path / "stopped", device="cpu", seed=7)
    saved = torch.load(tmp_path / "stopped" / CHECKPOINT, weights_only=True)
    done = saved["step"]
    assert saved["optimizer"]["param_groups"][0]["betas"][0] == pytest.approx(momentum(options, done))
    assert momentum(options, done) != momentum(options, 0)
    resumed = train(toy(), batch_at, options, tmp_path / "stopped", device="cpu", seed=7)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == (tmp_path / "stopped" / "log.jsonl").read_bytes()


def test_the_learning_rate_warms_up_and_goes_down() -> None:
    options = {"steps": 110, "warmup_steps": 10}
    for schedule in ("cosine", "linear", "constant"):
        at = [learning_rate(stage(schedule=schedule, **options), step) for step in range(111)]
        assert at[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
        middle, end = {"cosine": (0.505, 0.01), "linear": (0.505, 0.01), "constant": (1.0, 1.0)}[schedule]
        assert at[60] == pytest.approx(middle)
        assert at[110] == pytest.approx(end)
        assert all(a >= b for a, b in pairwise(at[10:])), "never up again"
    quarter = learning_rate(stage(schedule="cosine", **options), 35)
    assert quarter == pytest.approx(0.01 + 0.99 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(stage(warmup_steps=0), 0) == 1.0


def test_every_round_has_the_schedule_from_its_beginning() -> None:
    for schedule, warming in (("cosine", 3), ("linear", 0), ("one-cycle", 200)):
        common = {"schedule": schedule, "warmup_steps": warming}
        rounds = instruct(steps=30, rounds=3, **common)
        alone = instruct(steps=10, **common)
        at = [learning_rate(rounds, step) for step in range(30)]
        assert at == 3 * [learning_rate(alone, step) for step in range(10)]
        assert learning_rate(rounds, 30) == learning_rate(alone, 10)
        assert [momentum(rounds, step) for step in range(30)] == 3 * [momentum(alone, step) for step in range(10)]
    uneven = instruct(steps=11, rounds=3, schedule="linear", warmup_steps=0)
    assert [step for step in range(11) if learning_rate(uneven, step) == 1] == [0, 3, 7]


def test_rounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadInput, match="rounds: 3 of 100 steps, of which warmup_steps takes 200"):
        read("jnana", ["stages.align.rounds=3", "stages.align.steps=300"])
    with pytest.raises(BadInput, match="rounds: 4 of 0 steps"):
        read("eden", ["stages.instruct.rounds=4", "stages.instruct.steps=3"])
