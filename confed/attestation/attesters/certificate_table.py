"""The certificates that a host hands to an SEV-SNP guest beside a report: a table of GUIDs, read strictly.

The table comes from the host, so it is no more than a hint: what is in it is a certificate or is refused, and whether
it certifies anything is the verifier's question. Layout: entries of a GUID, an offset and a length (24 bytes), ended by
one of zeros, then the certificates that they point to.

Source: AMD 56421, SEV-ES Guest-Hypervisor Communication Block Standardization 2.03, section 4.1.8.1 (MSG_REPORT_REQ).
"""

from __future__ import annotations

import struct
import uuid

from confed.attestation.certificates import load_certificate
from confed.errors import EndorsementFormatError, EvidenceUnavailableError

LIMIT_BYTES = 32 * 1024
"""Largest table; Linux asks its host for at most 16 KiB (SEV_FW_BLOB_MAX_SIZE)."""

_ENTRY = struct.Struct("<16sII")
_ENTRY_LIMIT = 16

# AMD 56421, table 5 of the same section.
GUIDS = {
    "VCEK": uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"),
    "VLEK": uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"),
    "ASK": uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"),
    "ARK": uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae"),
}
# Hosts write a GUID in either byte order; no byte string is one of these in one order and another in the other.
_NAMES = {order: name for name, guid in GUIDS.items() for order in (guid.bytes, guid.bytes_le)}


def certificates_of(table: bytes) -> tuple[bytes, ...]:
    """Return the certificates (DER) of the GUIDs that are known here, in the table's order; none for an empty table.

    Entries of other GUIDs (revocation lists, a cloud's own endorsements) are left out.

    Raises:
        EvidenceUnavailableError: larger than its bound, without end, entries that repeat, overlap or point outside,
            or a known GUID with something other than one certificate.
    """
    if not table:
        return ()
    if len(table) > LIMIT_BYTES:
        raise EvidenceUnavailableError("certificate table in bytes", expected=f"at most {LIMIT_BYTES}", got=len(table))
    entries = _entries(table)
    _require_apart(entries, header_bytes=(len(entries) + 1) * _ENTRY.size, size=len(table))
    names = [_NAMES[guid] for guid, _, _ in entries if guid in _NAMES]
    if len(set(names)) != len(names):
        raise EvidenceUnavailableError("certificate table", expected="each GUID once", got=", ".join(names))
    return tuple(
        _certificate(table[offset : offset + length], _NAMES[guid])
        for guid, offset, length in entries
        if guid in _NAMES
    )


def _entries(table: bytes) -> list[tuple[bytes, int, int]]:
    found: list[tuple[bytes, int, int]] = []
    for position in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, position)
        if not any(guid):
            if offset or length:
                raise EvidenceUnavailableError("certificate table", expected="an end of zeros", got="another end")
            return found
        if len(found) == _ENTRY_LIMIT:
            raise EvidenceUnavailableError("certificate table", expected=f"at most {_ENTRY_LIMIT} entries", got="more")
        found.append((guid, offset, length))
    raise EvidenceUnavailableError("certificate table", expected="an entry of zeros at its end", got="none")


def _require_apart(entries: list[tuple[bytes, int, int]], *, header_bytes: int, size: int) -> None:
    end = header_bytes
    for _, offset, length in sorted(entries, key=lambda entry: entry[1]):
        if offset < end or length == 0 or offset + length > size:
            raise EvidenceUnavailableError(
                "certificate table entry", expected=f"one within bytes {end} to {size}", got=f"{length} at {offset}"
            )
        end = offset + length


def _certificate(data: bytes, name: str) -> bytes:
    try:
        return load_certificate(data, what=f"{name} certificate of the host's table").der
    except EndorsementFormatError as error:
        raise EvidenceUnavailableError(
            f"certificate table, {name}", expected="one certificate", got="something else"
        ) from error
