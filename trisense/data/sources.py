"""Files of others as conversations: LLaVA-Instruct, COCO captions, and JSON lines of our own record.

A file's kind is read from its content. Records become conversations one at a time, when they are asked for, because
COCO's half a million captions would fill the memory otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from trisense.chat import Audio, Conversation, Image, Message, Part, Text
from trisense.errors import BadInput

# What LLaVA's files write where the picture belongs, and whom they name.
PICTURE = "<image>"
ROLES = {"human": "user", "gpt": "assistant"}
KINDS = (
    "LLaVA-Instruct (a list with `conversations`), COCO captions (`images` and `annotations`) or JSON lines with "
    "`messages`"
)


@dataclass(frozen=True)
class Source(Sequence[Conversation]):
    """Conversations of one file. Pictures and sounds are paths in `media`; nothing is opened."""

    file: Path
    media: Path
    kind: str
    records: Sequence[Any]

    @classmethod
    def open(
        cls, file: str | os.PathLike[str], media: str | os.PathLike[str] | None = None, turns: bool = False
    ) -> Source:
        """media: the folder of the pictures and sounds that the file names; default: its own folder. turns: each
        question with its answer is a conversation of its own.

        Raises BadInput, naming the file, when it is missing or none of the three kinds.
        """
        file = Path(file)
        folder = Path(media) if media is not None else file.parent
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder; expected the pictures and sounds that {file.name} names")
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"{file}: not UTF-8 text; expected {KINDS}") from None
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); expected {KINDS}") from None
        kind, records = _records(file, text)
        if kind == "llava" and turns:
            records = [(record, turn) for record in records for turn in range(len(record["conversations"]) // 2)]
        elif kind == "llava":
            records = [(record, None) for record in records]
        if not records:
            raise BadInput(f"{file}: holds no conversation; expected {KINDS}")
        return cls(file, folder, kind, records)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Source: ...
    def __getitem__(self, index: int | slice) -> Conversation | Source:
        """Raises BadInput, naming the file and the record, for a record that is no conversation."""
        if isinstance(index, slice):
            return Source(self.file, self.media, self.kind, self.records[index])
        make = {"llava": self._llava, "coco": self._coco, "ours": self._ours}[self.kind]
        try:
            return make(self.records[index])
        except BadInput as error:
            raise BadInput(f"{self.file}: record {index}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"{self.file}: record {index}: not as expected ({type(error).__name__}: {error})") from None

    def __iter__(self) -> Iterator[Conversation]:
        return (self[index] for index in range(len(self)))

    def _llava(self, entry: tuple[dict[str, Any], int | None]) -> Conversation:
        """Turns as they are; the picture goes before the first question, wherever `<image>` stood in it."""
        record, turn = entry
        said = record["conversations"]
        if turn is not None:
            said = said[2 * turn : 2 * turn + 2]
        messages: list[Message] = []
        for number, one in enumerate(said):
            parts: list[Part] = [Text(text=str(one["value"]).replace(PICTURE, "").strip())]
            if number == 0 and "image" in record:
                parts.insert(0, Image(image=str(self.media / record["image"])))
            messages.append(Message(role=ROLES[one["from"]], content=tuple(parts)))  # pyright: ignore[reportArgumentType]
        return Conversation(messages=tuple(messages))

    def _coco(self, record: tuple[str, str]) -> Conversation:
        """A picture, nothing asked, its caption."""
        name, caption = record
        return Conversation(
            messages=(
                Message(role="user", content=(Image(image=str(self.media / name)),)),
                Message(role="assistant", content=(Text(text=" ".join(caption.split())),)),
            )
        )

    def _ours(self, record: dict[str, Any]) -> Conversation:
        conversation = Conversation.from_dict({"messages": record["messages"]})  # whatever else a line holds
        placed = [tuple(map(self._placed, message.content)) for message in conversation.messages]
        messages = [Message(role=m.role, content=c) for m, c in zip(conversation.messages, placed, strict=True)]
        return Conversation(messages=tuple(messages))

    def _placed(self, part: Part) -> Part:
        """A medium named by a path is looked for in the folder of the media."""
        if isinstance(part, Image) and isinstance(part.image, str) and not part.image.startswith("data:"):
            return Image(image=str(self.media / part.image))
        if isinstance(part, Audio) and isinstance(part.audio, str) and not part.audio.startswith("data:"):
            return Audio(audio=str(self.media / part.audio))
        return part


def _records(file: Path, text: str) -> tuple[str, list[Any]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    if isinstance(content, list) and all(isinstance(one, dict) and "conversations" in one for one in content):
        return "llava", content
    if isinstance(content, dict) and {"images", "annotations"} <= set(content):
        try:
            names = {one["id"]: one["file_name"] for one in content["images"]}
            return "coco", [(names[one["image_id"]], one["caption"]) for one in content["annotations"]]
        except (KeyError, TypeError) as error:
            raise BadInput(f"{file}: COCO captions, but {type(error).__name__}: {error}") from None
    if isinstance(content, dict) and "messages" in content:
        return "ours", [content]
    if content is None:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            records = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise BadInput(f"{file}: not JSON ({error}); expected {KINDS}") from None
        if all(isinstance(one, dict) and "messages" in one for one in records):
            return "ours", records
    raise BadInput(f"{file}: of no kind that is known; expected {KINDS}")
