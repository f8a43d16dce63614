"""What is looked at before it costs anything: `doctor`, `plan`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from trisense.cli.common import json_option, need, print_json, seed_option
from trisense.cli.making import skip_bad_option, train_device_option
from trisense.errors import BadInput

# So many samples are read, encoded and looked at.
SOME = 48


@click.command()
@click.argument("recipe")
@click.argument("data")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", metavar="NAME", help="Of the recipe; default: the first that learns from conversations.")
@click.option("--media", type=click.Path(path_type=Path), metavar="FOLDER", help="Of its pictures; default: its own.")
@skip_bad_option
@click.option("--after", type=click.Path(path_type=Path), metavar="FOLDER", help="Trained parts; default: new ones.")
@seed_option
@train_device_option
@json_option
def doctor(
    recipe: str,
    data: str,
    overrides: tuple[str, ...],
    stage: str | None,
    media: Path | None,
    skip_bad: int,
    after: Path | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Look for what is wrong with a stage of RECIPE on DATA before anything is trained.

    Shows three samples as the model reads them (pictures and sounds cyan, what is learned green), then one line for
    every check. Ends with 2 when one is WRONG.

    \b
    trisense doctor jnana captions_train2017.json --media train2017
    """
    need("train", "torch", "transformers", "peft")
    from trisense.recipe import read
    from trisense.stage import FileStage
    from trisense.train.doctor import examine, shown
    from trisense.train.files import get_ready

    chosen = read(recipe, overrides)
    name = stage or next((key for key, one in chosen.stages.items() if isinstance(one, FileStage)), None)
    if name is None:
        raise BadInput(f"recipe {recipe} has no stage that learns from conversations, and no other is looked at")
    if name in chosen.stages:  # without the stages before it, whose trained parts it would ask for
        chosen = chosen.model_copy(update={"stages": {name: chosen.stages[name]}})
    with TemporaryDirectory(prefix="trisense-doctor-") as folder:
        options: dict[str, Any] = {"media": media, "after": after, "device": device, "seed": seed, "skip_bad": skip_bad}
        with redirect_stdout(sys.stderr):  # what is said of features is no part of the result
            ready = get_ready(chosen, name, data, Path(folder), **options, some=SOME)
        if not as_json:
            for sample in shown(ready, colour=sys.stdout.isatty()):
                click.echo(f"{sample}\n")
        checks = examine(ready)
    if as_json:
        print_json(stage=name, checks=[{"name": one.name, "ok": one.ok, "said": one.said} for one in checks])
    else:
        for check in checks:
            click.echo(str(check))
    if wrong := [check.name for check in checks if not check.ok]:
        raise BadInput(f"doctor: {len(wrong)} of {len(checks)} checks are wrong: {', '.join(wrong)}")


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--data",
    required=True,
    metavar="FILE",
    help="coco or llava for their published counts, or what a stage would learn from.",
)
@click.option("--media", type=click.Path(path_type=Path), metavar="FOLDER", help="Of its pictures; default: its own.")
@click.option("--gpu", metavar="MEMORY", help="Of one GPU, such as 24GB.")
@click.option("--gpus", type=click.IntRange(1), default=1, show_default=True, help="How many of them.")
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cpu: the memory of a process that trains on this machine.",
)
@click.option("--stage", metavar="NAME", help="Of the recipe; default: all that learn from conversations.")
@click.option(
    "--tflops",
    type=click.FloatRange(min=0, min_open=True),
    help="What one device can do at most; default: the slowest known GPU with so much memory, or this CPU as measured.",
)
@click.option(
    "--mfu",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Share of that which training reaches; default, an assumption: 0.3 on a GPU, 0.5 on a CPU.",
)
@seed_option
@json_option
def plan(
    recipe: str,
    overrides: tuple[str, ...],
    data: str,
    media: Path | None,
    gpu: str | None,
    gpus: int,
    device: str,
    stage: str | None,
    tflops: float | None,
    mfu: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Predict memory, batch, time and disk of RECIPE's stages before they cost anything.

    Nothing is loaded or downloaded for the packaged recipes on published data. Memory on a CPU was measured; on GPUs it
    never was yet.

    \b
    trisense plan jnana --gpu 24GB --gpus 4 --data coco
    """
    need("train", "torch", "transformers", "peft")
    from trisense.measure.plan import bytes_of, look_at, plan_stage
    from trisense.recipe import read
    from trisense.stage import FileStage

    room = None if gpu is None else bytes_of(gpu)
    if device == "cpu" and (room or gpus > 1):
        raise BadInput("--device cpu: has no --gpu and no --gpus; leave them out")
    chosen = read(recipe, overrides)
    names = [stage] if stage else [key for key, one in chosen.stages.items() if isinstance(one, FileStage)]
    if not names:
        raise BadInput(f"recipe {recipe} has no stage that learns from conversations, and no other is planned")
    options: dict[str, Any] = {"device": device, "room": room, "gpus": gpus, "speed": tflops and tflops * 1e12}
    plans = []
    for name in names:
        found = look_at(chosen, name, data, media, seed)
        plans.append((found, plan_stage(chosen, name, found, **options, mfu=mfu)))
    if as_json:
        stages = [{"data": found.title, "samples": found.samples, **one.to_dict()} for found, one in plans]
        return print_json(recipe=chosen.name, stages=stages)
    for found, one in plans:
        click.echo(f"{one}\n  {'data':<44}{found.title}: {found.samples:,} samples\n")
    if device == "cuda":
        click.echo("Predicted; on GPUs this was never yet measured. On CPUs it was: docs/plan.md.")
