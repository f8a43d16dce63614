"""Commands that make models: `recipes`, `train`, `world`."""

from __future__ import annotations

import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from trisense.cli.common import json_option, need, print_json, seed_option

if TYPE_CHECKING:
    from trisense.model.parts import Part
    from trisense.recipe import Recipe

out_option = click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the run."
)
train_device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu"]),
    default="auto",
    show_default=True,
    help="auto: a GPU where there is one.",
)
parallel_option = click.option(
    "--parallel",
    type=click.Choice(["ddp", "fsdp"]),
    default="ddp",
    show_default=True,
    help="How the processes that torchrun starts share the model: a copy in each, or a share in each.",
)
tracker_option = click.option(
    "--tracker", type=click.Choice(["wandb", "mlflow"]), help="Where the curves go besides TensorBoard."
)

skip_bad_option = click.option(
    "--skip-bad",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="At most so many damaged rows and samples without their picture are left out.",
)


@click.command()
@click.argument("name", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def recipes(name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the recipes, or print the one called NAME with every default filled in.

    Below it, as comments, stand the parameters and bytes of its parts, counted without loading a weight.
    """
    from trisense.recipe import names, read

    if name is None:
        listed = [(one, _counted(one)) for one in map(read, names())]
        if as_json:
            return print_json(
                recipes=[
                    {**one.model_dump(mode="json", exclude_unset=True), "bytes": parts and _bytes(parts)}
                    for one, parts in listed
                ]
            )
        twins = {one.name for one, _ in listed if "@" in one.name}
        for one, parts in listed:
            if one.name in twins:
                continue
            click.echo(f"{one.name:<14}{one.description}")
            for stage, options in one.stages.items():
                click.echo(f"{'':<14}{stage}: {options.learned_from}")
            if parts:
                click.echo(f"{'':<14}memory: {_bytes(parts) / 1e9:.1f} GB to train, and what a batch takes")
            for twin in sorted(twin for twin in twins if twin.startswith(f"{one.name}@")):
                click.echo(f"{'':<14}twin: {twin}, the same design on spark's own parts, minutes on a CPU")
        return
    recipe = read(name, overrides)
    counted = _counted(recipe)
    if as_json:
        parts = counted and [{**asdict(part), "in_16_bits": part.in_16_bits} for part in counted]
        return print_json(recipe=recipe.model_dump(mode="json"), parts=parts)
    import yaml

    click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), nl=False)
    if counted is None:
        click.echo("# parameters and bytes of its parts: pip install 'trisense[train]'")
        return
    for part in counted:
        whole = f" ({part.in_16_bits / 1e6:,.1f} MB in 16 bits)" if part.kept == "nf4" else ""
        click.echo(f"# {part.name:<16}{part.parameters:>15,}{part.size / 1e6:>10,.1f} MB  {part.kept}{whole}")
    click.echo(f"# {'all':<16}{'':>15}{_bytes(counted) / 1e6:>10,.1f} MB  and what a batch takes")


def _counted(recipe: Recipe) -> list[Part] | None:
    """The parts of a recipe's design; None where the heavy wing, which knows them, is not installed."""
    if not all(find_spec(module) for module in ("torch", "transformers", "peft")):
        return None
    from trisense.model.parts import count_parts

    return count_parts(recipe.design, recipe.optimizer)


def _bytes(parts: list[Part]) -> int:
    return sum(part.size for part in parts)


# Questions of each row of the tables that a run with a budget ends with.
MEASURED = 100


@click.group()
def train() -> None:
    """Train a model."""


@train.command("spark")
@out_option
@train_device_option
@seed_option
@click.option("--bank", type=click.Path(path_type=Path, file_okay=False), help="Folder of drawn and spoken samples.")
@click.option("--data", type=click.Path(path_type=Path), metavar="FOLDER", help="Real data to learn from as well.")
@click.option(
    "--after", type=click.Path(path_type=Path), metavar="FOLDER", help="Model to begin with; default: nothing."
)
@click.option(
    "--budget", metavar="TIME", help="30m or 10h for all of it, in place of the recipe's steps; then a table."
)
@parallel_option
@tracker_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def train_spark(
    out: Path,
    device: str,
    seed: int,
    bank: Path | None,
    data: Path | None,
    after: Path | None,
    budget: str | None,
    parallel: Literal["ddp", "fsdp"],
    tracker: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Train spark from nothing on the small world and, with --data, on real data. KEY=VALUE changes the recipe.

    A run that was stopped goes on. With --budget the model is also exported, to OUT/onnx, and measured.

    \b
    trisense train spark --out runs/spark stages.answer.steps=2000
    trisense train spark --data PACK --budget 30m --out runs/spark
    """
    from trisense.recipe import read

    recipe = read("spark", overrides)
    need("train", "torch", "transformers", "accelerate", "espeakng_loader")
    from trisense.engines import PACKAGED
    from trisense.train.budget import seconds_of
    from trisense.train.spark import train_spark as run

    seconds = seconds_of(budget) if budget else None
    after = PACKAGED if after == Path("spark") else after
    how = {"data": data, "after": after, "seconds": seconds, "parallel": parallel, "tracker": tracker}
    folder = run(recipe, out, device, seed, bank, **how)
    wrote(folder)
    if seconds is not None and is_main():
        _package(folder, out, data)


def _package(model: Path, out: Path, data: Path | None) -> None:
    """Exports a trained spark to `out/onnx` and writes what it reaches to `out/table.md`."""
    from trisense.measure.evaluate import world as measure_world
    from trisense.model.export import export_onnx

    parts = out / "onnx"
    if not parts.exists():
        export_onnx(model, parts, "int8")
    tables = [str(measure_world(parts, MEASURED))]
    if data:
        from trisense.data.real.pack import Pack
        from trisense.measure.real import real

        tables.append(str(real(parts, Pack(data), MEASURED)))
    table = "\n\n".join(tables)
    (out / "table.md").write_text(table + "\n", encoding="utf-8")
    click.echo(f"wrote {parts}\n\n{table}")


@train.command("stage")
@click.argument("recipe")
@click.argument("stage")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", required=True, metavar="FILE", help="What to learn from: a file, folder, pattern or address.")
@click.option(
    "--media",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder or zip of its pictures; default: its own folder.",
)
@skip_bad_option
@out_option
@click.option("--after", type=click.Path(path_type=Path), metavar="FOLDER", help="Trained parts to begin with.")
@seed_option
@train_device_option
@parallel_option
@tracker_option
@click.option("--doctor/--no-doctor", default=True, show_default=True, help="Look for what is wrong before step 1.")
def train_stage(
    recipe: str,
    stage: str,
    overrides: tuple[str, ...],
    data: str,
    media: Path | None,
    skip_bad: int,
    out: Path,
    after: Path | None,
    seed: int,
    device: str,
    parallel: Literal["ddp", "fsdp"],
    tracker: str | None,
    doctor: bool,
) -> None:
    """Train STAGE of RECIPE on FILE: LLaVA's json, COCO's captions or boxes, JSON lines of OpenAI's messages, parquet,
    or WebDataset shards, with pictures in a folder, in a zip or in the file itself; a stage that learns language on
    text: .txt, .jsonl with `text`, or a folder of such.

    \b
    trisense train stage jnana align --data captions_train2017.json --media train2017 --out runs/jnana
    trisense train stage jnana instruct --data llava_instruct_150k.json --media train2017 --out runs/jnana
    trisense train stage shrunk-phi language --data texts --out runs/shrunk-phi
    """
    need("train", "torch", "transformers", "peft")
    from trisense.recipe import read
    from trisense.train.stages import train_stage as run

    how = {"device": device, "seed": seed, "skip_bad": skip_bad, "parallel": parallel, "tracker": tracker}
    wrote(run(read(recipe, overrides), stage, data, out, media=media, after=after, doctor=doctor, **how))


def is_main() -> bool:
    """Whether this is the first of the processes that torchrun has started, or alone."""
    return os.environ.get("RANK", "0") == "0"


def wrote(folder: Path) -> None:
    """Says so once, however many processes there are."""
    if is_main():
        click.echo(f"wrote {folder}")


@click.command()
@click.option("--n", "count", type=click.IntRange(1), default=20, show_default=True, help="How many samples.")
@seed_option
@click.option(
    "--split",
    type=click.Choice(["train", "test", "unseen"]),
    default="train",
    show_default=True,
    help="unseen: only pairs of colour and thing that training never shows.",
)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def world(count: int, seed: int, split: Literal["train", "test", "unseen"], out: Path) -> None:
    """Write samples of the small world to OUT as png, wav and jsonl, to look at and listen to."""
    need("world", "espeakng_loader")
    from trisense.data.world.samples import write

    write(out, count, seed, split)
    click.echo(f"wrote {count} samples to {out}")
