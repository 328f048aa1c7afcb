"""The evidence of an Azure confidential VM, in the forms in which it is written; nothing is verified here.

confed's envelopes carry canonical JSON: the paravisor's report, the quote and its signature as the TPM returned them,
registers of the SHA-256 bank by number, and for TDX the TD quote, all in base64. Files may also be those of Trustee's
attesters, where registers stand by position from 0:

- without ``version``: bytes as lists of numbers; for SNP ``{"quote", "report", "vcek"}`` with the certificate in PEM,
  for TDX ``{"tpm_quote", "hcl_report", "td_quote"}``;
- ``version`` 1: the quote in hexadecimal, everything else in base64url: ``{"version", "tpm_quote", "hcl_report"}`` and
  ``vcek`` or ``td_quote``; also as ``{"platform", "evidence"}``.

A form is chosen by what it says it is, never tried.

Source: github.com/confidential-containers/guest-components, attester/src/az_snp_vtpm and az_tdx_vtpm (field names).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from confed import canonical
from confed.attestation.evidence import from_base64, parse_canonical
from confed.attestation.tee.azure_hcl import Isolation, from_base64url, parse_object
from confed.attestation.tee.tpm_structures import LAST_REGISTER
from confed.errors import EvidenceFormatError, EvidenceSizeError, EvidenceVersionError

EVIDENCE_LIMIT_BYTES = 256 * 1024
"""Largest evidence; lists of numbers make up most of it."""

_PART_LIMIT_BYTES = 16 * 1024
_PLATFORMS = {Isolation.SNP: "az-snp", Isolation.TDX: "az-tdx"}
_QUOTE_FIELDS = frozenset({"message", "pcrs", "signature"})
_ENVELOPE_FIELDS = frozenset({"hcl_report", "pcrs", "quote", "signature"})
_NUMBER = re.compile(r"(0|[1-9][0-9]?)\Z")
_HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")

Read = Callable[[Any, str], bytes]
"""Returns the bytes that a form's way of writing stands for; the text names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """The parts of evidence.

    Attributes:
        hcl_report: the paravisor's report.
        quote: TPMS_ATTEST.
        signature: TPMT_SIGNATURE, or the bare number.
        pcrs: values of the SHA-256 bank by number, as somebody presents them.
        td_quote: the TD quote; empty for SNP, whose report is in the paravisor's.
        vcek: the chip's certificate where a file brings it along, a hint; empty otherwise.
    """

    hcl_report: bytes
    quote: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    td_quote: bytes = b""
    vcek: bytes = b""

    def encode(self) -> bytes:
        """Return what an envelope carries: canonical JSON, without ``vcek``, which is an endorsement there."""
        parts = {"hcl_report": self.hcl_report, "quote": self.quote, "signature": self.signature}
        if self.td_quote:
            parts["td_quote"] = self.td_quote
        value: dict[str, Any] = {name: _to_base64(part) for name, part in parts.items()}
        return canonical.encode(value | {"pcrs": {str(number): _to_base64(pcr) for number, pcr in self.pcrs.items()}})

    @classmethod
    def decode(cls, data: bytes, *, isolation: Isolation) -> AzureEvidence:
        """Return the evidence of an envelope.

        Raises:
            EvidenceFormatError, EvidenceSizeError: anything but the one form for this TEE.
        """
        value = parse_canonical(data, limit_bytes=EVIDENCE_LIMIT_BYTES, what="Azure evidence")
        demanded = _ENVELOPE_FIELDS | ({"td_quote"} if isolation is Isolation.TDX else set())
        fields = _fields(value, demanded, "Azure evidence")
        parts = {name: from_base64(f"Azure evidence: {name}", fields[name]) for name in demanded - {"pcrs"}}
        return cls(pcrs=_numbered(fields["pcrs"]), **parts)


def read_files(data: bytes, *, isolation: Isolation) -> AzureEvidence:
    """Return the evidence of a file, in any of the forms that the module names.

    Raises:
        EvidenceFormatError, EvidenceSizeError, EvidenceVersionError: none of them, or of another TEE.
    """
    value = parse_object(data, limit_bytes=EVIDENCE_LIMIT_BYTES, what="Azure evidence")
    if value.keys() == {"platform", "evidence"}:
        if value["platform"] != _PLATFORMS[isolation]:
            raise EvidenceVersionError("platform", expected=_PLATFORMS[isolation], got=repr(value["platform"])[:40])
        value = _fields(value["evidence"], {"version", *_names(isolation)}, "Azure evidence")
    if "pcrs" in value:
        return AzureEvidence.decode(data, isolation=isolation)
    if "version" in value:
        return _version_1(value, isolation)
    if isolation is Isolation.SNP:
        fields = _fields(value, {"quote", "report", "vcek"}, "Azure evidence")
        return _evidence(fields["quote"], fields["report"], _from_numbers, vcek=_from_pem(fields["vcek"]))
    fields = _fields(value, _names(isolation), "Azure evidence")
    td_quote = _from_numbers(fields["td_quote"], "td_quote")
    return _evidence(fields["tpm_quote"], fields["hcl_report"], _from_numbers, td_quote=td_quote)


def _version_1(value: Mapping[str, Any], isolation: Isolation) -> AzureEvidence:
    fields = _fields(value, {"version", *_names(isolation)}, "Azure evidence")
    if type(fields["version"]) is not int or fields["version"] != 1:
        raise EvidenceVersionError("version", expected=1, got=repr(fields["version"])[:40])
    report = _from_base64url(fields["hcl_report"], "hcl_report")
    name = "vcek" if isolation is Isolation.SNP else "td_quote"
    return _evidence(fields["tpm_quote"], report, _from_hex, **{name: _from_base64url(fields[name], name)})


def _evidence(quote: Any, report: Any, read: Read, *, td_quote: bytes = b"", vcek: bytes = b"") -> AzureEvidence:
    fields = _fields(quote, _QUOTE_FIELDS, "TPM quote")
    registers = fields["pcrs"]
    if not isinstance(registers, list) or len(registers) > LAST_REGISTER + 1:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("pcrs", expected=f"at most {LAST_REGISTER + 1} values", got="something else")
    items: list[Any] = registers  # pyright: ignore[reportUnknownVariableType]
    return AzureEvidence(
        hcl_report=report if isinstance(report, bytes) else read(report, "report"),
        quote=read(fields["message"], "message"),
        signature=read(fields["signature"], "signature"),
        pcrs={number: read(item, f"PCR{number}") for number, item in enumerate(items)},
        td_quote=td_quote,
        vcek=vcek,
    )


def _names(isolation: Isolation) -> set[str]:
    return {"tpm_quote", "hcl_report", "vcek" if isolation is Isolation.SNP else "td_quote"}


def _fields(value: Any, names: set[str] | frozenset[str], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.keys() != names:  # pyright: ignore[reportUnknownMemberType]
        raise EvidenceFormatError(what, expected=", ".join(sorted(names)), got="other fields")
    return value  # pyright: ignore[reportUnknownVariableType]


def _numbered(value: Any) -> dict[int, bytes]:
    if not isinstance(value, dict) or len(value) > LAST_REGISTER + 1:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("pcrs", expected=f"at most {LAST_REGISTER + 1} registers by number", got="others")
    entries: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    for name in entries:
        if not _NUMBER.match(name) or int(name) > LAST_REGISTER:
            raise EvidenceFormatError("pcrs", expected=f"numbers from 0 to {LAST_REGISTER}", got=name[:20])
    return {int(name): from_base64(f"PCR{name}", entry) for name, entry in entries.items()}


def _from_numbers(value: Any, name: str) -> bytes:
    if not isinstance(value, list):
        raise EvidenceFormatError(name, expected="a list of bytes", got="another type")
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    if len(items) > _PART_LIMIT_BYTES:
        raise EvidenceSizeError(f"{name} in bytes", expected=f"at most {_PART_LIMIT_BYTES}", got=len(items))
    if not all(type(item) is int and 0 <= item <= 0xFF for item in items):
        raise EvidenceFormatError(name, expected="numbers from 0 to 255", got="something else")
    return bytes(items)


def _from_hex(value: Any, name: str) -> bytes:
    if not isinstance(value, str) or not _HEX.match(value):
        raise EvidenceFormatError(name, expected="lower-case hexadecimal text", got="something else")
    return bytes.fromhex(value)


def _from_base64url(value: Any, name: str) -> bytes:
    return from_base64url(value, limit=2 * _PART_LIMIT_BYTES, what=name)


def _from_pem(value: Any) -> bytes:
    if not isinstance(value, str):
        raise EvidenceFormatError("vcek", expected="a certificate in PEM", got="another type")
    return value.encode()


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
