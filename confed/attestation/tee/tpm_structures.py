"""What a TPM signs and says of its keys, byte by byte: parsed within bounds, and believed nowhere in this file.

Everything is big-endian and length-prefixed. Each structure has to end where its bytes end, each size is bounded before
anything is read, and an algorithm that is not known, or weaker than SHA-256 where strength matters, is refused.

A PCR selection is read as what it is, a bitmap of register numbers: the values of a quote belong to the numbers that
the TPM signed, never to positions in a list.

Source: TPM 2.0 Library Specification 1.59, part 2: sections 6.3 (TPM_ALG_ID), 8.3 (TPMA_OBJECT), 10.6
(TPMS_PCR_SELECTION), 10.12 (TPMS_ATTEST), 11.3 (TPMT_SIGNATURE), 12.2 (TPMT_PUBLIC); part 1, section 16 (names).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils

from confed.attestation.tee.tpm_reader import Reader
from confed.errors import AlgorithmError, EvidenceFormatError, EvidenceSizeError

LAST_REGISTER = 23
"""A PC Client TPM has the registers 0 to 23."""

# Part 2, section 6.2 (TPM_GENERATED) and 6.9 (TPM_ST).
_GENERATED = 0xFF544347
_ATTEST_QUOTE = 0x8018

# Part 2, section 6.3 (TPM_ALG_ID).
_RSA, _AES, _NULL, _RSASSA, _RSAES, _RSAPSS, _OAEP = 0x0001, 0x0006, 0x0010, 0x0014, 0x0015, 0x0016, 0x0017
_ECDSA, _ECDH, _ECC, _KDFS = 0x0018, 0x0019, 0x0023, (0x0007, 0x0020, 0x0021, 0x0022)
_SCHEMES = {
    _NULL: "",
    _RSASSA: "rsassa",
    _RSAES: "rsaes",
    _RSAPSS: "rsapss",
    _OAEP: "oaep",
    _ECDSA: "ecdsa",
    _ECDH: "ecdh",
}
_WITHOUT_HASH = (_NULL, _RSAES)
_DIGESTS = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_STRONG: Mapping[str, type[hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
# Part 2, section 6.4 (TPM_ECC_CURVE).
_CURVES: Mapping[int, type[ec.EllipticCurve]] = {0x0003: ec.SECP256R1, 0x0004: ec.SECP384R1, 0x0005: ec.SECP521R1}
# Part 2, section 8.3.2 (TPMA_OBJECT); every other bit is reserved.
_ATTRIBUTES = {
    1: "fixedTPM",
    2: "stClear",
    4: "fixedParent",
    5: "sensitiveDataOrigin",
    6: "userWithAuth",
    7: "adminWithPolicy",
    8: "firmwareLimited",
    9: "svnLimited",
    10: "noDA",
    11: "encryptedDuplication",
    16: "restricted",
    17: "decrypt",
    18: "sign",
    19: "x509sign",
}
_BANKS_LIMIT = 16
_SELECT_LIMIT_BYTES = 3
_DATA_LIMIT_BYTES = 64
_NAME_LIMIT_BYTES = 66
_KEY_LIMIT_BYTES = 512
_RSA_BITS = (2048, 3072, 4096)
_EXPONENT = 65537


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrSelection:
    """Registers of one bank, by number, ascending."""

    bank: str
    registers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """A quote's fields; ``selections`` leaves out banks of which no register is selected.

    Attributes:
        qualified_signer: the signer's qualified name.
        nonce: the caller's qualifying data (extraData), at most 64 bytes.
        clock, reset_count, restart_count, safe: the TPM's clock in milliseconds, how often it was reset and resumed,
            and whether the clock is known not to have gone back.
        firmware_version: of the TPM, as its vendor counts.
        selections: which registers of which banks the digest is of.
        pcr_digest: of the selected registers' values, with the signature's hash.
    """

    qualified_signer: bytes
    nonce: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPublic:
    """A key's public area.

    Attributes:
        encoded: the TPMT_PUBLIC.
        name: the key's name, which covers every field: its hash's identifier and the hash of ``encoded``.
        name_algorithm: ``sha256`` or better.
        attributes: the attributes that are set, by their names in the specification.
        scheme: how the key signs or decrypts (``rsassa``, ``ecdsa``, …); empty where that is left to each call.
        symmetric_bits: size of the AES key (CFB) with which a storage key protects; 0 for any other key.
        key: the public key itself.
    """

    encoded: bytes
    name: bytes
    name_algorithm: str
    attributes: tuple[str, ...]
    scheme: str
    symmetric_bits: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmSignature:
    """A signature: its scheme, its hash, and RSA's number or ECDSA's pair in DER."""

    scheme: str
    digest: str
    value: bytes


def parse_quote(message: bytes) -> TpmQuote:
    """Return the fields of a TPMS_ATTEST that is a quote and nothing more.

    Raises:
        EvidenceFormatError: not made by a TPM's quote command, or not of that form.
        EvidenceSizeError, TrailingBytesError: too large, or bytes after its end.
        AlgorithmError: a bank of a hash that is not known.
    Source: TPM 2.0 Library, part 2, sections 10.12.8 (TPMS_QUOTE_INFO) and 10.12.12 (TPMS_ATTEST).
    """
    reader = Reader(message, what="TPM quote")
    _require("magic", reader.number(4), _GENERATED)
    _require("type", reader.number(2), _ATTEST_QUOTE)
    quote = TpmQuote(
        qualified_signer=reader.sized(_NAME_LIMIT_BYTES),
        nonce=reader.sized(_DATA_LIMIT_BYTES),
        clock=reader.number(8),
        reset_count=reader.number(4),
        restart_count=reader.number(4),
        safe=_flag(reader),
        firmware_version=reader.number(8),
        selections=_selections(reader),
        pcr_digest=reader.sized(_DATA_LIMIT_BYTES),
    )
    reader.end()
    return quote


def parse_public(data: bytes) -> TpmPublic:
    """Return the public area of TPMT_PUBLIC, or of TPM2B_PUBLIC with its size before it.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError: not exactly one public area of an asymmetric key.
        AlgorithmError: a name below SHA-256, or a kind of key, curve, scheme or size that is not known.
    Source: TPM 2.0 Library, part 2, sections 12.2.4 (TPMT_PUBLIC) and 12.2.5 (TPM2B_PUBLIC).
    """
    outer = Reader(data, what="TPM public area")
    # No type of key is as large a number as a public area's size, so a size before it cannot be mistaken.
    encoded = data[2:] if outer.number(2) == len(data) - 2 else data
    reader = Reader(encoded, what="TPM public area")
    kind = reader.number(2)
    name_identifier = reader.number(2)
    name_algorithm = strong_digest(name_identifier, what="TPM name")
    attributes = _attributes(reader.number(4))
    reader.sized(_DATA_LIMIT_BYTES)  # authPolicy: who may use the key, which says nothing of what it signs
    match kind:
        case 0x0001:
            symmetric_bits, scheme, key = _rsa(reader)
        case 0x0023:
            symmetric_bits, scheme, key = _ecc(reader)
        case _:
            raise AlgorithmError("TPM key", expected="RSA or ECC", got=f"{kind:#06x}")
    reader.end()
    return TpmPublic(
        encoded=encoded,
        name=name_identifier.to_bytes(2, "big") + hashlib.new(name_algorithm, encoded).digest(),
        name_algorithm=name_algorithm,
        attributes=attributes,
        scheme=scheme,
        symmetric_bits=symmetric_bits,
        key=key,
    )


def parse_signature(data: bytes) -> TpmSignature:
    """Return the signature of a TPMT_SIGNATURE.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError: not exactly one signature.
        AlgorithmError: not RSASSA, RSAPSS or ECDSA with SHA-256 or better.
    Source: TPM 2.0 Library, part 2, section 11.3.4 (TPMT_SIGNATURE).
    """
    reader = Reader(data, what="TPM signature")
    scheme = reader.number(2)
    if scheme not in (_RSASSA, _RSAPSS, _ECDSA):
        raise AlgorithmError("TPM signature", expected="RSASSA, RSAPSS or ECDSA", got=f"{scheme:#06x}")
    digest = strong_digest(reader.number(2), what="TPM signature")
    if scheme == _ECDSA:
        r, s = (int.from_bytes(reader.sized(_NAME_LIMIT_BYTES), "big") for _ in range(2))
        value = utils.encode_dss_signature(r, s)
    else:
        value = reader.sized(_KEY_LIMIT_BYTES)
    reader.end()
    return TpmSignature(scheme=_SCHEMES[scheme], digest=digest, value=value)


def bank_of(identifier: int) -> str:
    """Return the name of a bank, SHA-1's included.

    Raises:
        AlgorithmError: a hash that is not known.
    """
    bank = _DIGESTS.get(identifier)
    if bank is None:
        raise AlgorithmError("PCR bank", expected=", ".join(_DIGESTS.values()), got=f"{identifier:#06x}")
    return bank


def strong_digest(identifier: int, *, what: str) -> str:
    """Return the name of a hash that is SHA-256 or better.

    Raises:
        AlgorithmError: any other.
    """
    name = _DIGESTS.get(identifier, "")
    if name not in _STRONG:
        raise AlgorithmError(f"{what} hash", expected="SHA-256 or better", got=name or f"{identifier:#06x}")
    return name


def hash_of(name: str) -> hashes.HashAlgorithm:
    """Return the hash of a name.

    Raises:
        AlgorithmError: none that is SHA-256 or better.
    """
    found = _STRONG.get(name)
    if found is None:
        raise AlgorithmError("hash", expected="SHA-256 or better", got=name[:20])
    return found()


def registers_of_bitmap(bitmap: bytes) -> tuple[int, ...]:
    """Return the numbers of a selection's bitmap, ascending.

    Raises:
        EvidenceFormatError: a register that a PC Client TPM does not have.
    """
    bits = int.from_bytes(bitmap, "little")
    if bits >> LAST_REGISTER + 1:
        raise EvidenceFormatError("selected registers", expected=f"at most {LAST_REGISTER}", got="others")
    return tuple(number for number in range(LAST_REGISTER + 1) if bits >> number & 1)


def _selections(reader: Reader) -> tuple[PcrSelection, ...]:
    count = reader.number(4)
    if count > _BANKS_LIMIT:
        raise EvidenceSizeError("TPM quote: banks", expected=f"at most {_BANKS_LIMIT}", got=count)
    found: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        bank = bank_of(reader.number(2))
        if bank in found:
            raise EvidenceFormatError("TPM quote: bank", expected="each once", got=f"{bank} twice")
        found[bank] = _registers(reader)
    return tuple(PcrSelection(bank=bank, registers=registers) for bank, registers in found.items() if registers)


def _registers(reader: Reader) -> tuple[int, ...]:
    size = reader.number(1)
    if size > _SELECT_LIMIT_BYTES:
        raise EvidenceSizeError("TPM quote: PCR bitmap in bytes", expected=f"at most {_SELECT_LIMIT_BYTES}", got=size)
    return registers_of_bitmap(reader.take(size))


def _flag(reader: Reader) -> bool:
    value = reader.number(1)
    if value > 1:
        raise EvidenceFormatError("TPM quote: safe", expected="yes or no", got=value)
    return value == 1


def _attributes(bits: int) -> tuple[str, ...]:
    names = tuple(name for bit, name in _ATTRIBUTES.items() if bits >> bit & 1)
    if sum(1 << bit for bit in _ATTRIBUTES if bits >> bit & 1) != bits:
        raise EvidenceFormatError("TPM object attributes", expected="no reserved bits", got=f"{bits:#010x}")
    return names


def _rsa(reader: Reader) -> tuple[int, str, rsa.RSAPublicKey]:
    symmetric_bits = _symmetric(reader)
    scheme = _scheme(reader, (_NULL, _RSASSA, _RSAES, _RSAPSS, _OAEP))
    bits, exponent = reader.number(2), reader.number(4) or _EXPONENT
    modulus = reader.sized(_KEY_LIMIT_BYTES)
    number = int.from_bytes(modulus, "big")
    if bits not in _RSA_BITS or number.bit_length() != bits or len(modulus) * 8 != bits:
        raise AlgorithmError("TPM RSA key in bits", expected=_RSA_BITS, got=f"{number.bit_length()}, said to be {bits}")
    try:
        return symmetric_bits, scheme, rsa.RSAPublicNumbers(exponent, number).public_key()
    except ValueError as error:
        raise EvidenceFormatError("TPM RSA key", expected="a public key", got="other numbers") from error


def _ecc(reader: Reader) -> tuple[int, str, ec.EllipticCurvePublicKey]:
    symmetric_bits = _symmetric(reader)
    scheme = _scheme(reader, (_NULL, _ECDSA, _ECDH))
    identifier = reader.number(2)
    curve = _CURVES.get(identifier)
    if curve is None:
        raise AlgorithmError("TPM curve", expected="P-256, P-384 or P-521", got=f"{identifier:#06x}")
    derivation = reader.number(2)
    if derivation in _KDFS:
        reader.number(2)
    elif derivation != _NULL:
        raise AlgorithmError("TPM key derivation", expected="a known one", got=f"{derivation:#06x}")
    x, y = (int.from_bytes(reader.sized(_NAME_LIMIT_BYTES), "big") for _ in range(2))
    try:
        return symmetric_bits, scheme, ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
    except ValueError as error:
        raise EvidenceFormatError("TPM ECC key", expected="a point of its curve", got="other numbers") from error


def _symmetric(reader: Reader) -> int:
    """Return the bits of a storage key's AES key; its mode is CFB, as it has to be."""
    algorithm = reader.number(2)
    if algorithm == _NULL:
        return 0
    bits, mode = reader.number(2), reader.number(2)
    # Part 2, section 6.3: TPM_ALG_CFB; part 1, section 24: a storage key protects with CFB.
    if (algorithm, mode) != (_AES, 0x0043) or bits not in (128, 192, 256):
        raise AlgorithmError("TPM symmetric key", expected="AES in CFB mode", got=f"{algorithm:#06x}, {bits} bits")
    return bits


def _scheme(reader: Reader, allowed: tuple[int, ...]) -> str:
    scheme = reader.number(2)
    if scheme not in allowed:
        raise AlgorithmError("TPM key scheme", expected="a known one", got=f"{scheme:#06x}")
    if scheme not in _WITHOUT_HASH:
        strong_digest(reader.number(2), what="TPM key scheme")
    return _SCHEMES[scheme]


def _require(field: str, found: int, expected: int) -> None:
    if found != expected:
        raise EvidenceFormatError(f"TPM quote: {field}", expected=f"{expected:#x}", got=f"{found:#x}")
