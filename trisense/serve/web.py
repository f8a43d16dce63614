"""The chat page: ask about pictures, sound and text in a browser.

Everything the page needs comes from this server: system fonts, no analytics, no links to other hosts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Soft

from trisense.assistant.assistant import Answer
from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.errors import BadInput
from trisense.media import Limits
from trisense.serve.worker import Failed, Options, Worker

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".webm")
TEXTS = (".txt", ".md")
MAX_TEXT_BYTES = 2**20

# Titles of what the page itself says in the chat. The model never reads these messages.
REFUSED = "This cannot be answered"  # the turn is left out of the conversation, else no later one could be answered
WAITING = "And your question?"  # the turn's files belong to the next question

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Part = Text | Image | Audio


def mount(app: FastAPI, worker: Worker) -> FastAPI:
    """Put the page at `/` of `app`, behind the routes `app` has so far.

    At `/` because under any other path gradio loses the addresses of pictures and sounds after the first turn.
    """
    return gr.mount_gradio_app(
        app,
        _page(worker),
        path="/",
        theme=_theme(),
        css=_CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        max_file_size=Limits().max_bytes,
    )


def conversation_of(history: Sequence[dict[str, Any]], message: dict[str, Any]) -> Conversation:
    """The record of a chat on the page, with the pictures, sounds and texts of every turn.

    `history` is gradio's list of messages, each `{"role", "content": [{"type": "text"|"file", ...}], "metadata"}`, and
    `message` what was just sent, `{"text": str, "files": [path]}`. Raises BadInput for a file of unknown kind or a text
    file that is no text.
    """
    messages: list[Message] = []
    asked: list[dict[str, Any]] = []  # what the user has sent since the last answer; read only once it is answered
    for turn in history:
        if turn["role"] == "user":
            asked += turn["content"]
            continue
        title = (turn.get("metadata") or {}).get("title")
        if title is None:
            answer = "".join(part["text"] for part in turn["content"] if part["type"] == "text")
            messages.append(Message(role="user", content=_ordered(asked)))
            messages.append(Message(role="assistant", content=(Text(text=answer),)))
        if title != WAITING:
            asked = []
    asked += [{"type": "file", "file": {"path": path}} for path in message.get("files") or ()]
    asked.append({"type": "text", "text": message["text"]})
    messages.append(Message(role="user", content=_ordered(asked)))
    return Conversation(messages=tuple(messages))


def _ordered(content: Sequence[dict[str, Any]]) -> tuple[Part, ...]:
    """Pictures, sounds, texts, as `Conversation.ask` has them; the question, sent last, stays last."""
    kinds = (Image, Audio, Text)
    parts = [Text(text=part["text"]) if part["type"] == "text" else _file(part["file"]["path"]) for part in content]
    return tuple(sorted(parts, key=lambda part: kinds.index(type(part))))


def _file(path: str) -> Part:
    name, kind = Path(path).name, Path(path).suffix.lower()
    if kind in PICTURES:
        return Image(image=path)
    if kind in SOUNDS:
        return Audio(audio=path)
    if kind not in TEXTS:
        raise BadInput(f"{name}: unknown kind of file; send one of {' '.join((*PICTURES, *SOUNDS, *TEXTS))}")
    if Path(path).stat().st_size > MAX_TEXT_BYTES:
        raise BadInput(f"{name}: larger than {MAX_TEXT_BYTES} bytes; send a shorter text")
    try:
        return Text(text=Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise BadInput(f"{name}: not a text in UTF-8") from None


def _page(worker: Worker) -> gr.Blocks:
    async def reply(message: dict[str, Any], history: list[dict[str, Any]]) -> AsyncIterator[str | gr.ChatMessage]:
        if not message["text"].strip():
            yield _notice(WAITING, "Type it below; what you have just sent goes with it.")
            return
        text = ""
        try:
            async for piece in worker.stream(conversation_of(history, message), Options()):
                if not isinstance(piece, Answer):
                    text += piece
                    yield text
        except (BadInput, Failed) as error:
            yield _notice(REFUSED, _without_folders(str(error), history, message))
            return
        if not text:
            yield _notice(REFUSED, "The model had nothing to say.")

    return gr.ChatInterface(
        reply,
        multimodal=True,
        chatbot=gr.Chatbot(
            show_label=False,
            container=False,
            placeholder=_WELCOME,
            buttons=["copy"],
            feedback_options=None,
            height="calc(100dvh - 210px)",
            min_height=320,
        ),
        textbox=gr.MultimodalTextbox(
            file_count="multiple",
            file_types=[*PICTURES, *SOUNDS, *TEXTS],
            sources=["upload", "microphone"],
            placeholder="Attach a picture, a sound or a text, or record your voice. Then ask.",
            show_label=False,
            max_plain_text_length=100_000,
        ),
        title="trisense",
        description=f"Ask about pictures, sound and text. Answers come from `{worker.name}` on this machine.",
        examples=_examples(),
        flagging_mode="never",
        analytics_enabled=False,
        concurrency_limit=None,  # the worker's queue is the limit; gradio's own would hide whose turn it is
        delete_cache=(3600, 86400),
        api_visibility="private",
    )


def _without_folders(line: str, history: Sequence[dict[str, Any]], message: dict[str, Any]) -> str:
    """`line` with uploaded files by their names alone: they lie in folders that mean nothing to the reader."""
    shown = [part["file"]["path"] for turn in history for part in turn["content"] if part["type"] == "file"]
    for path in (*shown, *(message.get("files") or ())):
        line = line.replace(path, Path(path).name)
    return line


def _notice(title: str, line: str) -> gr.ChatMessage:
    return gr.ChatMessage(role="assistant", content=line, metadata={"title": title})


def _examples() -> list[Any] | None:
    """Questions about the files in `examples/`, where the package is run from its repository; none elsewhere."""
    files = {name: _EXAMPLES / name for name in ("picture.png", "voice.wav", "note.txt")}
    if not all(file.is_file() for file in files.values()):
        return None
    picture, voice, note = map(str, files.values())
    return [
        {"text": "Where is the thing that the named person has?", "files": [picture, voice, note]},
        {"text": "What color is the tree?", "files": [picture]},
        {"text": "Who does the speaker name?", "files": [voice]},
        {"text": "Who has the fish?", "files": [note]},
    ]


def _theme() -> gr.Theme:
    """Gradio's plain theme in fonts that every system has; its own would be asked for at fonts.googleapis.com."""
    return Soft(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


_WELCOME = "## Show it something\nA picture, a sound, a text or all three. Then ask what needs them."
_CSS = """
.gradio-container .prose { text-align: center; }
.message .prose { text-align: start; }
.placeholder { width: 100%; }
.examples { grid-template-columns: 1fr 1fr !important; max-width: 720px; margin: 0 auto; }
.example { border: 1px solid var(--border-color-primary) !important; border-radius: var(--radius-lg) !important; }
/* Gradio's way to publish a file on another host; it has no option of its own. */
button[aria-label="Share"] { display: none; }
"""
