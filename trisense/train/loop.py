"""The one training loop: accumulate, step, log, evaluate, save, resume; on Accelerate."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.recipe import Stage
from trisense.train.optim import Schedule, make_optimizer

CHECKPOINT = "checkpoint.pt"
# What may differ between a run and its continuation: it changes when something is written, not what is learned.
FREE = ("log_every", "evaluate_every", "save_every")

Model = TypeVar("Model", bound=nn.Module)


def train(
    model: Model,
    batch_at: Callable[[int], Batch],
    stage: Stage,
    out: Path,
    *,
    device: str = "auto",
    seed: int = 0,
    evaluate: Callable[[Model], dict[str, float]] | None = None,
    sample: Callable[[Model], str] | None = None,
) -> Model:
    """Trains what has `requires_grad` in `model` for `stage.steps` steps, going on from `out` if it holds a checkpoint.

    A run that was killed and started again ends with the very parameters of a run that was not. Ctrl-C saves a
    checkpoint after the step under way and raises KeyboardInterrupt; a second one does not wait.

    Args:
        model: its forward takes the batch's inputs and `num_items_in_batch`, and returns an object with `.loss`, summed
            over items and divided by that number. So a step's gradient is the same however its items are split into
            batches and processes.
        batch_at: the batch of a number; numbers run through steps, accumulated batches and processes. It depends on
            nothing but the number, which is what makes a resumed run see the batches it would have seen.
        out: receives `checkpoint.pt` (written aside and renamed), `log.jsonl` and TensorBoard's files.
        evaluate: called every `stage.evaluate_every` steps and at the end, with the model in eval mode.
        sample: called with it; some answers beside the truth, for the eye.

    Returns:
        the trained model, in eval mode.

    Raises:
        BadInput: nothing in the model learns, or `out` holds a checkpoint of other options or of another model.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    # One step may have no picture or no sound, and a warm-up leaves the projector out: not every parameter is used.
    uneven = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[uneven])
    optimizer = make_optimizer(model, stage)
    scheduler = Schedule(optimizer, stage)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    # Losses since the last line of the log.
    window: list[torch.Tensor] = []
    options = {**stage.model_dump(), "seed": seed, "processes": accelerator.num_processes}
    start = _resume(out / CHECKPOINT, model, optimizer, scheduler, options, window, accelerator.device)
    if start == stage.steps:
        return model.eval()
    if accelerator.is_main_process:
        _forget_after(out / "log.jsonl", start)
    writer = SummaryWriter(str(out), purge_step=start + 1) if accelerator.is_main_process else None
    bar = tqdm(total=stage.steps, initial=start, desc=out.name, disable=not accelerator.is_main_process, mininterval=5)
    # Processes x accumulated batches make one step.
    width = accelerator.num_processes * stage.accumulate

    def batches_of(step: int) -> list[Batch]:
        first = step * width + accelerator.process_index * stage.accumulate
        return [batch_at(first + i) for i in range(stage.accumulate)]

    def half() -> torch.autocast:
        return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=stage.precision == "bf16")

    reader = ThreadPoolExecutor(1)  # makes the next batches while the model works on these
    try:
        with _interrupt() as interrupted:
            coming = reader.submit(batches_of, start)
            for step in range(start, stage.steps):
                done, last = step + 1, step + 1 == stage.steps
                wrapped.train()
                batches = [batch.to(accelerator.device) for batch in coming.result()]
                if not last:
                    coming = reader.submit(batches_of, step + 1)
                items = _sum(accelerator, torch.tensor(float(sum(batch.items for batch in batches))))
                total = torch.zeros((), device=accelerator.device)
                for batch in batches:
                    with half():
                        loss = wrapped(**batch.inputs, num_items_in_batch=items).loss
                    # DDP averages gradients over processes; the loss is to be a sum over all items of the step.
                    accelerator.backward(loss * accelerator.num_processes)
                    total += loss.detach()
                norm = accelerator.clip_grad_norm_(wrapped.parameters(), stage.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                window.append(_sum(accelerator, total))
                bar.update()
                if done % stage.log_every == 0 or last:
                    values = {
                        "loss": float(torch.stack(window).mean()),
                        "grad_norm": 0.0 if norm is None else float(norm),
                        "lr": scheduler.get_last_lr()[0],
                    }
                    window.clear()
                    bar.set_postfix(loss=f"{values['loss']:.3f}")
                    _log(writer, out, done, values)
                if evaluate and (done % stage.evaluate_every == 0 or last):
                    model.eval()
                    with torch.inference_mode():
                        values = evaluate(model)
                        shown = sample(model) if sample else ""
                    _log(writer, out, done, values, shown)
                    if accelerator.is_main_process:
                        said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                        tqdm.write(f"{out.name} step {done}: {said}{shown}")
                stop = interrupted()
                if (done % stage.save_every == 0 or last or stop) and accelerator.is_main_process:
                    _save(out / CHECKPOINT, model, optimizer, scheduler, options, window, done)
                if stop:
                    tqdm.write(f"stopped after step {done} of {stage.steps}; the same command goes on", sys.stderr)
                    raise KeyboardInterrupt
    finally:
        reader.shutdown(cancel_futures=True)
        bar.close()
        if writer:
            writer.close()
    return model.eval()


def processes() -> int:
    """How many train together, as `torchrun` and its like say, before the loop has joined them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def same_run(card: Path, run: Mapping[str, Any], compared: Iterable[str]) -> None:
    """Keeps in the file `card` what the checkpoints of a run do not hold.

    Raises BadInput where the file is there already and one of the keys `compared` is another: going on would mix two
    runs without a word.
    """
    if card.exists():
        before = json.loads(card.read_text(encoding="utf-8"))
        for key in compared:
            if before.get(key) != run[key]:
                raise BadInput(f"{card}: this run began with another {key}; give the same or name another folder")
    card.parent.mkdir(parents=True, exist_ok=True)
    aside = card.with_suffix(".part")
    aside.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, card)


@contextmanager
def _interrupt() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C only makes what it gives say True, so that a step is never half; the second raises."""
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    # Where Ctrl-C was ignored (a job in the background) or somebody else handles it, that stays so.
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _sum(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    """A scalar summed over all processes."""
    summed = accelerator.reduce(value.to(accelerator.device))
    assert isinstance(summed, torch.Tensor)
    return summed


def _log(writer: SummaryWriter | None, out: Path, step: int, values: dict[str, float], text: str = "") -> None:
    if writer is None:
        return
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    if text:
        writer.add_text("samples", text.replace("\n", "  \n"), step)
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, **values}) + "\n")


def _forget_after(log: Path, step: int) -> None:
    """Drops the lines of steps that a killed run had logged but not saved: they are about to be done again."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # killed while it was written
            continue
    aside = log.with_suffix(".part")
    aside.write_text("".join(kept))
    os.replace(aside, log)


def _save(
    path: Path,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    options: dict[str, Any],
    window: list[torch.Tensor],
    step: int,
) -> None:
    """Everything a resumed run needs, in one file, so that a kill leaves either the old or the new one."""
    aside = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "stage": options,
        "window": window,
        "step": step,
    }
    torch.save(state, aside)
    os.replace(aside, path)


def _resume(
    path: Path,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    options: dict[str, Any],
    window: list[torch.Tensor],
    device: torch.device,
) -> int:
    """Loads a checkpoint if there is one; the number of steps already done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        before = state["stage"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError):
        raise BadInput(f"{path}: not a checkpoint of a training run; remove it or name another folder") from None
    for key, value in options.items():
        if key not in FREE and before.get(key, value) != value:
            raise BadInput(
                f"{path}: was trained with {key}={before[key]}, now {value}; give the same options or another folder"
            )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError):
        raise BadInput(f"{path}: holds another model; give the same design or another folder") from None
    scheduler.load_state_dict(state["scheduler"])
    window.extend(state.get("window", []))
    torch.set_rng_state(state["random"].cpu())
    if state["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["random_cuda"]])
    return state["step"]
