"""Commands that turn models into other forms and pass them on: `export`, `import`, `push`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from trisense.cli.common import need

source_argument = click.argument("folder", type=click.Path(path_type=Path))
target_argument = click.argument("out", required=False, type=click.Path(path_type=Path, file_okay=False))
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the weights on disk.",
)


@click.group()
def export() -> None:
    """Turn a trained model into another form."""


@export.command("onnx")
@click.option(
    "--weights",
    type=click.Choice(["float32", "float16", "int8", "int4"]),
    default="int8",
    show_default=True,
    help="How they are stored; int4 keeps the language model's in 4 bits, the rest in 8.",
)
@source_argument
@target_argument
def export_onnx(weights: Literal["float32", "float16", "int8", "int4"], folder: Path, out: Path | None) -> None:
    """Write the model in FOLDER for ONNX Runtime, to OUT (default: FOLDER-onnx), which then answers without torch."""
    need("train", "torch", "transformers", "onnx", "onnxscript")
    from trisense.model.export import export_onnx as run

    out = out or folder.with_name(folder.name + "-onnx")
    run(folder, out, weights)
    click.echo(f"wrote {out}")


@export.command("merged")
@dtype_option
@source_argument
@target_argument
def export_merged(dtype: Literal["float32", "bfloat16", "float16"], folder: Path, out: Path | None) -> None:
    """Write the trained parts in FOLDER with the pretrained ones as one model of transformers, to OUT (default:
    FOLDER-merged); the adapter is added to the weights."""
    need("train", "torch", "transformers", "peft")
    from trisense.model.merge import merge

    out = out or folder.with_name(folder.name + "-merged")
    merge(folder, out, dtype)
    click.echo(f"wrote {out}")


@export.command("llava")
@dtype_option
@source_argument
@target_argument
def export_llava(dtype: Literal["float32", "bfloat16", "float16"], folder: Path, out: Path | None) -> None:
    """Write the model or trained parts in FOLDER as LLaVA, to OUT (default: FOLDER-llava), where the design fits."""
    need("train", "torch", "transformers", "peft")
    from trisense.model.llava import export_llava as run

    out = out or folder.with_name(folder.name + "-llava")
    run(folder, out, dtype)
    click.echo(f"wrote {out}")


@click.command("import")
@click.option(
    "--projector",
    "projectors",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A state dict of the projector; may be given more than once, in order.",
)
@click.option("--adapter", type=click.Path(path_type=Path), metavar="FOLDER", help="As peft writes it.")
@click.option("--stage", help="Whose layout they were trained with; default: what the parts suggest.")
@click.argument("recipe")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def import_parts(
    projectors: tuple[Path, ...],
    adapter: Path | None,
    stage: str | None,
    recipe: str,
    out: Path,
    overrides: tuple[str, ...],
) -> None:
    """Make parts that others trained for a design those of RECIPE, in OUT.

    \b
    trisense import --projector linear.pth --adapter qlora tinyclip-phi2 runs/theirs
    """
    need("train", "torch", "transformers", "peft")
    from trisense.model.imported import import_parts as run
    from trisense.recipe import read

    run(projectors, read(recipe, overrides), out, adapter=adapter, stage=stage)
    click.echo(f"wrote {out}")


@click.command()
@click.option("--private", is_flag=True, help="Make the repository a private one, where it is new.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repository")
def push(private: bool, folder: Path, repository: str) -> None:
    """Upload the model in FOLDER, with its card, to REPOSITORY (owner/name) of the Hub."""
    need("train", "torch", "transformers", "huggingface_hub")
    from trisense.model.publish import push as run

    click.echo(f"pushed to {run(folder, repository, private)}")
