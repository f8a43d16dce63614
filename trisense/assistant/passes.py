"""Two passes and clean answers, as `ft35` and `eden` answer: the adapter describes the pictures, and the language model
as it was before training answers from that description with everything written."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

from trisense.chat import Conversation, Image, Message, Part, Text

# Punctuation that does not stand between two digits.
MARKS = re.compile(r"(?<!\d)[{0}]|[{0}](?!\d)".format(re.escape(string.punctuation)))

# So the base model is told where the words come from.
SHOWN = "The image shows:"

Result = TypeVar("Result")


class Kept(Generic[Result]):
    """The last results, by what they were made of, so that a follow-up question does not have them made again."""

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._results: dict[Hashable, Result] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """The result kept for `key`, else what `make` gives; threads that ask at once may both make it."""
        with self._lock:
            if key in self._results:
                return self._results[key]
        result = make()
        with self._lock:
            self._results[key] = result
            for oldest in list(self._results)[: -self._size]:
                del self._results[oldest]
        return result


def with_question(conversation: Conversation, question: str) -> Conversation:
    """The conversation with `question` after pictures or sounds that come without one."""
    last = conversation.messages[-1]
    if any(isinstance(part, Text) for part in last.content):
        return conversation
    asked = Message(role="user", content=(*last.content, Text(text=question)))
    return Conversation(messages=(*conversation.messages[:-1], asked))


def question_of(conversation: Conversation) -> str:
    """The last text of the last message; empty where it has none."""
    texts = [part.text for part in conversation.messages[-1].content if isinstance(part, Text)]
    return texts[-1] if texts else ""


def pictures_of(message: Message, question: str) -> Conversation:
    """`question` about the pictures of a message, without whatever else it holds."""
    return Conversation.ask(question, images=[part.image for part in message.content if isinstance(part, Image)])


def in_words(message: Message, description: str) -> Message:
    """The message with `description`, said to be one, where its first picture was, and its other pictures gone."""
    content: list[Part] = []
    described = False
    for part in message.content:
        if not isinstance(part, Image):
            content.append(part)
        elif not described:
            content.append(Text(text=f"{SHOWN} {description}"))
            described = True
    return Message(role=message.role, content=tuple(content))


def cleaned(answer: str, question: str) -> str:
    """An answer without punctuation and surplus spaces, and without the question where it begins with it.

    As in what is learned, an apostrophe leaves no space; a mark between digits stays, since 3.5 is not 3 5.
    """
    answer, asked = _bare(answer), _bare(question)
    while asked and f"{answer} ".lower().startswith(f"{asked} ".lower()):
        answer = answer[len(asked) :].lstrip()
    return answer


def _bare(text: str) -> str:
    return " ".join(MARKS.sub(" ", text.replace("'", "")).split())
