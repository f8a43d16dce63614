"""What goes wrong in a step is one line that says what to do, and costs no checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import Toy, batch_at, stage

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.stage import Answers, FileStage
from trisense.train.checkpoints import CHECKPOINT
from trisense.train.failures import enough_memory
from trisense.train.loop import train


def poisoned(at: int, value: float):
    """`batch_at` with a value in batch `at` that no loss survives."""

    def read(number: int) -> Batch:
        batch = batch_at(number)
        if number == at:
            batch.inputs["y"][1] = value
        return batch

    return read


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_batch(value: float, tmp_path: Path):
    torch.manual_seed(5)
    model = Toy()
    with pytest.raises(BadInput) as refusal:
        train(model, poisoned(4, value), stage(save_every=2), tmp_path / "see", device="cpu")
    kept = tmp_path / "see" / "bad-step-5.0.pt"
    said = str(refusal.value)
    assert said.startswith(f"see: step 5: the loss is {value}; its batch is kept in {kept}") and "\n" not in said
    assert "stages.see.lr" in said
    record = torch.load(kept, weights_only=True)
    (batch,) = record["batches"]
    assert record["step"] == 5 and batch["items"] == batch_at(4).items
    assert torch.equal(batch["inputs"]["x"], batch_at(4).inputs["x"])
    assert str(float(batch["inputs"]["y"][1])) == str(value)
    state = torch.load(tmp_path / "see" / CHECKPOINT, weights_only=True)
    assert state["step"] == 4
    assert all(value.isfinite().all() for value in state["model"].values())
    assert all(parameter.isfinite().all() for parameter in model.parameters()), "the step was not taken"


def test_so_does_a_gradient_that_is_none(tmp_path: Path):
    class Steep(Toy):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            if self.steps == 3:
                out.loss = out.loss + (self.first.weight.sum() * 0).sqrt()  # 0, and its slope infinite
            return out

    with pytest.raises(BadInput, match=r"step 3: the loss is 0\.\d+ but its gradient has norm nan"):
        train(Steep(), batch_at, stage(save_every=1), tmp_path, device="cpu")
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 2


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried 9."),
]


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "python", "cpu"])
def test_out_of_memory_says_what_to_lower_and_to_what(error: BaseException, tmp_path: Path):
    class Greedy(Toy):
        def after_forward(self) -> None:
            if self.training and self.steps == 4:
                raise error

    with pytest.raises(BadInput) as refusal:
        train(Greedy(), batch_at, stage(accumulate=1), tmp_path / "see", device="cpu")
    rows = len(batch_at(3).inputs["x"])
    assert str(refusal.value).startswith(
        f"see: out of memory with a batch of {rows} x 4; halve the batch with stages.see.batch_size=16 "
        "stages.see.accumulate=2"
    )
    assert torch.load(tmp_path / "see" / CHECKPOINT, weights_only=True)["step"] == 3


def test_so_does_an_evaluation_that_needs_too_much(tmp_path: Path):
    def evaluate(model: Toy) -> dict[str, float]:
        raise MemoryError

    with pytest.raises(BadInput, match=r"see: out of memory .* halve the batch with stages\.see\.batch_size=16"):
        train(Toy(), batch_at, stage(), tmp_path / "see", device="cpu", evaluate=evaluate)


def test_torch_s_own_words_are_known():
    with pytest.raises(BadInput, match="out of memory with a batch"), enough_memory(stage(), "see", []):
        torch.empty(1 << 60, dtype=torch.uint8)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(stage(), "see", []):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"batch_size": 8}, "stages.a.batch_size=4 stages.a.accumulate=2"),
        ({"batch_size": 8}, "or keep it and give stages.a.gradient_checkpointing=true"),
        ({"batch_size": 8, "buckets": {20: 6, 60: 1}}, "stages.a.buckets={20: 3, 60: 1} stages.a.accumulate=2"),
        ({"batch_size": 1}, "give stages.a.gradient_checkpointing=true"),
        (
            {"batch_size": 1, "gradient_checkpointing": True, "answers": Answers(longest_tokens=64)},
            "leave long ones out with stages.a.answers.longest_tokens=32",
        ),
    ],
)
def test_the_advice_is_a_setting_that_exists(options: dict, advice: str):
    told = FileStage.model_validate({"learns": "caption", "steps": 1, **options})
    with pytest.raises(BadInput) as refusal, enough_memory(told, "a", []):
        raise MemoryError
    assert advice in str(refusal.value)


def test_a_warm_up_of_one_sample_a_batch_has_nothing_to_lower():
    with pytest.raises(BadInput, match="train a smaller design"), enough_memory(stage(batch_size=1), "a", []):
        raise MemoryError
