"""The fields of an AWS Nitro attestation document, as its one allowed form; nothing is verified here.

Source: AWS, aws-nitro-enclaves-nsm-api, docs/attestation_process.md, sections 2.2 and 3.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from confed.attestation.tee.cose import decode_cbor
from confed.errors import AlgorithmError, EvidenceFormatError, EvidenceSizeError, MissingClaimError

# Section 3.1.
PAYLOAD_LIMIT_BYTES = 16384
"""Largest payload."""

PCR_BYTES = 48
"""Size of a register: digest ``SHA384``."""

CODE_PCRS = (0, 1, 2)
"""Registers of the enclave's image, kernel and bootstrap, and application; zero in debug mode."""

# Section 3.2.2.2.
_DIGEST = "SHA384"
_PCR_COUNT = 32
_CERTIFICATE_LIMIT_BYTES = 1024
_OPTIONAL_SIZES = {"public_key": (1, 1024), "user_data": (0, 512), "nonce": (0, 512)}
_MANDATORY = frozenset({"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"})
# Not AWS's: the last second of the year 9999; real documents have four certificates and identifiers of 39 characters.
_LATEST_MS = 253_402_300_799_000
_CABUNDLE_LIMIT = 8
_MODULE_ID_LIMIT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroRegister:
    """One platform configuration register: its number and 48 bytes."""

    index: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroDocument:
    """The fields of a document, each of its type and size; nothing in it is verified.

    Attributes:
        module_id: the enclave's identifier.
        timestamp_ms: Unix milliseconds.
        pcrs: registers by number, ascending.
        certificate: the leaf in DER.
        cabundle: its issuers in DER, root first.
        public_key, user_data, nonce: what the enclave asked to have signed; ``None`` where it asked for nothing.
    """

    module_id: str
    timestamp_ms: int
    pcrs: tuple[NitroRegister, ...]
    certificate: bytes
    cabundle: tuple[bytes, ...]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None


def parse_document(payload: bytes) -> NitroDocument:
    """Return the fields of a document's payload.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError: not AWS's form, or beyond its bounds.
        MissingClaimError: a field, or one of PCR0 to PCR2, that is not there.
        AlgorithmError: registers of another digest.
    """
    value = decode_cbor(payload, limit_bytes=PAYLOAD_LIMIT_BYTES, what="Nitro payload", indefinite=True)
    if not isinstance(value, dict):
        raise EvidenceFormatError("Nitro payload", expected="a map", got="another type")
    fields: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    missing = _MANDATORY - fields.keys()
    if missing:
        raise MissingClaimError(f"Nitro {min(missing)}", expected="a value", got="nothing")
    unknown = fields.keys() - _MANDATORY - _OPTIONAL_SIZES.keys()
    if unknown:
        raise EvidenceFormatError("Nitro payload", expected="AWS's fields", got=repr(next(iter(unknown)))[:60])
    if fields["digest"] != _DIGEST:
        raise AlgorithmError("Nitro digest", expected=_DIGEST, got=repr(fields["digest"])[:60])
    module_id, timestamp_ms = fields["module_id"], fields["timestamp"]
    if not isinstance(module_id, str) or not 1 <= len(module_id) <= _MODULE_ID_LIMIT:
        raise EvidenceFormatError("Nitro module_id", expected="text", got="another type or size")
    if type(timestamp_ms) is not int or not 1 <= timestamp_ms <= _LATEST_MS:
        raise EvidenceFormatError("Nitro timestamp", expected="Unix milliseconds", got=repr(timestamp_ms)[:40])
    return NitroDocument(
        module_id=module_id,
        timestamp_ms=timestamp_ms,
        pcrs=_pcrs(fields["pcrs"]),
        certificate=_bytes("certificate", fields["certificate"], 1, _CERTIFICATE_LIMIT_BYTES),
        cabundle=_cabundle(fields["cabundle"]),
        **{name: _optional(name, fields.get(name)) for name in _OPTIONAL_SIZES},
    )


def _pcrs(value: Any) -> tuple[NitroRegister, ...]:
    if not isinstance(value, dict) or not 1 <= len(value) <= _PCR_COUNT:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("Nitro pcrs", expected=f"1 to {_PCR_COUNT} registers", got="something else")
    entries: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    for index in entries:
        if type(index) is not int or not 0 <= index < _PCR_COUNT:
            raise EvidenceFormatError("Nitro pcrs", expected=f"numbers below {_PCR_COUNT}", got=repr(index)[:40])
    for index in CODE_PCRS:
        if index not in entries:
            raise MissingClaimError(f"Nitro PCR{index}", expected="a value", got="nothing")
    return tuple(
        NitroRegister(index=index, value=_bytes(f"PCR{index}", entries[index], PCR_BYTES, PCR_BYTES))
        for index in sorted(entries)
    )


def _cabundle(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise EvidenceFormatError("Nitro cabundle", expected="certificates", got="none")
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    if len(items) > _CABUNDLE_LIMIT:
        raise EvidenceSizeError("Nitro cabundle", expected=f"at most {_CABUNDLE_LIMIT}", got=len(items))
    return tuple(_bytes("cabundle", item, 1, _CERTIFICATE_LIMIT_BYTES) for item in items)


def _optional(name: str, value: Any) -> bytes | None:
    # AWS's text says that no field is null; its hypervisor writes null for what an enclave did not ask for.
    return None if value is None else _bytes(name, value, *_OPTIONAL_SIZES[name])


def _bytes(name: str, value: Any, least: int, most: int) -> bytes:
    if not isinstance(value, bytes):
        raise EvidenceFormatError(f"Nitro {name}", expected="a byte string", got="another type")
    if not least <= len(value) <= most:
        raise EvidenceSizeError(f"Nitro {name} size in bytes", expected=f"{least} to {most}", got=len(value))
    return value
