"""What a verifier needs besides evidence: needs and endorsements as data, and the seam to whoever provides them.

A verifier never fetches. At the edge of a broker, or in a command, a provider is asked for the endorsements of an
envelope; what it gives goes to ``Registry.verify`` as ``endorsements``, and there everything is verified against
pinned roots. So a provider that lies can only cause a refusal, and nothing here decides whether evidence is genuine.

- A need names one thing that one vendor publishes: for which chip, platform or firmware, or whose revocation. Its
  fields have one form each, because they come from evidence that nobody has verified yet and end up in addresses.
- An endorsement is the vendor's bytes for a need, and until when the vendor vouches for them.
- A provider answers with all that is needed or raises: no need is optional, and there is no partial answer.
- A bundle is a file of endorsements that were fetched ahead of time, for a site without internet.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from confed import canonical, record
from confed.attestation.certificates import load_certificates
from confed.attestation.evidence import Envelope
from confed.attestation.revocation import CRL_LIMIT_BYTES
from confed.errors import EncodingError, EndorsementFormatError, SizeError

BUNDLE_FORMAT = "confed-endorsements/1"
BUNDLE_LIMIT_BYTES = 32 * 1024 * 1024
"""Largest bundle."""

ENDORSEMENT_LIMIT_BYTES = 2 * CRL_LIMIT_BYTES + 4 * 1024 * 1024
"""Largest endorsement: a collateral, which holds a revocation list in hexadecimal."""

_MOST_ENTRIES = 512
_LATEST_MS = 2**53 - 1
_ENTRY_KEYS = {"bytes", "expires", "fetched_at", "kind", "need"}
_CHIP_DIGITS = {"Milan": 128, "Genoa": 128, "Turin": 16}
_HEX = re.compile(r"[0-9a-f]+\Z")
_FMSPC = re.compile(r"[0-9A-F]{12}\Z")
_RIM = re.compile(r"NV_[A-Z0-9][A-Za-z0-9._-]{0,124}\Z")
_SERIAL = re.compile(r"[1-9a-f][0-9a-f]{0,39}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdVcek:
    """The certificate of one chip's key at one TCB.

    Attributes:
        product: Milan, Genoa (with Bergamo and Siena) or Turin.
        hwid: the chip id in lower-case hexadecimal; 64 bytes, of which Turin has 8.
        bootloader, tee, snp, microcode: security patch levels of the reported TCB.
        fmc: the one that only Turin has.

    Source: AMD 57230 (VCEK certificate and KDS interface), section 4.1.
    """

    KIND: ClassVar = "amd-vcek"

    product: str
    hwid: str
    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None

    def __post_init__(self) -> None:
        _require_product(self.product)
        digits = _CHIP_DIGITS[self.product]
        if len(self.hwid) != digits or not _HEX.match(self.hwid):
            raise EndorsementFormatError("need.hwid", expected=f"{digits} hexadecimal digits", got=self.hwid[:40])
        if (self.fmc is None) == (self.product == "Turin"):
            raise EndorsementFormatError("need.fmc", expected="one for Turin and none before", got=self.fmc)
        if not int(self.hwid, 16):
            raise EndorsementFormatError("need.hwid", expected="a chip id", got="a masked one")
        for name in ("bootloader", "tee", "snp", "microcode", "fmc"):
            if not 0 <= (getattr(self, name) or 0) <= 255:
                raise EndorsementFormatError(f"need.{name}", expected="0 to 255", got=getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdChain:
    """The certificates above a product's chip keys: ASK (or ASVK) and ARK.

    Attributes:
        key: ``vcek`` for chips' own keys, ``vlek`` for those that a cloud loads.
    """

    KIND: ClassVar = "amd-chain"

    product: str
    key: str

    def __post_init__(self) -> None:
        _require_product(self.product)
        _require_choice("need.key", self.key, ("vcek", "vlek"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdCrl:
    """The revocation list of a product's root, beside the chip keys (``vcek``) or the loaded ones (``vlek``)."""

    KIND: ClassVar = "amd-crl"

    product: str
    key: str

    def __post_init__(self) -> None:
        _require_product(self.product)
        _require_choice("need.key", self.key, ("vcek", "vlek"))


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelCollateral:
    """What a DCAP quote is verified with: TCB info, QE identity, revocation lists and their issuers' chains.

    Attributes:
        tee: ``sgx`` or ``tdx``.
        fmspc: the platform's family, 6 bytes in upper-case hexadecimal.
        ca: which authority certified the platform: ``platform`` or ``processor``.
    """

    KIND: ClassVar = "intel-collateral"

    tee: str
    fmspc: str
    ca: str

    def __post_init__(self) -> None:
        _require_choice("need.tee", self.tee, ("sgx", "tdx"))
        _require_choice("need.ca", self.ca, ("platform", "processor"))
        if not _FMSPC.match(self.fmspc):
            raise EndorsementFormatError("need.fmspc", expected="12 hexadecimal digits", got=self.fmspc[:40])


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaRim:
    """A reference integrity manifest: the golden measurements of one driver or VBIOS version."""

    KIND: ClassVar = "nvidia-rim"

    id: str

    def __post_init__(self) -> None:
        if not _RIM.match(self.id):
            raise EndorsementFormatError("need.id", expected="the id of a manifest", got=repr(self.id)[:80])


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaOcsp:
    """The revocation status of one certificate.

    Attributes:
        issuer_name, issuer_key: SHA-384 of the issuer's name and of its public key, in hexadecimal.
        serial: the certificate's serial number in hexadecimal, without leading zeros.

    Source: RFC 6960, section 4.1.1 (CertID).
    """

    KIND: ClassVar = "nvidia-ocsp"

    issuer_name: str
    issuer_key: str
    serial: str

    def __post_init__(self) -> None:
        for name in ("issuer_name", "issuer_key"):
            digest = getattr(self, name)
            if len(digest) != 96 or not _HEX.match(digest):
                raise EndorsementFormatError(f"need.{name}", expected="SHA-384 in hexadecimal", got=digest[:40])
        if not _SERIAL.match(self.serial):
            raise EndorsementFormatError("need.serial", expected="1 to 40 hexadecimal digits", got=self.serial[:50])


Need = AmdVcek | AmdChain | AmdCrl | IntelCollateral | NvidiaRim | NvidiaOcsp
_NEEDS: dict[str, type[Need]] = {
    kind.KIND: kind for kind in (AmdVcek, AmdChain, AmdCrl, IntelCollateral, NvidiaRim, NvidiaOcsp)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """A vendor's bytes for a need.

    Attributes:
        need: what they were asked for.
        data: the vendor's bytes: a certificate or revocation list in DER, certificates in PEM (``AmdChain``), a
            collateral in JSON, a manifest in XML, an OCSP response in DER.
        fetched_at, expires_at: Unix milliseconds; the latter is until when the vendor vouches for them.

    Raises:
        EndorsementFormatError: nothing, more than its bound, or times that are none.
    """

    need: Need
    data: bytes
    fetched_at: int
    expires_at: int

    def __post_init__(self) -> None:
        if not 0 < len(self.data) <= ENDORSEMENT_LIMIT_BYTES:
            raise EndorsementFormatError(
                "endorsement size in bytes", expected=f"1 to {ENDORSEMENT_LIMIT_BYTES}", got=len(self.data)
            )
        for name in ("fetched_at", "expires_at"):
            if not 0 <= getattr(self, name) <= _LATEST_MS:
                raise EndorsementFormatError(f"endorsement.{name}", expected="Unix milliseconds", got="another number")

    @property
    def parts(self) -> tuple[bytes, ...]:
        """What a verifier is given: one certificate, list, collateral, manifest or response an item."""
        if isinstance(self.need, AmdChain):
            return tuple(certificate.der for certificate in load_certificates(self.data, what="chain"))
        return (self.data,)

    def to_entry(self) -> dict[str, Any]:
        """Return the endorsement as it stands in a bundle."""
        return {
            "bytes": base64.b64encode(self.data).decode(),
            "expires": self.expires_at,
            "fetched_at": self.fetched_at,
            "kind": self.need.KIND,
            "need": record.to_json(self.need),
        }

    @classmethod
    def from_entry(cls, entry: Any, *, at: str) -> Endorsement:
        """Return the endorsement of its one form in a bundle.

        Raises:
            EndorsementFormatError: anything else.
        """
        if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:  # pyright: ignore[reportUnknownArgumentType]
            raise EndorsementFormatError(at, expected=", ".join(sorted(_ENTRY_KEYS)), got="something else")
        fields: dict[str, Any] = entry  # pyright: ignore[reportUnknownVariableType]
        kind = _NEEDS.get(fields["kind"]) if isinstance(fields["kind"], str) else None
        if kind is None:
            raise EndorsementFormatError(f"{at}.kind", expected=" or ".join(_NEEDS), got=repr(fields["kind"])[:60])
        for name in ("fetched_at", "expires"):
            if type(fields[name]) is not int:
                raise EndorsementFormatError(f"{at}.{name}", expected="a whole number", got="something else")
        return cls(
            need=record.from_json(kind, fields["need"], at=f"{at}.need", error=EndorsementFormatError),
            data=_from_base64(f"{at}.bytes", fields["bytes"]),
            fetched_at=fields["fetched_at"],
            expires_at=fields["expires"],
        )


class EndorsementSource(Protocol):
    """One vendor's service."""

    NEEDS: ClassVar[tuple[type[Need], ...]]

    def fetch(self, need: Need, *, now_ms: int) -> Endorsement:
        """Return a plausible answer to a need, which is one of ``NEEDS``; plausible is not yet genuine.

        Raises:
            EndorsementFetchError: host not allowed, no answer in time, too large, or a wrong answer.
        """
        ...


class EndorsementProvider(Protocol):
    """Whoever gives a verifier the endorsements that evidence needs."""

    def endorsements_for(self, envelope: Envelope, *, now_ms: int) -> tuple[bytes, ...]:
        """Return all endorsements that the envelope's evidence needs, each in the form that verifiers take.

        Raises:
            AttestationError: evidence or hints that cannot be read, or something needed that is not in store.
            EndorsementFetchError: something needed that cannot be fetched.
        """
        ...


def need_digest(need: Need) -> str:
    """Return the name of a need: SHA-256 of its canonical JSON."""
    return canonical.digest(canonical.encode({"kind": need.KIND, "need": record.to_json(need)}))


def encode_bundle(endorsements: Iterable[Endorsement]) -> bytes:
    """Return a bundle as canonical JSON, one entry a need.

    Raises:
        EndorsementFormatError: a need twice, too many entries, or more bytes than a bundle may have.
    """
    held = sorted(endorsements, key=lambda endorsement: need_digest(endorsement.need))
    _require_distinct(held)
    encoded = canonical.encode({"entries": [item.to_entry() for item in held], "format": BUNDLE_FORMAT})
    if len(encoded) > BUNDLE_LIMIT_BYTES:
        raise EndorsementFormatError("bundle", expected=f"at most {BUNDLE_LIMIT_BYTES} bytes", got=len(encoded))
    return encoded


def decode_bundle(data: bytes) -> tuple[Endorsement, ...]:
    """Return the endorsements of a bundle, none of which is trusted.

    Raises:
        EndorsementFormatError: anything but the one form of a bundle within its bounds.
    """
    try:
        value = canonical.decode(data, limit_bytes=BUNDLE_LIMIT_BYTES)
    except (EncodingError, SizeError) as error:
        raise EndorsementFormatError("bundle", expected=error.expected, got=error.got) from error
    if not isinstance(value, dict) or set(value) != {"entries", "format"}:  # pyright: ignore[reportUnknownArgumentType]
        raise EndorsementFormatError("bundle", expected="entries and format", got="something else")
    fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    entries = fields["entries"]
    if fields["format"] != BUNDLE_FORMAT:
        raise EndorsementFormatError("bundle.format", expected=BUNDLE_FORMAT, got=repr(fields["format"])[:60])
    if not isinstance(entries, list) or len(entries) > _MOST_ENTRIES:  # pyright: ignore[reportUnknownArgumentType]
        raise EndorsementFormatError("bundle.entries", expected=f"a list of at most {_MOST_ENTRIES}", got="another")
    listed: list[Any] = entries  # pyright: ignore[reportUnknownVariableType]
    held = [Endorsement.from_entry(entry, at=f"bundle.entries[{index}]") for index, entry in enumerate(listed)]
    _require_distinct(held)
    return tuple(held)


def _require_distinct(endorsements: list[Endorsement]) -> None:
    if len(endorsements) > _MOST_ENTRIES:
        raise EndorsementFormatError("bundle.entries", expected=f"at most {_MOST_ENTRIES}", got=len(endorsements))
    if len({endorsement.need for endorsement in endorsements}) != len(endorsements):
        raise EndorsementFormatError("bundle.entries", expected="each need once", got="one of them twice")


def _require_product(product: str) -> None:
    _require_choice("need.product", product, tuple(_CHIP_DIGITS))


def _require_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise EndorsementFormatError(field, expected=" or ".join(choices), got=repr(value)[:60])


def _from_base64(field: str, value: Any) -> bytes:
    try:
        decoded = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError as error:
        raise EndorsementFormatError(field, expected="base64 text", got="something else") from error
    if base64.b64encode(decoded).decode() != value:
        raise EndorsementFormatError(field, expected="the one base64 spelling of some bytes", got="another")
    return decoded
