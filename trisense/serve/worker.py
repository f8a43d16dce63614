"""One answer at a time: the thread in which the assistant works while the event loop stays free."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

from trisense.assistant.assistant import Answer, Assistant
from trisense.chat import Conversation
from trisense.errors import BadInput

log = logging.getLogger("trisense.serve")

DEFAULT_NEW_TOKENS = 512


class Failed(RuntimeError):
    """An answer failed through no fault of who asked. The log has the reason; this message is for anybody."""


@dataclass(frozen=True)
class Options:
    """How an answer is written: the options of `Assistant.stream`."""

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Worker:
    """Answers conversations one after the other, in the order in which they were asked.

    The engine under an assistant keeps state and is not thread-safe, and torch's gradient modes belong to a thread.
    So every answer is written from its first to its last token by the same single thread; its queue is the lock.
    """

    def __init__(self, assistant: Assistant) -> None:
        self.name = assistant.name
        self._assistant = assistant
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trisense-answer")
        self._closed = threading.Event()

    async def stream(self, conversation: Conversation, options: Options) -> AsyncGenerator[str | Answer, None]:
        """The pieces of an answer's text as they come, and last the whole `Answer`.

        Raises BadInput as the assistant does, and Failed for everything else. Leaving the loop early, or being
        cancelled, stops the writing at its next piece; an answer whose turn had not come is then never begun.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()
        gone = threading.Event()

        def post(item: str | Answer | Exception) -> None:
            with suppress(RuntimeError):  # the loop has ended, so nobody waits for this any more
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def write() -> None:
            if gone.is_set():
                return
            try:
                with closing(self._write(conversation, options)) as items:
                    for item in items:
                        if gone.is_set() or self._closed.is_set():
                            return
                        post(item)
            except BadInput as error:
                post(error)
            except Exception:
                log.exception("an answer failed")
                post(Failed("The server failed to answer; its log says why."))

        self._thread.submit(write)
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Answer):
                    return
        finally:
            gone.set()

    def close(self) -> None:
        """Stop writing at the next piece and begin no other answer."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _write(self, conversation: Conversation, options: Options) -> Generator[str | Answer, None, None]:
        answer = yield from self._assistant.stream(
            conversation,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            stop=options.stop,
        )
        yield answer
