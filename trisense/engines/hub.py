"""Models of the Hub, downloaded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trisense.errors import BadInput


def download(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a model of the Hub, downloaded or from the cache: its files that match one of `patterns`.

    Raises BadInput when neither has it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{name}: no such folder, and not to be had from the Hub ({reason}); give the folder of a model"
        ) from None
