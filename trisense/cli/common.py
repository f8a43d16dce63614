"""What several commands share: options, and how a result or a missing extra is said."""

from __future__ import annotations

import json
from importlib.util import find_spec

import click

from trisense.errors import BadInput

model_option = click.option(
    "--model", default="spark", show_default=True, metavar="NAME", help="spark, a model folder, or a Hub id."
)
speech_option = click.option(
    "--speech",
    metavar="NAME",
    help="Whisper, a folder or a Hub id, to write down sounds; default: the recipe's, for a model without ears.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Where chance starts.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def need(extra: str, *modules: str) -> None:
    """Raises BadInput that says which extra to install when a module that a command needs is not there."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise BadInput(f"this command needs {', '.join(missing)}: pip install 'trisense[{extra}]'")


def print_json(**record: object) -> None:
    click.echo(json.dumps(record, ensure_ascii=False))
