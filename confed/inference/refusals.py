"""Refusals that a replica signs: a request was not taken, and never will be.

Status and code of an answer outside of an exchange are anybody's word. A network could let a request run, keep its
answer back and say "busy" itself, so that it is sent again. So a requester sends one again only on this statement:

1. It is signed with the key that the replica's evidence vouches for: of the replica that this request was sealed to.
   That key stays the same when epochs change; of another instance, behind the same address too, it is another.
2. It names the request by its transcript, the epoch that it was sealed to, and a reason out of a few. It is worth
   nothing for any other request, and of the same there is one only.
3. Before it signs, the replica notes the request as used (``confed.inference.epochs``), so that no copy of it that is
   still on its way, or kept by somebody, runs afterwards. One that was taken before is never refused by signature.
4. Of a request to an epoch that the replica does not remember it says nothing signed: it may have run there.

On the wire it stands beside the stable code of the reason: canonical JSON, of at most ``REFUSAL_LIMIT_BYTES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from confed import canonical
from confed.errors import (
    BusyError,
    ConfedError,
    EncodingError,
    LeaseError,
    LineageError,
    SizeError,
    StaleEpochError,
)
from confed.statement import Signed, verify

REFUSAL_LIMIT_BYTES = 4096


class Reason(StrEnum):
    """Why a request was not taken: the stable code of an error."""

    STALE_EPOCH = StaleEpochError.code
    BUSY = BusyError.code
    LEASE = LeaseError.code
    SIZE = SizeError.code


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A replica says: this request has not run here, and will not.

    Attributes:
        manifest: digest of the manifest that it serves.
        instance: the replica.
        epoch: name of the epoch key that the request was sealed to.
        request: the request's transcript, in hexadecimal.
        reason: why.
    """

    TYPE: ClassVar[str] = "confed/v1/inference-refusal"
    manifest: str
    instance: str
    epoch: str
    request: str
    reason: Reason


def reason_of(error: ConfedError) -> Reason | None:
    """Return the reason that an error is; ``None``: one that nobody signs."""
    return next((reason for reason in Reason if reason == error.code), None)


def told(refused: Signed, reason: Reason) -> dict[str, Any]:
    """Return what is sent in place of an answer, as a JSON value."""
    return {"code": str(reason), "refusal": refused.to_json()}


def read_refusal(data: bytes) -> Signed:
    """Return the signed statement of what came in place of an answer; it is not yet verified.

    Raises:
        SizeError: more than a refusal is.
        EncodingError: anything that is not one, a bare code for one.
    """
    value = canonical.decode(data, limit_bytes=REFUSAL_LIMIT_BYTES)
    if not isinstance(value, dict) or sorted(value) != ["code", "refusal"]:  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError("refusal", expected="a code and a signed refusal", got="something else")
    return Signed.from_json(value["refusal"])


def verify_refusal(signed: Signed, *, signing_public: bytes, expected: dict[str, str]) -> Refusal:
    """Return a refusal that the replica with this signing key signed, and that is of the request that is expected.

    Args:
        signed: as it came.
        signing_public: of the replica that the request was sealed to, from its verified evidence.
        expected: fields of the refusal by name.

    Raises:
        SignatureError: signed by another.
        EncodingError: no refusal, or one for an unknown reason.
        LineageError: of another request, epoch, replica or manifest.
    """
    refusal = verify(signed, Refusal, signer=signing_public)
    for name, value in expected.items():
        found = getattr(refusal, name)
        if found != value:
            raise LineageError(f"refusal.{name}", expected=value[:16], got=found[:16])
    return refusal
