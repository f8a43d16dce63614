"""What a training step holds in memory, counted by running it on tensors without values.

The very model of a stage, but a few layers deep, computes forward and backward on torch's fake tensors, which have
shapes, dtypes and storages and nothing in them; whatever is allocated and freed on the way is counted. Layers are
alike, so two depths say what each of the others adds. That takes seconds for any model, and nothing is loaded.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trisense.data.batches import Batch
from trisense.model.attention import SEGMENTS, Packed, pieces, visible
from trisense.model.loss import fuse_activations, head_loss
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import MOMENTS, Part, count_parts, design_config
from trisense.model.pretrained import add_adapter
from trisense.model.senses import Sense
from trisense.recipe import Design
from trisense.stage import FileStage
from trisense.train.heap import LARGE
from trisense.train.learner import learning
from trisense.train.speed import counting

# Depths that are computed; of a model with more layers the others are as the last two.
DEPTHS = (2, 4)
# Bytes before any model is there. On a CPU: Python, libraries and what a whole run leaves of features, checks and
# answers. On a GPU: CUDA's context and kernels, an assumption.
LIBRARIES, CONTEXT = 515 << 20, 600 << 20
# On a CPU glibc keeps what is freed, and a freed place seldom serves a tensor of the same size again, perhaps because
# torch asks for more, to align in: the heap grows to HEAP times what is alive at most, and KEPT times as much is left
# of it after a step. With checkpointed layers every larger tensor is mapped (`trisense.train.heap`), and nearly nothing
# is lost.
# Tensors of HUGE bytes are always mapped. Measured with glibc 2.36.
HEAP, KEPT, MAPPED, HUGE = 2.1, 1.75, 1.1, 32 << 20
# On a GPU torch's allocator holds so many times what is alive: an assumption.
CACHED = 1.1

# Letters: B rows, T positions, N supervised positions, D width of the language model, E width of an encoder.


@dataclass(frozen=True)
class Step:
    """Forward and backward over one batch. peak: bytes alive at most beside the model, gradients among them. gradients:
    bytes that are left when it is over. operations: floating-point operations of its matrix products. calls: operations
    of torch that compute something."""

    peak: float
    gradients: float
    operations: float
    calls: float

    def further(self, other: Step, times: float) -> Step:
        """What lies beyond `other`, so many times as far from here as that."""
        ours, theirs = (vars(one) for one in (self, other))
        return Step(**{name: ours[name] + times * (theirs[name] - ours[name]) for name in ours})


@dataclass(frozen=True)
class Memory:
    """Bytes at most, by part; where: in which phase that is; step: of the largest batch."""

    parts: dict[str, float]
    where: str
    step: Step

    @property
    def total(self) -> int:
        return round(sum(self.parts.values()))


@dataclass(frozen=True)
class Costs:
    """What a design takes on one device.

    parts: as `count_parts` gives them. device: `cpu`, where memory is the resident set of the process, or `cuda`. gpus:
    more than one keep a copy of the gradients to exchange.
    """

    design: Design
    parts: Mapping[str, Part]
    device: str
    gpus: int = 1

    @classmethod
    def of(cls, design: Design, stage: FileStage, device: str, gpus: int = 1) -> Costs:
        """Raises BadInput as `count_parts`."""
        own = design if stage.learns == "instruct" else design.model_copy(update={"adapter": None})
        return cls(design, {part.name: part for part in count_parts(own)}, device, gpus)

    def learned(self, stage: FileStage) -> int:
        """Parameters that learn in a stage on files."""
        return self.adapter + (0 if stage.freeze_projector else self.projectors)

    @property
    def adapter(self) -> int:
        return self.parts["adapter"].parameters if "adapter" in self.parts else 0

    @property
    def projectors(self) -> int:
        return sum(part.parameters for name, part in self.parts.items() if name.endswith("projector"))

    def memory(self, stage: FileStage, batch: Batch, held: int) -> Memory:
        """What a stage takes at most. batch: the largest of its batches, of which only shapes are looked at. held:
        supervised tokens that it evaluates at once. Raises BadInput as `add_adapter`."""
        step = step_of(self.design, stage, batch, self.device)
        cpu, frozen, learned = self.device == "cpu", self.parts["language model"], self.learned(stage)
        moments = 8 if stage.optimizer != "adamw8bit" else 2 + 8 / MOMENTS
        fixed = {
            "interpreter and libraries" if cpu else "CUDA context": float(LIBRARIES if cpu else CONTEXT),
            "weights": float(4 * frozen.parameters if cpu and not self.design.quantisation else frozen.size),
            "what learns, and its optimiser": learned * (4 + moments),
        }
        # From the second of accumulated batches on all gradients are there from the start.
        alive = step.peak + step.gradients * ((stage.accumulate > 1) + (self.gpus > 1))
        rows = design_config(self.design, _tokens(self.design)).text_config.vocab_size
        if cpu:
            mapped = stage.gradient_checkpointing and frozen.parameters >= LARGE
            logits = 8.0 * held * rows if mapped or 4 * held * rows >= HUGE else 0.0
            phases = {
                "a step": {"gradients and activations": (MAPPED if mapped else HEAP) * alive},
                "an evaluation": {
                    "gradients and activations": 0.0 if mapped else KEPT * alive,
                    "logits of an evaluation": logits,
                },
            }
        else:
            # Adam makes the root of its second moments for all parameters at once.
            alive = CACHED * max(alive, step.gradients + 4 * learned)
            if self.design.quantisation:  # a layer's weights in 16 bits while it computes
                alive += 2 * _widest(self.design)
            encoders = sum(part.size for name, part in self.parts.items() if name.endswith("encoder"))
            phases = {
                "a step": {"gradients and activations": alive},
                "an evaluation": {"logits of an evaluation": 10.0 * held * rows},
                "computing features": {"encoders": float(encoders)},
            }
        where = max(phases, key=lambda name: sum(phases[name].values()))
        return Memory(fixed | phases[where], where, step)


def step_of(design: Design, stage: FileStage, batch: Batch, device: str) -> Step:
    """Counts the step of a stage on files over a batch, of which only shapes are looked at.

    device: `cpu` (float32) or `cuda` (what is frozen in bfloat16, as if it were not quantised).
    """
    layers = design_config(design, _tokens(design)).text_config.num_hidden_layers
    if layers <= DEPTHS[1]:
        return _counted(design, stage, batch, device, layers)
    few, more = (_counted(design, stage, batch, device, depth) for depth in DEPTHS)
    return few.further(more, (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0]))


class _Alive(TorchDispatchMode):
    """Bytes of the storages that operations within have made and that are still there."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.now = self.most = self.calls = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += not func.is_view
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self._note(one.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _counted(design: Design, stage: FileStage, batch: Batch, device: str, depth: int) -> Step:
    model = _model(design, stage, depth)
    inputs = batch.inputs
    # Computed with values, since who sees whom decides what is computed.
    packed = pieces(inputs["segments"], inputs["branches"]) if "segments" in inputs and device == "cpu" else None
    if packed is not None:
        model.language_model.set_attn_implementation(SEGMENTS)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        model.to_empty(device="cpu")
        if device != "cpu":
            for parameter in model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(torch.bfloat16)
        given = {name: fake.from_tensor(value) for name, value in inputs.items() if name != "own_words"}
        faked = [replace(one, bias=fake.from_tensor(one.bias)) for one in packed or ()]
        known = [*model.parameters(), *model.buffers(), *given.values()]
        half = torch.autocast("cpu", torch.bfloat16, enabled=stage.precision == "bf16")
        with _Alive(known) as alive, counting(model, batch.items) as operations:
            with half:
                loss = _loss(model, given, batch.items, None if packed is None else Packed(faked))
            loss.backward()
            del loss
        return Step(alive.most, alive.now, operations.count, alive.calls)


def _model(design: Design, stage: FileStage, depth: int) -> TrisenseForConditionalGeneration:
    """The model of a stage without its encoders and with so many layers, on the meta device."""
    config = design_config(design, _tokens(design))
    config.text_config.num_hidden_layers = depth
    with torch.device("meta"):
        model = TrisenseForConditionalGeneration(config)
        for sense in model.senses.values():
            cast(Sense, sense).encoder = cast(Any, nn.Identity())
        if stage.learns == "instruct":
            add_adapter(model, design)
    learning(model, stage)
    if stage.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    fuse_activations(model)
    return model.train()


def _loss(
    model: TrisenseForConditionalGeneration, inputs: Mapping[str, torch.Tensor], items: int, packed: Packed | None
) -> torch.Tensor:
    """As the model's own forward, without what depends on values: which places are pictures, and which are learned."""
    ids = inputs["input_ids"]
    embeddings = model.get_input_embeddings()(ids)  # [B, T, D]
    slots = torch.zeros_like(ids, dtype=torch.bool)
    for name, sense in model.senses.items():
        if (features := inputs.get(f"{name}_features")) is None:
            continue
        projector = cast(Sense, sense).projector
        vectors = projector(features.flatten(0, 1).to(next(projector.parameters()).dtype))
        embeddings = embeddings.masked_scatter(slots[..., None], vectors.to(embeddings))
    told: dict[str, Any] = {"attention_mask": inputs.get("attention_mask")}
    told["position_ids"] = inputs.get("position_ids", torch.zeros_like(ids))
    if packed is not None:
        told |= {"attention_mask": torch.ones_like(ids), "packed": packed}
    elif "segments" in inputs:
        told["attention_mask"] = visible(inputs["segments"], inputs["branches"])
    hidden = model.language_model.get_decoder()(inputs_embeds=embeddings, use_cache=False, **told).last_hidden_state
    learned = hidden.flatten(0, 1)[torch.zeros(items, dtype=torch.long)]  # [N, D]
    targets = torch.zeros(items, dtype=torch.long)
    return head_loss(learned, cast(nn.Linear, model.get_output_embeddings()), targets)


def _widest(design: Design) -> int:
    """Weights of the largest linear layer of a language model's layers."""
    config = design_config(design, _tokens(design))
    config.text_config.num_hidden_layers = 1
    with torch.device("meta"):
        decoder = TrisenseForConditionalGeneration(config).language_model.get_decoder()
    return max(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear))


def _tokens(design: Design) -> dict[str, int]:
    """Placeholders as numbers; which ones they are does not matter to a shape."""
    return {name: token if isinstance(token, int) else i for i, (name, token) in enumerate(design.placeholders.items())}
