"""The official OpenAI client against a real server."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import wave
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from parrot import Parrot, serving
from PIL import Image

from trisense.errors import BadInput
from trisense.serve.api import run


@pytest.fixture
def client(server: tuple[Parrot, str], parrot: Parrot) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client: openai.OpenAI, messages: Any = "hello", **options: Any) -> Any:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return client.chat.completions.create(**{"model": "parrot", "messages": messages} | options)


def picture() -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (255, 0, 10)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def sound(samples: int = 1600) -> dict[str, Any]:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16000)
        writer.writeframes(np.zeros(samples, np.int16).tobytes())
    return {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"},
    }


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_a_plain_answer(client: openai.OpenAI) -> None:
    reply = ask(client, "how are you?")
    assert reply.choices[0].message.content == "turn 1: how are you?"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 5, 12)
    assert reply.model == "parrot" and reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")


def test_a_streamed_answer_comes_in_pieces(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "how are you?", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    words = [chunk.choices[0].delta.content for chunk in chunks[1:-1]]
    assert words == ["turn", " 1:", " how", " are", " you?"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 6 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_asked(client: openai.OpenAI) -> None:
    *chunks, last = ask(client, "hi", stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens == 7 + 3
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_on_the_wire(server: tuple[Parrot, str], parrot: Parrot) -> None:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = httpx.post(f"{server[1]}/v1/chat/completions", json=body, timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in events[:-2])


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_and_a_sound_reach_the_assistant(client: openai.OpenAI, stream: bool) -> None:
    reply = ask(client, [{"role": "user", "content": [picture(), sound(), text("what?")]}], stream=stream)
    if stream:
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
    else:
        answer = reply.choices[0].message.content
    assert answer == "turn 1: 8x6 [255, 0, 10], 1600 samples, what?"


def test_every_turn_and_its_media_are_sent_on(client: openai.OpenAI, parrot: Parrot) -> None:
    messages: list[Any] = [{"role": "system", "content": "be brief"}]
    messages.append({"role": "user", "content": [picture(), text("first?")]})
    messages.append(ask(client, messages).choices[0].message)  # the client's own object, with its empty fields
    messages.append({"role": "user", "content": "second?"})
    assert ask(client, messages).choices[0].message.content == "turn 4: second?"
    told = parrot.conversations[-1].messages
    assert [message.role for message in told] == ["system", "user", "assistant", "user"]
    assert [part.type for part in told[1].content] == ["image", "text"]
    assert [part.type for part in told[2].content] == ["text"]


def test_options_reach_the_assistant(client: openai.OpenAI, parrot: Parrot) -> None:
    ask(client, max_completion_tokens=9, temperature=0.5, top_p=0.9, seed=-3, stop="END")
    assert parrot.options[-1] == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 2**63 - 3,
        "stop": ("END",),
    }
    ask(client, stop=["a", "b"], n=1, frequency_penalty=0, user="me", response_format={"type": "text"})
    assert parrot.options[-1]["stop"] == ("a", "b")
    assert parrot.options[-1]["temperature"] == 0.0  # without a wish, the same answer every time


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_cut_by_max_tokens_says_so(client: openai.OpenAI, stream: bool) -> None:
    reply = ask(client, "one two three", max_tokens=3, stream=stream)
    if stream:
        assert [chunk.choices[0].finish_reason for chunk in reply][-1] == "length"
    else:
        assert reply.choices[0].finish_reason == "length"
        assert reply.choices[0].message.content == "turn 1: one"


def test_models_and_health(client: openai.OpenAI, server: tuple[Parrot, str]) -> None:
    assert [model.id for model in client.models.list()] == ["parrot"]
    assert client.models.retrieve("parrot").id == "parrot"
    assert httpx.get(f"{server[1]}/health").json() == {"status": "ok", "model": "parrot"}


def test_an_unknown_model_is_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"The model 'gpt-9' does not exist here.*'parrot'") as caught:
        ask(client, model="gpt-9")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.models.retrieve("gpt-9")


def test_an_unknown_url_is_404_in_the_same_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Unknown request URL: POST /v1/embeddings"):
        client.embeddings.create(model="parrot", input="x")


QUESTION = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"n": 2}, "n", "this server serves only 1"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "many"}, "max_tokens", "valid integer"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "not both"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"response_format": {"type": "json_object"}}, "response_format", "Unsupported value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "Unsupported value"),
        ({"extra_body": {"top_q": 1}}, "top_q", "Unknown parameter: 'top_q'"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": ["hello"]}, "messages", "valid dictionary"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "unknown role 'wizard'"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "y"}]}, "messages", "must come from the user"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
            "messages",
            "unknown part type 'video_url'",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}],
                    }
                ]
            },
            "messages",
            "only data: URLs",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}],
                    }
                ]
            },
            "messages",
            "picture",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests_are_400_and_name_the_parameter(
    client: openai.OpenAI, options: dict[str, Any], param: str, message: str, stream: bool
) -> None:
    options = {"stream": stream} | options
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **{"messages": QUESTION} | options)
    assert caught.value.type == "invalid_request_error" and caught.value.param == param
    assert message in caught.value.body["message"]  # type: ignore[index]
    assert "\n" not in caught.value.body["message"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": [{}]}', "Missing required parameter: 'model'"),
        (b'{"model": "parrot"}', "Missing required parameter: 'messages'"),
    ],
)
def test_bad_bodies_are_400(server: tuple[Parrot, str], body: bytes, message: str) -> None:
    response = httpx.post(f"{server[1]}/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_large_request_is_413(parrot: Parrot) -> None:
    with serving(Parrot(), max_body_bytes=10_000) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.APIStatusError, match="larger than 10000 bytes") as caught:
            ask(client, "x" * 10_000)
        assert caught.value.status_code == 413


def test_bad_input_after_the_first_word_ends_the_stream_with_an_error(client: openai.OpenAI, parrot: Parrot) -> None:
    parrot.trouble = BadInput("the sound ends early")
    with pytest.raises(openai.APIError, match="the sound ends early"):
        list(ask(client, stream=True))
    with pytest.raises(openai.BadRequestError, match="the sound ends early"):
        ask(client)


def test_a_fault_of_ours_is_500_and_tells_nothing_inner(
    client: openai.OpenAI, parrot: Parrot, caplog: pytest.LogCaptureFixture
) -> None:
    parrot.trouble = ZeroDivisionError("/secret/path")
    with pytest.raises(openai.InternalServerError, match="failed to answer") as caught:
        ask(client)
    assert "secret" not in str(caught.value) and caught.value.type == "server_error"
    with pytest.raises(openai.APIError, match="failed to answer") as streamed:
        list(ask(client, stream=True))
    assert "secret" not in str(streamed.value)
    assert "/secret/path" in caplog.text
    parrot.trouble = None
    assert ask(client).choices[0].message.content == "turn 1: hello"  # and goes on


def test_one_answer_at_a_time_while_the_server_stays_awake(
    client: openai.OpenAI, server: tuple[Parrot, str], parrot: Parrot
) -> None:
    parrot.may_go_on.clear()
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(ask(client, f"number {i}").choices[0].message.content))
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    assert parrot.waits.wait(30)
    assert httpx.get(f"{server[1]}/health").status_code == 200
    assert len(parrot.conversations) == 1
    parrot.may_go_on.set()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == ["turn 1: number 0", "turn 1: number 1", "turn 1: number 2"]
    assert parrot.most_at_work == 1


def test_a_client_that_leaves_a_stream_stops_the_answer(client: openai.OpenAI, parrot: Parrot) -> None:
    parrot.may_go_on.clear()
    stream = ask(client, "one two three", stream=True)
    assert [next(iter(stream)).choices[0].delta.content, next(iter(stream)).choices[0].delta.content] == ["", "turn"]
    assert parrot.waits.wait(30)
    stream.close()
    _leave(parrot)
    assert ask(client).choices[0].message.content == "turn 1: hello"


def test_a_client_that_leaves_before_the_answer_stops_it(client: openai.OpenAI, parrot: Parrot) -> None:
    parrot.may_go_on.clear()
    with pytest.raises(openai.APITimeoutError):
        ask(client, "one two three", timeout=0.5)
    _leave(parrot)
    assert ask(client).choices[0].message.content == "turn 1: hello"


def _leave(parrot: Parrot) -> None:
    """Lets the answer go on a moment after its client has left: it must not come to its end."""
    threading.Event().wait(0.3)
    parrot.may_go_on.set()
    assert parrot.stopped.wait(30)


def test_a_client_that_leaves_the_queue_is_never_answered(
    client: openai.OpenAI, parrot: Parrot, until: Callable[[Callable[[], bool]], None]
) -> None:
    parrot.may_go_on.clear()
    first = threading.Thread(target=ask, args=(client, "first"))
    first.start()
    assert parrot.waits.wait(30)
    with pytest.raises(openai.APITimeoutError):
        ask(client, "second", timeout=0.5)
    threading.Event().wait(0.3)
    parrot.may_go_on.set()
    first.join(30)
    ask(client, "third")
    until(lambda: len(parrot.conversations) >= 2)
    assert [c.messages[0].content[0].text for c in parrot.conversations] == ["first", "third"]  # type: ignore[union-attr]


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"port {port}: already in use on 127.0.0.1.*--port"):
            run(port=port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("no such host", 8000), ("192.0.2.1", 8000)])
def test_an_impossible_address_is_one_clear_line(host: str, port: int) -> None:
    with pytest.raises(BadInput, match=host if port == 8000 else "port 70000"):
        run(host=host, port=port)
