"""COCO's files and those in its form: captions, things with boxes, captions and expressions with boxes.

What an annotation holds decides: a `caption` (Chen et al. 2015, arXiv:1504.00325), a `bbox` and a category (Lin et al.
2014, arXiv:1405.0312), both a `caption` and a `bbox`, or a `bbox` and `tokens_positive`, the letters of the picture's
caption that name it (MDETR, Kamath et al. 2021, arXiv:2104.12763).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trisense.chat import Conversation, Image
from trisense.data.sources.boxes import DESCRIBE, FIND, seen_box, write_box
from trisense.data.sources.forms import captioned
from trisense.data.sources.source import CHECKED, DAMAGED, Source
from trisense.data.sources.stores import Store
from trisense.data.sources.walk import NONE, Reader, walk
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor

NO_ID = -(2**63)
DECIDING = {"caption", "bbox", "tokens_positive"}


class Coco:
    """`images`, `annotations` and `categories` of a file by their number, of which it keeps places only."""

    def __init__(self, file: Path):
        """Raises BadInput, naming the file, when it is no JSON."""
        self.file = file
        self.categories: dict[int, str] = {}
        self.holds: set[str] = set()  # keys that some annotation has
        ids = {"images": array("q"), "annotations": array("q")}
        of_image = array("q")

        def see(key: str, element: Any) -> None:
            one = element if isinstance(element, Mapping) else {}
            if key in ids:
                ids[key].append(_id(one.get("id")))
            if key == "annotations":
                of_image.append(_id(one.get("image_id")))
                self.holds.update(DECIDING & one.keys())
            if key == "categories" and isinstance(one.get("name"), str):
                self.categories[_id(one.get("id"))] = one["name"].encode("latin-1").decode("utf-8", "replace")

        found = walk(file, see)
        self.spans = {key: found.get(key, NONE) for key in ids}
        self.complete = set(ids) <= set(found)
        self.of_image = _numbers(of_image)  # id of the picture of each annotation
        self._orders = {key: np.argsort(_numbers(ids[key]), kind="stable") for key in ids}
        self._ids = {key: _numbers(ids[key])[self._orders[key]] for key in ids}
        self._read = Reader(file)

    def record(self, key: str, number: int) -> dict[str, Any]:
        found = self._read(self.spans[key], number)
        if not isinstance(found, dict):
            raise BadInput(f"expected an object, got {type(found).__name__}")
        return found

    def by_id(self, key: str, id: Any) -> dict[str, Any]:
        """The picture or annotation of an id. Raises BadInput when there is none."""
        wanted = _id(id)
        place = int(np.searchsorted(self._ids[key], wanted))
        if wanted == NO_ID or place == len(self._ids[key]) or self._ids[key][place] != wanted:
            raise BadInput(f"{self.file.name} has no {key[:-1]} of the id {id!r}")
        return self.record(key, int(self._orders[key][place]))

    def fingerprint(self) -> str:
        return digest(self.file)


class _OnPictures(Source):
    """What sources about a COCO file share. pictures: prepares pictures for the encoder, and so says what it sees."""

    def __init__(self, name: Path, coco: Coco, store: Store, pictures: ImageProcessor | None):
        self.name, self.coco, self.store, self.pictures = str(name), coco, store, pictures
        self.fingerprint = coco.fingerprint()
        self.left_out = {}
        store.adapt(self._some_names())

    def _some_names(self) -> list[str]:
        count = len(self.coco.spans["images"])
        numbers = np.unique(np.linspace(0, max(count - 1, 0), CHECKED).astype(np.int64)).tolist() if count else []
        names = []
        for number in numbers:
            try:
                names.append(str(self.coco.record("images", number)["file_name"]))
            except DAMAGED:
                continue
        return names

    def _shown(self, picture: Mapping[str, Any]) -> Image:
        name = picture["file_name"]
        if not isinstance(name, str) or not name:
            raise BadInput(f"file_name is {name!r}; expected the name of a picture")
        return Image(image=self.store.find(name))

    def _box(self, annotation: Mapping[str, Any], picture: Mapping[str, Any]) -> str | None:
        """The text of an annotation's box; None when the encoder sees too little of it."""
        box = seen_box(annotation["bbox"], picture["width"], picture["height"], self.pictures)
        return box and write_box(box)


class Captions(_OnPictures):
    """A picture, nothing asked, its caption."""

    def __len__(self) -> int:
        return len(self.coco.spans["annotations"])

    def where(self, index: int) -> str:
        return f"{self.name}: annotations[{index}]"

    def _make(self, index: int) -> Conversation:
        annotation = self.coco.record("annotations", index)
        picture = self.coco.by_id("images", annotation["image_id"])
        return captioned([self._shown(picture)], annotation["caption"])


class Things(_OnPictures):
    """A picture, nothing asked, what is on it: `dog [0.101, 0.220, 0.504, 0.733]; ball [...]`, the largest first.
    Crowds, which have one box for many, are left out."""

    def __init__(self, name: Path, coco: Coco, store: Store, pictures: ImageProcessor | None):
        super().__init__(name, coco, store, pictures)
        self._ids, self._groups = _grouped(coco.of_image)

    def __len__(self) -> int:
        return len(self._ids)

    def where(self, index: int) -> str:
        return f"{self.name}: image {self._ids[index]}"

    def _make(self, index: int) -> Conversation:
        picture = self.coco.by_id("images", int(self._ids[index]))
        found = [self.coco.record("annotations", number) for number in self._groups[index].tolist()]
        found = [one for one in found if not one.get("iscrowd")]
        written = []
        for one in sorted(found, key=lambda one: -one["bbox"][2] * one["bbox"][3]):
            if one["category_id"] not in self.coco.categories:
                raise BadInput(f"the file has no category of the id {one['category_id']!r}")
            if box := self._box(one, picture):
                written.append(f"{self.coco.categories[one['category_id']]} {box}")
        if not written:
            raise BadInput("none of its boxes lies in what the encoder sees; there is nothing to learn")
        return captioned([self._shown(picture)], "; ".join(written))


class Grounded(Things):
    """A picture, nothing asked, its caption with the box of each thing behind its name, as Shikra writes them:
    `A dog [0.101, 0.220, 0.504, 0.733] with a ball [...]`."""

    def _make(self, index: int) -> Conversation:
        picture = self.coco.by_id("images", int(self._ids[index]))
        caption = picture["caption"]
        boxes: dict[int, list[str]] = {}
        for number in self._groups[index].tolist():
            one = self.coco.record("annotations", number)
            if box := self._box(one, picture):
                boxes.setdefault(max(end for _, end in one["tokens_positive"]), []).append(box)
        for end in sorted(boxes, reverse=True):
            if not 0 < end <= len(caption):
                raise BadInput(f"tokens_positive ends at letter {end} of a caption of {len(caption)}")
            caption = f"{caption[:end]} {' '.join(boxes[end])}{caption[end:]}"
        return captioned([self._shown(picture)], caption)


class Referring(_OnPictures):
    """Which region an expression means, and what a region shows, one after the other: RefCOCO, RefCOCO+, RefCOCOg (Yu
    et al. 2016, arXiv:1608.00272; Mao et al. 2016, arXiv:1511.02283) and region captions."""

    def __init__(
        self,
        name: Path,
        coco: Coco,
        store: Store,
        pictures: ImageProcessor | None,
        refs: Sequence[tuple[Any, str]] | None = None,
    ):
        """refs: an annotation's id and an expression for it; default: the captions in the annotations themselves."""
        super().__init__(name, coco, store, pictures)
        self._refs = refs

    def __len__(self) -> int:
        return 2 * len(self.coco.spans["annotations"] if self._refs is None else self._refs)

    def where(self, index: int) -> str:
        row = index // 2
        return f"{self.name}: {f'annotations[{row}]' if self._refs is None else f'expression {row}'}"

    def _make(self, index: int) -> Conversation:
        if self._refs is None:
            annotation = self.coco.record("annotations", index // 2)
            expression = annotation["caption"]
        else:
            id, expression = self._refs[index // 2]
            annotation = self.coco.by_id("annotations", id)
        picture = self.coco.by_id("images", annotation["image_id"])
        box = self._box(annotation, picture)
        if not isinstance(expression, str) or not (expression := " ".join(expression.split())):
            raise BadInput("an expression without words")
        expression.encode()
        if box is None:
            raise BadInput("its box lies outside of what the encoder sees")
        question, answer = (FIND.format(expression), box) if index % 2 == 0 else (DESCRIBE.format(box), expression)
        return Conversation.ask(question, images=[self._shown(picture).image]).answered(answer)


def open_coco(file: Path, store: Store, pictures: ImageProcessor | None) -> Source | None:
    """None for an object without `images` and `annotations`. Raises BadInput for a file that is no JSON, or whose
    annotations hold neither captions nor boxes."""
    coco = Coco(file)
    if not coco.complete:
        return None
    if {"caption", "bbox"} <= coco.holds:
        return Referring(file, coco, store, pictures)
    if "caption" in coco.holds or not len(coco.spans["annotations"]):
        return Captions(file, coco, store, pictures)
    if "tokens_positive" in coco.holds:
        return Grounded(file, coco, store, pictures)
    if "bbox" in coco.holds:
        return Things(file, coco, store, pictures)
    raise BadInput(f"{file}: its annotations hold neither a `caption` nor a `bbox`; expected one of them")


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _grouped(of_image: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The pictures that annotations name, and the annotations of each."""
    order = np.argsort(of_image, kind="stable")
    ids, firsts = np.unique(of_image[order], return_index=True)
    return ids, np.split(order, firsts[1:])


def _id(value: Any) -> int:
    return value if isinstance(value, int) and abs(value) < 2**63 else NO_ID


def _numbers(values: array[int]) -> np.ndarray:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)
