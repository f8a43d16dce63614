"""Commands that measure: `evaluate` how well a model answers, `bench` how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from trisense.cli.common import json_option, model_option, need, print_json, seed_option
from trisense.errors import BadInput


@click.group()
def evaluate() -> None:
    """Measure a model."""


@evaluate.command("world")
@model_option
@click.option("--n", "count", type=click.IntRange(1), help="Questions in every row of the table.")
@seed_option
@json_option
@click.option("--device", metavar="DEVICE", help="Where the model runs, such as cpu or cuda.")
def evaluate_world(model: str, count: int | None, seed: int, as_json: bool, device: str | None) -> None:
    """Exact answers on held-out samples of the small world, with counts and 95 % intervals."""
    need("world", "espeakng_loader")
    from trisense.measure.evaluate import world

    table = world(model, device=device, seed=seed, **({} if count is None else {"n": count}))
    if as_json:
        print_json(**table.to_dict())
    else:
        click.echo(str(table))


@evaluate.command("real")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="A pack of real data.")
@model_option
@click.option("--n", "count", type=click.IntRange(1), default=200, show_default=True, help="Questions of each task.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this one; may be given more than once.")
@seed_option
@json_option
@click.option("--device", metavar="DEVICE", help="Where the model runs, such as cpu or cuda.")
def evaluate_real(
    data: Path, model: str, count: int, tasks: tuple[str, ...], seed: int, as_json: bool, device: str | None
) -> None:
    """Real pictures, sounds and texts of a pack's dev split, each task by its own measure, with 95 % intervals."""
    need("world", "espeakng_loader")
    need("parquet", "pyarrow")
    from trisense.data.real.pack import Pack
    from trisense.measure.real import real

    table = real(model, Pack(data), count, tasks, seed, device)
    if as_json:
        print_json(**table.to_dict())
    else:
        click.echo(str(table))


@evaluate.command("honesty")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="A pack of real data.")
@model_option
@click.option("--n", "count", type=click.IntRange(1), default=100, show_default=True, help="Questions of each kind.")
@seed_option
@json_option
@click.option("--device", metavar="DEVICE", help="Where the model runs, such as cpu or cuda.")
def evaluate_honesty(data: Path, model: str, count: int, seed: int, as_json: bool, device: str | None) -> None:
    """Whether a model says so where it cannot tell: things never learned, pictures of nothing, noise."""
    need("world", "espeakng_loader")
    need("parquet", "pyarrow")
    from trisense.data.real.pack import Pack
    from trisense.measure.honesty import honesty

    table = honesty(model, Pack(data), count, seed, device)
    if as_json:
        print_json(**table.to_dict())
    else:
        click.echo(str(table))


@click.group()
def bench() -> None:
    """Measure speed, beside what a user would take instead."""


@bench.command("train")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice(["align", "instruct"]),
    help="align: the projector alone learns; instruct: LoRA too. May be given more than once; default: both.",
)
@click.option(
    "--size",
    type=click.Choice(["small", "phi-2", "phi-3.5", "tiny"]),
    default="small",
    show_default=True,
    help="Of the language model, with random weights: 78 M like phi-2, or the published shapes.",
)
@click.option(
    "--tokens", type=click.IntRange(1), default=640, show_default=True, help="In a packed row of this package."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of which medians are taken.")
@click.option(
    "--peak",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TFLOPS",
    help="What the device can do at most; default: its fastest matrix product here.",
)
@click.option("--options", is_flag=True, help="Measure options of a stage instead, each beside the stage without it.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU; default: torch's.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU where there is one.",
)
@seed_option
@json_option
def bench_train(
    stages: tuple[Literal["align", "instruct"], ...],
    size: str,
    tokens: int,
    rounds: int,
    peak: float | None,
    options: bool,
    threads: int | None,
    device: str,
    seed: int,
    as_json: bool,
) -> None:
    """Training steps of this package beside those of transformers' LLaVA and of one forward per token.

    Equal weights and samples; that the losses agree is checked. Prints a table with medians.
    """
    need("train", "torch", "transformers", "peft")
    import torch

    from trisense.measure.bench import bench_train as run
    from trisense.measure.options import bench_options

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no GPU here; give cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads:
        torch.set_num_threads(threads)
    kinds, alike = stages or ("align", "instruct"), {"device": device, "tokens": tokens, "rounds": rounds, "seed": seed}
    if options and peak:
        raise BadInput("--peak: --options measures no share of it; leave one out")
    if options:
        report = bench_options(kinds, size, **alike)
    else:
        report = run(kinds, size, peak=peak and peak * 1e12, **alike)
    if as_json:
        print_json(**report.to_dict())
    else:
        click.echo(str(report))


@bench.command("spark")
@click.option("--model", default="spark", show_default=True, metavar="FOLDER", help="An export with its torch weights.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Of which medians are taken.")
@json_option
def bench_spark(model: str, rounds: int, as_json: bool) -> None:
    """How fast spark answers, beside transformers' generate on the same weights.

    From the shell to the first word; from a picture, 5 s of sound and 100 words to the first token once it is loaded;
    tokens a second. Both sides in turn, medians.
    """
    need("train", "torch", "transformers", "accelerate")
    from trisense.measure.answering import bench_spark as run

    speed = run(model, rounds)
    if as_json:
        print_json(**speed.to_dict())
    else:
        click.echo(str(speed))
