"""RefCOCO's own files: `refs(unc).p` and its like, a pickle of plain values, or the same as JSON."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from trisense.data.sources.coco import Coco, Referring
from trisense.data.sources.stores import Store
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor

INSTANCES = "instances.json"


class _Plain(pickle.Unpickler):
    """Lists, dicts, strings and numbers. A pickle can name any code to run; here it can name none."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, and only plain values are read")


def is_refs(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "sentences" in content[0]


def is_pickle(head: bytes) -> bool:
    """Whether a file begins as pickles of a list do: with their protocol, or (protocol 0 and 1) with a list."""
    return head[:1] == b"\x80" or head[:3] == b"(lp" or head[:2] in (b"]q", b"]r")


def read_refs(file: Path) -> list[Any]:
    """Raises BadInput for what is no list of RefCOCO's expressions."""
    try:
        with file.open("rb") as opened:
            pickled = is_pickle(opened.peek(3))
            # Python 2 wrote the published ones.
            content = _Plain(opened, encoding="latin-1").load() if pickled else json.load(opened)
    except Exception as error:  # damaged pickles raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{file}: cannot be read ({reason}); expected RefCOCO's refs, a pickle or JSON") from None
    if not is_refs(content):
        raise BadInput(f"{file}: expected RefCOCO's refs, a list of objects with `sentences`")
    return content


def open_refs(file: Path, store: Store, pictures: ImageProcessor | None) -> Referring:
    """The expressions of the split `train`, of boxes in the file instances.json beside them; all where none says its
    split. Raises BadInput when that file is missing, or no expression is left."""
    instances = file.parent / INSTANCES
    if not instances.is_file():
        raise BadInput(f"{instances}: no such file; the boxes of {file.name} are in it, put it beside")
    everything = read_refs(file)
    refs: list[tuple[Any, str]] = []
    left_out: dict[str, int] = {}
    for ref in everything:
        split = ref.get("split", "train") if isinstance(ref, dict) else "train"
        sentences = ref.get("sentences") if isinstance(ref, dict) else None
        for one in sentences if isinstance(sentences, list) else [None]:
            if split != "train":
                left_out[f"of the split {split}"] = left_out.get(f"of the split {split}", 0) + 2
                continue
            text = one.get("sent", one.get("raw")) if isinstance(one, dict) else one
            refs.append((ref.get("ann_id") if isinstance(ref, dict) else None, text))  # pyright: ignore[reportArgumentType]
    if not refs:
        raise BadInput(f"{file}: no expression of the split 'train' in it; only those are learned from")
    coco = Coco(instances)
    if not coco.complete:
        raise BadInput(f"{instances}: expected COCO's form, lists under `images` and `annotations`")
    source = Referring(file, coco, store, pictures, refs)
    source.left_out = left_out
    return source
