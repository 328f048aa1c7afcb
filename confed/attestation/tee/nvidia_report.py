"""NVIDIA's attestation report: an SPDM 1.1 exchange, read to its true length.

A report is the request GET_MEASUREMENTS as it was sent and the response MEASUREMENTS as it came back, one after the
other. The signature, the last field of the response, is over all that stands before it. What is read:

1. the request: version 1.1, all measurements, a signature asked for, the requester's nonce, slot 0;
2. the response's head: version 1.1, no error, the same slot, how many blocks and how many bytes of them;
3. the blocks: DMTF measurements of 48 bytes, each index once;
4. the responder's nonce, the opaque data, the signature; then nothing more;
5. the opaque data: NVIDIA's fields, each once (``nvidia_opaque``).

NVIDIA's driver 580.95.05 counts one zero byte beyond the signature as part of the report; exactly one zero byte is
therefore allowed there. It is under no signature and nothing is read from it.

Nothing in this module checks the signature; until that is done (``nvidia_gpu``) a report says nothing.

Source: DMTF DSP0274 version 1.1, GET_MEASUREMENTS and MEASUREMENTS, and the signature over L1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confed.attestation.tee.nvidia_opaque import MEASUREMENT_BYTES, OpaqueData, Reader, parse_opaque
from confed.errors import EvidenceFormatError, EvidenceSizeError, EvidenceVersionError, TrailingBytesError

REPORT_LIMIT_BYTES = 0x2000
"""Largest report: NVML_CC_GPU_ATTESTATION_REPORT_SIZE of nvml.h."""

NONCE_BYTES = 32
"""The requester's nonce in GET_MEASUREMENTS."""

REPORT_START = b"\x11\xe0"
"""What a report begins with: SPDM 1.1, GET_MEASUREMENTS."""

# DSP0274 version 1.1: SPDMVersion, RequestResponseCode, Param1 and Param2 of the two messages; the slot of the chain
# that NVIDIA provisioned; MeasurementSpecification and the raw bit of DMTFSpecMeasurementValueType.
_VERSION_1_1, _GET_MEASUREMENTS, _MEASUREMENTS = 0x11, 0xE0, 0x60
_SIGNATURE_REQUESTED, _ALL_MEASUREMENTS, _SLOT = 0x01, 0xFF, 0x00
_DMTF, _RAW = 0x01, 0x80
# ECDSA P-384: r and s.
_SIGNATURE_BYTES = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedReport:
    """A report whose signature nobody has checked yet.

    Attributes:
        nonce: the requester's.
        measurements: by SPDM's index, which begins with 1.
        opaque: NVIDIA's fields.
        signed: what the signature is over.
        signature: r and s, 48 bytes each.
    """

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: OpaqueData
    signed: bytes
    signature: bytes


def parse_report(data: bytes) -> UnverifiedReport:
    """Return the report of these bytes and of no others.

    Raises:
        EvidenceSizeError: more than a report can be.
        EvidenceVersionError: another version of SPDM or of the opaque data.
        TrailingBytesError: bytes after the signature, one zero byte excepted.
        EvidenceFormatError: anything else that is not as the module says.
    """
    if len(data) > REPORT_LIMIT_BYTES:
        raise EvidenceSizeError("report in bytes", expected=f"at most {REPORT_LIMIT_BYTES}", got=len(data))
    reader = Reader(data)
    # 1.
    nonce = _parse_request(reader)
    # 2.
    head = reader.take(4, "response")
    _require_version(head[0])
    if head[1] != _MEASUREMENTS:
        raise EvidenceFormatError("response code", expected=f"{_MEASUREMENTS:#x}", got=f"{head[1]:#x}")
    if head[2] != 0 or head[3] != _SLOT:
        raise EvidenceFormatError("response parameters", expected="0 and slot 0", got=f"{head[2]} and {head[3]}")
    count = reader.number(1, "number of blocks")
    record = reader.take(reader.number(3, "measurement record length"), "measurement record")
    # 3.
    measurements = _parse_blocks(record, count)
    # 4.
    reader.take(NONCE_BYTES, "responder's nonce")
    opaque = reader.take(reader.number(2, "opaque length"), "opaque data")
    signed = data[: reader.position]
    signature = reader.take(_SIGNATURE_BYTES, "signature")
    if reader.rest not in (b"", b"\x00"):
        raise TrailingBytesError(
            "bytes after the report's signature", expected="none, or one zero", got=len(reader.rest)
        )
    # 5.
    return UnverifiedReport(
        nonce=nonce, measurements=measurements, opaque=parse_opaque(opaque), signed=signed, signature=signature
    )


def _parse_request(reader: Reader) -> bytes:
    head = reader.take(4, "request")
    _require_version(head[0])
    expected = bytes((_VERSION_1_1, _GET_MEASUREMENTS, _SIGNATURE_REQUESTED, _ALL_MEASUREMENTS))
    if head != expected:
        raise EvidenceFormatError("request", expected=f"{expected.hex()} (all, signed)", got=head.hex())
    nonce = reader.take(NONCE_BYTES, "requester's nonce")
    slot = reader.number(1, "slot")
    if slot != _SLOT:
        raise EvidenceFormatError("slot", expected=_SLOT, got=slot)
    return nonce


def _require_version(found: int) -> None:
    if found != _VERSION_1_1:
        raise EvidenceVersionError("SPDM version", expected=f"{_VERSION_1_1:#x}", got=f"{found:#x}")


def _parse_blocks(record: bytes, count: int) -> dict[int, bytes]:
    reader, found = Reader(record), dict[int, bytes]()
    for _ in range(count):
        index, specification = reader.take(2, "measurement block")
        size = reader.number(2, "measurement size")
        kind = reader.number(1, "measurement type")
        value_size = reader.number(2, "measurement value size")
        if specification != _DMTF or kind & _RAW or value_size != MEASUREMENT_BYTES or size != value_size + 3:
            raise EvidenceFormatError(f"measurement {index}", expected="a DMTF digest of 48 bytes", got="another")
        if index == 0 or index in found:
            raise EvidenceFormatError("measurement index", expected="each once, from 1", got=index)
        found[index] = reader.take(value_size, f"measurement {index}")
    if reader.rest or not found:
        raise EvidenceFormatError("measurement record", expected=f"{count} blocks", got="another number")
    return found
