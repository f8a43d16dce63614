"""Operations are counted as torch itself counts them; the peak is measured once."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from trisense.train.speed import counting, memory, peak


def both(model: nn.Module, *inputs: torch.Tensor, **named: torch.Tensor) -> tuple[float, float]:
    """(counted by us, counted by torch) over forward and backward."""
    found = []
    for counter in (counting(model), FlopCounterMode(display=False)):
        with counter as operations:
            out = model(*inputs, **named)
            (out.logits if hasattr(out, "logits") else out).sum().backward()
        found.append(operations.count if hasattr(operations, "count") else operations.get_total_flops())
    return found[0], found[1]


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 3))


@pytest.mark.parametrize("frozen", [(), (0,), (2,), (4,), (0, 2), (2, 4)])
def test_a_frozen_layer_costs_what_torch_says(frozen: tuple[int, ...]):
    model = layers()
    for number in frozen:
        model[number].requires_grad_(False)
    ours, theirs = both(model, torch.randn(5, 6))
    assert ours == theirs > 0


def test_what_learns_costs_6_a_weight_and_row_above_it_4_below_it_2():
    model = layers()
    model.requires_grad_(False)
    model[2].requires_grad_(True)
    with counting(model) as operations:
        model(torch.randn(5, 6))
    assert operations.count == 5 * (2 * 60 + (2 + 2) * 120 + (2 + 2) * 36)
    with counting(model) as operations, torch.no_grad():
        model(torch.randn(5, 6))
    assert operations.count == 5 * 2 * (60 + 120 + 36), "nothing comes back where nothing learns"


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_convolutions(kind: type[nn.Module]):
    torch.manual_seed(0)
    shape = (2, 4, 9) if kind is nn.Conv1d else (2, 4, 9, 7)
    ours, theirs = both(nn.Sequential(kind(4, 6, 3, stride=2), kind(6, 2, 3)), torch.randn(shape))
    assert ours == theirs > 0


def test_a_language_model_is_6_n_a_token_but_for_attention():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape))
    ids = torch.arange(24).view(2, 12)
    with counting(model) as operations:
        model(input_ids=ids)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert operations.count == 6 * weights * ids.numel()
    ours, theirs = both(model, input_ids=ids)
    attention = theirs - ours
    assert 0 <= attention < 0.15 * theirs


def test_a_head_that_a_loss_goes_past_counts_its_supervised_rows():
    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 30).requires_grad_(False)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(self.body(x)[:3], self.head.weight)

    with counting(Past(), supervised=3) as operations:
        Past()(torch.ones(5, 8))
    assert operations.count == 0, "of another model"
    model = Past()
    with counting(model, supervised=3) as operations:
        model(torch.ones(5, 8))
    assert operations.count == 5 * 64 * 4 + 3 * 240 * 4


def test_a_quantised_layer_counts_by_its_features():
    class Packed(nn.Linear):
        """As bitsandbytes keeps 4-bit weights."""

        def __init__(self) -> None:
            super().__init__(8, 4, bias=False)
            self.weight = nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input[..., :4] * 1.0

    layer = Packed()
    with counting(layer) as operations:
        layer(torch.ones(3, 8, requires_grad=True))
    assert operations.count == 3 * 32 * (2 + 2)


def test_the_peak_is_measured_once_and_memory_is_that_of_this_process():
    cpu = torch.device("cpu")
    able, how = peak(cpu, torch.float32)
    assert able > 1e8 and how == "measured"
    assert peak(cpu, torch.float32) == (able, how)
    before = memory(cpu)
    held = torch.ones(30_000_000)
    assert memory(cpu) - before > 0.9 * held.nbytes


def test_a_known_gpu_is_not_measured(monkeypatch: pytest.MonkeyPatch):
    for name, expected in (("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        peak.cache_clear()
        assert peak(torch.device("cuda"), torch.bfloat16) == (expected, "known")
    peak.cache_clear()
