"""What answers an opened request, inside the TEE: an engine, made from the opened model by code of the measured image.

The manifest's ``code.client_app`` names a factory ``module:attribute``, which is given the model's tensors and the
manifest's settings, and returns a served model: an object with one or several of the methods below. Which of the
interfaces are there follows from which methods it has. One with a ``close`` is told when it is needed no longer. What
an engine keeps of a request serves its own tenant alone (``GenerationOptions.cache_salt``).
"""

from __future__ import annotations

import collections.abc
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from confed.errors import ManifestMismatchError
from confed.inference.messages import AnswerHead

Array = NDArray[Any]


@runtime_checkable
class Predictor(Protocol):
    """A model of tensors."""

    def inputs(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Return what it takes: name -> NumPy type and shape, -1 for any length of an axis."""
        ...

    def predict(self, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs for inputs that have been checked against ``inputs``."""
        ...


@runtime_checkable
class Described(Protocol):
    """A model of tensors that also says what it gives."""

    def outputs(self) -> Mapping[str, tuple[str, tuple[int, ...]]]:
        """Return what it gives: name -> NumPy type and shape, -1 for any length of an axis."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A model that turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Return one row for each text, and how many tokens they were.

        Raises:
            InvalidRequestError: a text beyond the model's context.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How text goes on. ``temperature`` 0 takes the likeliest token; ``seed`` ``None`` draws from the system's.

    ``special_tokens``: whether the tokenizer puts its own around the prompt; a chat's template has written them.
    ``cache_salt``: what is kept of this request serves requests with the same one alone; ``None``: nothing is kept.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    special_tokens: bool
    cache_salt: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of generated text; the last one says why it ended: ``stop`` or ``length``. Tokens are counted so far."""

    text: str = field(repr=False)
    finish: str | None
    prompt_tokens: int
    tokens: int


@runtime_checkable
class Generator(Protocol):
    """A model that goes on with a text."""

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text that stands for messages of a chat, up to where the answer begins.

        Raises:
            InvalidRequestError: the model has no template for chats, or its template refuses these.
        """
        ...

    def generate(self, prompt: str, options: GenerationOptions) -> Iterator[Piece]:
        """Yield at least one piece; whoever stops reading ends the generation.

        Raises:
            InvalidRequestError: at the first piece, if the prompt does not fit the model's context.
        """
        ...


class InvalidRequestError(Exception):
    """A request that an interface refuses; told to the requester alone, in the interface's own form.

    Args:
        status: of HTTP.
        reason: what is wrong with it; sealed to the requester, and in no log.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"a request refused with status {status}")
        self.status = status
        self.reason = reason


_nobody_waits: ContextVar[Callable[[], bool]] = ContextVar("nobody_waits", default=lambda: False)


@contextmanager
def answering_for(gone: Callable[[], bool]) -> collections.abc.Generator[None]:
    """What is answered within this, in this thread, is for a requester of whom ``gone`` says whether it went away."""
    before = _nobody_waits.set(gone)
    try:
        yield
    finally:
        _nobody_waits.reset(before)


def requester_gone() -> Callable[[], bool]:
    """Return what says whether the requester whom this thread answers now went away; for engines that make one wait."""
    return _nobody_waits.get()


def while_awaited(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield pieces of an answer that goes out whole, as long as somebody waits for it.

    Raises:
        InvalidRequestError: nobody does any more; the generation has been ended.
    """
    gone = _nobody_waits.get()
    for piece in pieces:
        if gone():
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
            raise InvalidRequestError(499, "nobody waits for the answer")
        yield piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer on its way: the head, and the body piece by piece; ``delivered``: digest of what went elsewhere."""

    head: AnswerHead
    body: Iterable[bytes | memoryview] = field(repr=False)
    delivered: str | None = None


def json_answer(value: Any, *, status: int = 200) -> Answer:
    """Return an answer of one JSON value."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    headers = (("content-length", str(len(body))), ("content-type", "application/json"))
    return Answer(head=AnswerHead(status=status, headers=headers), body=(body,))


def stream_answer(pieces: Iterator[bytes]) -> Answer:
    """Return an answer of server-sent events, as they come."""
    headers = (("cache-control", "no-store"), ("content-type", "text/event-stream; charset=utf-8"))
    return Answer(head=AnswerHead(status=200, headers=headers), body=pieces)


def load_engine(entry_point: str, *, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> Any:
    """Return the served model of a factory ``module:attribute`` that is installed in this image.

    Raises:
        ManifestMismatchError: there is no such factory here.
        ConfedError: the model does not fit the engine.
    """
    module, _, attribute = entry_point.partition(":")
    factory = getattr(importlib.import_module(module), attribute, None) if attribute else None
    if factory is None:
        raise ManifestMismatchError("engine", expected=f"{entry_point} in this image", got="none")
    return factory(arrays, settings)
