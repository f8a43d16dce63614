"""One record of somebody else's file -> conversations: which keys hold what was asked, answered, shown and heard.

The same forms are read from JSON lists, JSON lines, parquet and WebDataset shards. `FORMS` lists them, the first that
fits a record being its form. Pictures and sounds of a record as a whole (`image`, `images`, `audio`, `audios`) go
before its first question, wherever `<image>` stood.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trisense.chat import Audio, Conversation, Image, Message, Part, Sense, Text, conversation_from, openai_part
from trisense.errors import BadInput

# What LLaVA's files and their like write where a medium belongs.
MARKS = ("<image>", "<audio>")
LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
MEDIA: dict[str, Sense] = {"image": "image", "images": "image", "audio": "audio", "audios": "audio"}
# What stands where a medium stood in the text of a record, before it is found.
Place = Callable[[Any, Sense], Any]


@dataclass(frozen=True)
class Form:
    """key: what a record of this form has. needs: what else it has one of. read: the record and the place of its media
    -> its conversations. answers: how many of them one value of `key` has, without reading it."""

    key: str
    needs: tuple[str, ...]
    describes: str
    read: Callable[[Mapping[str, Any], Place], list[Conversation]]
    answers: Callable[[Any], int]


def form_of(record: Any) -> Form | None:
    if not isinstance(record, Mapping):
        return None
    for form in FORMS:
        if record.get(form.key) is not None and (not form.needs or any(record.get(k) is not None for k in form.needs)):
            return form
    return None


def count(record: Any, turns: bool) -> int:
    """How many samples a record is, without making them; 1 for one that cannot be read, which says so when it is."""
    form = form_of(record)
    if form is None or not (turns or form.read in CAPTIONS):
        return 1
    value = record[form.key]
    return max(1, form.answers(value)) if isinstance(value, list) else 1


def _said_by(key: str, roles: tuple[str, ...]) -> Callable[[Any], int]:
    return lambda value: sum(isinstance(one, Mapping) and one.get(key) in roles for one in value)


def conversations(record: Any, turns: bool, place: Place) -> list[Conversation]:
    """The samples of a record. turns: each question with its answer is one, with the media shown up to there.

    place(value, sense) finds the medium that a record names: a path, an address in the file, or contents. Raises
    BadInput for a record that is no conversation.
    """
    form = form_of(record)
    if form is None:
        raise BadInput(f"no conversation; expected one of {KINDS}")
    try:
        found = form.read(record, place)
        for conversation in found:
            _check(conversation)
    except BadInput:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadInput(f"not as expected ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None
    return [one for conversation in found for one in split(conversation)] if turns else found


def split(conversation: Conversation) -> Iterator[Conversation]:
    """Each answer with what was said since the answer before it, all media shown until then, and the system's words."""
    system: list[Message] = []
    asked: list[Message] = []
    shown: list[Part] = []
    for message in conversation.messages:
        if message.role == "system":
            system.append(message)
        elif message.role == "user":
            asked.append(message)
        elif asked:
            media = [part for one in asked for part in one.content if not isinstance(part, Text)]
            first = Message(role="user", content=(*shown, *asked[0].content))
            yield Conversation(messages=(*system, first, *asked[1:], message))
            shown += media
            asked = []
        else:
            raise BadInput("an answer without a question before it; give each answer one, or train with turns=false")


def _check(conversation: Conversation) -> None:
    if not any(message.role == "assistant" for message in conversation.messages):
        raise BadInput("nothing is answered in it; expected at least one message of the assistant")
    for message in conversation.messages:
        for part in message.content:
            if isinstance(part, Text):
                part.text.encode()  # half of a surrogate pair, which JSON can spell, is no character


def _media(record: Mapping[str, Any], place: Place) -> list[Image | Audio]:
    """What the record shows as a whole."""
    return [_shown(sense, place(value, sense)) for sense, value in _named(record)]


def _named(record: Mapping[str, Any]) -> Iterator[tuple[Sense, Any]]:
    for key, sense in MEDIA.items():
        value = record.get(key)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            yield sense, one


def _shown(sense: Sense, medium: Any) -> Image | Audio:
    return Image(image=medium) if sense == "image" else Audio(audio=medium)


def _text(value: Any, media: Sequence[Any] = ()) -> Text:
    """media: of the record; without any, what looks like the place of one is text."""
    if not isinstance(value, str):
        raise BadInput(f"expected text, got {type(value).__name__}")
    for mark in MARKS if media else ():
        value = value.replace(mark, "")
    return Text(text=value.strip())


def _shown_first(messages: list[Message], media: Sequence[Image | Audio]) -> Conversation:
    """The media before everything else in the first message of the user."""
    first = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    if media and first is None:
        raise BadInput("pictures or sounds, but no message of the user to show them")
    if media and first is not None:
        messages[first] = Message(role="user", content=(*media, *messages[first].content))
    return Conversation(messages=tuple(messages))


def _llava(record: Mapping[str, Any], place: Place) -> list[Conversation]:
    messages: list[Message] = []
    media = _media(record, place)
    for one in record["conversations"]:
        if one["from"] not in LLAVA_ROLES:
            raise BadInput(f"said by {one['from']!r}; expected one of {', '.join(LLAVA_ROLES)}")
        messages.append(Message(role=LLAVA_ROLES[one["from"]], content=(_text(one["value"], media),)))  # pyright: ignore[reportArgumentType]
    return [_shown_first(messages, media)]


def _messages(record: Mapping[str, Any], place: Place) -> list[Conversation]:
    """OpenAI's messages, or our own record. `{"type": "image"}` without a source is the next picture of the record's
    own; what is left of those goes first, unless the messages name media themselves: then a column only repeats them.
    """
    waiting = list(_named(record))
    named = False

    def part(value: Any, where: str) -> Part:
        nonlocal named
        value = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value
        kind = value.get("type") if isinstance(value, Mapping) else None
        if kind in ("image", "audio"):
            if (source := value.get(kind, value.get("url", value.get("path")))) is None:
                source = _next(waiting, kind, where)
            else:
                named = True
            return _shown(kind, place(source, kind))
        if kind == "image_url":
            inner = value.get("image_url")
            url = inner.get("url") if isinstance(inner, Mapping) else inner
            if isinstance(url, str):
                named = True
                return _shown("image", place(url, "image"))
        if kind == "input_audio" and isinstance(value.get("input_audio"), Mapping):
            data = value["input_audio"].get("data")
            if isinstance(data, str) and data:
                named = True
                return _shown("audio", place(f"data:audio/*;base64,{data}" if _is_base64(data) else data, "audio"))
        return openai_part(value, where)

    messages = [_plain(message, waiting) for message in record["messages"]]
    conversation = conversation_from(messages, part)
    media = [] if named else [_shown(sense, place(value, sense)) for sense, value in waiting]
    return [_shown_first(list(conversation.messages), media)]


def _plain(message: Any, media: Sequence[Any]) -> Any:
    """A message without the empty columns of a table, and without OpenAI's `weight` where it asks for nothing."""
    if not isinstance(message, Mapping):
        return message
    message = {key: value for key, value in message.items() if value is not None}
    if message.get("role") == "assistant" and message.get("weight", 1) != 1:
        raise BadInput(f"an answer of weight {message['weight']!r}; only 1 is learned: remove the record or the weight")
    message.pop("weight", None)
    content = message.get("content")
    if isinstance(content, str) and media:
        message["content"] = _text(content, media).text
    return message


def _next(waiting: list[tuple[Sense, Any]], kind: str, where: str) -> Any:
    place = next((place for place, (sense, _) in enumerate(waiting) if sense == kind), None)
    if place is None:
        raise BadInput(f"{where}: an {kind} without a source, and the record has none left; give its path")
    return waiting.pop(place)[1]


def _is_base64(data: str) -> bool:
    try:
        return bool(base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        return False


def _pairs(record: Mapping[str, Any], place: Place) -> list[Conversation]:
    """The Cauldron's `texts`: a list of what a user and the assistant said."""
    messages: list[Message] = []
    media = _media(record, place)
    for one in record["texts"]:
        messages.append(Message(role="user", content=(_text(one["user"], media),)))
        messages.append(Message(role="assistant", content=(_text(one["assistant"], media),)))
    return [_shown_first(messages, media)]


def _question(record: Mapping[str, Any], place: Place) -> list[Conversation]:
    answer = record.get("answer")
    if answer is None:
        answer = record["answers"][0]
    media = _media(record, place)
    asked = Message(role="user", content=(*media, _text(record["question"], media)))
    return [Conversation(messages=(asked, Message(role="assistant", content=(_text(answer, media),))))]


def _caption(key: str) -> Callable[[Mapping[str, Any], Place], list[Conversation]]:
    def read(record: Mapping[str, Any], place: Place) -> list[Conversation]:
        captions = record[key]
        media = _media(record, place)
        if not media:
            raise BadInput(f"{key!r} without a picture or sound; expected one of {', '.join(MEDIA)}")
        return [captioned(media, one) for one in (captions if isinstance(captions, list) else [captions])]

    return read


def captioned(media: Sequence[Image | Audio], caption: Any) -> Conversation:
    """Pictures or sounds, nothing asked, their caption; white space in it becomes single spaces."""
    answer = Text(text=" ".join(_text(caption).text.split()))
    return Conversation(
        messages=(Message(role="user", content=tuple(media)), Message(role="assistant", content=(answer,)))
    )


CAPTIONS = tuple(map(_caption, ("caption", "captions", "text")))
FORMS = (
    Form("messages", (), "`messages` (OpenAI's)", _messages, _said_by("role", ("assistant",))),
    Form("conversations", (), "`conversations` (LLaVA's)", _llava, _said_by("from", ("gpt", "assistant"))),
    Form("texts", (), "`texts` of `user` and `assistant` (The Cauldron's)", _pairs, len),
    Form("question", ("answer", "answers"), "`question` and `answer`", _question, lambda value: 1),
    *(
        Form(key, tuple(MEDIA), f"`{key}` of an `image` or `audio`", read, len)
        for key, read in zip(("caption", "captions", "text"), CAPTIONS)
    ),
)
KINDS = ", ".join(form.describes for form in FORMS)
# What is read of a table or a shard; nothing else of it is kept.
KEYS = tuple(dict.fromkeys(key for form in FORMS for key in (form.key, *form.needs)))
