"""The interface that OpenAI's clients speak: models, embeddings, completions and chat completions, streamed or whole.

A parameter that is not honoured is refused by its name, never passed over. Errors have the interface's own form.

Source: https://platform.openai.com/docs/api-reference (models, embeddings, completions, chat).
"""

from __future__ import annotations

import base64
import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from confed import canonical
from confed.inference.engine import (
    Answer,
    Embedder,
    GenerationOptions,
    Generator,
    InvalidRequestError,
    json_answer,
    stream_answer,
    while_awaited,
)
from confed.inference.messages import Request

_MOST_TEXTS = 2048
_MOST_STOPS = 4
_KINDS = {400: "invalid_request_error", 404: "invalid_request_error", 500: "server_error"}
_SHARED = frozenset(
    {
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "n",
        "user",
        "cache_salt",
    }
)
Routes = dict[tuple[str, str], Callable[[Request], Answer]]


def routes(model: Any, *, name: str) -> Routes:
    """Return the handlers of one model by method and path: those that it has methods for."""
    found: Routes = {}
    if isinstance(model, Embedder):
        embedder: Embedder = model
        found["POST", "/v1/embeddings"] = lambda request: _embeddings(embedder, name, request)
    if isinstance(model, Generator):
        generator: Generator = model
        found["POST", "/v1/completions"] = lambda request: _completions(generator, name, request)
        found["POST", "/v1/chat/completions"] = lambda request: _chat(generator, name, request)
    if found:
        entry = {"id": name, "object": "model", "created": 0, "owned_by": "confed"}
        found["GET", "/v1/models"] = lambda _request: json_answer({"object": "list", "data": [entry]})
        found["GET", f"/v1/models/{name}"] = lambda _request: json_answer(entry)
    return found


def error_answer(status: int, reason: str) -> Answer:
    """Return an error in the interface's form; clients that repeat by themselves are told not to: it has been asked."""
    error = {"message": reason, "type": _KINDS.get(status, "invalid_request_error"), "param": None, "code": None}
    found = json_answer({"error": error}, status=status)
    head = replace(found.head, headers=(*found.head.headers, ("x-should-retry", "false")))
    return replace(found, head=head)


def _embeddings(model: Embedder, name: str, request: Request) -> Answer:
    value = _object(request, name, known=frozenset({"model", "input", "encoding_format", "user"}))
    texts = value.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not 1 <= len(texts) <= _MOST_TEXTS:  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidRequestError(400, f"input: a text, or 1 to {_MOST_TEXTS} texts")
    if not all(isinstance(text, str) and text for text in texts):  # pyright: ignore[reportUnknownVariableType]
        raise InvalidRequestError(400, "input: texts that are not empty (tokens are not taken)")
    encoding = value.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise InvalidRequestError(400, "encoding_format: float or base64")
    rows, tokens = model.embed(texts)  # pyright: ignore[reportUnknownArgumentType]
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(row, encoding)} for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_answer({"object": "list", "data": data, "model": name, "usage": usage})


def _vector(row: np.ndarray[Any, np.dtype[np.float32]], encoding: str) -> Any:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if encoding == "base64" else row.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How pieces of text stand in one of the two interfaces."""

    name: str
    prefix: str
    whole: str
    piece: str
    chat: bool

    def choice(self, text: str, finish: str | None, *, whole: bool, first: bool) -> dict[str, Any]:
        shared = {"index": 0, "finish_reason": finish, "logprobs": None}
        if not self.chat:
            return {**shared, "text": text}
        if whole:
            return {**shared, "message": {"role": "assistant", "content": text, "refusal": None}}
        delta = {"role": "assistant", "content": text} if first else {"content": text} if text else {}
        return {**shared, "delta": delta}


def _completions(model: Generator, name: str, request: Request) -> Answer:
    value = _object(request, name, known=_SHARED | {"prompt"})
    prompt = value.get("prompt")
    if not isinstance(prompt, str):
        raise InvalidRequestError(400, "prompt: one text")
    form = _Form(name=name, prefix="cmpl-", whole="text_completion", piece="text_completion", chat=False)
    return _generated(model, form, prompt, value, salt=request.cache_salt)


def _chat(model: Generator, name: str, request: Request) -> Answer:
    value = _object(request, name, known=_SHARED | {"messages", "max_completion_tokens"})
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(entry) for entry in messages):  # pyright: ignore[reportUnknownVariableType]
        raise InvalidRequestError(400, "messages: objects with role (system, user, assistant) and content (text)")
    if "max_completion_tokens" in value:
        value["max_tokens"] = value.pop("max_completion_tokens")
    prompt = model.chat_prompt(messages)  # pyright: ignore[reportUnknownArgumentType]
    form = _Form(name=name, prefix="chatcmpl-", whole="chat.completion", piece="chat.completion.chunk", chat=True)
    return _generated(model, form, prompt, value, salt=request.cache_salt)


def _is_message(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) - {"role", "content", "name"}:  # pyright: ignore[reportUnknownArgumentType]
        return False
    return entry.get("role") in ("system", "developer", "user", "assistant") and isinstance(entry.get("content"), str)  # pyright: ignore[reportUnknownMemberType]


def _generated(model: Generator, form: _Form, prompt: str, value: Mapping[str, Any], *, salt: str | None) -> Answer:
    options = _options(value, chat=form.chat, salt=salt)
    pieces = model.generate(prompt, options)
    shared = {"id": form.prefix + secrets.token_hex(12), "created": int(time.time()), "model": form.name}
    if value.get("stream") is True:
        usage = value.get("stream_options") or {}
        if not isinstance(usage, dict) or set(usage) - {"include_usage"}:  # pyright: ignore[reportUnknownArgumentType]
            raise InvalidRequestError(400, "stream_options: include_usage")
        first = next(pieces)  # what is wrong with the prompt is told before the stream begins
        with_usage = usage.get("include_usage") is True  # pyright: ignore[reportUnknownMemberType]
        return stream_answer(_events(form, shared, itertools.chain([first], pieces), with_usage=with_usage))
    found = list(while_awaited(pieces))
    text, last = "".join(piece.text for piece in found), found[-1]
    choice = form.choice(text, last.finish, whole=True, first=True)
    usage = _usage(last.prompt_tokens, last.tokens)
    return json_answer({**shared, "object": form.whole, "choices": [choice], "usage": usage})


def _events(form: _Form, shared: Mapping[str, Any], pieces: Iterator[Any], *, with_usage: bool) -> Iterator[bytes]:
    """Yield server-sent events: one a piece, the usage if asked for, and the end."""
    first, last = True, None
    for piece in pieces:
        choice = form.choice(piece.text, piece.finish, whole=False, first=first)
        yield _event({**shared, "object": form.piece, "choices": [choice]})
        first, last = False, piece
    if with_usage and last is not None:
        usage = _usage(last.prompt_tokens, last.tokens)
        yield _event({**shared, "object": form.piece, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _usage(prompt_tokens: int, tokens: int) -> dict[str, int]:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


def _options(value: Mapping[str, Any], *, chat: bool, salt: str | None) -> GenerationOptions:
    stop = value.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise InvalidRequestError(400, f"stop: a text, or up to {_MOST_STOPS} texts")
    if value.get("n", 1) != 1:
        raise InvalidRequestError(400, "n: 1")
    return GenerationOptions(
        max_tokens=_number(value, "max_tokens", int, least=1, most=1_000_000, default=None),
        temperature=_number(value, "temperature", float, least=0, most=2, default=1.0),
        top_p=_number(value, "top_p", float, least=0, most=1, default=1.0),
        seed=_number(value, "seed", int, least=-(2**63), most=2**63 - 1, default=None),
        stop=tuple(stops),  # pyright: ignore[reportUnknownArgumentType]
        special_tokens=not chat,
        cache_salt=_cache_salt(value, salt),
    )


def _cache_salt(value: Mapping[str, Any], salt: str | None) -> str | None:
    """Return the salt of a request: its tenant's, or with ``cache_salt`` (vLLM's name for it) one of a part of it."""
    own = value.get("cache_salt")
    if own is None or salt is None:
        return salt
    if not isinstance(own, str) or not own:
        raise InvalidRequestError(400, "cache_salt: a text that is not empty")
    return canonical.digest(f"{salt}/{own}".encode())


def _number(value: Mapping[str, Any], name: str, kind: type, *, least: float, most: float, default: Any) -> Any:
    found = value.get(name)
    if found is None:
        return default
    fits = isinstance(found, int | float) and not isinstance(found, bool) and (kind is float or isinstance(found, int))
    if not fits or not least <= found <= most:
        raise InvalidRequestError(400, f"{name}: from {least} to {most}")
    return found


def _object(request: Request, name: str, *, known: frozenset[str]) -> dict[str, Any]:
    try:
        value = json.loads(bytes(request.body))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(400, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(400, "the body is not a JSON object")
    for key in value:  # pyright: ignore[reportUnknownVariableType]
        if key not in known:
            raise InvalidRequestError(400, f"{str(key)[:64]}: this parameter is not supported")  # pyright: ignore[reportUnknownArgumentType]
    if value.get("model") != name:  # pyright: ignore[reportUnknownMemberType]
        raise InvalidRequestError(404, f"model: {name} is served here, and no other")
    return value  # pyright: ignore[reportUnknownVariableType]
