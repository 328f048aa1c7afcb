"""What two machines tell each other when a TPM's attestation key is enrolled, as files of one strict form.

1. ``request`` (the TPM's machine): the keys' public areas and the EK's certificate. Nothing in it is secret.
2. ``challenge`` (the verifier to the TPM's machine): a credential that only this TPM opens. Nothing in it is secret.
3. ``kept`` (stays with the verifier): which keys, the secret, and until when an answer is taken.
4. ``answer`` (back to the verifier): the secret, which is worth nothing but this one enrolment.

What the files mean is checked by ``tee.tpm_enrolment``; here they are only read, and told apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from confed import canonical, record
from confed.attestation.tee.credential import Credential
from confed.attestation.tee.tpm_enrolment import PendingEnrolment
from confed.errors import ConfigError, EncodingError, SizeError, StaleEndorsementError

LIMIT_BYTES = 64 * 1024
"""Largest file; an EK certificate has some 2 KiB."""

ANSWER_WITHIN_S = 24 * 3600
"""How long a challenge stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which keys a TPM has: public areas (TPM2B_PUBLIC), and the EK's certificate in DER."""

    FORMAT: ClassVar[str] = "confed/tpm-enrolment-request/1"

    attestation_key: bytes
    endorsement_key: bytes
    certificate: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file: people compare it, since whoever carries the file could carry another TPM's."""
        return canonical.digest(encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What the verifier asks; ``request`` is the fingerprint of what it answers."""

    FORMAT: ClassVar[str] = "confed/tpm-enrolment-challenge/1"

    request: str
    credential: Credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a verifier keeps until the answer: a secret; ``opened_at`` in Unix milliseconds."""

    FORMAT: ClassVar[str] = "confed/tpm-enrolment-kept/1"

    request: str
    pending: PendingEnrolment
    opened_at: int

    def require_open(self, now_ms: int) -> None:
        """Refuse a challenge that was made too long ago, or after now.

        Raises:
            StaleEndorsementError: either.
        """
        age_ms = now_ms - self.opened_at
        if not 0 <= age_ms <= ANSWER_WITHIN_S * 1000:
            raise StaleEndorsementError(
                "age of the challenge in seconds",
                expected=f"0 to {ANSWER_WITHIN_S}: make a new one",
                got=age_ms // 1000,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the TPM gave up."""

    FORMAT: ClassVar[str] = "confed/tpm-enrolment-answer/1"

    request: str
    secret: bytes = field(repr=False)


_File = TypeVar("_File", Request, Challenge, Kept, Answer)


def encode(value: Request | Challenge | Kept | Answer) -> bytes:
    """Return the bytes of a file."""
    return canonical.encode({"content": record.to_json(value), "format": value.FORMAT})


def decode(kind: type[_File], data: bytes, *, what: str) -> _File:
    """Return what a file says; a line end after it is left out.

    Raises:
        ConfigError: another file, or one that was changed on its way.
    """
    expected = f"a file of {kind.FORMAT}"
    try:
        document = canonical.decode(data.rstrip(b"\r\n"), limit_bytes=LIMIT_BYTES)
    except (EncodingError, SizeError) as error:
        raise ConfigError(what, expected=expected, got="something else") from error
    if not isinstance(document, dict) or set(document) != {"content", "format"}:  # pyright: ignore[reportUnknownArgumentType]
        raise ConfigError(what, expected=expected, got="another document")
    if document["format"] != kind.FORMAT:
        raise ConfigError(what, expected=expected, got=f"one of {document['format']!r}"[:80])
    return record.from_json(kind, document["content"], at=what, error=ConfigError)
