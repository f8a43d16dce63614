"""The processes of a run, and a model spread over them: copied (DDP) or sharded (FSDP2, torch's `fully_shard`).

`torchrun` and `accelerate launch` start processes and say so in the environment. What a run really got is asserted and
said, since launchers fall back without a word.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, Generic, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from trisense.errors import BadInput
from trisense.train.blocks import blocks

Parallel = Literal["ddp", "fsdp"]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Processes:
    """This process, the `rank`-th of `world`, and the device that it computes on. backend: of their collectives, None
    for a process alone."""

    rank: int
    world: int
    device: torch.device
    backend: str | None

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here, however long one of them works."""
        if self.world > 1:
            dist.barrier(group=_patient())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the block alone, then the others: they find the files that it has made."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise over all processes, on `device`."""
        values = values.to(self.device)
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value, group=_patient())
        return found


def launched() -> int:
    """How many processes a launcher says that it has started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str = "auto") -> Processes:
    """This process among those that a launcher started. device: `auto`, an accelerator where there is one, or `cpu`.

    May be called again. Raises BadInput for more processes than the machine has accelerators, and where SLURM started
    several that do not know of each other: each would train alone and write over the others' files.
    """
    world, (rank, local) = launched(), (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if world == 1 and tasks > 1 and "SLURM_PROCID" in os.environ:
        raise BadInput(
            f"SLURM started {tasks} tasks that do not know of each other: start torchrun in each of them, one a node, "
            "as examples/cluster/slurm.sbatch does"
        )
    place = torch.device("cpu")
    if device != "cpu" and torch.accelerator.is_available():
        kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        assert kind is not None
        if local >= count:
            raise BadInput(
                f"process {local} of this machine has no device of its own, there are {count}: start {count} "
                f"(--nproc-per-node {count}), or give --device cpu"
            )
        place = torch.device(kind.type, local)
        torch.accelerator.set_device_index(local)
    if world == 1:
        return Processes(0, 1, place, None)
    if not dist.is_initialized():
        dist.init_process_group(dist.get_default_backend_for_device(place))
        atexit.register(_leave)
        _patient()
    if (found := (dist.get_world_size(), dist.get_rank())) != (world, rank):
        raise BadInput(f"the launcher said {world} processes, this one number {rank}; they are {found[0]}, {found[1]}")
    return Processes(rank, world, place, dist.get_backend())


@cache
def _patient() -> dist.ProcessGroup:
    """For waiting while one process draws a bank or computes features; a step that hangs fails sooner."""
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    assert isinstance(group, dist.ProcessGroup)
    return group


def _leave() -> None:
    """Together, and before the interpreter takes modules apart: a group of gloo's that is let go later, or whose peers
    have gone, may abort the process after all is done."""
    if dist.is_initialized():
        with suppress(RuntimeError):  # the others may have been killed
            if (work := dist.barrier(async_op=True)) is not None:
                work.wait(timedelta(seconds=10))
        dist.destroy_process_group()
        _patient.cache_clear()
        gc.collect()


@dataclass
class Spread(Generic[Model]):
    """A model as its processes train it.

    model: whose parameters learn; what is evaluated and saved. wrapped: what a step calls.
    """

    model: Model
    wrapped: nn.Module
    processes: Processes
    _used: set[str] = field(default_factory=set)

    @classmethod
    def over(cls, model: Model, processes: Processes, parallel: Parallel) -> Spread[Model]:
        """parallel: `ddp` copies the model to every process; `fsdp` leaves `model` as it is, on the CPU, and trains a
        copy of which each process holds its share (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054).

        Raises BadInput for `fsdp` with a process alone, with weights that are no floating-point numbers, or with a
        torch that lacks what it needs; and where `accelerate launch` was told to share the model in another way.
        """
        for engine in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{engine}", "false") == "true" and (engine, parallel) != ("FSDP", "fsdp"):
                raise BadInput(
                    f"accelerate launch was told to use {engine}, this run to use {parallel}; --parallel fsdp shards, "
                    "by torch's own fully_shard, and DeepSpeed is not used here"
                )
        if parallel == "fsdp":
            sharded = _sharded(model, processes)
            spread = cls(sharded, sharded, processes)
            sharded.register_forward_pre_hook(spread._watch)
            return spread
        model.to(processes.device)
        if processes.world == 1:
            return cls(model, model, processes)
        # One step may have no picture or no sound, and a warm-up leaves the projector out: not every parameter is used.
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        return cls(model, wrapped, processes)

    def __str__(self) -> str:
        count, device = self.processes.world, self.processes.device
        if count == 1:
            return f"1 process on {device}"
        how = type(self.wrapped).__name__
        if isinstance(self.wrapped, FSDPModule):
            sharded = sum(isinstance(module, FSDPModule) for module in self.wrapped.modules())
            how = f"fully_shard of {sharded} blocks"
        return f"{count} processes on {device.type}, {self.processes.backend}, {how}"

    def accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """For forward and backward of one of several batches of a step: DDP exchanges gradients at the last alone."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return nullcontext()

    def clip(self, norm: float) -> torch.Tensor:
        """Clips the gradients of a step to a norm over all that learns; the norm as it was, a scalar."""
        if isinstance(self.wrapped, FSDPModule):
            self._forget_unused()
        return gathered(torch.nn.utils.clip_grad_norm_(self.model.parameters(), norm))

    @contextmanager
    def evaluating(self) -> Iterator[Model]:
        """The model in eval mode, any part of which may be called: the blocks of a sharded one gather themselves, what
        stands outside of them is gathered here."""
        self.model.eval()
        if isinstance(self.model, FSDPModule):
            self.model.unshard()
        yield self.model
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    def finish(self, model: Model) -> Model:
        """Gives `model` what was learned, the same in every process; in eval mode."""
        if isinstance(self.model, FSDPModule):
            own = dict(model.named_parameters())
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    if parameter.requires_grad:
                        own[name].copy_(gathered(parameter.detach()))
            for name, buffer in model.named_buffers():
                buffer.copy_(self.model.get_buffer(name))
        if self.processes.world > 1:
            # Each process has averaged over its own batches; the main one's are those of the checkpoint.
            for buffer in model.buffers():
                dist.broadcast(buffer, 0, group=_patient() if buffer.device.type == "cpu" else None)
        return model.eval()

    def _watch(self, module: nn.Module, inputs: Any) -> None:
        """Notes, from the first step on, which of the parameters outside of blocks get a gradient."""
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor) and not hasattr(parameter, "watched"):
                parameter.register_hook(lambda _, name=name: self._used.add(name))
                parameter.watched = True  # pyright: ignore[reportAttributeAccessIssue]

    def _forget_unused(self) -> None:
        """Where one process has no use for a parameter its gradient counts as zero; where none has, there is none, so
        that the optimiser leaves it alone as it does without shards."""
        used = set().union(*self.processes.gather(self._used))
        blocks = [name for name, module in self.model.named_modules() if name and isinstance(module, FSDPModule)]
        for name, parameter in self.model.named_parameters():
            if name not in used and not any(name.startswith(f"{block}.") for block in blocks):
                parameter.grad = None
        self._used.clear()


def _sharded(model: Model, processes: Processes) -> Model:
    if processes.world == 1:
        raise BadInput(
            "--parallel fsdp: there is one process; start several with torchrun --nproc-per-node N -m trisense"
        )
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise BadInput(f"--parallel fsdp needs torch 2.13, this is {torch.__version__}; upgrade it or give ddp")
    if odd := [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]:
        raise BadInput(
            f"--parallel fsdp: {odd[0]} is quantised and cannot be sharded; set design.quantisation=null or give ddp"
        )
    # What learns may be new, and drawn otherwise in each process.
    for tensor in (*(p.data for p in model.parameters() if p.requires_grad), *model.buffers()):
        dist.broadcast(tensor, 0, group=_patient() if tensor.device.type == "cpu" else None)
    # New parameters over the same memory: what is sharded, moved and freed is the copy's, block by block.
    fresh: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    copy = deepcopy(model, fresh)
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in reversed(blocks(copy)):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    root = fully_shard(copy, mesh=mesh)
    root.set_reduce_scatter_unused_params(True)
    copy.to(processes.device)
    if whole := [name for name, parameter in copy.named_parameters() if not isinstance(parameter, DTensor)]:
        raise RuntimeError(f"{whole[0]} was not sharded")
    return copy


def gathered(tree: Any, kept: bool = True) -> Any:
    """Sharded tensors in dicts and lists as whole ones on the CPU, for every process or, with `kept`, for some of them:
    all have to call it."""
    if isinstance(tree, DTensor):
        whole = tree.full_tensor()
        return whole.cpu() if kept else None
    if isinstance(tree, dict):
        return {key: gathered(value, kept) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(gathered(value, kept) for value in tree)
    return tree


def scattered(tree: Any, like: Any) -> Any:
    """The inverse: each tensor sharded as the one in its place in `like`."""
    if isinstance(tree, dict):
        return {key: scattered(value, like[key]) for key, value in tree.items()}
    if isinstance(like, DTensor):
        return distribute_tensor(tree.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return tree
