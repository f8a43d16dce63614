"""Engines: what computes an answer. `open_engine` finds the one for a model."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trisense.engines.hub import download
from trisense.engines.protocol import Engine, State
from trisense.errors import BadInput

PACKAGED = Path(__file__).resolve().parent.parent / "spark"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Configs, weights, tokenizers and chat templates; never code.
DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]

__all__ = ["Engine", "State", "open_engine"]


def open_engine(model: str | os.PathLike[str] = "spark", device: str | None = None) -> Engine:
    """The engine for `spark` (in the package), a folder of ONNX parts, a folder of a torch model, or a Hub id.

    A torch model is one of this package, or any of transformers that writes text: its files say which, not its name.

    device: None for the engine's own choice, or `cpu`, `cuda`, ... (ONNX parts: `cpu` only).
    Raises BadInput when there is no such model or the folder is not a whole one.
    """
    name = os.fspath(model)
    if name == "spark":
        if not PACKAGED.is_dir():
            raise BadInput("spark: this copy of the package does not contain the model; give a folder with --model")
        name = str(PACKAGED)
    folder = Path(name)
    if folder.is_dir():
        # Clones of the Hub may hold other programs' ONNX parts beside their weights.
        parts = (folder / "onnx").is_dir() and not any(folder.glob("*.safetensors"))
        if (folder / "export.json").is_file() or parts:
            from trisense.engines.onnx import OnnxEngine

            return OnnxEngine(folder, device)
        if not any((folder / file).is_file() for file in ("config.json", "recipe.json")):
            raise BadInput(
                f"{folder}: not a model folder; expected export.json (ONNX parts), config.json (a torch model) or "
                "recipe.json (trained parts)"
            )
    elif folder.exists():
        raise BadInput(f"{folder}: a file; expected a model folder")
    elif not HUB_ID.fullmatch(name) or name.startswith("."):
        raise BadInput(f"{name}: no such folder; expected 'spark', a model folder, or a Hub id such as owner/model")
    # Where the light wing meets torch: only here, and only for a model that needs it.
    try:
        from trisense.engines.foreign import ForeignEngine
        from trisense.engines.local import LocalEngine
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{name}: running a torch model needs {error.name}; install 'trisense[train]', or export the model with "
            "`trisense export onnx`"
        ) from None
    called = None
    if not folder.is_dir():
        folder, called = download(name, DOWNLOADED), name
    engine = LocalEngine if LocalEngine.opens(folder) else ForeignEngine
    return engine(folder, device, called)
