"""The range test finds rates that a sweep finds good, leaves the model alone, and draws what it saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from toy import Toy, batch_at, evaluate, stage, toy
from transformers.modeling_outputs import CausalLMOutput

from trisense.errors import BadInput
from trisense.train.loop import train
from trisense.train.lr_find import SIZE, RangeTest, drawn, judge, range_test, save_range_test
from trisense.train.plot import COLOURS, INK, PALE


def found(model: Toy | None = None, **options) -> RangeTest:
    return range_test(model or toy(), batch_at, stage(accumulate=4), **{"device": "cpu", "seed": 3, **options})


def test_both_suggestions_lie_where_a_sweep_finds_that_it_learns(tmp_path: Path) -> None:
    """The sweep: short runs at constant rates, from far too low to far too high."""
    before = evaluate(toy().eval())["error"]
    after = {}
    for power in range(-6, 2):
        for rate in (10.0**power, 3 * 10.0**power):
            options = stage(steps=40, accumulate=4, lr=rate, schedule="constant", warmup_steps=0, save_every=40)
            after[rate] = evaluate(train(toy(), batch_at, options, tmp_path / str(rate), device="cpu"))["error"]
    working = [rate for rate, error in after.items() if error < 0.5 * before]
    assert working and min(working) > 1e-4 and max(working) < 1, "the sweep has an end on both sides"
    test = found(steps=200)
    assert test.steepest and test.tenth
    assert min(working) / 2 <= test.steepest <= max(working)
    assert min(working) / 2 <= test.tenth <= max(working)


def test_it_ends_when_the_loss_diverges_and_the_model_is_what_it_was() -> None:
    model = toy(dropout=0.3)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    test = found(model, end_lr=1e4)
    assert torch.equal(torch.rand(3), expected), "nobody else's chance is touched"
    assert test.diverged and len(test.rates) == len(test.losses) == len(test.smoothed) < 100
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), toy(dropout=0.3).parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert np.diff(np.log(test.rates)) == pytest.approx(np.log(1e11) / 99)
    assert test.rates[0] == 1e-7


def test_the_same_seed_gives_the_same_test() -> None:
    assert found(toy(dropout=0.3)) == found(toy(dropout=0.3))
    assert found(toy(dropout=0.3)) != found(toy(dropout=0.3), seed=4)


def test_losses_are_taken_against_those_of_the_untouched_model() -> None:
    test = found()
    for step in (0, 3, 9):
        batches = [batch_at(4 * step + place) for place in range(4)]
        items = torch.tensor(float(sum(batch.items for batch in batches)))
        with torch.no_grad():
            loss = sum(float(toy()(**batch.inputs, num_items_in_batch=items).loss) for batch in batches)
        assert test.untouched[step] == pytest.approx(loss)
    assert test.losses[0] == pytest.approx(test.untouched[0])
    assert test.even[0] == pytest.approx(np.mean(test.untouched), rel=0.2)
    assert np.std(test.even[:20]) < 0.1 * np.std(test.losses[:20]), "what differs between batches is gone"


def test_parts_keep_the_ratio_of_their_rates() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(4, 1)
            self.sense = torch.nn.ModuleDict({"projector": torch.nn.Linear(4, 1)})
            self.seen: list[list[torch.Tensor]] = []

        def forward(self, x: torch.Tensor, y: torch.Tensor, num_items_in_batch: torch.Tensor) -> CausalLMOutput:
            self.seen.append([p.detach().clone() for p in (self.head.bias, self.sense["projector"].bias)])
            total = ((self.head(x) + self.sense["projector"](x))[:, 0] - y).square().sum()
            return CausalLMOutput(loss=total / num_items_in_batch)

    torch.manual_seed(5)
    model, options = Two(), stage(lr=1.0, lrs={"projector": 1e-2})
    range_test(model, batch_at, options, device="cpu", start_lr=1e-3, end_lr=1e-2, steps=10)
    (head, projector), (head_after, projector_after) = model.seen[10:12]  # after those of the untouched model
    assert float((head_after - head).abs()) == pytest.approx(1e-3, rel=1e-3), "Adam's first step is the rate itself"
    assert float((projector_after - projector).abs()) == pytest.approx(1e-5, rel=1e-2)


def test_what_does_not_fall_gets_no_suggestion() -> None:
    rates = np.geomspace(1e-7, 10, 60).tolist()
    noise = np.random.default_rng(0).normal(5, 0.1, 60).tolist()
    flat = judge(rates, noise, 60 * [5.0], False, 60)
    assert (flat.steepest, flat.tenth) == (None, None)
    rising = judge(rates, np.linspace(1, 9, 60).tolist(), 60 * [1.0], True, 60)
    assert (rising.steepest, rising.tenth) == (None, None)


def test_suggestions_of_a_curve_that_is_known() -> None:
    """A fall centred at 1e-4, a bottom at 1e-2, a steep wall after it, with the noise of single batches."""
    rates = np.geomspace(1e-7, 10, 200)
    x = np.log10(rates)
    clean = 6 - 4 / (1 + np.exp(-4 * (x + 4))) + np.exp(4 * (x + 1))
    noisy = clean + np.random.default_rng(1).normal(0, 0.1, 200)
    test = judge(rates.tolist(), noisy.tolist(), 200 * [6.0], True, 200)
    assert test.steepest and test.tenth
    assert np.log10(test.steepest) == pytest.approx(-4, abs=0.4)
    assert np.log10(test.tenth * 10) == pytest.approx(np.log10(rates[clean.argmin()]), abs=0.5)
    assert np.abs(np.array(test.smoothed) - clean)[20:120].max() < 0.2, "it does not lag"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start_lr": 1.0, "end_lr": 0.1}, "--start-lr 1, --end-lr 0.1: expected two rates above 0"),
        ({"start_lr": 0.0}, "expected two rates above 0"),
        ({"steps": 9}, "--steps 9: too few"),
    ],
)
def test_what_cannot_be_tested_is_refused(options: dict, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        found(**options)


def test_a_loss_that_is_no_number_from_the_start_is_not_the_rates_fault() -> None:
    model = toy()
    with torch.no_grad():
        model.first.weight.fill_(float("nan"))
    with pytest.raises(BadInput, match="the loss is no number before the first step"):
        found(model)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="one process"):
        found()


def test_the_plot_shows_the_curve_and_both_suggestions(tmp_path: Path) -> None:
    test = found(steps=60)
    numbers, picture = save_range_test(test, "toy see", tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["lr_find.json", "lr_find.png"]
    written = json.loads(numbers.read_text())
    assert written.pop("title") == "toy see"
    assert RangeTest(**written) == test
    image = Image.open(picture)
    assert image.size == SIZE
    for wanted in (COLOURS[0], INK, PALE):
        assert coloured(image, wanted).any()


def test_any_test_can_be_drawn() -> None:
    for losses in ([1.0, 1.0], [0.0, 0.0, 0.0], [5.0, 1e30], [1e-9, 2e-9, 1e-9]):
        rates = np.geomspace(1e-7, 1e-1, len(losses)).tolist()
        seen = RangeTest(rates, losses, losses, losses, losses, diverged=True, steepest=1e-3, tenth=None)
        assert drawn(seen, "t").size == SIZE


def test_where_a_test_diverged_is_cut_off_and_the_fall_fills_the_plot() -> None:
    rates = np.geomspace(1e-5, 1.0, 60).tolist()
    losses = [3.0] * 20 + np.linspace(3, 1, 30).tolist() + np.geomspace(1, 1e6, 10).tolist()
    seen = RangeTest(rates, losses, losses, losses, losses, diverged=True, steepest=None, tenth=None)
    rows = np.flatnonzero(coloured(drawn(seen, "t"), COLOURS[0])[60:].any(1))
    assert rows[-1] - rows[0] > 0.4 * SIZE[1]


def coloured(image: Image.Image, colour: str) -> np.ndarray:
    """Where a picture, [H, W], is nearly of a colour: edges are smooth."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.abs(pixels - ImageColor.getrgb(colour)).sum(-1) < 24
