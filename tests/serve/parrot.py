"""An assistant that tells what it was asked, and a real server over any assistant."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from trisense.assistant.assistant import Answer
from trisense.chat import Audio, Conversation, Image, Text
from trisense.media import load_audio, load_image
from trisense.serve.api import create_app, listen


class Parrot:
    """In the place of an `Assistant`: says what it was given in the last message, one word at a time."""

    name = "parrot"

    def __init__(self) -> None:
        self.conversations: list[Conversation] = []
        self.options: list[dict[str, Any]] = []
        self.may_go_on = threading.Event()  # while clear, an answer waits before its second word
        self.may_go_on.set()
        self.waits = threading.Event()  # set once it does
        self.stopped = threading.Event()  # an answer was left before its end
        self.at_work = 0
        self.most_at_work = 0
        self.trouble: Exception | None = None  # raised after the first word

    def stream(
        self, conversation: Conversation, *, max_new_tokens: int, **options: Any
    ) -> Generator[str, None, Answer]:
        self.conversations.append(conversation)
        self.options.append({"max_new_tokens": max_new_tokens, **options})
        return self._say(words(conversation), max_new_tokens)

    def _say(self, words: list[str], limit: int) -> Generator[str, None, Answer]:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        said = words[:limit]
        try:
            for i, word in enumerate(said):
                if i == 1 and not self.may_go_on.is_set():
                    self.waits.set()
                    self.may_go_on.wait(30)
                if i == 1 and self.trouble is not None:
                    raise self.trouble
                yield word
        except GeneratorExit:
            self.stopped.set()
            raise
        finally:
            self.at_work -= 1
        return Answer(
            text="".join(said),
            prompt_tokens=7,
            completion_tokens=len(said),
            finish_reason="stop" if len(said) == len(words) else "length",
            first_token_seconds=0.0,
            seconds=0.0,
        )


def words(conversation: Conversation) -> list[str]:
    """What the parrot says: the number of messages, and every part of the last."""
    heard: list[str] = []
    for part in conversation.messages[-1].content:
        if isinstance(part, Image):
            picture = load_image(part.image)
            heard.append(f"{picture.width}x{picture.height} {np.asarray(picture)[0, 0].tolist()}")
        elif isinstance(part, Audio):
            heard.append(f"{len(load_audio(part.audio))} samples")
        elif isinstance(part, Text):
            heard.append(part.text)
    sentence = f"turn {len(conversation.messages)}: {', '.join(heard)}"
    return [word if i == 0 else f" {word}" for i, word in enumerate(sentence.split(" "))]


@contextmanager
def serving(assistant: Any, **options: Any) -> Iterator[str]:
    """The address of a server over `assistant`."""
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(create_app(assistant, **options), log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()
