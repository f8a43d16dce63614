"""`/v1/chat/completions`, `/v1/models` and `/health` for any OpenAI client, and the chat page at `/`, in one server."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from trisense.assistant.assistant import Answer, Assistant
from trisense.chat import Conversation
from trisense.errors import BadInput
from trisense.media import Limits
from trisense.serve import web
from trisense.serve.openai import ApiError, ChatRequest, Reply, bad_input, event, parse
from trisense.serve.worker import Failed, Worker

T = TypeVar("T")

# The largest picture or sound that is read, as base64 (4 characters for 3 bytes), and 16 MiB for the rest.
MAX_BODY_BYTES = Limits().max_bytes * 4 // 3 + 16 * 2**20
CLIENT_LEFT = 499  # nginx's number for "the client closed the connection"; nobody reads it but a log


def create_app(assistant: Assistant, max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """The server's application over an open assistant: API routes first, then the chat page for every other path.

    A request body larger than `max_body_bytes` is refused with status 413 before all of it is read.
    """
    worker = Worker(assistant)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    # No /docs: that page loads its scripts from another server.
    app = FastAPI(title="trisense", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.model = worker.name

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(BadInput)
    async def refuse_input(_: Request, error: BadInput) -> Response:
        return JSONResponse(bad_input(error).body(), 400)

    @app.exception_handler(ClientDisconnect)
    async def forget(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Failed)
    async def fail(_: Request, error: Failed) -> Response:
        return JSONResponse(ApiError(500, str(error)).body(), 500)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": worker.name}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(worker.name)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _know(name, worker)
        return _model(name)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        wish = parse(await _body(request, max_body_bytes))
        _know(wish.model, worker)
        conversation = Conversation.from_openai(wish.messages)
        if conversation.messages[-1].role != "user":
            raise ApiError(400, "The last message must come from the user.", "messages", "invalid_value")
        pieces = worker.stream(conversation, wish.options())
        if not wish.stream:
            return JSONResponse(Reply(worker.name).whole(await _unless_left(request, _last(pieces))))
        # The first piece is awaited before the status line is sent, so that bad input is still a 400.
        first = await _unless_left(request, anext(pieces))
        return StreamingResponse(_events(wish, worker.name, first, pieces), media_type="text/event-stream")

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(request: Request, path: str) -> Response:
        raise ApiError(404, f"Unknown request URL: {request.method} /v1/{path}.", code="unknown_url")

    return web.mount(app, worker)


async def _body(request: Request, limit: int) -> bytes:
    """The request's body, read no further than `limit` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ApiError(413, f"The request is larger than {limit} bytes; send smaller pictures or sounds.")
    return bytes(body)


def _know(name: str, worker: Worker) -> None:
    if name != worker.name:
        message = f"The model '{name}' does not exist here; this server has '{worker.name}'."
        raise ApiError(404, message, "model", "model_not_found")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "trisense"}


async def _unless_left(request: Request, answering: Coroutine[Any, Any, T]) -> T:
    """What `answering` returns; raises ClientDisconnect and cancels it as soon as the client has left."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(answering), asyncio.ensure_future(left())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        watch.cancel()


async def _last(pieces: AsyncGenerator[str | Answer, None]) -> Answer:
    """The whole answer, which is the last thing a worker's stream gives."""
    *_, answer = [piece async for piece in pieces]
    assert isinstance(answer, Answer)
    return answer


async def _events(
    wish: ChatRequest, name: str, first: str | Answer, pieces: AsyncGenerator[str | Answer, None]
) -> AsyncIterator[str]:
    """An answer as server-sent events, in the order of OpenAI's: role, text, finish reason, usage, [DONE]."""
    reply = Reply(name)
    null_usage = wish.include_usage
    try:
        yield event(reply.chunk({"role": "assistant", "content": ""}, null_usage=null_usage))
        piece = first
        while not isinstance(piece, Answer):
            yield event(reply.chunk({"content": piece}, null_usage=null_usage))
            piece = await anext(pieces)
        yield event(reply.chunk({}, piece.finish_reason, null_usage))
        if wish.include_usage:
            yield event(reply.last(piece))
        yield event("[DONE]")
    except (BadInput, Failed) as error:
        # The status line has long been sent; OpenAI's client raises an APIError for such an event.
        yield event((bad_input(error) if isinstance(error, BadInput) else ApiError(500, str(error))).body())
    finally:
        await pieces.aclose()


class _Server(uvicorn.Server):
    """Says where it is once it is ready, and leaves at the first Ctrl-C without waiting for open pages."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # An open page keeps a stream open for ever; cutting it is no error worth a line.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def run(
    model: str | Path = "spark", host: str = "127.0.0.1", port: int = 8000, speech: str | Path | None = None
) -> None:
    """Open the model and serve it until Ctrl-C. `port` 0 takes a free one; the line printed when ready names it.
    speech: as in `Assistant.from_pretrained`.

    Raises BadInput when the model cannot be opened or the address cannot be listened at.
    """
    with listen(host, port) as listener:  # first, because opening a model may take long
        app = create_app(Assistant.from_pretrained(model, speech=speech))
        port = listener.getsockname()[1]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        ready = f"trisense serves {app.state.model} at {url} (chat page) and {url}/v1 (OpenAI API); Ctrl-C ends it"
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has shut down
            _Server(config, ready).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises BadInput with what is wrong about the address."""
    if not 0 <= port <= 65535:
        raise BadInput(f"port {port}: expected a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise BadInput(f"host {host!r}: not an address of this machine; try 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a restart need not wait for old connections; on Windows it would share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise BadInput(
                f"port {port}: already in use on {host}; stop the other server or give another --port"
            ) from None
        raise BadInput(
            f"cannot listen at {host} port {port}: {error.strerror}; give another --host or --port"
        ) from None
    return listener
