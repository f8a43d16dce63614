"""The command `trisense`: every door of the package from a shell.

Each command imports what it needs inside its own function, so that `trisense --help` costs nothing but click and
`trisense ask` never pays for training. What the user got wrong is one line on stderr and exit code 2.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import click

from trisense import __version__
from trisense.errors import BadInput

IMPORTED = time.perf_counter()
MAX_TEXT_BYTES = 1 << 20  # far more than any model's context holds; a typo that names a film should not be read whole

model_option = click.option(
    "--model", default="spark", show_default=True, metavar="NAME", help="spark, a model folder, or a Hub id."
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Where chance starts.")
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
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return the exit code.

    0 fine, 2 the user gave something that cannot be used, 130 interrupted. Where nobody reads the output any more,
    click itself ends the process quietly with 1.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character shows `?`, not a traceback
            stream.reconfigure(errors="replace")
    try:
        code = commands.main(arguments, prog_name="trisense", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except BadInput as error:
        return _refuse(str(error))
    except click.exceptions.NoArgsIsHelpError as error:  # `trisense train` alone asks what there is to train
        click.echo(error.format_message())
        return 0
    except click.ClickException as error:
        return _refuse(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")


def _refuse(message: str) -> int:
    click.echo(f"trisense: {' '.join(message.split())}", err=True)
    return 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def commands(context: click.Context) -> None:
    """Ask questions about pictures, sound and text; train the model that answers."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@commands.command()
@model_option
@click.option("--image", "images", multiple=True, metavar="FILE", help="A picture; may be given more than once.")
@click.option("--audio", "audios", multiple=True, metavar="FILE", help="A sound; may be given more than once.")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="Something written; may be given more than once.")
@click.option("--text-file", "text_files", multiple=True, metavar="FILE", help="The same, from a UTF-8 file.")
@json_option
@click.option("--verbose", is_flag=True, help="Also print what was given and the times.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Length of the answer.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest words.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Ignore unlikely words beyond this share.",
)
@click.option("--seed", type=int, help="Where chance starts, for a temperature above 0.")
@click.option("--device", metavar="DEVICE", help="Where the model runs, such as cpu or cuda.")
@click.argument("question")
def ask(
    model: str,
    images: tuple[str, ...],
    audios: tuple[str, ...],
    texts: tuple[str, ...],
    text_files: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    device: str | None,
    question: str,
) -> None:
    """Answer QUESTION about pictures, sounds and texts. A QUESTION of - is read from stdin.

    \b
    trisense ask --image kitchen.jpg "What is left of the cup?"
    trisense ask --audio note.ogg --text-file plan.txt "Who is late?"
    """
    if question == "-":
        question = _decode(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "the question on stdin").strip()
    if not question.strip():
        raise BadInput("the question is empty: write it as the last argument, or pipe it in with -")
    if not all(text.strip() for text in texts):
        raise BadInput("--text is empty: write what is to be read, or leave it out")
    texts += tuple(_read_text(file) for file in text_files)
    if verbose and not as_json:
        given = [("image", image) for image in images] + [("audio", audio) for audio in audios]
        for label, value in [*given, *(("text", text) for text in texts), ("question", question)]:
            click.echo(f"{label + ':':<10}{' '.join(value.split())}")

    from trisense.assistant.assistant import Assistant
    from trisense.chat import Conversation

    conversation = Conversation.ask(question, images=images, audios=audios, texts=texts)
    assistant = Assistant.from_pretrained(model, device=device)
    options = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if as_json:
        before = _process_seconds()
        answer = assistant.answer(conversation, **options)
        seconds = {
            "first_token": round(before + answer.first_token_seconds, 3),
            "command": round(_process_seconds(), 3),
        }
        _print_json(
            model=model,
            question=question,
            answer=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            seconds=seconds,
        )
        return
    if verbose:
        click.echo(f"{'answer:':<10}", nl=False)
    first = None
    for piece in assistant.stream(conversation, **options):
        first = first or _process_seconds()
        click.echo(piece, nl=False)  # flushes, so that every piece shows as it comes
    click.echo()
    if verbose:
        whole = _process_seconds()
        click.echo(f"{'times:':<10}{first or whole:.2f} s to the first word, {whole:.2f} s in all")


@commands.command()
@model_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
def serve(model: str, host: str, port: int) -> None:
    """Open the chat page and the OpenAI-compatible HTTP API."""
    from trisense.serve.api import run

    run(model=model, host=host, port=port)


@commands.group()
def train() -> None:
    """Train a model."""


@train.command("spark")
@out_option
@train_device_option
@seed_option
@click.option("--bank", type=click.Path(path_type=Path, file_okay=False), help="Folder of drawn and spoken samples.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def train_spark(out: Path, device: str, seed: int, bank: Path | None, overrides: tuple[str, ...]) -> None:
    """Train spark from nothing on the small world. KEY=VALUE changes the recipe. A run that was stopped goes on.

    \b
    trisense train spark --out runs/spark stages.answer.steps=2000
    """
    from trisense.recipe import read

    recipe = read("spark", overrides)
    _need("train", "torch", "transformers", "accelerate", "espeakng_loader")
    from trisense.train.spark import train_spark as run

    click.echo(f"wrote {run(recipe, out, device, seed, bank)}")


@commands.group()
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
    _need("world", "espeakng_loader")
    from trisense.measure.evaluate import world

    table = world(model, device=device, seed=seed, **({} if count is None else {"n": count}))
    if as_json:
        _print_json(**table.to_dict())
    else:
        click.echo(str(table))


@train.command("stage")
@click.argument("recipe")
@click.argument("stage")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE", help="What to learn from.")
@click.option("--media", type=click.Path(path_type=Path), metavar="FOLDER", help="Of its pictures; default: its own.")
@out_option
@click.option("--after", type=click.Path(path_type=Path), metavar="FOLDER", help="Trained parts to begin with.")
@seed_option
@train_device_option
def train_stage(
    recipe: str,
    stage: str,
    overrides: tuple[str, ...],
    data: Path,
    media: Path | None,
    out: Path,
    after: Path | None,
    seed: int,
    device: str,
) -> None:
    """Train STAGE of RECIPE on FILE: LLaVA-Instruct, COCO captions, or JSON lines of conversations.

    \b
    trisense train stage jnana align --data captions_train2017.json --media train2017 --out runs/jnana
    trisense train stage jnana instruct --data llava_instruct_150k.json --media train2017 --out runs/jnana
    """
    _need("train", "torch", "transformers", "peft")
    from trisense.recipe import read
    from trisense.train.files import train_stage as run

    folder = run(read(recipe, overrides), stage, data, out, media=media, after=after, device=device, seed=seed)
    click.echo(f"wrote {folder}")


@commands.group()
def export() -> None:
    """Turn a trained model into another form."""


@export.command("onnx")
@click.option(
    "--weights", type=click.Choice(["float32", "int8"]), default="int8", show_default=True, help="How they are stored."
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path, file_okay=False))
def export_onnx(weights: Literal["float32", "int8"], folder: Path, out: Path | None) -> None:
    """Write the model in FOLDER for ONNX Runtime, to OUT (default: FOLDER-onnx), which then answers without torch."""
    _need("train", "torch", "transformers", "onnx", "onnxscript")
    from trisense.model.export import export_onnx as run

    out = out or folder.with_name(folder.name + "-onnx")
    run(folder, out, weights)
    click.echo(f"wrote {out}")


@commands.command()
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
    _need("world", "espeakng_loader")
    from trisense.data.world.samples import write

    write(out, count, seed, split)
    click.echo(f"wrote {count} samples to {out}")


@commands.command()
@click.argument("name", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def recipes(name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """List the recipes, or print the one called NAME with every default filled in.

    Below it, as comments, stand the parameters and bytes of its parts, counted without loading a weight.
    """
    from trisense.recipe import names, read

    if name is None:
        listed = [read(packaged) for packaged in names()]
        if as_json:
            return _print_json(recipes=[one.model_dump(mode="json", exclude_unset=True) for one in listed])
        for one in listed:
            click.echo(f"{one.name:<14}{one.description}")
            for stage, options in one.stages.items():
                click.echo(f"{'':<14}{stage}: {options.learned_from}")
        return
    recipe = read(name, overrides)
    counted = None
    if all(find_spec(module) for module in ("torch", "transformers", "peft")):
        from trisense.model.parts import count_parts

        counted = count_parts(recipe.design)
    if as_json:
        parts = counted and [asdict(part) for part in counted]
        return _print_json(recipe=recipe.model_dump(mode="json"), parts=parts)
    import yaml

    click.echo(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), nl=False)
    if counted is None:
        click.echo("# parameters and bytes of its parts: pip install 'trisense[train]'")
        return
    for part in counted:
        click.echo(f"# {part.name:<16}{part.parameters:>15,}{part.size / 1e6:>10,.1f} MB  {part.kept}")
    click.echo(f"# {'all':<16}{'':>15}{sum(part.size for part in counted) / 1e6:>10,.1f} MB  and what a batch takes")


def _need(extra: str, *modules: str) -> None:
    """Say which extra to install when a module that a command needs is not there."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise BadInput(f"this command needs {', '.join(missing)}: pip install 'trisense[{extra}]'")


def _read_text(file: str) -> str:
    """The UTF-8 text of `file`, which is not empty. Raises BadInput, naming it."""
    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read as a text file ({getattr(error, 'strerror', None) or error})") from None
    if text := _decode(data, file).strip():
        return text
    raise BadInput(f"{file}: holds no text, expected some: write it, or leave the file out")


def _decode(data: bytes, name: str) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise BadInput(f"{name}: longer than {MAX_TEXT_BYTES >> 20} MiB, expected a short text: give a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{name}: not UTF-8 text: save it as UTF-8, or give pictures and sounds as such") from None


def _print_json(**record: object) -> None:
    click.echo(json.dumps(record, ensure_ascii=False))


def _process_seconds() -> float:
    """Seconds since this process began, so that the start of Python itself counts too.

    Read from the kernel where it tells (Linux, in steps of 10 ms), else counted from this module's import.
    """
    try:
        # Field 22 of proc(5)'s stat, counted after the name in brackets, which may hold blanks: clock ticks since boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - IMPORTED
