"""Quotes, public areas and signatures of a TPM: what is read, and every way in which it is not."""

import contextlib
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm_world import (
    AK,
    AK_ATTRIBUTES,
    ECDSA,
    EK,
    NONCE,
    NULL,
    OTHER_AK,
    PCRS,
    RSAPSS,
    SHA1,
    SHA256,
    SHA384,
    SHA512,
    attest,
    bitmap,
    ec_key,
    ek_public,
    pcr_digest,
    public_area,
    registers,
    rsa_key,
    selection,
    signed,
    sized,
)

from confed.attestation.tee.tpm import parse_public, parse_quote, require_attestation_key, verify_quote
from confed.attestation.tee.tpm_structures import PcrSelection, hash_of, parse_signature
from confed.errors import (
    AlgorithmError,
    AttestationError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    KeyBindingError,
    NonceError,
    PcrDigestError,
    TrailingBytesError,
)

RSA_AK = rsa_key("RSA attestation key")
PUBLIC = public_area(AK)


def verified(pcrs=PCRS, *, key=AK, message=None, signature=None, bank="sha256", nonce=NONCE, presented=None):
    text = attest(pcrs) if message is None else message
    mark = signed(text, key) if signature is None else signature
    return verify_quote(
        text, mark, key.public_key(), pcrs=pcrs if presented is None else presented, bank=bank, nonce=nonce
    )


def test_a_quote_says_what_the_tpm_signed():
    quote = verified()
    assert quote.nonce == NONCE
    assert quote.qualified_signer == b"\x00\x0b" + bytes(32)
    assert (quote.clock, quote.reset_count, quote.restart_count, quote.safe) == (123456, 7, 1, True)
    assert quote.firmware_version == 0x2019102300163636
    assert quote.selections == (PcrSelection(bank="sha256", registers=(0, 1, 2, 3, 4, 5, 6, 7, 11)),)
    assert quote.pcr_digest == pcr_digest(PCRS)


@pytest.mark.parametrize(
    ("key", "digest", "scheme"),
    [
        (AK, SHA256, None),
        (AK, SHA384, None),
        (AK, SHA512, None),
        (ec_key("P-384 AK", ec.SECP384R1), SHA384, None),
        (ec_key("P-521 AK", ec.SECP521R1), SHA512, None),
        (RSA_AK, SHA256, None),
        (RSA_AK, SHA384, None),
        (RSA_AK, SHA256, RSAPSS),
        (RSA_AK, SHA512, RSAPSS),
    ],
)
def test_every_strong_signature_is_known(key, digest, scheme):
    message = attest(PCRS, digest=pcr_digest(PCRS, digest))
    assert (
        verified(key=key, message=message, signature=signed(message, key, digest=digest, scheme=scheme)).nonce == NONCE
    )


@pytest.mark.parametrize(
    ("bank", "name", "size"), [(SHA256, "sha256", 32), (SHA384, "sha384", 48), (SHA512, "sha512", 64)]
)
def test_every_strong_bank_is_known(bank, name, size):
    pcrs = registers(0, 7, size=size)
    assert verified(pcrs, message=attest(pcrs, bank=bank), bank=name).selections[0].bank == name


def test_a_bare_rsa_signature_is_rsassa_with_sha256():
    message = attest(PCRS)
    bare = signed(message, RSA_AK)[6:]
    assert len(bare) == 256
    verified(key=RSA_AK, message=message, signature=bare)
    with pytest.raises(EvidenceSignatureError):
        verified(key=RSA_AK, message=message, signature=bare[:-1] + bytes([bare[-1] ^ 1]))
    pss = signed(message, RSA_AK, scheme=RSAPSS)[6:]
    with pytest.raises(EvidenceSignatureError):
        verified(key=RSA_AK, message=message, signature=pss)


def test_the_order_in_which_values_are_presented_is_nothing():
    presented = {number: PCRS[number] for number in sorted(PCRS, reverse=True)}
    verified(presented=presented)


def test_a_nonce_that_nobody_expects_is_not_compared():
    assert verified(nonce=None).nonce == NONCE
    assert verified(message=attest(PCRS, nonce=b""), nonce=b"").nonce == b""


@pytest.mark.parametrize("nonce", [b"", b"m" * 32, NONCE[:-1], NONCE + b"\x00"])
def test_another_nonce_is_refused(nonce):
    with pytest.raises(NonceError):
        verified(nonce=nonce)


MESSAGES = {
    "another magic": (attest(PCRS, magic=0xFF544348), EvidenceFormatError),
    "no magic": (attest(PCRS, magic=0), EvidenceFormatError),
    "a certification (TPM_ST_ATTEST_CERTIFY)": (attest(PCRS, kind=0x8017), EvidenceFormatError),
    "a time (TPM_ST_ATTEST_TIME)": (attest(PCRS, kind=0x8019), EvidenceFormatError),
    "a trailing byte": (attest(PCRS, trailing=b"\x00"), TrailingBytesError),
    "a signer that is too long": (attest(PCRS, signer=bytes(67)), EvidenceSizeError),
    "a nonce that is too long": (attest(PCRS, nonce=bytes(65)), EvidenceSizeError),
    "a clock that is neither safe nor not": (attest(PCRS, clock=struct.pack(">QIIB", 1, 2, 3, 2)), EvidenceFormatError),
    "too many banks": (attest(PCRS, selections=[selection(SHA256, PCRS)] * 17), EvidenceSizeError),
    "a bank twice": (attest(PCRS, selections=[selection(SHA256, PCRS)] * 2), EvidenceFormatError),
    "a bank that is not known": (attest(PCRS, selections=[selection(0x12, PCRS)]), AlgorithmError),
    "a bitmap that is too long": (attest(PCRS, selections=[selection(SHA256, PCRS, size=4)]), EvidenceSizeError),
    "a digest that is too long": (attest(PCRS, digest=bytes(65)), EvidenceSizeError),
    "nothing": (b"", EvidenceFormatError),
    "too much": (bytes(5000), EvidenceSizeError),
}


@pytest.mark.parametrize(("message", "error"), MESSAGES.values(), ids=MESSAGES.keys())
def test_a_signed_message_is_no_quote_with(message, error):
    with pytest.raises(error):
        parse_quote(message)
    with pytest.raises(error):
        verified(message=message)


def test_a_quote_ends_nowhere_else():
    message = attest(PCRS)
    for size in range(len(message)):
        with pytest.raises(EvidenceFormatError):
            parse_quote(message[:size])


def test_no_byte_of_a_signed_quote_can_change():
    message, mark = attest(PCRS), signed(attest(PCRS), AK)
    for position in range(len(message)):
        changed = bytearray(message)
        changed[position] ^= 0x40
        with pytest.raises(EvidenceSignatureError):
            verified(message=bytes(changed), signature=mark)


OTHER_VALUES = PCRS | {7: bytes(32)}
REGISTERS = {
    "another value": {"presented": OTHER_VALUES},
    "two values in each other's place": {"presented": PCRS | {0: PCRS[1], 1: PCRS[0]}},
    "a register less": {"presented": {number: PCRS[number] for number in PCRS if number != 7}},
    "a register more": {"presented": PCRS | {12: bytes(32)}},
    "the right values under another number": {"presented": {**{n: PCRS[n] for n in PCRS if n != 11}, 12: PCRS[11]}},
    "no registers": {"presented": {}},
    "values that are too short together with one that is too long": {
        "presented": PCRS | {0: PCRS[0] + PCRS[1][:1], 1: PCRS[1][1:]}
    },
    "another bank": {"bank": "sha384"},
    "another bank signed": {"message": attest(PCRS, bank=SHA384)},
    "two banks signed": {"message": attest(PCRS, selections=[selection(SHA256, PCRS), selection(SHA384, (0,))])},
    "SHA-1's bank signed as well": {
        "message": attest(PCRS, selections=[selection(SHA1, PCRS), selection(SHA256, PCRS)])
    },
    "no bank signed": {"message": attest(PCRS, selections=[])},
    "a digest of something else": {"message": attest(PCRS, digest=hashlib.sha256(b"").digest())},
    "a digest of another hash": {"message": attest(PCRS, digest=pcr_digest(PCRS, SHA384))},
}


@pytest.mark.parametrize("changes", REGISTERS.values(), ids=REGISTERS.keys())
def test_registers_are_refused_with(changes):
    with pytest.raises(PcrDigestError):
        verified(**changes)


def test_a_value_cannot_change_its_register():
    # PCR 16 can be reset and extended by anybody; presented as PCR 11 it would pass for whatever is wanted there.
    honest = registers(*range(11), 16)
    message = attest(honest)
    confused = {number: honest[number] for number in range(11)} | {11: honest[16]}
    assert [confused[number] for number in sorted(confused)] == [honest[number] for number in sorted(honest)]
    verified(honest, message=message)
    with pytest.raises(PcrDigestError):
        verified(honest, message=message, presented=confused)


def test_an_empty_selection_beside_the_bank_is_nothing():
    message = attest(PCRS, selections=[selection(SHA1, ()), selection(SHA256, PCRS)])
    assert [found.bank for found in verified(message=message).selections] == ["sha256"]


@pytest.mark.parametrize("bank", ["sha1", "md5", ""])
def test_a_weak_bank_is_refused(bank):
    pcrs = registers(0, 7, size=20)
    with pytest.raises(AlgorithmError):
        verified(pcrs, message=attest(pcrs, bank=SHA1), bank=bank)
    with pytest.raises(AlgorithmError):
        hash_of(bank)


TEXT = attest(PCRS)
RSA_MARK = signed(TEXT, RSA_AK)
MARK = signed(TEXT, AK)
SIGNATURES = {
    "another key's": (AK, signed(TEXT, OTHER_AK), EvidenceSignatureError),
    "one over another message": (AK, signed(TEXT + b"x", AK), EvidenceSignatureError),
    "SHA-1": (AK, struct.pack(">HH", ECDSA, SHA1) + MARK[4:], AlgorithmError),
    "another hash than it was made with": (AK, struct.pack(">HH", ECDSA, SHA384) + MARK[4:], EvidenceSignatureError),
    "a hash that is not known": (AK, struct.pack(">HH", ECDSA, 0x12) + MARK[4:], AlgorithmError),
    "no hash": (AK, struct.pack(">HH", ECDSA, NULL) + MARK[4:], AlgorithmError),
    "a scheme that is not known": (AK, struct.pack(">HH", 0x1A, SHA256) + MARK[4:], AlgorithmError),
    "an HMAC": (AK, struct.pack(">HH", 0x05, SHA256) + bytes(32), AlgorithmError),
    "ECDSA by an RSA key": (RSA_AK, MARK, AlgorithmError),
    "RSASSA by an ECC key": (AK, RSA_MARK, AlgorithmError),
    "a trailing byte": (AK, MARK + b"\x00", TrailingBytesError),
    "a trailing byte after RSA's": (RSA_AK, RSA_MARK + b"\x00", TrailingBytesError),
    "a number that is too long": (AK, struct.pack(">HH", ECDSA, SHA256) + sized(bytes(67)) * 2, EvidenceSizeError),
    "RSA's number that is too long": (RSA_AK, RSA_MARK[:4] + sized(bytes(513)), EvidenceSizeError),
    "zeros": (AK, struct.pack(">HH", ECDSA, SHA256) + sized(bytes(32)) * 2, EvidenceSignatureError),
    "nothing": (AK, b"", EvidenceFormatError),
    "RSA's number in zeros": (RSA_AK, bytes(256), EvidenceSignatureError),
}


@pytest.mark.parametrize(("key", "signature", "error"), SIGNATURES.values(), ids=SIGNATURES.keys())
def test_a_quote_is_refused_with_a_signature_of(key, signature, error):
    with pytest.raises(error):
        verified(key=key, message=TEXT, signature=signature)


def test_a_signature_ends_nowhere_else():
    for mark in (MARK, RSA_MARK):
        for size in range(len(mark)):
            with pytest.raises(AttestationError):
                parse_signature(mark[:size])


def test_a_short_rsa_key_is_refused():
    with pytest.raises(AlgorithmError):
        verified(key=rsa.generate_private_key(65537, 1024))  # noqa: S505


def test_only_rsa_and_ecc_keys_attest():
    with pytest.raises(AlgorithmError):
        verify_quote(TEXT, MARK, Ed25519PrivateKey.generate().public_key(), pcrs=PCRS, bank="sha256", nonce=None)


# Public areas.


def test_a_public_area_says_what_the_key_is():
    public = parse_public(PUBLIC)
    assert public.key == AK.public_key()
    assert public.name == b"\x00\x0b" + hashlib.sha256(PUBLIC).digest()
    assert public.attributes == (
        "fixedTPM", "fixedParent", "sensitiveDataOrigin", "userWithAuth", "noDA", "restricted", "sign",
    )  # fmt: skip
    assert (public.scheme, public.name_algorithm, public.symmetric_bits) == ("ecdsa", "sha256", 0)


def test_a_public_area_may_have_its_size_before_it():
    assert parse_public(sized(PUBLIC)) == parse_public(PUBLIC)
    assert parse_public(public_area(RSA_AK)).key == RSA_AK.public_key()
    endorsement = parse_public(ek_public(EK))
    assert (endorsement.key, endorsement.symmetric_bits, endorsement.scheme) == (EK.public_key(), 128, "")


@pytest.mark.parametrize(("algorithm", "name"), [(SHA384, "sha384"), (SHA512, "sha512")])
def test_a_name_is_of_its_own_hash(algorithm, name):
    area = public_area(AK, name_algorithm=algorithm)
    assert parse_public(area).name == struct.pack(">H", algorithm) + hashlib.new(name, area).digest()


AREA = public_area(RSA_AK)
AES_CTR = struct.pack(">HHH", 0x06, 128, 0x40)
AREAS = {
    "SHA-1 as its name's hash": (public_area(AK, name_algorithm=SHA1), AlgorithmError),
    "no hash for its name": (public_area(AK, name_algorithm=NULL), AlgorithmError),
    "a reserved attribute": (public_area(AK, attributes=AK_ATTRIBUTES | 1), EvidenceFormatError),
    "another reserved attribute": (public_area(AK, attributes=AK_ATTRIBUTES | 1 << 31), EvidenceFormatError),
    "a symmetric key's type": (public_area(AK, kind=0x25), AlgorithmError),
    "a keyed hash's type": (public_area(AK, kind=0x08), AlgorithmError),
    "a curve that is not known": (public_area(AK, curve=0x10), AlgorithmError),
    "a point that is not on its curve": (public_area(AK, curve=4), EvidenceFormatError),
    "a scheme that is not known": (public_area(AK, scheme=struct.pack(">HH", 0x1A, SHA256)), AlgorithmError),
    "a scheme with SHA-1": (public_area(AK, scheme=struct.pack(">HH", ECDSA, SHA1)), AlgorithmError),
    "an RSA scheme on an ECC key": (public_area(AK, scheme=struct.pack(">HH", RSAPSS, SHA256)), AlgorithmError),
    "an ECC scheme on an RSA key": (public_area(RSA_AK, scheme=struct.pack(">HH", ECDSA, SHA256)), AlgorithmError),
    "a derivation that is not known": (public_area(AK, kdf=struct.pack(">HH", 0x30, SHA256)), AlgorithmError),
    "a symmetric mode other than CFB": (ek_public(EK, symmetric=AES_CTR), AlgorithmError),
    "a symmetric key of another size": (ek_public(EK, symmetric=struct.pack(">HHH", 6, 64, 0x43)), AlgorithmError),
    "a symmetric cipher that is not AES": (
        ek_public(EK, symmetric=struct.pack(">HHH", 0x13, 128, 0x43)),
        AlgorithmError,
    ),
    "other bits than its modulus": (public_area(RSA_AK, bits=3072), AlgorithmError),
    "a size that is not in use": (public_area(rsa.generate_private_key(65537, 1024)), AlgorithmError),  # noqa: S505
    "a modulus with fewer bits than it has room for": (AREA[:24] + b"\x00" + AREA[25:], AlgorithmError),
    "an exponent that cannot be": (public_area(RSA_AK, exponent=4), EvidenceFormatError),
    "a policy that is too long": (public_area(AK, policy=bytes(65)), EvidenceSizeError),
    "a trailing byte": (PUBLIC + b"\x00", TrailingBytesError),
    "a trailing byte inside its size": (sized(PUBLIC + b"\x00"), TrailingBytesError),
    "a trailing byte after its size": (sized(PUBLIC) + b"\x00", AlgorithmError),
    "nothing": (b"", EvidenceFormatError),
    "too much": (bytes(5000), EvidenceSizeError),
}


@pytest.mark.parametrize(("data", "error"), AREAS.values(), ids=AREAS.keys())
def test_a_public_area_is_refused_with(data, error):
    with pytest.raises(error):
        parse_public(data)


@pytest.mark.parametrize("area", [PUBLIC, public_area(RSA_AK), ek_public(EK)], ids=["ECC", "RSA", "EK"])
def test_a_public_area_ends_nowhere_else(area):
    for size in range(len(area)):
        with pytest.raises(AttestationError):
            parse_public(area[:size])


def test_a_key_may_leave_its_scheme_to_each_call_and_name_a_derivation():
    assert parse_public(public_area(AK, scheme=struct.pack(">H", NULL))).scheme == ""
    assert parse_public(public_area(AK, kdf=struct.pack(">HH", 0x20, SHA256))).scheme == "ecdsa"
    assert parse_public(public_area(RSA_AK, scheme=struct.pack(">H", 0x15))).scheme == "rsaes"


ATTRIBUTES = {
    "one that may leave its TPM": AK_ATTRIBUTES & ~(1 << 1),
    "one that may leave its parent": AK_ATTRIBUTES & ~(1 << 4),
    "one that was born elsewhere": AK_ATTRIBUTES & ~(1 << 5),
    "one that signs anything": AK_ATTRIBUTES & ~(1 << 16),
    "one that does not sign": AK_ATTRIBUTES & ~(1 << 18),
    "one that decrypts too": AK_ATTRIBUTES | 1 << 17,
    "one with no attribute at all": 0,
}


@pytest.mark.parametrize("attributes", ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_no_attestation_key_is(attributes):
    with pytest.raises(KeyBindingError):
        require_attestation_key(parse_public(public_area(AK, attributes=attributes)))


def test_an_attestation_key_is_restricted_to_signing():
    require_attestation_key(parse_public(PUBLIC))
    require_attestation_key(parse_public(public_area(AK, attributes=0x00050072)))


# Whatever bytes come in.


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_attestation_errors(data):
    for parse in (parse_quote, parse_public, parse_signature):
        for found in (data, TEXT[:6] + data, PUBLIC[:10] + data, MARK[:4] + data):
            with contextlib.suppress(AttestationError):
                parse(found)


@settings(max_examples=300)
@given(st.sampled_from([TEXT, PUBLIC, MARK, RSA_MARK, public_area(RSA_AK)]), st.data())
def test_no_change_of_a_few_bytes_raises_anything_else(original, data):
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for parse in (parse_quote, parse_public, parse_signature):
        with contextlib.suppress(AttestationError):
            parse(bytes(changed))


@settings(max_examples=100)
@given(st.sets(st.integers(0, 23), min_size=1), st.binary(max_size=64))
def test_every_selection_and_nonce_is_read_as_it_was_signed(numbers, nonce):
    pcrs = registers(*numbers)
    quote = parse_quote(attest(pcrs, nonce=nonce))
    assert quote.nonce == nonce
    assert quote.selections == (PcrSelection(bank="sha256", registers=tuple(sorted(numbers))),)
    assert bitmap(numbers) == bitmap(quote.selections[0].registers)
