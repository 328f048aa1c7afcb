"""What became of a request that got no answer: it has certainly not run, or it may have. There is nothing between.

It has certainly not run where its last frame was never handed over, since nothing runs before that is authentic, and
where the replica that it was sealed to signed a refusal of it. Whatever else happens, it may have run.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpx

from confed import canonical
from confed.errors import (
    BusyError,
    ConfedError,
    EncodingError,
    LeaseError,
    MayHaveRunError,
    RefusedError,
    SizeError,
    StaleEpochError,
    UnreachableError,
    error_for,
)
from confed.inference.exchange import Sealing
from confed.inference.refusals import REFUSAL_LIMIT_BYTES, read_refusal
from confed.inference.requester import VerifiedReplica

LARGEST_REPLY_BYTES = 8 * 1024 * 1024
ELSEWHERE = (UnreachableError, BusyError, LeaseError, StaleEpochError)
"""Reasons for which another replica may well take a request that has not run."""


class NotRunError(Exception):
    """A request that has certainly not run, and why."""

    def __init__(self, reason: RefusedError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def unreachable(url: str, error: BaseException) -> UnreachableError:
    """Return the error of a replica that does not answer."""
    return UnreachableError(f"replica at {url}", expected="an answer", got=type(error).__name__)


def lost(url: str, error: BaseException, *, sealing: Sealing) -> NotRunError | MayHaveRunError:
    """Return what it means that a connection was lost before an answer began."""
    if not sealing.handed_over:
        return NotRunError(unreachable(url, error))
    return MayHaveRunError(f"request to {url}", expected="an answer", got=type(error).__name__)


def refused(
    url: str, response: httpx.Response, *, sealing: Sealing, replica: VerifiedReplica
) -> NotRunError | MayHaveRunError:
    """Return what it means that something else than an answer came; the response is closed.

    Args:
        url: the replica's address, for errors.
        response: as it came; anybody may have made it.
        sealing: of the request.
        replica: that the request was sealed to, as it was verified then.
    """
    data = body_of_refusal(response)
    if not sealing.handed_over:
        return NotRunError(claimed(data))
    try:
        refusal = replica.refusal(read_refusal(data), epoch=sealing.epoch, request=sealing.transcript)
    except ConfedError as error:
        got = f"status {response.status_code} with no refusal that holds ({error.code}), claiming {claimed(data).code}"
        return MayHaveRunError(f"request to {url}", expected="an answer, or a signed refusal", got=got)
    sealing.refused(refusal)
    reason = error_for(refusal.reason, "exchange")
    return NotRunError(reason if isinstance(reason, RefusedError) else RefusedError(str(reason)))


def body_of_refusal(response: httpx.Response) -> bytes:
    """Return what came in place of an answer, nothing where it is larger than any refusal; close the response."""
    data = b""
    with suppress(SizeError, httpx.HTTPError):
        data = limited(response.iter_raw(), limit_bytes=REFUSAL_LIMIT_BYTES)
    response.close()
    return data


def claimed(data: bytes) -> RefusedError:
    """Return the error that a refusal claims to be, which proves nothing."""
    code = ""
    with suppress(RefusedError):
        code = str(field(canonical.decode(data), "code"))
    found = error_for(code, "exchange")
    return found if isinstance(found, RefusedError) else RefusedError(str(found))


def limited(pieces: Iterable[bytes], *, limit_bytes: int = LARGEST_REPLY_BYTES) -> bytes:
    """Return pieces as one.

    Raises:
        SizeError: more than their bound.
    """
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > limit_bytes:
            raise SizeError("reply size in bytes", expected=f"at most {limit_bytes}", got="more")
    return bytes(data)


def field(value: Any, name: str) -> Any:
    """Return a reply's field.

    Raises:
        EncodingError: it has none of this name.
    """
    if not isinstance(value, dict) or name not in value:
        raise EncodingError(f"reply {name}", expected="a value", got="none")
    return value[name]  # pyright: ignore[reportUnknownVariableType]
