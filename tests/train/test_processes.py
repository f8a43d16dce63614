"""Several processes: what they are is said, nothing is learned twice or left out, copied and sharded walk one curve."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from children import COUNTED, ENVIRONMENT, TOY, TWO, finished, lines, process, train_eden
from counted import ROUNDS, SAMPLES
from safetensors.torch import load_file
from toy import batch_at, evaluate, stage, toy

from trisense.errors import BadInput
from trisense.train.checkpoints import CHECKPOINT
from trisense.train.loop import train
from trisense.train.processes import Processes, Spread, gathered, join_processes, scattered

ALONE = Processes(0, 1, torch.device("cpu"), None)


def close(one: list[dict], other: list[dict], within: float = 1e-5) -> None:
    assert len(one) == len(other)
    for row, expected in zip(one, other, strict=True):
        assert row == pytest.approx(expected, abs=within)


def finals(out: Path, ranks: int = 2) -> list[dict[str, torch.Tensor]]:
    return [torch.load(out / f"final-{rank}.pt", weights_only=True) for rank in range(ranks)]


# --- alone ---------------------------------------------------------------------------------------------------------


def test_a_process_alone_is_the_main_one_and_waits_for_nobody():
    alone = join_processes("cpu")
    assert alone == ALONE and alone.main
    alone.wait()
    with alone.main_first():
        assert alone.gather("x") == ["x"]
    assert alone.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert str(Spread.over(toy(), alone, "ddp")) == "1 process on cpu"


def test_tasks_of_slurm_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(BadInput, match="SLURM started 4 tasks that do not know of each other"):
        join_processes("cpu")


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BadInput, match=r"process 2 of this machine has no device of its own, there are 2"):
        join_processes()


def test_what_cannot_be_sharded_is_refused():
    with pytest.raises(BadInput, match="there is one process; start several with torchrun"):
        Spread.over(toy(), ALONE, "fsdp")
    quantised = toy()
    quantised.spare.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BadInput, match=r"spare\.weight is quantised and cannot be sharded"):
        Spread.over(quantised, Processes(0, 2, torch.device("cpu"), "gloo"), "fsdp")


def test_an_optimiser_that_cannot_be_sharded_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"the state of adamw8bit cannot be sharded; give stages\.see\.optimizer=adamw"):
        train(toy(), batch_at, stage(optimizer="adamw8bit"), tmp_path / "see", device="cpu", parallel="fsdp")


def test_what_accelerate_launch_was_told_is_not_passed_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BadInput, match="accelerate launch was told to use FSDP, this run to use ddp; --parallel fsdp"):
        Spread.over(toy(), ALONE, "ddp")
    with pytest.raises(BadInput, match="there is one process"):
        Spread.over(toy(), ALONE, "fsdp")


def test_whole_tensors_are_left_as_they_are():
    tree = {"a": [torch.ones(2), 3], "b": (None,)}
    assert gathered(tree)["a"][0] is tree["a"][0] and gathered(tree)["b"] == (None,)
    assert scattered({"a": torch.ones(2)}, {"a": torch.zeros(2)})["a"].tolist() == [1, 1]


# --- two processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "said"), [("ddp", "DistributedDataParallel"), ("fsdp", "fully_shard of 1 blocks")]
)
def test_two_processes_walk_the_curve_of_one_with_the_same_batches(parallel: str, said: str, tmp_path: Path):
    """Two processes x two accumulated batches against one x four; some steps have nothing for a part of the model in
    one process or in both."""
    two = finished(*TWO, TOY, tmp_path / "two", "accumulate=2", "log_every=1", f"parallel={parallel}")
    said = {"ddp": "DistributedDataParallel", "fsdp": "fully_shard of 1 blocks"}[parallel]
    assert f"two: 2 processes on cpu, gloo, {said}; 127 of 127 parameters learn" in two.stderr
    assert (tmp_path / "two" / "world-1.json").read_text() == "2"
    alone = stage(accumulate=4, log_every=1)
    one = train(toy(), batch_at, alone, tmp_path / "one", device="cpu", seed=7, evaluate=evaluate)
    close(lines(tmp_path / "two"), lines(tmp_path / "one"))
    ranks = finals(tmp_path / "two")
    for name, value in one.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, atol=1e-5, rtol=0)
    assert torch.equal(ranks[0]["spare.weight"], toy().spare.weight), "what no process uses does not decay"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_killed_processes_go_on_as_if_they_had_not_been(parallel: str, tmp_path: Path):
    options = ("dropout=0.3", f"parallel={parallel}", "log_every=1")
    killed = process(*TWO, TOY, tmp_path / "killed", "kill_at=5", *options)
    assert killed.returncode != 0 and "-9" in killed.stderr
    saved = torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3 and len(saved["random"]) == 2
    assert not torch.equal(saved["random"][0]["torch"], saved["random"][1]["torch"]), "dropout differs"
    assert {type(value) for value in saved["model"].values()} == {torch.Tensor}, "whole, whatever wrote it"
    for name in ("killed", "straight"):
        finished(*TWO, TOY, tmp_path / name, *options)
    assert lines(tmp_path / "killed") == lines(tmp_path / "straight")
    for one, other in zip(finals(tmp_path / "killed"), finals(tmp_path / "straight"), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_one_process_that_accumulates_as_much(tmp_path: Path):
    out = tmp_path / "run"
    assert process(*TWO, TOY, out, "kill_at=5", "parallel=fsdp", "log_every=1").returncode != 0
    refused = process(TOY, out, "log_every=1")
    assert "was trained with 2 processes x accumulate=1, now 1 x 1" in refused.stderr
    train(toy(), batch_at, stage(accumulate=2, log_every=1), out, device="cpu", seed=7, evaluate=evaluate)
    whole = stage(accumulate=2, log_every=1)
    train(toy(), batch_at, whole, tmp_path / "one", device="cpu", seed=7, evaluate=evaluate)
    close(lines(out), lines(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["like_length", "by_answer"])
def test_nothing_is_learned_twice_and_nothing_left_out_at_the_end_of_a_round(kind: str, tmp_path: Path):
    finished(*TWO, COUNTED, tmp_path / "two", kind)
    finished(COUNTED, tmp_path / "one", kind, "accumulate=2")
    shares = [Counter(json.loads((tmp_path / "two" / f"seen-{rank}.json").read_text())) for rank in (0, 1)]
    assert shares[0] + shares[1] == Counter(dict.fromkeys(range(SAMPLES), ROUNDS))
    assert all(shares), "each has its part"
    close(lines(tmp_path / "two"), lines(tmp_path / "one"))


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_before_the_processes_end(tmp_path: Path):
    command = [sys.executable, *TWO, str(TOY), str(tmp_path), "steps=100000", "log_every=1", "save_every=100000"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as launcher:
        while launcher.poll() is None and not (tmp_path / "log.jsonl").exists():
            time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.stderr
        said = launcher.stderr.read()
    stopped = re.search(r"stopped after step (\d+) of 100000; the same command goes on", said)
    assert stopped, said
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == int(stopped[1])


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_stage_runs_under_torchrun_as_it_is(parallel: str, tmp_path: Path):
    short = ("stages.instruct.steps=8", "design.adapter.dropout=0", "stages.instruct.batch_size=2")
    two = train_eden(tmp_path / "two", *short, "--parallel", parallel, launcher=TWO)
    one = train_eden(tmp_path / "one", *short, "stages.instruct.accumulate=2")
    done = [subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300) for words in (two, one)]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    assert done[0].stdout.count("wrote ") == done[0].stdout.count("instruct step 8: ") == 1
    assert done[0].stderr.count("features: 100%") == 1, "computed once"
    how = {"ddp": "DistributedDataParallel", "fsdp": "fully_shard of 3 blocks"}[parallel]
    assert f"instruct: 2 processes on cpu, gloo, {how}; " in done[0].stderr
    close(lines(tmp_path / "two" / "instruct"), lines(tmp_path / "one" / "instruct"), within=1e-4)
    for part in ("projector/image.safetensors", "adapter/adapter_model.safetensors"):
        weights = [load_file(tmp_path / name / "instruct" / "trained" / part) for name in ("two", "one")]
        assert set(weights[0]) == set(weights[1])
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_ends_every_process_in_one_line(tmp_path: Path):
    command = train_eden(tmp_path / "run", launcher=TWO)
    (tmp_path / "17.png").write_text("no picture")
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert "(exitcode: 2)" in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("trisense: ")]
    # Both say it, unless torchrun has ended the slower one before it could.
    assert len(set(said)) == 1 and "17.png: found text; expected PNG" in said[0]
