"""The chat page: what it makes of gradio's history, and the page itself in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from parrot import Parrot
from playwright.sync_api import Page, expect, sync_playwright

from trisense.chat import Message
from trisense.errors import BadInput
from trisense.serve.web import REFUSED, WAITING, conversation_of


def user(*parts: str | Path) -> dict[str, Any]:
    return {"role": "user", "content": [content(part) for part in parts], "metadata": None}


def assistant(text: str, title: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": [content(text)], "metadata": {"title": title} if title else None}


def content(part: str | Path) -> dict[str, Any]:
    if isinstance(part, Path):
        return {"type": "file", "file": {"path": str(part)}}
    return {"type": "text", "text": part}


def kinds(message: Message) -> list[str]:
    return [part.type if part.type != "text" else part.text for part in message.content]


def test_the_media_of_earlier_turns_are_kept(samples: Path):
    history = [user(samples / "picture.png", "what?"), assistant("a disc")]
    message = {"text": "and this?", "files": [str(samples / "voice.wav"), str(samples / "note.txt")]}
    first, answer, second = conversation_of(history, message).messages
    assert (kinds(first), kinds(answer)) == (["image", "what?"], ["a disc"])
    assert kinds(second) == ["audio", "Anna has the red cup.\n", "and this?"]
    assert [first.role, answer.role, second.role] == ["user", "assistant", "user"]


def test_pictures_come_before_sounds_and_the_question_last(samples: Path):
    files = [str(samples / name) for name in ("note.txt", "voice.wav", "picture.png")]
    (only,) = conversation_of([], {"text": "what?", "files": files}).messages
    assert kinds(only) == ["image", "audio", "Anna has the red cup.\n", "what?"]


def test_a_refused_turn_is_left_out(samples: Path):
    history = [user(samples / "broken.xyz", "what?"), assistant("cannot", REFUSED)]
    (only,) = conversation_of(history, {"text": "hello", "files": []}).messages
    assert kinds(only) == ["hello"]


def test_files_sent_without_a_question_go_with_the_next(samples: Path):
    history = [user(samples / "picture.png"), assistant("your question?", WAITING)]
    (only,) = conversation_of(history, {"text": "what?", "files": [str(samples / "voice.wav")]}).messages
    assert kinds(only) == ["image", "audio", "what?"]


def test_files_of_other_kinds_are_refused_in_one_line(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "long.txt").write_bytes(b"x" * (2**20 + 1))
    for name, complaint in (("a.exe", "unknown kind of file"), ("latin.txt", "UTF-8"), ("long.txt", "larger")):
        with pytest.raises(BadInput, match=f"^{name}: .*{complaint}"):
            conversation_of([], {"text": "what?", "files": [str(tmp_path / name)]})


@pytest.fixture
def page(server: tuple[Parrot, str], parrot: Parrot) -> Iterator[Page]:
    """The chat page in Chromium, which has asked no other host for anything."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    asked: set[str | None] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*quiet, "--no-first-run"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.add(urlsplit(request.url).hostname))
        page.goto(server[1])
        yield page
        browser.close()
    assert asked - {None} == {"127.0.0.1"}  # None: data: and blob: URLs


def send(page: Page, text: str, *files: Path) -> None:
    expect(page.get_by_role("button", name="Submit")).to_be_enabled(timeout=60_000)  # the turn before is over
    expect(page.get_by_role("textbox")).to_be_enabled(timeout=60_000)
    if files:
        page.locator("input[type=file]").first.set_input_files(files)
        expect(page.locator(".thumbnail-item")).to_have_count(len(files), timeout=60_000)
    box = page.get_by_role("textbox")
    box.fill(text)
    box.press("Enter")


@pytest.mark.slow
def test_a_chat_in_a_browser(
    page: Page, parrot: Parrot, samples: Path, tmp_path: Path, until: Callable[[Callable[[], bool]], None]
):
    expect(page).to_have_title("trisense")
    parrot.may_go_on.clear()
    send(page, "what is this?", samples / "picture.png")
    answers = page.locator(".message.bot")
    expect(answers.last).to_have_text("turn")  # the first word is there while the second is still awaited
    parrot.may_go_on.set()
    expect(answers.last).to_have_text("turn 1: 64x48 [255, 255, 255], what is this?")
    expect(page.locator(".message.user img")).to_be_visible()

    expect(page.get_by_role("button", name="Share")).to_have_count(0)  # it would send the picture to another host

    send(page, "and this?", samples / "voice.wav")
    expect(answers.last).to_have_text("turn 3: 8000 samples, and this?")
    assert kinds(parrot.conversations[-1].messages[0]) == ["image", "what is this?"]

    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    send(page, "and that?", tmp_path / "broken.png")
    expect(page.get_by_text(REFUSED)).to_be_visible()
    expect(page.get_by_text("broken.png: found")).to_be_visible()

    send(page, "go on")
    expect(answers.last).to_have_text("turn 5: go on")
