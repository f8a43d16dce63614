"""A run that was killed, whenever, ends as one that was not, to the bit; a full disk costs no checkpoint."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from children import ENVIRONMENT, TOY, finished, lines, process, train_eden
from toy import Toy, batch_at, stage, toy

from trisense.errors import BadInput
from trisense.recipe import read
from trisense.train.checkpoints import CHECKPOINT, random_state, same_run, seed_all, set_random_state
from trisense.train.loop import train


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))]


def test_every_random_generator_goes_on_where_it_stood(tmp_path: Path):
    seed_all(3)
    draws()
    torch.save(random_state(), tmp_path / "state.pt")
    expected = [draws() for _ in range(3)]
    seed_all(4)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draws() for _ in range(3)] == expected
    seed_all(3)
    assert draws() != expected[0]


def test_a_model_that_draws_from_all_of_them_resumes_to_the_bit(tmp_path: Path):
    class Drawing(Toy):
        def after_forward(self) -> None:
            with torch.no_grad():
                self.first.bias.add_(1e-2 * sum(draws()))

    def drawing() -> Drawing:
        torch.manual_seed(5)
        return Drawing(0.3)

    def broken_at(number: int):
        if number == 4:
            raise OSError("disk gone")
        return batch_at(number)

    options = stage(log_every=1)
    whole = train(drawing(), batch_at, options, tmp_path / "whole", device="cpu", seed=7)
    with pytest.raises(OSError, match="disk gone"):
        train(drawing(), broken_at, options, tmp_path / "stopped", device="cpu", seed=7)
    draws()
    resumed = train(drawing(), batch_at, options, tmp_path / "stopped", device="cpu", seed=7)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_how_a_step_is_split_may_change_and_what_it_learns_from_may_not(tmp_path: Path):
    train(toy(), batch_at, stage(accumulate=2, steps=3, save_every=3), tmp_path, device="cpu")
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["stage"] |= {"processes": 2, "accumulate": 1}
    torch.save(state, tmp_path / CHECKPOINT)
    train(toy(), batch_at, stage(accumulate=2, steps=3, save_every=3), tmp_path, device="cpu")
    with pytest.raises(BadInput, match=r"2 processes x accumulate=1, now 1 x 4; their product .* so keep it 2"):
        train(toy(), batch_at, stage(accumulate=4, steps=3, save_every=3), tmp_path, device="cpu")


def test_a_run_of_another_card_is_refused_and_the_card_kept(tmp_path: Path):
    card = tmp_path / "run.json"
    same_run(card, {"seed": 1, "lr": 2}, compared=("seed",))
    same_run(card, {"seed": 1, "lr": 3}, compared=("seed",))
    assert json.loads(card.read_text()) == {"seed": 1, "lr": 3}
    with pytest.raises(BadInput, match="this run began with another seed"):
        same_run(card, {"seed": 2, "lr": 3}, compared=("seed",))


# --- as processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_child_killed_at_five_random_moments_has_every_loss_of_one_that_was_not(tmp_path: Path):
    assert read("eden").design.adapter.dropout > 0
    subprocess.run(train_eden(tmp_path / "whole"), env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    words, log = train_eden(tmp_path / "killed"), tmp_path / "killed" / "instruct" / "log.jsonl"
    moments = sorted(random.sample(range(1, 56), 5))
    killed = []
    for moment in moments:
        with subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and (not log.exists() or log.read_text().count("grad_norm") < moment):
                time.sleep(0.001)
            time.sleep(random.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        killed.append(child.returncode)
    assert killed == [-signal.SIGKILL] * 5, moments
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    straight = tmp_path / "whole" / "instruct"
    assert len([line for line in lines(straight) if "loss" in line]) == 60
    assert log.read_bytes() == (straight / "log.jsonl").read_bytes(), moments
    for part in ("projector/image.safetensors", "adapter/adapter_model.safetensors"):
        assert (log.parent / "trained" / part).read_bytes() == (straight / "trained" / part).read_bytes()


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_a_checkpoint_and_how_to_go_on(tmp_path: Path):
    words, log = train_eden(tmp_path / "run"), tmp_path / "run" / "instruct" / "log.jsonl"
    with subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as child:
        while child.poll() is None and not log.exists():
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.stderr
        said = child.stderr.read()
    assert child.returncode == 130
    assert "of 60; the same command goes on" in said and "Traceback" not in said
    step = torch.load(log.parent / CHECKPOINT, weights_only=True)["step"]
    assert f"stopped after step {step} of 60" in said


@pytest.mark.slow
def test_a_file_that_cannot_grow_leaves_the_checkpoint_before_it(tmp_path: Path):
    options = ("dropout=0.3", "width=32")
    full = process(TOY, tmp_path / "full", "full_at=5", *options)
    assert full.returncode == 1
    (said,) = [line for line in full.stderr.splitlines() if line.startswith("BadInput")]
    path = tmp_path / "full" / CHECKPOINT
    assert f"{path}: cannot be written, file too large, and it takes 1" in said
    assert "what checkpoint.pt held before is untouched; make room and give the same command" in said
    assert torch.load(path, weights_only=True)["step"] == 3
    assert not list((tmp_path / "full").glob("*.part"))
    for name in ("full", "straight"):
        finished(TOY, tmp_path / name, *options)
    assert lines(tmp_path / "full") == lines(tmp_path / "straight")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no mounting here")
    try:

        class Filling(Toy):
            def after_forward(self) -> None:
                if self.steps == 4:
                    rest = os.statvfs(disk)
                    # A page for the log; the checkpoint takes several.
                    (disk / "other").write_bytes(bytes((rest.f_bavail - 4) * rest.f_bsize))

        def run(model: Toy, out: Path) -> Toy:
            return train(model, batch_at, stage(log_every=6), out, device="cpu", seed=7)

        torch.manual_seed(5)
        with pytest.raises(BadInput, match="cannot be written, no space left on device") as refusal:
            run(Filling(0.3, width=64), disk / "run")
        assert "\n" not in str(refusal.value)
        assert torch.load(disk / "run" / CHECKPOINT, weights_only=True)["step"] == 3
        (disk / "other").unlink()
        resumed, whole = run(toy(0.3, width=64), disk / "run"), run(toy(0.3, width=64), tmp_path / "whole")
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    finally:
        subprocess.run(["umount", disk], check=True)
