"""The forms that NVIDIA's evidence comes in: confed's record of one device, and vendors' files.

In an envelope, ``device_evidence`` holds one record for each device: canonical JSON of the report and the chain as the
device gave them, and of the modes that NVML told when they were fetched (``NvidiaState``). No field of NVIDIA's report
says that confidential computing is on or that developer tools are off: it shows in measurements that match NVIDIA's
manifests. What NVML says is the word of the guest's own measured software, and as such it is under a signature:
REPORT_DATA of the CPU's TEE covers the digest of these records.

Files are a report (binary, or as hexadecimal text) with its chain beside it, or the JSON list that NVIDIA's tools write
(an object with ``evidences`` is one too), with the chains in it.

Source: NVIDIA attestation-sdk (github.com/NVIDIA), gpu/evidence and switch/evidence, for the JSON list; nvml.h for the
modes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confed import canonical, record
from confed.attestation.certificates import load_certificates
from confed.attestation.evidence import from_base64, parse_canonical
from confed.attestation.tee.nvidia_identity import CHAIN_LENGTH, GPU, SWITCH
from confed.attestation.tee.nvidia_report import REPORT_LIMIT_BYTES, REPORT_START
from confed.errors import (
    CertificateChainError,
    EndorsementFormatError,
    EvidenceFormatError,
    EvidenceSizeError,
    MissingEndorsementError,
)

DEVICE_LIMIT = 16
"""Most devices at once: eight GPUs, four switches, and room."""

_RECORD_LIMIT_BYTES = 64 * 1024
_FILE_LIMIT_BYTES = 1024 * 1024
_KINDS = {GPU: "nvidia-gpu", SWITCH: "nvidia-switch"}
_PEM_START = b"-----BEGIN"
_HEX = re.compile(rb"[0-9a-fA-F\s]*\Z")

_SWITCHED = ("on", "off")
_ENVIRONMENTS = ("production", "simulation", "unavailable")
_MULTI_GPU = ("none", "protected-pcie", "nvle", "unreported")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaState:
    """What NVML told of the system that the devices are in.

    Attributes:
        confidential_compute: ``on`` or ``off``.
        devtools: ``on`` or ``off``.
        environment: ``production``, ``simulation`` or ``unavailable``.
        multi_gpu: ``none``, ``protected-pcie``, ``nvle``, or ``unreported`` by older drivers.

    Raises:
        EvidenceFormatError: another word.
    """

    confidential_compute: str
    devtools: str
    environment: str
    multi_gpu: str

    def __post_init__(self) -> None:
        for name, choices in (
            ("confidential_compute", _SWITCHED),
            ("devtools", _SWITCHED),
            ("environment", _ENVIRONMENTS),
            ("multi_gpu", _MULTI_GPU),
        ):
            found = getattr(self, name)
            if found not in choices:
                raise EvidenceFormatError(f"state.{name}", expected=", ".join(choices), got=found[:40])


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvidence:
    """What came of one device; nothing of it is verified.

    Attributes:
        report: the vendor's bytes.
        chain: certificates in DER, leaf first.
        kind: ``gpu`` or ``switch``, where the form tells it.
        architecture: as NVIDIA's JSON tells it, and as the chain must then say.
        nonce: as NVIDIA's JSON tells it, and as the report must then have it.
        state: NVML's modes; ``None`` for switches, and in files.
    """

    report: bytes
    chain: tuple[bytes, ...]
    kind: str | None = None
    architecture: str | None = None
    nonce: bytes | None = None
    state: NvidiaState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A record as it is written; bytes in base64."""

    chain: tuple[str, ...]
    kind: str
    report: str
    state: NvidiaState | None


def encode_record(*, kind: str, report: bytes, chain: Sequence[bytes], state: NvidiaState | None) -> bytes:
    """Return the record of one device for an envelope's ``device_evidence``.

    Args:
        kind: ``gpu`` or ``switch``.
        report: the vendor's bytes, untouched.
        chain: certificates in DER, leaf first.
        state: NVML's modes, for a GPU; ``None`` for a switch.

    Raises:
        EvidenceFormatError: a record that ``decode_record`` would refuse.
    """
    written = _Record(
        chain=tuple(_to_base64(certificate) for certificate in chain),
        kind=_KINDS[kind],
        report=_to_base64(report),
        state=state,
    )
    encoded = canonical.encode(record.to_json(written))
    decode_record(encoded)
    return encoded


def decode_record(data: bytes) -> DeviceEvidence:
    """Return what a record holds; there is exactly one spelling of it.

    Raises:
        EvidenceFormatError: anything else: unknown or missing fields, over-size, another spelling; a GPU without
            NVML's modes, a switch with them.
        CertificateChainError: another number of certificates.
    """
    value = parse_canonical(data, limit_bytes=_RECORD_LIMIT_BYTES, what="device evidence")
    written = record.from_json(_Record, value, at="device evidence", error=EvidenceFormatError)
    kind = next((kind for kind, name in _KINDS.items() if name == written.kind), None)
    if kind is None:
        raise EvidenceFormatError("device evidence kind", expected=", ".join(_KINDS.values()), got=written.kind[:40])
    if (written.state is None) != (kind == SWITCH):
        raise EvidenceFormatError("device evidence state", expected="of GPUs, and of them alone", got=kind)
    if len(written.chain) != CHAIN_LENGTH:
        raise CertificateChainError("device chain", expected=f"{CHAIN_LENGTH} certificates", got=len(written.chain))
    return DeviceEvidence(
        report=from_base64("device evidence report", written.report),
        chain=tuple(from_base64("device evidence chain", entry) for entry in written.chain),
        kind=kind,
        state=written.state,
    )


def read_files(evidence: bytes, chains: Sequence[bytes]) -> tuple[DeviceEvidence, ...]:
    """Return what vendors' files hold.

    Args:
        evidence: a report, binary or hexadecimal, or NVIDIA's JSON list.
        chains: the PEM files beside it: one for a report, none for a list.

    Raises:
        EvidenceSizeError: more bytes or devices than allowed.
        EvidenceFormatError: anything else.
        MissingEndorsementError, EndorsementFormatError: no chain, several, or one that is none.
    """
    if len(evidence) > _FILE_LIMIT_BYTES:
        raise EvidenceSizeError("evidence in bytes", expected=f"at most {_FILE_LIMIT_BYTES}", got=len(evidence))
    if evidence.lstrip()[:1] in (b"[", b"{"):
        if chains:
            raise EndorsementFormatError("chains beside a list", expected="none", got=len(chains))
        return tuple(_read_entry(entry) for entry in _read_list(evidence))
    if not chains:
        raise MissingEndorsementError("device chain", expected="a PEM file", got="none")
    if len(chains) > 1:
        raise EndorsementFormatError("device chain", expected="one PEM file", got=len(chains))
    return (DeviceEvidence(report=_read_report(evidence), chain=read_chain(chains[0])),)


def read_chain(pem: bytes) -> tuple[bytes, ...]:
    """Return the certificates of PEM text in DER, in their order.

    Raises:
        EndorsementFormatError: anything else.
    """
    if not is_chain(pem):
        raise EndorsementFormatError("device chain", expected="PEM", got="something else")
    return tuple(certificate.der for certificate in load_certificates(pem, what="device chain"))


def is_chain(data: bytes) -> bool:
    """Tell a chain from other endorsements: it is PEM."""
    return data.lstrip().startswith(_PEM_START)


def _read_report(evidence: bytes) -> bytes:
    if evidence.startswith(REPORT_START):
        return evidence
    if not _HEX.match(evidence) or len(evidence) > 4 * REPORT_LIMIT_BYTES:
        raise EvidenceFormatError("report", expected="SPDM 1.1, binary or hexadecimal", got=evidence[:8].hex())
    try:
        return bytes.fromhex(evidence.decode("ascii"))
    except ValueError as error:
        raise EvidenceFormatError("report", expected="hexadecimal text", got="an odd digit") from error


def _read_list(evidence: bytes) -> list[Any]:
    try:
        value: Any = json.loads(evidence, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise EvidenceFormatError("evidence", expected="NVIDIA's JSON list", got="something else") from error
    entries: Any = value.get("evidences") if isinstance(value, dict) else value
    if not isinstance(entries, list) or not entries:
        raise EvidenceFormatError("evidence", expected="a list of devices", got="something else")
    if len(entries) > DEVICE_LIMIT:
        raise EvidenceSizeError("devices", expected=f"at most {DEVICE_LIMIT}", got=len(entries))
    return entries


def _read_entry(entry: Any) -> DeviceEvidence:
    """Read the fields that matter; NVIDIA's tools add others (versions), which the report says under its signature."""
    if not isinstance(entry, dict):
        raise EvidenceFormatError("evidence entry", expected="an object", got="another type")
    fields: dict[str, Any] = entry
    architecture, nonce = fields.get("arch"), fields.get("nonce")
    if not isinstance(architecture, str) or not isinstance(nonce, str):
        raise EvidenceFormatError("evidence entry", expected="arch and nonce", got="others")
    try:
        expected_nonce = bytes.fromhex(nonce)
    except ValueError as error:
        raise EvidenceFormatError("evidence nonce", expected="hexadecimal text", got="something else") from error
    return DeviceEvidence(
        report=from_base64("evidence report", fields.get("evidence")),
        chain=read_chain(from_base64("evidence certificate", fields.get("certificate"))),
        architecture=architecture,
        nonce=expected_nonce,
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError
    return fields


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
