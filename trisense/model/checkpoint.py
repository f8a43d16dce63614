"""Loading a model folder, strictly: every weight the model has, and no other; and the device it goes to."""

from __future__ import annotations

import json
import logging as levels
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from trisense.errors import BadInput
from trisense.model.configuration import TrisenseConfig
from trisense.model.modeling import TrisenseForConditionalGeneration


def load_model(folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> TrisenseForConditionalGeneration:
    """The model of a folder (config.json, model.safetensors), on the CPU.

    dtype: None keeps the checkpoint's own. Raises BadInput for a folder that is no such model, for weights that are
    missing, too many or of another shape, and for files that cannot be read, each in one line.
    """
    folder = Path(folder)
    config = load_config(folder)
    with quiet():
        try:
            loaded: Any = TrisenseForConditionalGeneration.from_pretrained(
                folder,
                config=config,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported below, with the others
                output_loading_info=True,
            )
        except (SafetensorError, OSError, ValueError) as error:
            raise BadInput(f"{folder}: its weights cannot be read ({first_line(error)})") from None
    model, info = loaded
    for key, what in (
        ("missing_keys", "lack"),
        ("unexpected_keys", "have one too many:"),
        ("mismatched_keys", "have the wrong shape for"),
    ):
        if names := sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info[key]):
            raise BadInput(f"{folder}: the weights {what} {names[0]} ({len(names)} such); config.json asks otherwise")
    return model


def is_model_folder(folder: Path) -> bool:
    """Whether a folder says of itself that it holds a whole model of this package."""
    try:
        return json.loads((folder / "config.json").read_bytes())["model_type"] == TrisenseConfig.model_type
    except (OSError, ValueError, LookupError, TypeError):
        return False


def open_device(name: str | None = None) -> torch.device:
    """A device of torch; None or `auto`: a GPU where there is one. Raises BadInput for one that is not there."""
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise BadInput(f"device {name}: {str(error).splitlines()[0]}") from None
    return device


def load_config(folder: Path) -> TrisenseConfig:
    """The config of a model folder. Raises BadInput for a folder that is no such model, in one line."""
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(f"{path}: no such file; expected the folder of a torch model")
    with quiet():
        try:
            values, _ = TrisenseConfig.get_config_dict(folder)
            if (kind := values.get("model_type")) != TrisenseConfig.model_type:
                raise BadInput(f"{path}: model_type is {kind!r}; expected {TrisenseConfig.model_type!r}")
            return TrisenseConfig.from_pretrained(folder)
        except BadInput as error:
            raise BadInput(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
        except Exception as error:  # whatever a config of unknown content makes its classes raise
            raise BadInput(f"{path}: not a config of this model ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What an error says in its first line, or its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own table of keys and progress bars: what is wrong is said in one line."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
