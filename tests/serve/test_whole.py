"""The server over real assistants, and the server as a process of its own."""

from __future__ import annotations

import base64
import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny_models
from parrot import serving

import trisense.serve
from trisense.assistant.assistant import Assistant
from trisense.chat import Conversation
from trisense.errors import BadInput


@pytest.fixture(scope="module", params=["tiny", "spark"])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Assistant, openai.OpenAI]]:
    """An assistant, and a client of a server over it."""
    assistant = Assistant.from_pretrained(tiny_models.exported() if request.param == "tiny" else "spark")
    with (
        serving(assistant) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client,
    ):
        yield assistant, client


def question(samples: Path) -> list[Any]:
    picture, voice = (base64.b64encode((samples / name).read_bytes()).decode() for name in ("picture.png", "voice.wav"))
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "input_audio", "input_audio": {"data": voice, "format": "wav"}},
        {"type": "text", "text": "Anna has the red cup."},
        {"type": "text", "text": "What is in the picture?"},
    ]
    return [{"role": "user", "content": content}]


def test_the_answer_over_http_is_the_assistants_own(opened: tuple[Assistant, openai.OpenAI], samples: Path):
    assistant, client = opened
    messages = question(samples)
    expected = assistant.answer(
        Conversation.ask(
            "What is in the picture?",
            images=[samples / "picture.png"],
            audios=[samples / "voice.wav"],
            texts=["Anna has the red cup."],
        ),
        max_new_tokens=16,
    )
    whole = client.chat.completions.create(model=assistant.name, messages=messages, max_tokens=16)
    *pieces, last = client.chat.completions.create(
        model=assistant.name, messages=messages, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    assert whole.choices[0].message.content == expected.text
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.text
    assert whole.choices[0].finish_reason == pieces[-1].choices[0].finish_reason == expected.finish_reason
    for usage in (whole.usage, last.usage):
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens)


def test_a_follow_up_turn_and_a_stop_string(opened: tuple[Assistant, openai.OpenAI], samples: Path):
    assistant, client = opened
    messages = question(samples)
    first = client.chat.completions.create(model=assistant.name, messages=messages, max_tokens=8)
    messages += [first.choices[0].message, {"role": "user", "content": "Who has the red cup?"}]
    second = client.chat.completions.create(model=assistant.name, messages=messages, max_tokens=8)
    text = second.choices[0].message.content or ""
    assert second.usage is not None and first.usage is not None
    assert second.usage.prompt_tokens > first.usage.total_tokens
    assert text
    stopped = client.chat.completions.create(model=assistant.name, messages=messages, max_tokens=8, stop=text[-1])
    assert stopped.choices[0].message.content == text[: text.index(text[-1])]
    assert stopped.choices[0].finish_reason == "stop"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """`trisense serve` with a tiny model on a free port."""
    code = f"from trisense.serve.api import run; run({str(tiny_models.exported())!r}, port=0)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_run_says_where_it_is_and_leaves_quietly(process: subprocess.Popen[str]):
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("trisense serves ") and "Ctrl-C" in line
    address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
    with httpx.stream("GET", f"{address}/gradio_api/heartbeat/abc", timeout=60) as open_page:
        assert next(open_page.iter_bytes())
        assert httpx.get(f"{address}/health", timeout=60).json()["status"] == "ok"
        assert "trisense" in httpx.get(address, timeout=60).text
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_a_missing_extra_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(BadInput, match=r"needs gradio: pip install trisense\[serve\]"):
        importlib.reload(trisense.serve)


@pytest.mark.slow
def test_serving_imports_no_torch():
    code = "import json, sys, trisense.serve.api; print(json.dumps([m for m in sys.modules if '.' not in m]))"
    modules = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert "gradio" in modules and not {"torch", "transformers"} & set(modules)
