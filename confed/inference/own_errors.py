"""Errors of the requester's own side, in the form of the interface that was asked: what no replica has answered.

Clients that nobody here wrote send again by themselves what ended with such a status, unless they are told not to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from confed.errors import BusyError, ConfedError, SizeError
from confed.inference.messages import Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswer:
    """Status, headers and body of HTTP."""

    status: int
    headers: Headers
    body: bytes


def own_error(path: str, error: ConfedError) -> WholeAnswer:
    """Return an error of the client as an answer: to be sent again only where no replica took the request."""
    status = 413 if isinstance(error, SizeError) else 503 if isinstance(error, BusyError) else 502
    return told_error(path, status=status, code=error.code, message=str(error), again=isinstance(error, BusyError))


def told_error(path: str, *, status: int, code: str, message: str, again: bool = False) -> WholeAnswer:
    """Return an error in the form of the interface that a path belongs to; ``again``: whether to send it once more."""
    value: dict[str, Any] = {"error": {"message": message, "type": "confed", "param": None, "code": code}}
    if path.startswith("/v2"):
        value = {"error": f"{message} ({code})"}
    body = json.dumps(value).encode()
    headers = (
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("x-should-retry", "true" if again else "false"),
    )
    return WholeAnswer(status=status, headers=headers, body=body)
