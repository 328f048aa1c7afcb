"""How confed carries a quote in an envelope, and how the envelope's fields follow from it.

A TPM signs at most 64 bytes of its caller's, and a report has no field for a measurement or a configuration. So:

- **nonce**: the quote's qualifying data is SHA-256 of REPORT_DATA under a domain; the verifier recomputes it.
- **configuration**: PCR15 starts at zero and is extended once, with the manifest's digest, before the TEE attests.
- **measurement**: SHA-256 of canonical JSON ``{"0": "hex", "1": "hex", …}`` over the signed registers of the SHA-256
  bank, without PCR15 (the configuration) and without PCR16 and PCR23 (which anybody can reset).

The evidence is canonical JSON: quote, signature and public area as the TPM returned them, the registers by number, and
whichever of the EK's certificate, the AK's certificate and the enrolment the profile asks for.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from confed import canonical
from confed.attestation.evidence import Binding, from_base64, parse_canonical
from confed.attestation.tee.tpm_claims import RESETTABLE
from confed.attestation.tee.tpm_structures import LAST_REGISTER
from confed.errors import EvidenceFormatError, EvidenceSizeError, MissingClaimError

BANK = "sha256"
"""The bank that envelopes carry."""

CONFIGURATION_REGISTER = 15
"""The register that is extended with the manifest's digest."""

EVIDENCE_LIMIT_BYTES = 64 * 1024
"""Largest evidence; certificates make up most of it."""

_NONCE_DOMAIN = b"confed/v1/tpm-nonce\x00"
_DIGEST_BYTES = 32
_DEMANDED = ("ak_public", "quote", "signature")
_OPTIONAL = ("ak_certificate", "ek_certificate", "enrolment")
_NUMBER = re.compile(r"(0|[1-9][0-9]?)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """The evidence of an envelope.

    Attributes:
        quote: TPMS_ATTEST.
        signature: TPMT_SIGNATURE.
        ak_public: TPM2B_PUBLIC or TPMT_PUBLIC of the attestation key.
        pcrs: values of the SHA-256 bank by number.
        ak_certificate, ek_certificate: DER; ``None`` where the profile asks for none.
        enrolment: the enrolment of the attestation key (``tpm_enrolment``); ``None`` where it comes another way.
    """

    quote: bytes
    signature: bytes
    ak_public: bytes
    pcrs: Mapping[int, bytes]
    ak_certificate: bytes | None = None
    ek_certificate: bytes | None = None
    enrolment: bytes | None = None

    def encode(self) -> bytes:
        """Return the evidence as canonical JSON."""
        value: dict[str, Any] = {name: _to_base64(getattr(self, name)) for name in _DEMANDED}
        value["pcrs"] = {str(number): _to_base64(found) for number, found in self.pcrs.items()}
        present = {name: getattr(self, name) for name in _OPTIONAL}
        return canonical.encode(value | {name: _to_base64(data) for name, data in present.items() if data is not None})

    def require_only(self, *names: str) -> None:
        """Refuse a certificate or an enrolment that the profile does not ask for, and that nobody would read.

        Raises:
            EvidenceFormatError: one whose field is none of ``names``.
        """
        for name in _OPTIONAL:
            if name not in names and getattr(self, name) is not None:
                raise EvidenceFormatError(f"TPM evidence: {name}", expected="none in this profile", got="some")

    @classmethod
    def decode(cls, data: bytes) -> TpmEvidence:
        """Return the evidence of canonical JSON.

        Raises:
            EvidenceFormatError, EvidenceSizeError: anything but the one form.
        """
        value = parse_canonical(data, limit_bytes=EVIDENCE_LIMIT_BYTES, what="TPM evidence")
        demanded = {*_DEMANDED, "pcrs"}
        if not isinstance(value, dict) or not demanded <= set(value) <= {*demanded, *_OPTIONAL}:  # pyright: ignore[reportUnknownArgumentType]
            raise EvidenceFormatError("TPM evidence", expected=", ".join(sorted(demanded)), got="other fields")
        fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        found = {name: from_base64(f"TPM evidence: {name}", fields[name]) for name in fields if name != "pcrs"}
        return cls(pcrs=_registers(fields["pcrs"]), **found)


def nonce_of(report_data: bytes) -> bytes:
    """Return the qualifying data of the quote for 64 bytes of REPORT_DATA."""
    return hashlib.sha256(_NONCE_DOMAIN + report_data).digest()


def configuration_value(manifest_digest: bytes) -> bytes:
    """Return what PCR15 of the SHA-256 bank holds after one extension of zeros by a manifest's digest (32 bytes)."""
    return hashlib.sha256(bytes(_DIGEST_BYTES) + manifest_digest).digest()


def configuration_of(pcrs: Mapping[int, bytes], binding: Binding) -> str:
    """Return the manifest's digest where PCR15 is what that digest gives, otherwise PCR15, in hexadecimal.

    Raises:
        MissingClaimError: PCR15 was not signed.
    """
    found = pcrs.get(CONFIGURATION_REGISTER)
    if found is None:
        raise MissingClaimError("signed registers", expected=f"PCR{CONFIGURATION_REGISTER} among them", got="not")
    return binding.manifest if found == configuration_value(bytes.fromhex(binding.manifest)) else found.hex()


def measurement_of(pcrs: Mapping[int, bytes]) -> str:
    """Return the measurement that registers make up, in hexadecimal, as the module says.

    Raises:
        MissingClaimError: no register is left that measures anything.
    """
    left = {number: value for number, value in pcrs.items() if number not in (CONFIGURATION_REGISTER, *RESETTABLE)}
    if not left:
        raise MissingClaimError("signed registers", expected="at least one that measures code", got="none")
    return canonical.digest(canonical.encode({str(number): value.hex() for number, value in left.items()}))


def _registers(value: Any) -> dict[int, bytes]:
    if not isinstance(value, dict):
        raise EvidenceFormatError("TPM evidence: pcrs", expected="registers by number", got="another type")
    entries: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    if len(entries) > LAST_REGISTER + 1:
        raise EvidenceSizeError("TPM evidence: pcrs", expected=f"at most {LAST_REGISTER + 1}", got=len(entries))
    for name in entries:
        if not _NUMBER.match(name) or int(name) > LAST_REGISTER:
            raise EvidenceFormatError("TPM evidence: register", expected=f"0 to {LAST_REGISTER}", got=name[:20])
    return {int(name): from_base64(f"TPM evidence: PCR{name}", entry) for name, entry in entries.items()}


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
