"""The wire format: what an OpenAI client sends to `/v1/chat/completions` and expects back.

After OpenAI's API reference for chat completions. A parameter that would change the answer and is not served is refused
by name instead of ignored; parameters that cannot change the answer (`user`, `metadata`, ...) are accepted.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trisense.assistant.assistant import Answer
from trisense.errors import BadInput
from trisense.serve.worker import DEFAULT_NEW_TOKENS, Options

# Cannot change the text of one answer from one model.
IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "top_logprobs",
    "user",
}
# Not served: accepted only at the value that asks for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}


class ApiError(Exception):
    """An answer with an HTTP error status, in OpenAI's shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """`stream_options` of a request."""

    model_config = ConfigDict(strict=True, frozen=True)
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of a request, checked; `parse` makes one."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: int | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]] | None,
        Field(max_length=4),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def options(self) -> Options:
        """The same wishes for the assistant. A missing temperature is 0, unlike OpenAI's: the same answer each time."""
        return Options(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_NEW_TOKENS,
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            # OpenAI's seeds are signed, random generators want them unsigned.
            seed=None if self.seed is None else self.seed % 2**63,
            stop=tuple(self.stop or ()),
        )


def parse(body: bytes) -> ChatRequest:
    """Check the body of a request. Raises `ApiError` (400) that names the parameter."""
    try:
        record = json.loads(body)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both one
        raise ApiError(400, f"The body of the request is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise ApiError(400, "The body of the request must be a JSON object.")
    for name, value in record.items():
        if name in NEUTRAL and not any(value == allowed for allowed in NEUTRAL[name]):
            allowed = " or ".join(json.dumps(v) for v in NEUTRAL[name] if v is not None) or "null"
            raise ApiError(
                400, f"Unsupported value for '{name}': this server serves only {allowed}.", name, "unsupported_value"
            )
        if name not in NEUTRAL and name not in IGNORED and name not in ChatRequest.model_fields:
            raise ApiError(400, f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    try:
        request = ChatRequest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise ApiError(400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter") from None
        raise ApiError(400, f"Invalid value for '{name}': {first['msg']}.", name, "invalid_value") from None
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "Give 'max_tokens' or 'max_completion_tokens', not both.", "max_tokens", "invalid_value")
    return request


def bad_input(error: BadInput) -> ApiError:
    """Whatever reaches the assistant was in the messages, so this is where a refusal points."""
    return ApiError(400, str(error), "messages", "invalid_value")


class Reply:
    """The bodies of one answer; all of them share an id and a time."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(answer)}

    def chunk(
        self, delta: dict[str, Any], finish_reason: Literal["stop", "length"] | None = None, null_usage: bool = False
    ) -> dict[str, Any]:
        """One piece of a streamed answer. With `null_usage`, for streams that end with their usage, as OpenAI's."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        head = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**head, "usage": None} if null_usage else head

    def last(self, answer: Answer) -> dict[str, Any]:
        """The piece without choices that carries the usage of a streamed answer."""
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage(answer)}


def usage(answer: Answer) -> dict[str, int]:
    """Numbers of tokens."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(body: dict[str, Any] | str) -> str:
    """One server-sent event."""
    data = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n"
