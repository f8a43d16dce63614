"""Blocks by `torch.compile`: the same curve, only while training, one compilation for rows of every length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from children import ENVIRONMENT, TOY, TWO, finished, lines
from torch import nn
from torch._dynamo.utils import counters
from toy import Toy, batch_at, evaluate, stage
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from trisense.errors import BadInput
from trisense.measure.bench import samples_of
from trisense.measure.sides import Ours
from trisense.train.blocks import Compiled, blocks
from trisense.train.loop import train

CPU = torch.device("cpu")


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.inner[0](x))


class Layered(Toy):
    """The toy with two blocks, whose forward is noted."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        super().__init__()
        self.layers = nn.ModuleList([Layer(4), Layer(4)])
        self.compiled: list[bool] = []

    def forward(self, x: torch.Tensor, **inputs: torch.Tensor):
        self.compiled.append("forward" in vars(self.layers[0]))
        for layer in self.layers:
            x = layer(x)
        return super().forward(x, **inputs)


def run(out: Path, **options) -> Layered:
    return train(Layered(), batch_at, stage(log_every=1, **options), out, device="cpu", seed=7, evaluate=evaluate)


def test_blocks_are_the_members_of_lists_outer_ones_first():
    model = Layered()
    outer, inner = list(model.layers), [layer.inner[0] for layer in model.layers]
    assert blocks(model) == [*outer, *inner]


def test_outermost_blocks_are_compiled_within_and_what_they_were_afterwards():
    model = Layered()
    own = model.layers[1].forward = lambda x: x  # as a hook of accelerate stands there
    model.stem = nn.ModuleList([nn.Conv1d(1, 1, 3)])
    compiled = Compiled(model, CPU, "compile")
    with compiled:
        assert ["forward" in vars(block) for block in blocks(model)] == [True, True, False, False, False]
        assert model.layers[1].forward is not own
    assert "forward" not in vars(model.layers[0]) and model.layers[1].forward is own


def test_a_compiled_stage_walks_the_same_curve_and_evaluates_as_it_is(tmp_path: Path):
    counters.clear()
    plain, compiled = run(tmp_path / "plain"), run(tmp_path / "compiled", compile=True)
    assert counters["stats"]["unique_graphs"] > 0
    # The first step is counted, so it runs as it is; evaluation follows every second step.
    assert compiled.compiled == [False, True, False, True, True, False, True, True, False]
    assert not any(plain.compiled)
    for row, expected in zip(lines(tmp_path / "compiled"), lines(tmp_path / "plain"), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, atol=1e-5, rtol=0)


def test_a_compiled_stage_with_a_fused_optimiser_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path):
    options = {"compile": True, "optimizer": "adamw-fused"}
    straight = run(tmp_path / "straight", **options)

    def failing(number: int):
        if number == 5:
            raise OSError("disk gone")
        return batch_at(number)

    with pytest.raises(OSError, match="disk gone"):
        train(Layered(), failing, stage(log_every=1, **options), tmp_path / "stopped", device="cpu", seed=7)
    stopped = run(tmp_path / "stopped", **options)
    assert all(stopped.compiled[:1]), "operations were counted before"
    for name, value in straight.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], value)


@pytest.mark.slow
def test_rows_packed_otherwise_are_not_compiled_anew():
    """Attention in pieces stays as it is, the rest of a layer is compiled once for every row."""
    shapes, _, rows = samples_of("instruct", "tiny", 256, 12, 3)
    plain, compiled = (Ours(shapes, "instruct", "cpu", encoder=False, compile=compile) for compile in (False, True))
    frames = []
    for number in range(4):
        batch, _ = rows(number)
        assert compiled.gradient(batch) == pytest.approx(plain.gradient(batch), abs=1e-3), "summed over its tokens"
        frames.append(counters["frames"]["ok"])
    assert frames[0] > 0 and len(set(frames[1:])) == 1
    for (name, one), (_, other) in zip(plain.learner.named_parameters(), compiled.learner.named_parameters()):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_sounds_of_every_length_go_through_a_compiled_encoder():
    """Its convolutions over maps of other lengths are left as they are: compiled they end in an error."""
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    silent = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}
    encoder = ParakeetEncoder(ParakeetEncoderConfig(**options, **silent, subsampling_conv_channels=32)).train()
    compiled = Compiled(encoder, CPU, "compile")
    for length in (232, 272, 96):
        given = {"input_features": torch.randn(32, length, 80), "attention_mask": torch.ones(32, length).long()}
        expected = encoder(**given).last_hidden_state
        with compiled:
            found = encoder(**given).last_hidden_state
            found.sum().backward()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_where_nothing_can_be_built_that_is_said(tmp_path: Path):
    environment = {**ENVIRONMENT, "CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment["PATH"] = os.path.dirname(sys.executable)
    command = [sys.executable, str(TOY), str(tmp_path / "run"), "compile=true"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("BadInput: stages.run.compile=true: torch.compile cannot build here (InvalidCxxCompiler: ")
    assert said.endswith("; give stages.run.compile=false")


def test_only_the_first_line_of_why_is_said(monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise RuntimeError("Triton is missing\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        BadInput, match=r"^x=true: torch\.compile cannot build here \(Triton is missing\); give x=false$"
    ):
        Compiled(Layered(), CPU, "x")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_compile_what_one_does_not(parallel: str, tmp_path: Path):
    for name, options in {"plain": (), "compiled": ("compile=true", "optimizer=adamw-fused")}.items():
        finished(*TWO, TOY, tmp_path / name, "log_every=1", f"parallel={parallel}", *options)
    for row, expected in zip(lines(tmp_path / "compiled"), lines(tmp_path / "plain"), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
