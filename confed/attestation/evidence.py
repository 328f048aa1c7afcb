"""What travels when a TEE attests: the binding, the envelope around the evidence, and what a driver reads from it.

The binding says what evidence is for; its digest is REPORT_DATA, so evidence made for one purpose is worthless for
any other. The envelope carries the vendor's bytes untouched. Both have exactly one form: canonical JSON with known
keys only, so that a digest of the bytes received names them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from confed import canonical, record
from confed.errors import EncodingError, EvidenceFormatError, SizeError
from confed.journey import Role

ENVELOPE_LIMIT_BYTES = 1024 * 1024
"""Largest encoded envelope."""

HPKE_PUBLIC_BYTES = 1216
"""ML-KEM-768 public key (1184) and X25519 public key (32)."""

_SINGLES = ("evidence", "binding")
_LISTS = ("endorsements", "event_logs", "device_evidence")
_ATTACHMENT_LIMIT = 16
_RUN_LIMIT = 256
_BINDING_LIMIT_BYTES = 8 * 1024
_LATEST_MS = 2**53 - 1
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_PROFILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[0-9]{1,4}\Z")
_REPORT_DATA_DOMAIN = b"confed/v1/report-data\x00"
_INSTANCE_DOMAIN = b"confed/v1/instance\x00"
_DEVICE_DOMAIN = b"confed/v1/device-evidence\x00"
_DEVICE_NONCE_DOMAIN = b"confed/v1/device-nonce\x00"


def require_digest(field: str, value: str) -> None:
    """Refuse text that is not a SHA-256 digest as 64 lower-case hexadecimal digits.

    Raises:
        EvidenceFormatError: anything else.
    """
    if not _HEX_DIGEST.match(value):
        raise EvidenceFormatError(field, expected="64 lower-case hexadecimal digits", got=repr(value)[:80])


def parse_canonical(data: bytes, *, limit_bytes: int, what: str) -> Any:
    """Return the value of canonical JSON within a bound.

    Raises:
        EvidenceFormatError: larger, not JSON, or another spelling.
    """
    try:
        return canonical.decode(data, limit_bytes=limit_bytes)
    except (EncodingError, SizeError) as error:
        raise EvidenceFormatError(what, expected=error.expected, got=error.got) from error


def instance_of(hpke_public: bytes, signing_public: bytes) -> str:
    """Return the name of an enclave instance: a digest of the two public keys that are born and die with it."""
    return canonical.digest(_INSTANCE_DOMAIN + _length(hpke_public) + hpke_public + signing_public)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What evidence is made for, and the keys that it vouches for.

    Attributes:
        profile: evidence profile, such as ``simulated/1``.
        nonce: 32 bytes from the verifier's signed challenge.
        audience: digest of the public key of the broker that the evidence is for.
        manifest: digest of the manifest.
        role, run: what the enclave is, and in which run.
        hpke_public, signing_public: the instance's own keys.
        issued_at: the enclave's time; freshness rests on the nonce, not on this.

    Raises:
        EvidenceFormatError: a part that is not of its one form.
    """

    profile: str
    nonce: bytes
    audience: str
    manifest: str
    role: Role
    run: str
    hpke_public: bytes
    signing_public: bytes
    issued_at: int

    def __post_init__(self) -> None:
        require_profile(self.profile)
        require_digest("binding.audience", self.audience)
        require_digest("binding.manifest", self.manifest)
        for name, size in (("nonce", 32), ("hpke_public", HPKE_PUBLIC_BYTES), ("signing_public", 32)):
            found = len(getattr(self, name))
            if found != size:
                raise EvidenceFormatError(f"binding.{name}", expected=f"{size} bytes", got=found)
        if not 1 <= len(self.run) <= _RUN_LIMIT:
            raise EvidenceFormatError("binding.run", expected=f"1 to {_RUN_LIMIT} characters", got=len(self.run))
        if not 0 <= self.issued_at <= _LATEST_MS:
            raise EvidenceFormatError("binding.issued_at", expected="Unix milliseconds", got=self.issued_at)

    @property
    def encoded(self) -> bytes:
        """The binding as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @property
    def digest(self) -> str:
        """SHA-256 of ``encoded`` in hexadecimal."""
        return canonical.digest(self.encoded)

    @property
    def instance(self) -> str:
        """The name of the enclave instance whose keys these are."""
        return instance_of(self.hpke_public, self.signing_public)

    def report_data(self, device_digest: bytes = b"") -> bytes:
        """Return the 64 bytes that the TEE signs: SHA-512 of the binding and of the device evidence under a domain."""
        encoded = self.encoded
        return hashlib.sha512(_REPORT_DATA_DOMAIN + _length(encoded) + encoded + device_digest).digest()

    @property
    def device_nonce(self) -> bytes:
        """The 32-byte nonce that device evidence carries: SHA-256 of the binding under a domain of its own.

        Devices answer first, since REPORT_DATA covers the digest of their evidence.
        """
        return hashlib.sha256(_DEVICE_NONCE_DOMAIN + self.encoded).digest()

    @classmethod
    def decode(cls, data: bytes) -> Binding:
        """Return the binding of canonical JSON.

        Raises:
            EvidenceFormatError: anything but the one form.
        """
        value = parse_canonical(data, limit_bytes=_BINDING_LIMIT_BYTES, what="binding")
        return record.from_json(cls, value, at="binding", error=EvidenceFormatError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Evidence on its way: the vendor's bytes untouched, the binding, and what helps to verify them.

    Attributes:
        profile: which verifier it is meant for; a claim until that verifier has accepted it.
        evidence: the vendor's bytes.
        binding: canonical bytes of the binding.
        endorsements: hints only; a verifier trusts none that does not chain to its anchors.
        event_logs, device_evidence: what the measurement and the devices' evidence consist of.

    Raises:
        EvidenceFormatError: a profile that is not a profile's name, or more than 16 of one kind.
    """

    profile: str
    evidence: bytes
    binding: bytes
    endorsements: tuple[bytes, ...] = ()
    event_logs: tuple[bytes, ...] = ()
    device_evidence: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        require_profile(self.profile)
        for name in _LISTS:
            count = len(getattr(self, name))
            if count > _ATTACHMENT_LIMIT:
                raise EvidenceFormatError(f"envelope.{name}", expected=f"at most {_ATTACHMENT_LIMIT}", got=count)

    def encode(self) -> bytes:
        """Return the envelope as canonical JSON, byte fields in base64.

        Raises:
            EvidenceFormatError: more than 1 MiB.
        """
        value: dict[str, Any] = {"profile": self.profile}
        value |= {name: _to_base64(getattr(self, name)) for name in _SINGLES}
        value |= {name: [_to_base64(item) for item in getattr(self, name)] for name in _LISTS}
        encoded = canonical.encode(value)
        if len(encoded) > ENVELOPE_LIMIT_BYTES:
            raise EvidenceFormatError(
                "envelope size in bytes", expected=f"at most {ENVELOPE_LIMIT_BYTES}", got=len(encoded)
            )
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Return the envelope of exactly these bytes: ``Envelope.decode(data).encode() == data``.

        Raises:
            EvidenceFormatError: unknown or missing fields, over-size, trailing bytes, another spelling.
        """
        value = parse_canonical(data, limit_bytes=ENVELOPE_LIMIT_BYTES, what="envelope")
        known = {"profile", *_SINGLES, *_LISTS}
        if not isinstance(value, dict) or set(value) != known:  # pyright: ignore[reportUnknownArgumentType]
            raise EvidenceFormatError("envelope", expected=", ".join(sorted(known)), got="other fields")
        fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(fields["profile"], str):
            raise EvidenceFormatError("envelope.profile", expected="text", got="another type")
        return cls(
            profile=fields["profile"],
            evidence=from_base64("envelope.evidence", fields["evidence"]),
            binding=from_base64("envelope.binding", fields["binding"]),
            endorsements=_list_from_base64("envelope.endorsements", fields["endorsements"]),
            event_logs=_list_from_base64("envelope.event_logs", fields["event_logs"]),
            device_evidence=_list_from_base64("envelope.device_evidence", fields["device_evidence"]),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded envelope: the evidence's name in credentials and ledgers."""
        return canonical.digest(self.encode())

    @property
    def device_digest(self) -> bytes:
        """What REPORT_DATA holds of the device evidence: nothing if there is none, otherwise 32 bytes."""
        if not self.device_evidence:
            return b""
        parts = b"".join(hashlib.sha256(item).digest() for item in self.device_evidence)
        return hashlib.sha256(_DEVICE_DOMAIN + parts).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a driver read from evidence whose signature and chain it has verified.

    It says nothing of evidence class or hardware: those come from the driver's own class (``verifier.Registry``).

    Attributes:
        report_data: the 64 bytes that the TEE signed.
        measurement, configuration: of the code that runs and of what it was started with, in hexadecimal.
        environment: what the TEE was launched for, empty where the TEE does not say.
        debug: somebody outside can look in.
        shared: several identities are hosted in one TEE.
        layers: what the TEE says of its own confinement; self-reported, proves nothing.
        details: what this kind of TEE says beyond that, as a record of the driver's own type (``SnpClaims`` and so on);
            ``None`` where there is nothing more. A policy of the same kind appraises it.
    """

    report_data: bytes
    measurement: str
    configuration: str
    environment: str
    debug: bool
    shared: bool
    layers: tuple[str, ...]
    details: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a relying party that holds only a vendor's files expects of them.

    Attributes:
        nonce: what the quote, document or device report must carry as its nonce; ``None`` leaves freshness unchecked.
        report_data: the caller's data that the TEE must have signed, zero-padded on the right to the field's length;
            ``None`` leaves it unchecked.
    """

    nonce: bytes | None
    report_data: bytes | None


def require_profile(profile: str) -> None:
    """Refuse text that is not ``name/version``.

    Raises:
        EvidenceFormatError: anything else.
    """
    if not _PROFILE.match(profile):
        raise EvidenceFormatError("profile", expected="name/version", got=repr(profile)[:80])


def from_base64(field: str, value: Any) -> bytes:
    """Return the bytes of the one base64 spelling of them.

    Raises:
        EvidenceFormatError: not text, not base64, or another spelling of the same bytes.
    """
    if not isinstance(value, str):
        raise EvidenceFormatError(field, expected="base64 text", got="another type")
    try:
        decoded = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise EvidenceFormatError(field, expected="base64 text", got="something else") from error
    if _to_base64(decoded) != value:
        raise EvidenceFormatError(field, expected="the one base64 spelling", got="another")
    return decoded


def _list_from_base64(field: str, value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list):
        raise EvidenceFormatError(field, expected="a list", got="another type")
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    return tuple(from_base64(f"{field}[{index}]", item) for index, item in enumerate(items))


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _length(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big")
