"""A conversation of text, pictures and sounds, and the one renderer that turns it into token ids.

`render(conversation, layout, tokenizer, ...)` gives ids, loss mask and media slots in one pass. Training and answering
both call it, so the prompt of an answer is a prefix of the training sequence by construction. A layout is data: five
published designs and `spark` differ in a few strings. What a user types goes through `TextTokenizer.plain`, which never
yields a control token; only the layout's own strings go through `TextTokenizer.control`.

Shapes: T is the number of tokens of one rendered conversation.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trisense.errors import BadInput
from trisense.tokens import TextTokenizer

Sense = Literal["image", "audio"]


class Text(BaseModel):
    """Something written. In a user message the last one is the question, those before it are context."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["text"] = "text"
    text: str


class Image(BaseModel):
    """A picture: anything `trisense.media.load_image` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["image"] = "image"
    image: Any


class Audio(BaseModel):
    """A sound: anything `trisense.media.load_audio` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    type: Literal["audio"] = "audio"
    audio: Any


Part = Annotated[Text | Image | Audio, Field(discriminator="type")]


class Message(BaseModel):
    """One turn. A plain string as content is one `Text`; only a user shows pictures and sounds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @field_validator("content", mode="before")
    @classmethod
    def _string_is_text(cls, value: Any) -> Any:
        return (Text(text=value),) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_users_show_media(self) -> Message:
        if self.role != "user":
            for part in self.content:
                if not isinstance(part, Text):
                    raise ValueError(f"a message of the role {self.role!r} holds only text, not {part.type}")
        return self


class Conversation(BaseModel):
    """The one record: a training sample, a request, a line of an evaluation set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    messages: tuple[Message, ...]

    @classmethod
    def ask(
        cls, question: str, images: Iterable[Any] = (), audios: Iterable[Any] = (), texts: Iterable[str] = ()
    ) -> Conversation:
        """One user message: images, then sounds, then context texts, then the question."""
        parts: list[Text | Image | Audio] = [Image(image=image) for image in images]
        parts += [Audio(audio=audio) for audio in audios]
        parts += [Text(text=text) for text in (*texts, question)]
        return cls(messages=(Message(role="user", content=tuple(parts)),))

    def answered(self, answer: str) -> Conversation:
        """This conversation with one more message, the assistant's `answer`."""
        return Conversation(messages=(*self.messages, Message(role="assistant", content=(Text(text=answer),))))

    @classmethod
    def from_openai(cls, messages: Any) -> Conversation:
        """The `messages` of an OpenAI chat completion request; parts `text`, `image_url` and `input_audio`.

        Pictures come as `data:` URLs and sounds as base64, so that a request can never make the server open a file or
        an address. Raises BadInput, naming the message and the part.
        """
        return conversation_from(messages, openai_part)

    @classmethod
    def from_dict(cls, record: Any) -> Conversation:
        """The opposite of `to_dict`. Names files, so only for records you trust. Raises BadInput."""
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            raise bad_input(error, "conversation") from None

    def to_dict(self) -> dict[str, Any]:
        """This record as plain data for json: paths stay paths, bytes become `data:` URLs.

        Raises BadInput for a picture or sound that is an open file, an array or a PIL image.
        """
        messages = [{"role": m.role, "content": [_part_to_dict(part) for part in m.content]} for m in self.messages]
        return {"messages": messages}


def bad_input(error: ValidationError, what: str) -> BadInput:
    """One clear line out of pydantic's first complaint; `what` names the file or record it is about."""
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        return BadInput(f"{what}: unknown key {where!r}; remove it")
    if first["type"] == "missing":
        return BadInput(f"{what}: the key {where!r} is missing; add it")
    message = first["msg"].removeprefix("Value error, ")
    return BadInput(f"{what}: {where}: {message}" if where else f"{what}: {message}")


def _part_to_dict(part: Text | Image | Audio) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    source = part.image if isinstance(part, Image) else part.audio
    if isinstance(source, bytes | bytearray | memoryview):
        payload = base64.b64encode(bytes(source)).decode("ascii")
        source = f"data:application/octet-stream;base64,{payload}"
    elif isinstance(source, str | os.PathLike):
        source = os.fspath(source)
    else:
        kind = type(source).__name__
        raise BadInput(f"{part.type}: a {kind} cannot be written as text; give a path, bytes or a data: URL")
    return {"type": part.type, part.type: source}


_ROLES: dict[Any, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def conversation_from(messages: Any, read_part: Callable[[Any, str], Text | Image | Audio]) -> Conversation:
    """A conversation out of `messages` as chat APIs write them; `read_part(part, where)` reads one listed part.

    Raises BadInput, naming the message.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise BadInput("messages: expected a list with at least one message")
    return Conversation(messages=tuple(_message(m, f"messages[{i}]", read_part) for i, m in enumerate(messages)))


def _message(message: Any, where: str, read_part: Callable[[Any, str], Text | Image | Audio]) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        raise BadInput(f"{where}: expected an object with 'role' and 'content'")
    role = message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        raise BadInput(f"{where}: unknown role {role!r}; expected system, developer, user or assistant")
    for key, value in message.items():
        # Clients send back what they got, empty fields included; a filled one would be lost without a word.
        if key not in ("role", "content", "name") and value:
            raise BadInput(f"{where}: the key {key!r} is not supported; remove it")
    content = message.get("content")
    if isinstance(content, str):
        parts: tuple[Text | Image | Audio, ...] = (Text(text=content),)
    elif isinstance(content, Sequence) and content:
        parts = tuple(read_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    else:
        raise BadInput(f"{where}: expected 'content' as a string or a list of parts, got {type(content).__name__}")
    try:
        return Message(role=_ROLES[role], content=parts)
    except ValidationError as error:
        raise bad_input(error, where) from None


def openai_part(part: Any, where: str) -> Text | Image | Audio:
    """One part of an OpenAI message; `where` names it in the BadInput of a part that cannot be read."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise BadInput(f"{where}: expected {{'type': 'text', 'text': '...'}}")
        return Text(text=part["text"])
    if kind == "image_url":
        inner = part.get("image_url")
        url = inner.get("url") if isinstance(inner, Mapping) else None
        if not isinstance(url, str):
            raise BadInput(f"{where}: expected {{'type': 'image_url', 'image_url': {{'url': 'data:image/...'}}}}")
        if not url.startswith("data:"):
            raise BadInput(f"{where}: only data: URLs are read, not {url[:40]!r}; send the picture itself as base64")
        return Image(image=url)
    if kind == "input_audio":
        inner = part.get("input_audio")
        data = inner.get("data") if isinstance(inner, Mapping) else None
        if not isinstance(data, str) or not data:
            raise BadInput(f"{where}: expected {{'type': 'input_audio', 'input_audio': {{'data': base64, ...}}}}")
        try:
            return Audio(audio=base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            raise BadInput(f"{where}: input_audio.data is not base64; send the bytes of the file as base64") from None
    if not isinstance(part, Mapping):
        raise BadInput(f"{where}: expected an object with 'type', got {type(part).__name__}")
    raise BadInput(f"{where}: unknown part type {kind!r}; expected text, image_url or input_audio")


class Markers(NamedTuple):
    """The layout's own text around one piece of a conversation. Special tokens are allowed here."""

    before: str = ""
    after: str = ""


class Layout(BaseModel):
    """How a conversation is written for one model, as data.

    A rendered conversation is `start`, then the messages. A user message is `user.before`, its parts in their order but
    the question last, `user.after`. A picture is its placeholders between the `image` markers. An answer is
    `answer.before` (prompt), its text and `answer.after` (both supervised).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    start: str = ""
    system: Markers = Markers()
    user: Markers = Markers()
    image: Markers = Markers()
    audio: Markers = Markers()
    text: Markers = Markers()
    question: Markers = Markers()
    answer: Markers = Markers()

    def strings(self) -> tuple[str, ...]:
        """Every string of this layout."""
        pairs = (self.system, self.user, self.image, self.audio, self.text, self.question, self.answer)
        return (self.start, *(string for pair in pairs for string in pair))


@dataclass(frozen=True)
class Slot:
    """Where the `length` feature vectors of one picture or sound go: `ids[start : start + length]`."""

    sense: Sense
    start: int
    length: int
    part: Image | Audio


@dataclass(frozen=True)
class Rendered:
    """ids: int64 [T]. mask: bool [T], True where the loss is taken. media: the slots in the order of ids."""

    ids: np.ndarray
    mask: np.ndarray
    media: tuple[Slot, ...]


def render(
    conversation: Conversation,
    layout: Layout,
    tokenizer: TextTokenizer,
    placeholders: Mapping[str, int],
    slots: Callable[[Image | Audio], int],
) -> Rendered:
    """Writes a conversation as ids, loss mask and media slots, in one pass, every segment tokenised on its own.

    `placeholders` gives the id that stands for one feature vector of a sense, `slots(part)` how many a medium needs.
    A conversation that ends with a user message ends with `answer.before`, ready to be continued. In a user message the
    question, its last `Text`, closes the turn wherever the parts had it, so that media and texts can be kept between
    questions. Raises BadInput when the conversation shows something for which there is no placeholder.
    """
    ids: list[int] = []
    answers: list[tuple[int, int]] = []
    media: list[Slot] = []
    control, plain = tokenizer.control, tokenizer.plain

    def write(markers: Markers, text: str) -> None:
        ids.extend(control(markers.before) + plain(text) + control(markers.after))

    ids += control(layout.start)
    for message in conversation.messages:
        if message.role == "user":
            ids += control(layout.user.before)
            for part, is_question in _question_last(message.content):
                if isinstance(part, Text):
                    write(layout.question if is_question else layout.text, part.text)
                    continue
                markers = layout.image if isinstance(part, Image) else layout.audio
                ids += control(markers.before)
                media.append(Slot(part.type, len(ids), _count(part, slots), part))
                ids += [_placeholder(part.type, placeholders)] * media[-1].length
                ids += control(markers.after)
            ids += control(layout.user.after)
            continue
        text = "".join(part.text for part in message.content if isinstance(part, Text))
        if message.role == "system":
            write(layout.system, text)
            continue
        ids += control(layout.answer.before)
        start = len(ids)
        ids += plain(text) + control(layout.answer.after)
        answers.append((start, len(ids)))
    if conversation.messages and conversation.messages[-1].role == "user":
        ids += control(layout.answer.before)

    mask = np.zeros(len(ids), dtype=np.bool_)  # [T]
    for start, end in answers:
        mask[start:end] = True
    return Rendered(np.array(ids, dtype=np.int64), mask, tuple(media))


def _question_last(parts: Sequence[Text | Image | Audio]) -> Iterator[tuple[Text | Image | Audio, bool]]:
    last = max((i for i, part in enumerate(parts) if isinstance(part, Text)), default=None)
    yield from ((part, False) for i, part in enumerate(parts) if i != last)
    if last is not None:
        yield parts[last], True


def _placeholder(sense: Sense, placeholders: Mapping[str, int]) -> int:
    if sense not in placeholders:
        lacks, media = ("eyes", "pictures") if sense == "image" else ("ears", "sounds")
        raise BadInput(f"{sense}: this model has no {lacks}; ask without {media} or choose another model")
    return int(placeholders[sense])


def _count(part: Image | Audio, slots: Callable[[Image | Audio], int]) -> int:
    count = int(slots(part))
    if count < 1:
        raise ValueError(f"{part.type}: slots() gave {count} feature vectors; expected at least one")
    return count


_GREEN, _GREY, _CYAN, _RESET = "\x1b[32m", "\x1b[90m", "\x1b[36m", "\x1b[0m"


def dump(rendered: Rendered, tokenizer: TextTokenizer, colour: bool = True) -> str:
    """Shows a rendered conversation, one cell per token: supervised green (without colour in « »), prompt grey.

    Spaces are `·`, newlines `↵`, and the placeholders of a medium one block, `[image x36]`.
    """
    cells: list[tuple[str, str]] = []
    starts = {slot.start: slot for slot in rendered.media}
    position = 0
    while position < len(rendered.ids):
        slot = starts.get(position)
        if slot is not None:
            cells.append(("media", f"[{slot.sense} x{slot.length}]"))
            position += slot.length
            continue
        kind = "answer" if rendered.mask[position] else "prompt"
        cells.append((kind, _cell(int(rendered.ids[position]), tokenizer)))
        position += 1
    styles = {"answer": ("«", "»"), "prompt": ("", ""), "media": ("", "")}
    if colour:
        styles = {"answer": (_GREEN, _RESET), "prompt": (_GREY, _RESET), "media": (_CYAN, _RESET)}
    runs = ((kind, "|".join(text for _, text in run)) for kind, run in groupby(cells, key=lambda cell: cell[0]))
    return "|".join(f"{styles[kind][0]}{text}{styles[kind][1]}" for kind, text in runs)


def _cell(id: int, tokenizer: TextTokenizer) -> str:
    token = tokenizer.token(id)
    if token is None:
        return f"#{id}"
    text = token if id in tokenizer.reserved else tokenizer.decode([id], skip_special=False)
    if "\ufffd" in text:  # part of a character: the tokenizer's own spelling says more
        text = token
    elif token.startswith("\u2581") and not text.startswith(" "):  # decoders of that kind drop the first space
        text = f" {text}"
    shown = text.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown)
