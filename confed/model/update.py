"""What an update says about itself: in public for which step it is, sealed how much it weighs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from confed import canonical, record
from confed.errors import DeclarationError, EncodingError, NotFiniteError, SizeError
from confed.journey import Purpose

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_METRICS = 256
_MAX_NAME = 128
_MAX_DECLARATION_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDetail:
    """The public detail in the header of an update or of sealed metrics.

    Attributes:
        manifest, base: digests of the run's manifest and of the file of the version this started from.
        aggregator: the aggregator instance it is sealed to (hexadecimal).
        site: name of the site in the manifest.
        credential, ticket: digests of the client's credential and of the ticket it is sent under.
        layout: ``Layout.digest`` of the model that it is an update of.
        compression: name of how it is compressed; ``none`` if it is not.

    Raises:
        EncodingError: a field out of its range.
    """

    run: str
    manifest: str
    round: int
    attempt: int
    purpose: Purpose
    base: str
    aggregator: str
    site: str
    credential: str
    ticket: str
    layout: str
    compression: str

    def __post_init__(self) -> None:
        for name in ("manifest", "base", "aggregator", "credential", "ticket", "layout"):
            if not _DIGEST.fullmatch(getattr(self, name)):
                raise EncodingError(f"update.{name}", expected="a digest", got=getattr(self, name)[:64])
        for name in ("run", "site", "compression"):
            if not 1 <= len(getattr(self, name)) <= _MAX_NAME:
                raise EncodingError(f"update.{name}", expected=f"1 to {_MAX_NAME} characters", got="another length")
        for name, least in (("round", 1), ("attempt", 0)):
            if getattr(self, name) < least:
                raise EncodingError(f"update.{name}", expected=f"{least} or more", got=getattr(self, name))

    def to_detail(self) -> dict[str, Any]:
        """Return the JSON value that goes into the container's header."""
        return record.to_json(self)

    @classmethod
    def from_detail(cls, detail: Mapping[str, Any]) -> UpdateDetail:
        """Return the detail of a container's header.

        Raises:
            EncodingError: a key that is unknown, missing, of the wrong type or out of its range.
        """
        return record.from_json(cls, dict(detail), at="update")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What only the aggregator reads, before it opens the tensors; it verifies weight and norm while folding.

    Attributes:
        weight: examples, as the strategy counts them; 0 or more.
        norm: L2 norm of the difference from the base; 0 or more.
        metrics: the client's own metrics by name.
        dataset: file digest of the dataset container that was used, or empty.

    Raises:
        NotFiniteError: a number that is NaN or infinite.
        DeclarationError: a field out of its range.
    """

    weight: float
    norm: float
    metrics: Mapping[str, float]
    dataset: str

    def __post_init__(self) -> None:
        for name in ("weight", "norm"):
            number = getattr(self, name)
            _require_finite(name, number)
            if number < 0:
                raise DeclarationError(f"declaration.{name}", expected="0 or more", got="less")
        if len(self.metrics) > _MAX_METRICS:
            raise DeclarationError("declaration.metrics", expected=f"at most {_MAX_METRICS}", got=len(self.metrics))
        for name, number in self.metrics.items():
            if not 1 <= len(name) <= _MAX_NAME:
                raise DeclarationError("metric name", expected=f"1 to {_MAX_NAME} characters", got=len(name))
            _require_finite(f"metrics.{name}", number)
        if self.dataset and not _DIGEST.fullmatch(self.dataset):
            raise DeclarationError("declaration.dataset", expected="a digest or nothing", got="something else")

    def __repr__(self) -> str:
        return f"Declaration({', '.join(field.name for field in fields(self))}: sealed)"

    def to_bytes(self) -> bytes:
        """Return the declaration as canonical JSON, to be sealed.

        Raises:
            DeclarationError: more than 64 KiB.
        """
        data = canonical.encode(record.to_json(self))
        if len(data) > _MAX_DECLARATION_BYTES:
            limit = _MAX_DECLARATION_BYTES
            raise DeclarationError("declaration size in bytes", expected=f"at most {limit}", got=len(data))
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Declaration:
        """Return the declaration of canonical JSON.

        Raises:
            DeclarationError: anything else, a key that is unknown or missing, or a field out of its range.
        """
        try:
            value = canonical.decode(data, limit_bytes=_MAX_DECLARATION_BYTES)
        except (EncodingError, SizeError) as error:
            raise DeclarationError("declaration", expected="canonical JSON", got="something else") from error
        return record.from_json(cls, value, at="declaration", error=_malformed)


def _malformed(field: str, *, expected: object, got: object) -> DeclarationError:  # noqa: ARG001
    # What was found is sealed, so no message repeats it.
    return DeclarationError(field, expected=expected, got="something else")


def update_key_info(*, run: str, round_number: int, attempt: int, purpose: Purpose, site: str) -> bytes:
    """Return the HPKE ``info`` (32 bytes) under which an update's data key is wrapped to the aggregator.

    A wrapped key is thereby good for one site in one attempt at one round, whatever header it is moved to.
    """
    value = ["confed/v1/update-key", run, round_number, attempt, str(purpose), site]
    return bytes.fromhex(canonical.digest(canonical.encode(value)))


def _require_finite(name: str, number: float) -> None:
    if not math.isfinite(number):
        raise NotFiniteError(f"declaration.{name}", expected="a finite number", got="NaN or infinity")
