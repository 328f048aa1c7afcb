"""Quotes as tools write them into files: read into one form, and believed nowhere in this file.

Evidence is one of

- a TPMS_ATTEST (``tpm2_quote --message``), whose signature, registers and key come as endorsements;
- JSON ``{"ak_public", "tpm_quote": {"message", "pcrs", "signature"}}`` as Trustee's verifier reads it, the registers in
  hexadecimal by position, everything else in base64; ``claimed_selection_by_position`` may say which numbers the
  positions stand for, ``ak_tpm2b_public`` is the key's public area, and what stands there as a note is not read;
- the canonical JSON of confed's own envelopes (``tpm_evidence``).

Endorsements are told apart by their content: certificates, public keys (PEM or DER), a TPM's public area, a
TPMT_SIGNATURE, a register file (``tpm2_quote --pcr``), an enrolment, a firmware's event log.

Source: tpm2-tools 5.4, lib/files.c and tools/tpm2_quote.c (register files, little-endian C structures).
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from confed.attestation.certificates import Certificate, load_certificates
from confed.attestation.evidence import from_base64
from confed.attestation.revocation import load_crl
from confed.attestation.tee.tpm_enrolment import ENROLMENT_START
from confed.attestation.tee.tpm_evidence import BANK, EVIDENCE_LIMIT_BYTES, TpmEvidence
from confed.attestation.tee.tpm_reader import STRUCTURE_LIMIT_BYTES
from confed.attestation.tee.tpm_structures import (
    LAST_REGISTER,
    TpmPublic,
    parse_public,
    registers_of_bitmap,
    strong_digest,
)
from confed.errors import (
    AttestationError,
    EndorsementFormatError,
    EvidenceFormatError,
    EvidenceSizeError,
    MissingEndorsementError,
)

AttestationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

_ATTEST_START = b"\xff\x54\x43\x47"
_ENDORSEMENTS_LIMIT = 32
_CERTIFICATES_LIMIT = 32
_QUOTE_FIELDS = {"message", "pcrs", "signature"}
_FIELDS = {"ak_public", "tpm_quote"}
_KNOWN_FIELDS = _FIELDS | {"ak_tpm2b_public", "claimed_selection_by_position"}
# Words for the reader of a test vector; whatever they say is not evidence.
_NOTES = {"note", "nonce", "expected_pcr11_good"}
_HEX = re.compile(r"(?:[0-9a-f]{2}){1,64}\Z", re.IGNORECASE)

# TPM 2.0 Library, part 2, sections 11.3.4 and 12.2.4: how TPMT_SIGNATURE and TPMT_PUBLIC begin.
_SIGNATURE_STARTS = (b"\x00\x14\x00", b"\x00\x16\x00", b"\x00\x18\x00")
_PUBLIC_STARTS = (b"\x00\x01\x00", b"\x00\x23\x00")
# TCG Platform Firmware Profile, section 10.4.5.1: PCR 0, EV_NO_ACTION, a SHA-1 digest of zeros.
_EVENT_LOG_START = struct.pack("<II20x", 0, 3)

# A TPML_PCR_SELECTION (16 banks of 8 bytes after a count), a count of lists, TPML_DIGEST (8 digests after a count).
# What stands beyond the counts is memory that nobody has written, and is not read.
_SELECTION_BYTES, _BANKS, _BITMAP_BYTES = 132, 16, 4
_LIST_BYTES, _ENTRY_BYTES, _ENTRIES, _LISTS_LIMIT = 532, 66, 8, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFiles:
    """A quote with what somebody presents beside it: registers by number, their bank, and the key.

    Attributes:
        message, signature: TPMS_ATTEST and its signature.
        pcrs, bank: values by number, and the bank that they are said to be of.
        key: the attestation key; ``None`` where the evidence does not hold it.
        public: its public area, if there is one.
        evidence: the envelope's form, where that is what was read.
    """

    message: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    bank: str
    key: AttestationKey | None
    public: TpmPublic | None
    evidence: TpmEvidence | None = None


@dataclass(slots=True, kw_only=True)
class Supplied:
    """Endorsement files, sorted by what they are.

    Attributes:
        certificates: of keys and authorities, as many as there are in all files.
        keys: attestation keys that the caller names.
        publics: public areas of such keys.
        authorities: raw Ed25519 keys that may enrol.
        signatures, registers, enrolments, event_logs: the files themselves.
        crls: revocation lists; among hints only (``sort_hints``).
    """

    certificates: list[Certificate] = field(default_factory=list[Certificate])
    keys: list[AttestationKey] = field(default_factory=list[AttestationKey])
    publics: list[TpmPublic] = field(default_factory=list[TpmPublic])
    authorities: list[bytes] = field(default_factory=list[bytes])
    signatures: list[bytes] = field(default_factory=list[bytes])
    registers: list[bytes] = field(default_factory=list[bytes])
    enrolments: list[bytes] = field(default_factory=list[bytes])
    event_logs: list[bytes] = field(default_factory=list[bytes])
    crls: list[x509.CertificateRevocationList] = field(default_factory=list[x509.CertificateRevocationList])


def sort_endorsements(files: Sequence[bytes]) -> Supplied:
    """Return endorsement files by what they are.

    Raises:
        EvidenceSizeError: too many.
        EndorsementFormatError: one that is nothing known.
    """
    if len(files) > _ENDORSEMENTS_LIMIT:
        raise EvidenceSizeError("endorsements", expected=f"at most {_ENDORSEMENTS_LIMIT}", got=len(files))
    supplied = Supplied()
    for data in files:
        _sort(data, supplied)
    if len(supplied.certificates) > _CERTIFICATES_LIMIT:
        raise EvidenceSizeError("certificates", expected=f"at most {_CERTIFICATES_LIMIT}", got="more")
    return supplied


def sort_hints(files: Sequence[bytes]) -> Supplied:
    """Return the certificates, revocation lists and enrolments among an envelope's endorsements.

    These are hints that nobody vouches for, and those of other devices' evidence may be among them: a file of another
    kind is passed over, and no key in one is trusted.
    """
    supplied = Supplied()
    for data in files:
        if data.startswith(ENROLMENT_START):
            supplied.enrolments.append(data)
            continue
        try:
            supplied.certificates += load_certificates(data, what="hint")
        except EndorsementFormatError:
            with contextlib.suppress(EndorsementFormatError):
                supplied.crls.append(load_crl(data, what="hint"))
    return supplied


def read_evidence(evidence: bytes, supplied: Supplied) -> QuoteFiles:
    """Return the quote of an evidence file and the endorsements that belong to its form.

    Raises:
        EvidenceFormatError, EvidenceSizeError: no form that is known, or a signature and registers twice.
        MissingEndorsementError: a bare message without signature or registers.
    """
    if len(evidence) > EVIDENCE_LIMIT_BYTES:
        raise EvidenceSizeError("TPM evidence in bytes", expected=f"at most {EVIDENCE_LIMIT_BYTES}", got=len(evidence))
    if evidence.startswith(_ATTEST_START):
        pcrs, bank = read_registers(_only(supplied.registers, "register file"))
        signature = _only(supplied.signatures, "signature")
        return QuoteFiles(message=evidence, signature=signature, pcrs=pcrs, bank=bank, key=None, public=None)
    if supplied.registers or supplied.signatures:
        raise EvidenceFormatError("TPM evidence", expected="one signature and one set of registers", got="two")
    value = _parse_json(evidence)
    return _from_envelope(evidence) if "quote" in value else _from_json(value)


def is_event_log(data: bytes) -> bool:
    """Say whether bytes begin as a firmware's crypto-agile event log does."""
    return data.startswith(_EVENT_LOG_START)


def read_registers(data: bytes) -> tuple[Mapping[int, bytes], str]:
    """Return the registers of a file that tpm2-tools wrote, by the numbers that stand in it, and their bank.

    Raises:
        EndorsementFormatError: not exactly one bank, or not as many values as numbers.
        AlgorithmError: a bank below SHA-256.
    """
    lists = (len(data) - _SELECTION_BYTES - 4) // _LIST_BYTES
    if not _is_register_file(data):
        raise EndorsementFormatError("register file", expected="one of tpm2-tools", got="something else")
    if struct.unpack_from("<I", data)[0] != 1:
        raise EndorsementFormatError("register file: banks", expected="one", got="more, or none")
    identifier, size = struct.unpack_from("<HB", data, 4)
    bank = strong_digest(identifier, what="register file")
    if size > _BITMAP_BYTES:
        raise EndorsementFormatError("register file: bitmap in bytes", expected=f"at most {_BITMAP_BYTES}", got=size)
    numbers = registers_of_bitmap(data[7 : 7 + size])
    values: list[bytes] = []
    for start in range(_SELECTION_BYTES + 4, len(data), _LIST_BYTES):
        values += _digests(data[start : start + _LIST_BYTES])
    if len(values) != len(numbers) or struct.unpack_from("<I", data, _SELECTION_BYTES)[0] != lists:
        raise EndorsementFormatError("register file: values", expected=len(numbers), got=len(values))
    return dict(zip(numbers, values, strict=True)), bank


def _digests(data: bytes) -> list[bytes]:
    count = struct.unpack_from("<I", data)[0]
    if count > _ENTRIES:
        raise EndorsementFormatError("register file: values of a list", expected=f"at most {_ENTRIES}", got=count)
    found: list[bytes] = []
    for start in range(4, 4 + count * _ENTRY_BYTES, _ENTRY_BYTES):
        size = struct.unpack_from("<H", data, start)[0]
        if size > _ENTRY_BYTES - 2:
            raise EndorsementFormatError("register file: a value in bytes", expected=_ENTRY_BYTES - 2, got=size)
        found.append(data[start + 2 : start + 2 + size])
    return found


def _is_register_file(data: bytes) -> bool:
    lists, left = divmod(len(data) - _SELECTION_BYTES - 4, _LIST_BYTES)
    return left == 0 and 1 <= lists <= _LISTS_LIMIT and 1 <= struct.unpack_from("<I", data)[0] <= _BANKS


def _sort(data: bytes, supplied: Supplied) -> None:
    if b"-----BEGIN PUBLIC KEY-----" in data[:64]:
        _sort_key(_loaded(serialization.load_pem_public_key, data), supplied)
    elif data.lstrip().startswith(b"-----BEGIN"):
        supplied.certificates += load_certificates(data, what="endorsement")
    elif data.startswith(b"\x30"):
        _sort_der(data, supplied)
    elif data.startswith(ENROLMENT_START):
        supplied.enrolments.append(data)
    elif is_event_log(data):
        supplied.event_logs.append(data)
    elif _is_register_file(data):
        supplied.registers.append(data)
    elif data.startswith(_SIGNATURE_STARTS) and len(data) <= STRUCTURE_LIMIT_BYTES:
        supplied.signatures.append(data)
    elif data[:3] in _PUBLIC_STARTS or data[2:5] in _PUBLIC_STARTS:
        supplied.publics.append(_parse_public(data))
    else:
        raise EndorsementFormatError("endorsement", expected="a file of a kind that is known", got="another")


def _sort_der(data: bytes, supplied: Supplied) -> None:
    try:
        key: object = serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        supplied.certificates += load_certificates(data, what="endorsement")
    else:
        _sort_key(key, supplied)


def _sort_key(key: object, supplied: Supplied) -> None:
    match key:
        case ed25519.Ed25519PublicKey():
            supplied.authorities.append(key.public_bytes_raw())
        case rsa.RSAPublicKey() | ec.EllipticCurvePublicKey():
            supplied.keys.append(key)
        case _:
            raise EndorsementFormatError("public key", expected="RSA, ECC or Ed25519", got=type(key).__name__)


def _parse_public(data: bytes) -> TpmPublic:
    try:
        return parse_public(data)
    except AttestationError as error:
        raise EndorsementFormatError("public area", expected=error.expected, got=error.got) from error


def _loaded(load: Callable[[bytes], object], data: bytes) -> object:
    try:
        return load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EndorsementFormatError("public key", expected="a public key", got="something else") from error


def _only(files: Sequence[bytes], what: str) -> bytes:
    if not files:
        raise MissingEndorsementError(f"endorsement: {what}", expected="one", got="none")
    if len(files) > 1:
        raise EndorsementFormatError(f"endorsement: {what}", expected="one", got=len(files))
    return files[0]


def _from_envelope(data: bytes) -> QuoteFiles:
    found = TpmEvidence.decode(data)
    public = parse_public(found.ak_public)
    return QuoteFiles(
        message=found.quote,
        signature=found.signature,
        pcrs=found.pcrs,
        bank=BANK,
        key=public.key,
        public=public,
        evidence=found,
    )


def _from_json(value: Mapping[str, Any]) -> QuoteFiles:
    if not _FIELDS <= set(value) <= _KNOWN_FIELDS | _NOTES:
        raise EvidenceFormatError("TPM evidence", expected=", ".join(sorted(_FIELDS)), got="other fields")
    quote = value["tpm_quote"]
    if not isinstance(quote, dict) or set(quote) != _QUOTE_FIELDS:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("TPM evidence: tpm_quote", expected=", ".join(sorted(_QUOTE_FIELDS)), got="others")
    parts: dict[str, Any] = quote  # pyright: ignore[reportUnknownVariableType]
    public = (
        parse_public(from_base64("ak_tpm2b_public", value["ak_tpm2b_public"])) if "ak_tpm2b_public" in value else None
    )
    values = _values(parts["pcrs"])
    return QuoteFiles(
        message=from_base64("TPM evidence: message", parts["message"]),
        signature=from_base64("TPM evidence: signature", parts["signature"]),
        pcrs=dict(zip(_labels(value, len(values)), values, strict=True)),
        bank=BANK,
        key=_evidence_key(from_base64("TPM evidence: ak_public", value["ak_public"])),
        public=public,
    )


def _values(entries: Any) -> list[bytes]:
    if not isinstance(entries, list) or not len(entries) <= LAST_REGISTER + 1:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("TPM evidence: pcrs", expected=f"at most {LAST_REGISTER + 1} values", got="others")
    items: list[Any] = entries  # pyright: ignore[reportUnknownVariableType]
    for item in items:
        if not isinstance(item, str) or not _HEX.match(item):
            raise EvidenceFormatError("TPM evidence: register", expected="hexadecimal text", got=repr(item)[:40])
    return [bytes.fromhex(item) for item in items]


def _labels(value: Mapping[str, Any], count: int) -> Sequence[int]:
    """Return the numbers that the presented values are said to belong to; the quote decides whether they do."""
    claimed: Any = value.get("claimed_selection_by_position", list(range(count)))
    if not isinstance(claimed, list) or len(claimed) != count:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("TPM evidence: selection", expected=f"{count} numbers", got="others")
    numbers: list[Any] = claimed  # pyright: ignore[reportUnknownVariableType]
    if not all(type(number) is int and 0 <= number <= LAST_REGISTER for number in numbers):
        raise EvidenceFormatError(
            "TPM evidence: selection", expected=f"numbers from 0 to {LAST_REGISTER}", got="others"
        )
    if len(set(numbers)) != count:
        raise EvidenceFormatError("TPM evidence: selection", expected="each register once", got="one twice")
    return numbers


def _evidence_key(data: bytes) -> AttestationKey:
    try:
        key = serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceFormatError("TPM evidence: ak_public", expected="a public key", got="something else") from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EvidenceFormatError("TPM evidence: ak_public", expected="RSA or ECC", got=type(key).__name__)
    return key


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise EvidenceFormatError("TPM evidence", expected="a quote or JSON", got="something else") from error
    if not isinstance(value, dict):
        raise EvidenceFormatError("TPM evidence", expected="a JSON object", got="another value")
    return value  # pyright: ignore[reportUnknownVariableType]


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise EvidenceFormatError("TPM evidence", expected="each key once", got="one twice")
    return value
