"""The one training loop: accumulate, step, log, evaluate, sample, save, resume."""

from __future__ import annotations

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.stage import Stage
from trisense.train.blocks import Compiled
from trisense.train.checkpoints import CHECKPOINT, Checkpoint, seed_all
from trisense.train.failures import bad_step, enough_memory
from trisense.train.optim import Schedule, make_optimizer
from trisense.train.processes import Parallel, Spread, join_processes
from trisense.train.report import Answer, Report, samples_of, tokens_of

Model = TypeVar("Model", bound=nn.Module)


def train(
    model: Model,
    batch_at: Callable[[int], Batch],
    stage: Stage,
    out: Path,
    *,
    device: str = "auto",
    parallel: Parallel = "ddp",
    seed: int = 0,
    evaluate: Callable[[Model], dict[str, float]] | None = None,
    sample: Callable[[Model], Sequence[Answer]] | None = None,
    tracker: str | None = None,
    about: Mapping[str, str] | None = None,
) -> Model:
    """Trains what has `requires_grad` in `model` for `stage.steps` steps, going on from `out` if it holds a checkpoint.

    A run that was killed and started again ends with the very parameters of a run that was not, as do all losses on
    the way. Ctrl-C or SIGTERM saves a checkpoint after the step under way and raises KeyboardInterrupt; a second one
    does not wait.

    Args:
        model: its forward takes the batch's inputs and `num_items_in_batch`, and returns an object with `.loss`, summed
            over items and divided by that number. So a step's gradient is the same however its items are split into
            batches and processes.
        batch_at: the batch of a number; numbers run through steps, processes and accumulated batches, so that no batch
            is learned twice and none is left out. It depends on nothing but the number, which is what makes a resumed
            run see the batches it would have seen.
        out: receives `checkpoint.pt` (written aside and renamed), `log.jsonl`, `speed.jsonl`, TensorBoard's files and,
            at the end, `run.md` with `loss.png`.
        parallel: how several processes, where a launcher started them, share the model: `Spread.over`.
        evaluate: called every `stage.evaluate_every` steps and at the end, with the model in eval mode.
        sample: called with it; some greedy answers beside the truth, for the eye.
        tracker: `wandb` or `mlflow`, beside TensorBoard.
        about: what `run.md` says of where the run comes from, by name.

    Returns:
        the trained model, in eval mode, the same in every process.

    Raises:
        BadInput: nothing in the model learns; `out` holds a checkpoint of other options or of another model; a loss is
            not finite; memory or disk does not suffice; or as `join_processes` and `Spread.over` do.
    """
    out.mkdir(parents=True, exist_ok=True)
    processes = join_processes(device)
    # Processes draw differently: the same dropout on all their rows would be no more random than that of one.
    seed_all(seed + processes.rank)
    if parallel == "fsdp" and stage.optimizer == "adamw8bit":
        raise BadInput(
            f"--parallel fsdp: the state of {stage.optimizer} cannot be sharded; give stages.{out.name}.optimizer=adamw"
            " or ddp"
        )
    spread = Spread.over(model, processes, parallel)
    key = f"stages.{out.name}.compile"
    compiled = Compiled(spread.model, processes.device, key) if stage.compile else nullcontext()
    optimizer = make_optimizer(spread.model, stage)
    scheduler = Schedule(optimizer, stage)
    options = {**stage.model_dump(), "seed": seed, "processes": processes.world}
    checkpoint = Checkpoint(out / CHECKPOINT, options, spread.model, optimizer, scheduler, processes)
    begin, counted = checkpoint.load()
    report = Report(out, stage, processes, str(spread), about or {}, tracker, **counted)
    if begin == stage.steps:
        report.finish()
        return spread.finish(model)

    def batches_of(step: int) -> list[Batch]:
        first = (step * processes.world + processes.rank) * stage.accumulate
        return [batch_at(first + i) for i in range(stage.accumulate)]

    def half() -> torch.autocast:
        return torch.autocast(processes.device.type, torch.bfloat16, enabled=stage.precision == "bf16")

    reader = ThreadPoolExecutor(1)  # makes the next batches while the model works on these
    try:
        report.begin(begin, spread.model)
        with _interrupt() as interrupted:
            coming = reader.submit(batches_of, begin)
            for done in range(begin + 1, stage.steps + 1):
                last = done == stage.steps
                spread.wrapped.train()
                batches = coming.result()
                if not last:
                    coming = reader.submit(batches_of, done)
                counts = [sum(map(count, batches)) for count in (_items, samples_of, tokens_of)]
                items, samples, tokens = processes.sum(torch.tensor(counts)).unbind()
                with enough_memory(stage, out.name, batches), report.step(spread.model, batches):
                    total = torch.zeros((), device=processes.device)
                    # The step whose operations are counted is not compiled: it could not be looked into.
                    blocks = compiled if report.operations else nullcontext()
                    for number, batch in enumerate(batches, 1):
                        with blocks, spread.accumulating(last=number == len(batches)):
                            inputs = batch.to(processes.device).inputs
                            with half():
                                loss = spread.wrapped(**inputs, num_items_in_batch=items.float()).loss
                            # Gradients are averaged over processes; the loss is to be a sum over all items of the step.
                            (loss * processes.world).backward()
                        total += loss.detach()
                    norm = float(spread.clip(stage.clip))
                    mean, stop = processes.sum(torch.stack([total, total.new_full((), float(interrupted()))])).tolist()
                    if not math.isfinite(mean) or not math.isfinite(norm):
                        raise bad_step(out, done, processes.rank, mean, norm, batches)
                    optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                report.stepped(done, mean, norm, float(scheduler.get_last_lr()[0]), int(samples), int(tokens))
                if evaluate and (done % stage.evaluate_every == 0 or last):
                    memory = enough_memory(stage, out.name, batches)
                    with memory, spread.evaluating() as evaluated, torch.inference_mode():
                        values, answers = evaluate(evaluated), sample(evaluated) if sample else ()
                    report.evaluated(done, values, answers)
                if done % stage.save_every == 0 or last or stop:
                    checkpoint.save(done, report.counted())
                if stop:
                    if processes.main:
                        tqdm.write(f"stopped after step {done} of {stage.steps}; the same command goes on", sys.stderr)
                    raise KeyboardInterrupt
        report.finish()
    finally:
        reader.shutdown(cancel_futures=True)
        report.close()
    return spread.finish(model)


def _items(batch: Batch) -> int:
    return batch.items


@contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C, or SIGTERM as a cluster sends it, only makes what it gives say True, so that a step
    is never half; the second raises."""
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Where a signal was ignored (a job in the background) or somebody else handles it, that stays so.
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, handler in defaults.items() if main and signal.getsignal(number) is handler]
    for number in ours:
        signal.signal(number, note)
    try:
        yield lambda: asked
    finally:
        for number in ours:
            signal.signal(number, defaults[number])
