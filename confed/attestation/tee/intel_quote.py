"""A DCAP quote of Intel SGX or TDX as bytes: one form for each version, read strictly and believed not at all.

Versions: 3 (SGX), 4 (TDX 1.0) and 5 (TDX 1.0 and 1.5), signed with ECDSA P-256, with the PCK certificate chain inside
(certification data of type 5). Every length must be the one that its version demands, and nothing may be left over,
with one exception: buffers of quote generation services end in zeros, so zeros after the quote are cut off, up to the
bound. Anything else after it is refused, since no signature covers it.

Source: Intel SGX ECDSA QuoteLibReference DCAP API, appendix A.4 (version 3); Intel TDX DCAP Quoting Library API,
appendix A.3 (versions 4 and 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from confed.errors import (
    AlgorithmError,
    EvidenceFormatError,
    EvidenceSizeError,
    EvidenceVersionError,
    MissingEndorsementError,
    TrailingBytesError,
)

QUOTE_LIMIT_BYTES = 16 * 1024
"""Largest quote, padding included."""

ENCLAVE_REPORT_BYTES = 384
TD_REPORT_10_BYTES = 584
TD_REPORT_15_BYTES = 648

_SIGNATURE_BYTES = 64
# Intel TDX DCAP Quoting Library API, A.3.1: attestation key type, TEE type, QE vendor.
_ECDSA_P256 = 2
_INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
# The same, A.3.11: types of certification data.
_PCK_CHAIN, _QE_REPORT = 5, 6
# The same, A.3.2: types of body in version 5.
_BODY_SIZES = {2: TD_REPORT_10_BYTES, 3: TD_REPORT_15_BYTES}
# What dcap-qvl 0.7 takes, and Intel's own quoting enclaves write.
_QE_AUTHENTICATION_BYTES = 32
_HEX = frozenset(b"0123456789abcdefABCDEF")


class TeeKind(StrEnum):
    """Which of Intel's TEEs a quote speaks for, as TCB info names it."""

    SGX = "SGX"
    TDX = "TDX"


_TEE_TYPES = {0x00: TeeKind.SGX, 0x81: TeeKind.TDX}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The parts of a quote; hearsay until ``intel_dcap.verify_quote`` has accepted it.

    Attributes:
        data: the quote without padding.
        version, tee: from its header.
        signed: header and body, what the attestation key signed.
        body: the enclave's or TD's report.
        signature, attestation_key: ECDSA P-256, two numbers of 32 bytes each, big-endian.
        qe_report, qe_report_signature: the quoting enclave's report, and the PCK's signature over it.
        qe_authentication: what the quoting enclave's report binds together with the attestation key.
        pck_chain: PEM, leaf first.
    """

    data: bytes
    version: int
    tee: TeeKind
    signed: bytes
    body: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_authentication: bytes
    pck_chain: bytes


class Reader:
    """Reads forward through bytes; what is not there is an error."""

    __slots__ = ("data", "position", "what")

    def __init__(self, data: bytes, what: str) -> None:
        self.data, self.position, self.what = data, 0, what

    def take(self, count: int) -> bytes:
        """Return the next bytes.

        Raises:
            EvidenceFormatError: fewer are left.
        """
        taken = self.data[self.position : self.position + count]
        if len(taken) != count:
            raise EvidenceFormatError(self.what, expected=f"{count} bytes at {self.position}", got="its end")
        self.position += count
        return taken

    def number(self, count: int) -> int:
        """Return the next bytes as a little-endian number."""
        return int.from_bytes(self.take(count), "little")

    def require_end(self) -> None:
        """Refuse bytes that nobody has read.

        Raises:
            TrailingBytesError: some are left.
        """
        if self.position != len(self.data):
            raise TrailingBytesError(self.what, expected="its end", got=f"{len(self.data) - self.position} bytes more")


def parse_quote(data: bytes) -> Quote:
    """Return the parts of a quote.

    Raises:
        EvidenceSizeError: more than 16 KiB.
        TrailingBytesError: something but zeros after the quote, or anything after a part inside it.
        EvidenceVersionError: a version, TEE or body that is not known, or that do not belong together.
        AlgorithmError: another algorithm than ECDSA P-256.
        MissingEndorsementError: a quote that only names its PCK certificate.
        EvidenceFormatError: anything else that is not a quote.
    """
    if len(data) > QUOTE_LIMIT_BYTES:
        raise EvidenceSizeError("quote in bytes", expected=f"at most {QUOTE_LIMIT_BYTES}", got=len(data))
    reader = Reader(data, "quote")
    version, tee = _read_header(reader)
    body = reader.take(_body_size(reader, version, tee))
    signed = data[: reader.position]
    authentication = Reader(reader.take(reader.number(4)), "quote signature data")
    end = reader.position
    if data.count(0, end) != len(data) - end:
        raise TrailingBytesError("quote", expected="its end, or zeros", got=f"{len(data) - end} bytes more")
    signature, attestation_key = authentication.take(_SIGNATURE_BYTES), authentication.take(_SIGNATURE_BYTES)
    certified = authentication if version == 3 else _nested(authentication)
    parts = _read_certification(certified)
    return Quote(
        data=data[:end],
        version=version,
        tee=tee,
        signed=signed,
        body=body,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=parts[0],
        qe_report_signature=parts[1],
        qe_authentication=parts[2],
        pck_chain=parts[3],
    )


def read_quote_file(data: bytes) -> bytes:
    """Return the bytes of a file that holds a quote as binary, or as text in hexadecimal (spaces around it allowed).

    Raises:
        EvidenceSizeError: more than a quote can have.
    """
    if len(data) > 2 * QUOTE_LIMIT_BYTES + 1024:
        raise EvidenceSizeError("quote file in bytes", expected=f"at most {2 * QUOTE_LIMIT_BYTES}", got=len(data))
    text = data.strip().removeprefix(b"0x")
    # A binary quote holds a zero within its first bytes, so it never reads as text.
    if text and len(text) % 2 == 0 and _HEX.issuperset(text):
        return bytes.fromhex(text.decode("ascii"))
    return data


def _read_header(reader: Reader) -> tuple[int, TeeKind]:
    version, algorithm, tee_type = reader.number(2), reader.number(2), reader.number(4)
    # Two SVNs in version 3, reserved in 4 and 5; then the QE's vendor, and 20 bytes of its own.
    reader.take(4)
    vendor = reader.take(16)
    reader.take(20)
    tee = _TEE_TYPES.get(tee_type)
    if tee is None:
        raise EvidenceVersionError("quote TEE type", expected="SGX (0x0) or TDX (0x81)", got=hex(tee_type))
    versions = (3,) if tee is TeeKind.SGX else (4, 5)
    if version not in versions:
        raise EvidenceVersionError(f"quote version for {tee}", expected=versions, got=version)
    if algorithm != _ECDSA_P256:
        raise AlgorithmError("quote attestation key type", expected="ECDSA P-256 (2)", got=algorithm)
    if vendor != _INTEL_QE_VENDOR:
        raise EvidenceVersionError("quote QE vendor", expected="Intel's", got=vendor.hex())
    return version, tee


def _body_size(reader: Reader, version: int, tee: TeeKind) -> int:
    if tee is TeeKind.SGX:
        return ENCLAVE_REPORT_BYTES
    if version == 4:
        return TD_REPORT_10_BYTES
    kind, size = reader.number(2), reader.number(4)
    if kind not in _BODY_SIZES:
        raise EvidenceVersionError("quote body type", expected="TD report 1.0 (2) or 1.5 (3)", got=kind)
    if size != _BODY_SIZES[kind]:
        raise EvidenceFormatError("quote body size", expected=_BODY_SIZES[kind], got=size)
    return size


def _nested(outer: Reader) -> Reader:
    """Return the QE's certification data, which versions 4 and 5 wrap once more."""
    kind = outer.number(2)
    if kind != _QE_REPORT:
        raise EvidenceVersionError("quote certification data", expected="QE report (6)", got=kind)
    inner = outer.take(outer.number(4))
    outer.require_end()
    return Reader(inner, "quote QE report certification data")


def _read_certification(reader: Reader) -> tuple[bytes, bytes, bytes, bytes]:
    report, signature = reader.take(ENCLAVE_REPORT_BYTES), reader.take(_SIGNATURE_BYTES)
    authentication = reader.take(reader.number(2))
    if len(authentication) != _QE_AUTHENTICATION_BYTES:
        raise EvidenceFormatError(
            "quote QE authentication data in bytes", expected=_QE_AUTHENTICATION_BYTES, got=len(authentication)
        )
    kind = reader.number(2)
    if kind != _PCK_CHAIN:
        raise MissingEndorsementError("quote PCK certificate", expected="its chain (5)", got=f"type {kind}")
    chain = reader.take(reader.number(4))
    reader.require_end()
    return report, signature, authentication, chain
