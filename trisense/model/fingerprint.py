"""Which weights a pretrained part holds, in a few bytes: what was trained beside it is not put beside others."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from trisense.engines import HUB_ID
from trisense.model.parts import located
from trisense.recipe import Design

# As transformers writes and finds them, the first kind that is there; large ones are cut into numbered files.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Pieces of a file that are looked at, and their bytes: any training changes nearly every number, so a sample tells, and
# gigabytes are not read.
PIECES, BYTES = 1024, 64


def fingerprints(design: Design) -> dict[str, str]:
    """design part (`text`, `vision`, `audio`) -> fingerprint of its weights, for the pretrained parts at hand."""
    found: dict[str, str] = {}
    for part in ("text", "vision", "audio"):
        name = (getattr(design, part) or {}).get("pretrained")
        if isinstance(name, str) and (files := _weights(name)):
            found[part] = fingerprint(files)
    return found


def fingerprint(files: list[Path]) -> str:
    """Of their sizes, beginnings and samples of what follows; 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            # The header of safetensors names every tensor with its shape.
            digest.update(file.read(1 << 16))
            for piece in range(PIECES):
                file.seek(piece * max(0, size - BYTES) // (PIECES - 1))
                digest.update(file.read(BYTES))
    return digest.hexdigest()


def _weights(name: str) -> list[Path]:
    """The files with the weights of a folder, or of a repository that was downloaded; none where there are none."""
    folder = Path(located(name))
    if not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json") if HUB_ID.fullmatch(name) else None
        if not isinstance(config, str):
            return []
        folder = Path(config).parent
    for whole in WEIGHTS:
        stem, _, kind = whole.rpartition(".")
        if (folder / f"{whole}.index.json").is_file():
            return sorted(folder.glob(f"{stem}-*.{kind}"))
        if (folder / whole).is_file():
            return [folder / whole]
    return []
