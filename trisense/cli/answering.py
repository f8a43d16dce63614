"""Commands that answer: `ask`, `serve`, and `transcribe`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trisense.cli.common import json_option, model_option, print_json, speech_option
from trisense.errors import BadInput

if TYPE_CHECKING:
    from trisense.assistant.assistant import Answer

IMPORTED = time.perf_counter()
MAX_TEXT_BYTES = 1 << 20  # far more than any model's context holds; a typo that names a film should not be read whole


@click.command()
@model_option
@click.option("--image", "images", multiple=True, metavar="FILE", help="A picture; may be given more than once.")
@click.option("--audio", "audios", multiple=True, metavar="FILE", help="A sound; may be given more than once.")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="Something written; may be given more than once.")
@click.option("--text-file", "text_files", multiple=True, metavar="FILE", help="The same, from a UTF-8 file.")
@json_option
@click.option("--verbose", is_flag=True, help="Also print what was given and the times.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Length of the answer.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest words.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Ignore unlikely words beyond this share.",
)
@click.option("--seed", type=int, help="Where chance starts, for a temperature above 0.")
@click.option("--device", metavar="DEVICE", help="Where the model runs, such as cpu or cuda.")
@speech_option
@click.argument("question")
def ask(
    model: str,
    images: tuple[str, ...],
    audios: tuple[str, ...],
    texts: tuple[str, ...],
    text_files: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
    device: str | None,
    speech: str | None,
    question: str,
) -> None:
    """Answer QUESTION about pictures, sounds and texts. A QUESTION of - is read from stdin.

    \b
    trisense ask --image kitchen.jpg "What is left of the cup?"
    trisense ask --audio note.ogg --text-file plan.txt "Who is late?"
    """
    if question == "-":
        question = _decode(sys.stdin.buffer.read(MAX_TEXT_BYTES + 1), "the question on stdin").strip()
    if not question.strip():
        raise BadInput("the question is empty: write it as the last argument, or pipe it in with -")
    if not all(text.strip() for text in texts):
        raise BadInput("--text is empty: write what is to be read, or leave it out")
    texts += tuple(_read_text(file) for file in text_files)
    if verbose and not as_json:
        given = [("image", image) for image in images] + [("audio", audio) for audio in audios]
        for label, value in [*given, *(("text", text) for text in texts), ("question", question)]:
            click.echo(f"{label + ':':<10}{' '.join(value.split())}")

    from trisense.assistant.assistant import Assistant
    from trisense.chat import Conversation

    conversation = Conversation.ask(question, images=images, audios=audios, texts=texts)
    assistant = Assistant.from_pretrained(model, device=device, speech=speech)
    options = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    if as_json:
        before = _process_seconds()
        answer = assistant.answer(conversation, **options)
        seconds = {
            "first_token": round(before + answer.first_token_seconds, 3),
            "command": round(_process_seconds(), 3),
        }
        print_json(
            model=model,
            question=question,
            answer=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            descriptions=list(answer.descriptions),
            transcripts=[{**asdict(one), "extent": one.extent} for one in answer.transcripts],
            seconds=seconds,
        )
        return
    if verbose:
        click.echo(f"{'answer:':<10}", nl=False)
    answer, first = _told(assistant.stream(conversation, **options))
    if verbose:
        for transcript in answer.transcripts:
            click.echo(f"{'heard:':<10}{transcript.extent}: {' '.join(transcript.text.split())}")
        for description in answer.descriptions:
            click.echo(f"{'shown:':<10}{' '.join(description.split())}")
        whole = _process_seconds()
        click.echo(f"{'times:':<10}{first or whole:.2f} s to the first word, {whole:.2f} s in all")


def _told(pieces: Generator[str, None, Answer]) -> tuple[Answer, float | None]:
    """Prints the pieces of an answer as they come; the whole, and when its first piece came."""
    first = None
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            click.echo()
            return end.value, first
        first = first or _process_seconds()
        click.echo(piece, nl=False)  # flushes, so that every piece shows as it comes


@click.command()
@model_option
@speech_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
def serve(model: str, speech: str | None, host: str, port: int) -> None:
    """Open the chat page and the OpenAI-compatible HTTP API."""
    from trisense.serve.api import run

    run(model=model, host=host, port=port, speech=speech)


@click.command()
@click.option(
    "--model",
    default="openai/whisper-small",
    show_default=True,
    metavar="NAME",
    help="Whisper, a folder or a Hub id; or spark.",
)
@click.option("--language", metavar="CODE", help="Such as en; default: detected.")
@click.option(
    "--first", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Listen to no more than these."
)
@click.option("--device", metavar="DEVICE", help="Where the model runs, such as cpu or cuda.")
@json_option
@click.argument("sound")
def transcribe(
    model: str, language: str | None, first: float | None, device: str | None, as_json: bool, sound: str
) -> None:
    """Write down what is said in SOUND, with times."""
    from trisense.assistant.transcribe import Transcriber
    from trisense.engines.recogniser import open_recogniser

    transcript = Transcriber(open_recogniser(model, device), language=language, first_seconds=first)(sound)
    if as_json:
        return print_json(**asdict(transcript), extent=transcript.extent)
    click.echo(f"{transcript.extent}, {transcript.language or 'nobody speaks'}")
    for segment in transcript.segments:
        click.echo(f"{segment.start:8.2f} {segment.end:8.2f}  {segment.text.strip()}")


def _read_text(file: str) -> str:
    """The UTF-8 text of `file`, which is not empty. Raises BadInput, naming it."""
    try:
        with open(file, "rb") as handle:
            data = handle.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read as a text file ({getattr(error, 'strerror', None) or error})") from None
    if text := _decode(data, file).strip():
        return text
    raise BadInput(f"{file}: holds no text, expected some: write it, or leave the file out")


def _decode(data: bytes, name: str) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise BadInput(f"{name}: longer than {MAX_TEXT_BYTES >> 20} MiB, expected a short text: give a part of it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadInput(f"{name}: not UTF-8 text: save it as UTF-8, or give pictures and sounds as such") from None


def _process_seconds() -> float:
    """Seconds since this process began, so that the start of Python itself counts too.

    Read from the kernel where it tells (Linux, in steps of 10 ms), else counted from this module's import.
    """
    try:
        # Field 22 of proc(5)'s stat, counted after the name in brackets, which may hold blanks: clock ticks since boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.perf_counter() - IMPORTED
