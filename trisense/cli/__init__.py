"""The command `trisense`: every door of the package from a shell.

Each command imports what it needs inside its own function, so that `trisense --help` costs nothing but click and
`trisense ask` never pays for training. What the user got wrong is one line on stderr and exit code 2.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence

import click

from trisense import __version__
from trisense.cli.answering import ask, serve, transcribe
from trisense.cli.checking import doctor, plan
from trisense.cli.converting import export, import_parts, push
from trisense.cli.making import recipes, world
from trisense.cli.measuring import bench, evaluate
from trisense.cli.tuning import train
from trisense.errors import BadInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return the exit code.

    0 fine, 2 the user gave something that cannot be used, 130 interrupted. Where nobody reads the output any more,
    click itself ends the process quietly with 1.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    # It misses a kernel of the Hub's on CPUs with bf16, which nothing here uses, whatever is asked.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
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


for command in (
    ask,
    serve,
    transcribe,
    recipes,
    plan,
    train,
    doctor,
    import_parts,
    export,
    push,
    evaluate,
    bench,
    world,
):
    commands.add_command(command)
