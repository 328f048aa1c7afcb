"""Attestations of Google's go-tpm-tools: one protobuf message, read strictly.

A field that is not known, that stands twice, of another wire type, or a number that is not written the short way is
refused: protobuf itself would read over all of these. Read are the attestation key, the quotes, the event log, and the
certificates; the rest is known by name and not read, since nothing in it is signed by the TPM (``unread``).

Source: github.com/google/go-tpm-tools, proto/attest.proto (Attestation) and proto/tpm.proto (Quote, PCRs); protobuf
encoding, protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confed.attestation.tee.tpm_structures import LAST_REGISTER, bank_of
from confed.errors import EvidenceFormatError, EvidenceSizeError, MissingClaimError

LIMIT_BYTES = 1024 * 1024
"""Largest attestation; the event log makes up most of it."""

_QUOTES_LIMIT = 8
_CERTIFICATES_LIMIT = 8
_VARINT, _BYTES = 0, 2

# attest.proto, Attestation.
_AK_PUB, _QUOTES, _EVENT_LOG, _AK_CERT, _INTERMEDIATES = 1, 2, 3, 6, 7
_UNREAD = {4: "instance_info", 5: "canonical_event_log", 8: "sev_snp_attestation", 9: "tdx_attestation"}
_ATTESTATION = {_AK_PUB, _QUOTES, _EVENT_LOG, _AK_CERT, _INTERMEDIATES, *_UNREAD}
# tpm.proto, Quote and PCRs, and an entry of its map.
_QUOTE, _RAW_SIG, _PCRS = 1, 2, 3
_HASH, _VALUES = 1, 2
_KEY, _VALUE = 1, 2

_Fields = dict[int, list[bytes | int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpQuote:
    """A quote over one bank: TPMS_ATTEST, TPMT_SIGNATURE, and the values by number."""

    message: bytes
    signature: bytes
    bank: str
    pcrs: Mapping[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpAttestation:
    """An attestation as parsed.

    Attributes:
        ak_public: TPMT_PUBLIC of the attestation key.
        quotes: one for each bank.
        event_log: the firmware's, empty where there is none.
        ak_certificate: the AK's certificate in DER, empty where there is none.
        intermediates: certificates between it and a root.
        unread: fields that are there and are not read.
    """

    ak_public: bytes
    quotes: tuple[GcpQuote, ...]
    event_log: bytes
    ak_certificate: bytes
    intermediates: tuple[bytes, ...]
    unread: tuple[str, ...]


def parse_attestation(data: bytes) -> GcpAttestation:
    """Return the attestation of a go-tpm-tools protobuf.

    Raises:
        EvidenceFormatError, EvidenceSizeError: not of the one form.
        MissingClaimError: no key or no quote.
        AlgorithmError: a bank of a hash that is not known.
    """
    if len(data) > LIMIT_BYTES:
        raise EvidenceSizeError("attestation in bytes", expected=f"at most {LIMIT_BYTES}", got=len(data))
    fields = _fields(data, known=_ATTESTATION, repeated={_QUOTES, _INTERMEDIATES}, what="attestation")
    messages = _all_bytes(fields, _QUOTES, limit=_QUOTES_LIMIT)
    if not messages:
        raise MissingClaimError("attestation: quotes", expected="at least one", got="none")
    quotes = tuple(_quote(message) for message in messages)
    banks = [quote.bank for quote in quotes]
    if len(set(banks)) != len(banks):
        raise EvidenceFormatError("attestation: quotes", expected="one for a bank", got=", ".join(banks))
    return GcpAttestation(
        ak_public=_demanded(fields, _AK_PUB, "attestation: key"),
        quotes=quotes,
        event_log=_optional(fields, _EVENT_LOG),
        ak_certificate=_optional(fields, _AK_CERT),
        intermediates=_all_bytes(fields, _INTERMEDIATES, limit=_CERTIFICATES_LIMIT),
        unread=tuple(name for number, name in _UNREAD.items() if number in fields),
    )


def _quote(data: bytes) -> GcpQuote:
    fields = _fields(data, known={_QUOTE, _RAW_SIG, _PCRS}, repeated=set(), what="quote")
    registers = _fields(
        _demanded(fields, _PCRS, "quote: registers"), known={_HASH, _VALUES}, repeated={_VALUES}, what="registers"
    )
    pcrs: dict[int, bytes] = {}
    for entry in _all_bytes(registers, _VALUES, limit=LAST_REGISTER + 1):
        parts = _fields(entry, known={_KEY, _VALUE}, repeated=set(), what="register")
        number = _number(parts, _KEY)
        if number > LAST_REGISTER or number in pcrs:
            raise EvidenceFormatError("register", expected=f"0 to {LAST_REGISTER}, each once", got=number)
        pcrs[number] = _demanded(parts, _VALUE, f"register {number}")
    return GcpQuote(
        message=_demanded(fields, _QUOTE, "quote: message"),
        signature=_demanded(fields, _RAW_SIG, "quote: signature"),
        bank=bank_of(_number(registers, _HASH)),
        pcrs=pcrs,
    )


def _fields(data: bytes, *, known: set[int], repeated: set[int], what: str) -> _Fields:
    """Return a message's fields by number; numbers and byte strings are all that these messages have."""
    found: _Fields = {}
    position = 0
    while position < len(data):
        tag, position = _varint(data, position, what)
        number, wire = tag >> 3, tag & 7
        if number not in known or wire not in (_VARINT, _BYTES):
            raise EvidenceFormatError(f"{what}: field", expected="a known one", got=f"{number}, wire type {wire}")
        if number in found and number not in repeated:
            raise EvidenceFormatError(f"{what}: field {number}", expected="once", got="twice")
        value, position = _varint(data, position, what)
        if wire == _BYTES:
            size = value
            if size > len(data) - position:
                raise EvidenceFormatError(f"{what}: field {number}", expected=f"{size} bytes", got="the end")
            value, position = data[position : position + size], position + size
        found.setdefault(number, []).append(value)
    return found


def _varint(data: bytes, position: int, what: str) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if position + index >= len(data):
            raise EvidenceFormatError(what, expected="a number", got="the end")
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if (byte == 0 and index > 0) or value >> 64:
                break
            return value, position + index + 1
    raise EvidenceFormatError(what, expected="a number of at most 64 bits, written the short way", got="another")


def _all_bytes(fields: _Fields, number: int, *, limit: int) -> tuple[bytes, ...]:
    values = fields.get(number, [])
    if len(values) > limit:
        raise EvidenceSizeError(f"field {number}", expected=f"at most {limit}", got=len(values))
    found = tuple(value for value in values if isinstance(value, bytes))
    if len(found) != len(values):
        raise EvidenceFormatError(f"field {number}", expected="bytes", got="a number")
    return found


def _optional(fields: _Fields, number: int) -> bytes:
    return next(iter(_all_bytes(fields, number, limit=1)), b"")


def _demanded(fields: _Fields, number: int, what: str) -> bytes:
    found = _optional(fields, number)
    if not found:
        raise MissingClaimError(what, expected="bytes", got="none")
    return found


def _number(fields: _Fields, number: int) -> int:
    """Return a number; protobuf leaves out zeros."""
    value = fields.get(number, [0])[0]
    if isinstance(value, bytes):
        raise EvidenceFormatError(f"field {number}", expected="a number", got="bytes")
    return value
