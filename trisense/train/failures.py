"""What goes wrong in a step, said in one line with what to do: a loss that is no number, a memory that is too small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.stage import FileStage, Stage
from trisense.train.disk import write_whole


def bad_step(out: Path, step: int, rank: int, loss: float, norm: float, batches: Sequence[Batch]) -> BadInput:
    """What to raise for a step whose loss or gradient is not finite, its batches kept in a file beside the checkpoint.

    The file holds `step`, `loss`, `grad_norm` and `batches`, a list of `inputs` and `items`: `torch.load` reads it.
    """
    path = out / f"bad-step-{step}.{rank}.pt"
    kept = [{"inputs": dict(batch.to(torch.device("cpu")).inputs), "items": batch.items} for batch in batches]
    record = {"step": step, "loss": loss, "grad_norm": norm, "batches": kept}
    size = sum(tensor.nbytes for batch in kept for tensor in batch["inputs"].values())
    write_whole(path, lambda file: torch.save(record, file), size)
    what = f"the loss is {loss}" if loss - loss != 0 else f"the loss is {loss:.4g} but its gradient has norm {norm}"
    return BadInput(
        f"{out.name}: step {step}: {what}; its batch is kept in {path}, and the last checkpoint is from before it. "
        f"Look at the batch, or train with a lower rate (stages.{out.name}.lr) or more warm-up in another folder"
    )


@contextmanager
def enough_memory(stage: Stage, name: str, batches: Sequence[Batch]) -> Iterator[None]:
    """Turns running out of memory, on a GPU or not, into BadInput that says which setting to lower, and to what."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise BadInput(f"{name}: out of memory with {_shape(batches)}; {_advice(stage, name)}") from None


def _out_of_memory(error: BaseException) -> bool:
    """torch says it by a class of its own on a GPU and by words on a CPU."""
    words = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _shape(batches: Sequence[Batch]) -> str:
    shapes = [next(iter(batch.inputs.values())).shape for batch in batches if batch.inputs]
    largest = max(shapes, key=lambda shape: shape.numel(), default=None)
    return "a batch" if largest is None else f"a batch of {' x '.join(map(str, largest))}"


def _advice(stage: Stage, name: str) -> str:
    key = f"stages.{name}"
    recompute = isinstance(stage, FileStage) and not stage.gradient_checkpointing
    if isinstance(stage, FileStage) and stage.buckets and max(stage.buckets.values()) > 1:
        halves = ", ".join(f"{longest}: {max(1, size // 2)}" for longest, size in stage.buckets.items())
        return f"halve the batches with {key}.buckets={{{halves}}} {key}.accumulate={2 * stage.accumulate}"
    if not (isinstance(stage, FileStage) and stage.buckets) and stage.batch_size > 1:
        half, double = stage.batch_size // 2, 2 * stage.accumulate
        also = f"; or keep it and give {key}.gradient_checkpointing=true, which computes more" if recompute else ""
        return (
            f"halve the batch with {key}.batch_size={half} {key}.accumulate={double}, a step then learns from as much "
            f"as before (in another folder, or without the checkpoint){also}"
        )
    if recompute:
        return f"give {key}.gradient_checkpointing=true"
    if isinstance(stage, FileStage):
        longest = stage.answers.longest_tokens
        half = "" if longest is None else f"={longest // 2}"
        return f"a batch is one sample already: leave long ones out with {key}.answers.longest_tokens{half}"
    return f"a batch is one sample already (stages.{name}.batch_size=1): train a smaller design"
