"""The one loop: resumed equals never stopped, batches weigh by their items, and nothing half is ever left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import Toy, batch_at, evaluate, joined_at, stage, toy

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.train.checkpoints import CHECKPOINT
from trisense.train.loop import train
from trisense.train.optim import learning_rate
from trisense.train.report import Answer


def run(out: Path, batches=batch_at, model: Toy | None = None, seed: int = 7, **options) -> Toy:
    return train(
        toy(dropout=0.3) if model is None else model,
        batches,
        stage(**options),
        out,
        device="cpu",
        seed=seed,
        evaluate=evaluate,
    )


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Those in dicts and lists within each other."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors(inner)


def failing_at(number: int):
    """`batch_at` that runs into a broken disk at a batch."""

    def read(wanted: int) -> Batch:
        if wanted == number:
            raise OSError("disk gone")
        return batch_at(wanted)

    return read


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Toy]:
    """The run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(out)


# --- learning ------------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_the_model_ready_to_use(tmp_path: Path) -> None:
    model = toy()
    before = evaluate(model.eval())["error"]
    trained = run(tmp_path, model=model, steps=60)
    assert trained is model
    assert not trained.training
    assert evaluate(trained)["error"] < before / 2
    assert torch.equal(trained.spare.weight, toy().spare.weight), "what the loss does not reach stays as it was"
    assert "forward" not in vars(trained), "accelerate's wrapping would follow the model into the next stage"


def test_accumulated_batches_weigh_by_their_items(tmp_path: Path) -> None:
    assert batch_at(0).items != batch_at(1).items
    split = run(tmp_path / "split", model=toy(), accumulate=2)
    joined = run(tmp_path / "joined", joined_at, model=toy())
    for name, value in split.state_dict().items():
        torch.testing.assert_close(value, joined.state_dict()[name], atol=1e-6, rtol=0)
    for one, other in zip(lines(tmp_path / "split"), lines(tmp_path / "joined"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    gentle = run(tmp_path / "gentle", model=toy(), clip=1e-9, weight_decay=0, steps=1, schedule="constant")
    # Adam divides by the gradient's own size, so with its epsilon of 1e-8 a gradient of 1e-9 moves by less than lr.
    moved = max(float((a - b).abs().max()) for a, b in zip(gentle.parameters(), toy().parameters(), strict=True))
    assert 0 < moved < 0.05 / 2 * 0.5
    assert lines(tmp_path / "gentle")[0]["grad_norm"] > 1e-3, "the norm is logged as it was"


def test_half_precision_is_a_stage_s_own_and_parameters_stay_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watching(Toy):
        def forward(self, x: torch.Tensor, **inputs: torch.Tensor):
            seen.append(self.first(x).dtype)
            return super().forward(x, **inputs)

    run(tmp_path / "float32", model=Watching(), steps=1)
    half = run(tmp_path / "bf16", model=Watching(), steps=1, precision="bf16")
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.float32], "training, evaluation, twice"
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


def test_adam_in_8_bits_learns_and_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes has no wheel for this machine")
    options = {"steps": 40, "save_every": 10, "evaluate_every": 40, "lr": 0.01, "optimizer": "adamw8bit"}
    before = evaluate(toy(width=128).eval())["error"]
    whole = run(tmp_path / "whole", model=toy(width=128), **options)
    assert evaluate(whole)["error"] < before / 2
    saved = torch.load(tmp_path / "whole" / CHECKPOINT, weights_only=True)["optimizer"]
    assert torch.uint8 in {tensor.dtype for tensor in tensors(saved)}
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path / "stopped", failing_at(25), model=toy(width=128), **options)
    assert same(whole, run(tmp_path / "stopped", model=toy(width=128), **options))


def test_nothing_to_learn_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing learns"):
        run(tmp_path, model=toy().requires_grad_(False))


def test_log_and_tensorboard_hold_the_same_curve(whole: tuple[Path, Toy]) -> None:
    out, _ = whole
    rows = lines(out)
    assert [(row["step"], "loss" in row) for row in rows] == [(2, False), (4, True), (4, False), (6, True), (6, False)]
    assert rows[1]["lr"] == pytest.approx(0.05 * learning_rate(stage(), 4))
    curve = EventAccumulator(str(out)).Reload()
    for name in ("loss", "grad_norm", "lr", "error"):
        points = [(event.step, event.value) for event in curve.Scalars(name)]
        assert points == [(row["step"], pytest.approx(row[name])) for row in rows if name in row]


def test_samples_are_shown_at_every_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.full((30, 40, 3), 200, np.uint8)
    answers = [Answer("where?", "left", "right", picture), Answer("", "one", "two")]
    train(toy(), batch_at, stage(), tmp_path, device="cpu", evaluate=evaluate, sample=lambda model: answers)
    assert capsys.readouterr().out.count("\n  where? -> left | right\n  one | two\n") == 3
    curve = EventAccumulator(str(tmp_path)).Reload()
    assert [text.step for text in curve.Tensors("samples/text_summary")] == [2, 4, 6]
    images = curve.Images("samples/0")
    assert [image.step for image in images] == [2, 4, 6]
    assert np.asarray(Image.open(BytesIO(images[0].encoded_image_string)))[10, 128].tolist() == [200, 200, 200]


# --- stopping and going on -----------------------------------------------------------------------------------------


def test_a_run_that_failed_goes_on_as_if_it_had_not(tmp_path: Path, whole: tuple[Path, Toy]) -> None:
    out, straight = whole
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, failing_at(5))
    assert [row["step"] for row in lines(tmp_path)] == [2, 4, 4], "further than the checkpoint of step 3"
    resumed = run(tmp_path)
    assert resumed.steps < straight.steps, "did not begin from nothing"
    assert same(resumed, straight)
    # The mean of the losses since the last line counts those from before the checkpoint too.
    assert (tmp_path / "log.jsonl").read_bytes() == (out / "log.jsonl").read_bytes()
    curve = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in curve.Scalars("error")] == [2, 4, 6]


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path, whole: tuple[Path, Toy]) -> None:
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, failing_at(2))
    assert same(run(tmp_path), whole[1])
    assert lines(tmp_path) == lines(whole[0])


def test_a_line_cut_short_by_a_kill_is_forgotten(tmp_path: Path, whole: tuple[Path, Toy]) -> None:
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, failing_at(5))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    run(tmp_path)
    assert lines(tmp_path) == lines(whole[0])


def test_a_finished_run_does_nothing_again(tmp_path: Path, whole: tuple[Path, Toy]) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = run(tmp_path, failing_at(6))
    assert again.steps == 0
    assert same(again, whole[1])
    assert not again.training
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_is_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Toy]) -> None:
    real = torch.save

    def broken_disk(state: dict, file: BinaryIO) -> None:
        real(state, file)
        if state["step"] != 3:
            file.truncate(file.tell() // 2)
            raise OSError("broken")

    monkeypatch.setattr(torch, "save", broken_disk)
    with pytest.raises(OSError, match="broken"):
        run(tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.part"))
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3
    assert same(run(tmp_path), whole[1])


def test_ctrl_c_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: tuple[Path, Toy]
) -> None:
    class Interrupted(Toy):
        def after_forward(self) -> None:
            if self.training and self.steps == 2:
                os.kill(os.getpid(), signal.SIGINT)

    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model=Interrupted(0.3))
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped" in line]
    assert said == ["stopped after step 2 of 6; the same command goes on"]
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(run(tmp_path), whole[1])
    assert lines(tmp_path) == lines(whole[0])


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    class Impatient(Toy):
        def after_forward(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model=Impatient())
    assert not (tmp_path / CHECKPOINT).exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": 0.01}, "lr=0.05, now 0.01"),
        ({"steps": 7}, "steps=6, now 7"),
        ({"accumulate": 2}, "1 processes x accumulate=1, now 1 x 2"),
        ({"seed": 8}, "seed=7, now 8"),
        ({"precision": "bf16"}, "precision=float32, now bf16"),
    ],
)
def test_going_on_with_other_options_is_refused(whole: tuple[Path, Toy], options: dict, named: str) -> None:
    with pytest.raises(BadInput, match=named) as refusal:
        run(whole[0], **options)
    assert str(whole[0] / CHECKPOINT) in str(refusal.value)


def test_how_often_something_is_written_may_change(tmp_path: Path, whole: tuple[Path, Toy]) -> None:
    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, failing_at(5))
    assert same(run(tmp_path, log_every=1, save_every=1, evaluate_every=5), whole[1])


def test_a_checkpoint_of_another_model_and_a_file_that_is_none_are_refused(
    tmp_path: Path, whole: tuple[Path, Toy]
) -> None:
    with pytest.raises(BadInput, match="holds another model"):
        run(whole[0], model=toy(width=9))
    checkpoint = tmp_path / CHECKPOINT
    for content in (b"", b"not a checkpoint", (whole[0] / CHECKPOINT).read_bytes()[:2000]):
        checkpoint.write_bytes(content)
        with pytest.raises(BadInput, match="not a checkpoint"):
            run(tmp_path)
