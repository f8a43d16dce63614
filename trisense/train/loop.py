"""The one training loop: accumulate, step, log, evaluate, save, resume; on Accelerate."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.recipe import Stage

CHECKPOINT = "checkpoint.pt"


def learning_rate(stage: Stage, step: int) -> float:
    """The factor on `stage.lr` at a step: linear warm-up, then the schedule down to 1 % (constant: to nothing)."""
    if step < stage.warmup_steps:
        return (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    if stage.schedule == "cosine":
        return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
    return 0.01 + 0.99 * (1 - done) if stage.schedule == "linear" else 1.0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What learns, in two groups: matrices decay, vectors (norms, biases) do not."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not learning:
        raise BadInput("nothing learns: every parameter of this stage is frozen")
    return [
        {"params": [parameter for parameter in learning if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learning if parameter.dim() < 2], "weight_decay": 0.0},
    ]


def train(
    model: nn.Module,
    batch_at: Callable[[int], Batch],
    stage: Stage,
    out: Path,
    *,
    device: str = "auto",
    seed: int = 0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    sample: Callable[[nn.Module], str] | None = None,
) -> nn.Module:
    """Trains what has `requires_grad` in `model` for `stage.steps` steps, continuing from `out` if it holds a checkpoint.

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
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    accelerator = Accelerator(mixed_precision="bf16" if stage.precision == "bf16" else "no", cpu=device == "cpu")
    optimizer = torch.optim.AdamW(parameter_groups(model, stage.weight_decay), lr=stage.lr, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(stage, step))
    plain = model
    model, optimizer = accelerator.prepare(model, optimizer)
    start = _resume(out / CHECKPOINT, plain, optimizer, scheduler, stage, accelerator.device)
    writer = SummaryWriter(str(out), purge_step=start) if accelerator.is_main_process else None
    bar = tqdm(total=stage.steps, initial=start, desc=out.name, disable=not accelerator.is_main_process, mininterval=5)
    window: list[torch.Tensor] = []
    # Processes x accumulated batches make one step.
    width = accelerator.num_processes * stage.accumulate

    def batches_of(step: int) -> list[Batch]:
        first = step * width + accelerator.process_index * stage.accumulate
        return [batch_at(first + i) for i in range(stage.accumulate)]

    reader = ThreadPoolExecutor(1)  # makes the next batches while the model works on these
    try:
        coming = reader.submit(batches_of, start)
        for step in range(start, stage.steps):
            model.train()
            batches = [batch.to(accelerator.device) for batch in coming.result()]
            coming = reader.submit(batches_of, step + 1)
            items = torch.tensor(float(sum(batch.items for batch in batches)), device=accelerator.device)
            items = accelerator.reduce(items)
            total = torch.zeros((), device=accelerator.device)
            for index, batch in enumerate(batches):
                syncs = accelerator.no_sync(model) if index < len(batches) - 1 else nullcontext()
                with syncs:
                    # DDP averages gradients over processes; the loss is to be a sum over all items of the step.
                    loss = model(**batch.inputs, num_items_in_batch=items).loss * accelerator.num_processes
                    accelerator.backward(loss)
                total += loss.detach() / accelerator.num_processes
            norm = accelerator.clip_grad_norm_(model.parameters(), stage.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            window.append(accelerator.reduce(total))
            bar.update()
            done = step + 1
            last = done == stage.steps
            if done % stage.log_every == 0 or last:
                values = {"loss": float(torch.stack(window).mean()), "grad_norm": float(norm), "lr": scheduler.get_last_lr()[0]}
                window.clear()
                bar.set_postfix(loss=f"{values['loss']:.3f}")
                _log(writer, out, done, values)
            if evaluate and (done % stage.evaluate_every == 0 or last):
                plain.eval()
                with torch.inference_mode():
                    values = evaluate(plain)
                    shown = sample(plain) if sample else ""
                _log(writer, out, done, values, shown)
                tqdm.write(f"{out.name} step {done}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()) + shown)
            if (done % stage.save_every == 0 or last) and accelerator.is_main_process:
                _save(out / CHECKPOINT, plain, optimizer, scheduler, stage, done)
    finally:
        reader.shutdown(cancel_futures=True)
        bar.close()
        if writer:
            writer.close()
    return plain.eval()


def _log(writer: SummaryWriter | None, out: Path, step: int, values: dict[str, float], text: str = "") -> None:
    if writer is None:
        return
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    if text:
        writer.add_text("samples", text.replace("\n", "  \n"), step)
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, **values}) + "\n")


def _save(path: Path, model: nn.Module, optimizer: Any, scheduler: Any, stage: Stage, step: int) -> None:
    """Everything a resumed run needs, in one file, so that a kill leaves either the old or the new one."""
    aside = path.with_suffix(".part")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "stage": stage.model_dump(),
        "step": step,
    }
    torch.save(state, aside)
    os.replace(aside, path)


def _resume(path: Path, model: nn.Module, optimizer: Any, scheduler: Any, stage: Stage, device: torch.device) -> int:
    """Loads a checkpoint if there is one; the number of steps already done."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    for key, value in stage.model_dump().items():
        if state["stage"].get(key) != value and key not in ("log_every", "evaluate_every", "save_every"):
            raise BadInput(
                f"{path}: was trained with {key}={state['stage'].get(key)}, now {value}; "
                "give the same options or another folder"
            )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["random"].cpu())
    if state["random_cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["random_cuda"]])
    return state["step"]
