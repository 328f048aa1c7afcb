"""CBOR within bounds, and COSE_Sign1 of keys that the test makes."""

import contextlib

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation.tee import cose
from confed.errors import (
    AlgorithmError,
    AttestationError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceSizeError,
    TrailingBytesError,
)

LIMIT = 4096
CURVES = {
    cose.ES256: (ec.SECP256R1(), hashes.SHA256(), 32),
    cose.ES384: (ec.SECP384R1(), hashes.SHA384(), 48),
    cose.ES512: (ec.SECP521R1(), hashes.SHA512(), 66),
}
KEYS = {algorithm: ec.generate_private_key(curve) for algorithm, (curve, _, _) in CURVES.items()}
KEY = KEYS[cose.ES384]
PAYLOAD = b"what is signed"


def decode(data, **options):
    return cose.decode_cbor(data, **{"limit_bytes": LIMIT, "what": "test", **options})


def sign(payload=PAYLOAD, *, algorithm=cose.ES384, key=None, protected=None, tag=b"", unprotected=None, signature=None):
    """Return a COSE_Sign1 message; every part can be replaced."""
    _, digest, size = CURVES[algorithm]
    header = cbor2.dumps({1: algorithm}) if protected is None else protected
    if signature is None:
        signed = cbor2.dumps(["Signature1", header, b"", payload])
        r, s = decode_dss_signature((key or KEYS[algorithm]).sign(signed, ec.ECDSA(digest)))
        signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return tag + cbor2.dumps([header, {} if unprotected is None else unprotected, payload, signature])


def load(data, algorithms=(cose.ES384,)):
    return cose.load_sign1(data, algorithms=algorithms, limit_bytes=LIMIT, what="test")


def verify(data, key=None, algorithms=(cose.ES384,)):
    message = load(data, algorithms)
    cose.verify_sign1(message, (key or KEY).public_key(), what="test")
    return message.payload


@pytest.mark.parametrize("algorithm", CURVES)
def test_a_message_is_verified_with_the_key_of_its_algorithms_curve(algorithm):
    message = sign(algorithm=algorithm)
    assert verify(message, KEYS[algorithm], (algorithm,)) == PAYLOAD
    assert verify(b"\xd2" + message, KEYS[algorithm], (algorithm,)) == PAYLOAD


def test_every_flipped_bit_of_a_message_is_refused():
    message = sign(tag=b"\xd2")
    for index in range(len(message)):
        for bit in range(8):
            with pytest.raises(AttestationError):
                verify(message[:index] + bytes([message[index] ^ 1 << bit]) + message[index + 1 :])


def test_every_truncation_is_refused_as_malformed():
    message = sign()
    for end in range(len(message)):
        with pytest.raises(EvidenceFormatError):
            load(message[:end])


REFUSED_MESSAGES = {
    "bytes after the message": (sign() + b"\x00", TrailingBytesError),
    "a message twice": (sign() * 2, TrailingBytesError),
    "a tag of another kind": (b"\xd1" + sign(), EvidenceFormatError),
    "the tag twice": (b"\xd2\xd2" + sign(), EvidenceFormatError),
    "the tag in a longer form": (b"\xd8\x12" + sign(), EvidenceFormatError),
    "a message above the bound": (sign(b"x" * LIMIT), EvidenceSizeError),
    "no array": (cbor2.dumps(7), EvidenceFormatError),
    "a map": (cbor2.dumps({1: 2}), EvidenceFormatError),
    "three parts": (cbor2.dumps([b"", {}, b""]), EvidenceFormatError),
    "five parts": (cbor2.dumps([b"", {}, b"", b"", b""]), EvidenceFormatError),
    "a payload that is detached": (sign(None, signature=bytes(96)), EvidenceFormatError),
    "a payload of text": (sign("text"), EvidenceFormatError),
    "a protected header of text": (sign(protected="text"), EvidenceFormatError),
    "a signature of text": (sign(signature="text"), EvidenceFormatError),
    "an algorithm in the unprotected header": (sign(protected=b"", unprotected={1: -35}), EvidenceFormatError),
    "an unprotected header of another type": (sign(unprotected=[]), EvidenceFormatError),
    "an unprotected header that is null": (
        cbor2.dumps([cbor2.dumps({1: -35}), None, PAYLOAD, bytes(96)]), EvidenceFormatError,
    ),
    "an empty protected header": (sign(protected=b""), AlgorithmError),
    "a protected header without algorithm": (sign(protected=cbor2.dumps({})), AlgorithmError),
    "a protected header that is no map": (sign(protected=cbor2.dumps([1, -35])), EvidenceFormatError),
    "a protected header with more in it": (sign(protected=cbor2.dumps({1: -35, 4: b"key"})), EvidenceFormatError),
    "a protected header with a critical list": (sign(protected=cbor2.dumps({1: -35, 2: [1]})), EvidenceFormatError),
    "an algorithm twice": (sign(protected=b"\xa2\x01\x38\x22\x01\x26"), EvidenceFormatError),
    "an algorithm by name": (sign(protected=cbor2.dumps({1: "ES384"})), AlgorithmError),
    "an algorithm that is false": (sign(protected=cbor2.dumps({1: False})), AlgorithmError),
    "a weaker algorithm": (sign(algorithm=cose.ES256), AlgorithmError),
    "a symmetric algorithm": (sign(protected=cbor2.dumps({1: 5})), AlgorithmError),
    "bytes after the protected header's map": (sign(protected=cbor2.dumps({1: -35}) + b"\x00"), TrailingBytesError),
    "a signature of another key": (sign(key=ec.generate_private_key(ec.SECP384R1())), EvidenceSignatureError),
    "a signature over another payload": (
        cbor2.dumps([cbor2.dumps({1: -35}), {}, b"another", cbor2.loads(sign())[3]]), EvidenceSignatureError,
    ),
    "a signature in DER": (
        sign(signature=KEY.sign(PAYLOAD, ec.ECDSA(hashes.SHA384()))), EvidenceSignatureError,
    ),
    "a signature that is too short": (sign(signature=bytes(64)), EvidenceSignatureError),
    "a signature of zeros": (sign(signature=bytes(96)), EvidenceSignatureError),
    "a signature above the order": (sign(signature=b"\xff" * 96), EvidenceSignatureError),
    "the bare payload signed, without the structure around it": (
        sign(signature=b"".join(
            part.to_bytes(48, "big") for part in decode_dss_signature(KEY.sign(PAYLOAD, ec.ECDSA(hashes.SHA384())))
        )),
        EvidenceSignatureError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", REFUSED_MESSAGES)
def test_a_message_is_refused_with(sentence):
    message, error = REFUSED_MESSAGES[sentence]
    with pytest.raises(error) as caught:
        verify(message)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ],
)
def test_a_key_on_another_curve_is_refused(key):
    with pytest.raises(AlgorithmError):
        cose.verify_sign1(load(sign()), key.public_key(), what="test")


def test_a_signature_has_one_form():
    header, unprotected, payload, signature = cbor2.loads(sign())
    longer = cbor2.dumps([header, unprotected, payload, signature[:48] + b"\x00" + signature[48:]])
    assert verify(cbor2.dumps([header, unprotected, payload, signature])) == payload
    with pytest.raises(EvidenceSignatureError):
        verify(longer)


@pytest.mark.parametrize("value", [[-35], {"a": -35}])
def test_an_algorithm_that_is_no_number_is_refused_whatever_the_allowed_ones_are(value):
    with pytest.raises(AlgorithmError):
        load(sign(protected=cbor2.dumps({1: value})), frozenset({cose.ES384}))


def nested(depth):
    return b"\x81" * depth + b"\x00"


REFUSED_CBOR = {
    "nothing": (b"", EvidenceFormatError),
    "a tag": (b"\xc0\x60", EvidenceFormatError),
    "a self-described tag": (b"\xd9\xd9\xf7\x00", EvidenceFormatError),
    "a half float": (b"\xf9\x00\x00", EvidenceFormatError),
    "a double": (cbor2.dumps(1.5), EvidenceFormatError),
    "undefined": (b"\xf7", EvidenceFormatError),
    "a simple value": (b"\xe0", EvidenceFormatError),
    "a simple value in two bytes": (b"\xf8\x18", EvidenceFormatError),
    "a break alone": (b"\xff", EvidenceFormatError),
    "a byte string in pieces": (b"\x5f\x41a\xff", EvidenceFormatError),
    "text in pieces": (b"\x7f\x61a\xff", EvidenceFormatError),
    "an integer without end": (b"\x1f" + b"\xff" * 128, EvidenceFormatError),
    "a reserved length": (b"\x1c" + b"\xff" * 16, EvidenceFormatError),
    "an integer that ends early": (b"\x1a\xff\xff\xff", EvidenceFormatError),
    "an integer in a longer form": (b"\x18\x17", EvidenceFormatError),
    "an integer in two bytes that fits one": (b"\x19\x00\xff", EvidenceFormatError),
    "an integer in four bytes that fits two": (b"\x1a\x00\x00\xff\xff", EvidenceFormatError),
    "an integer in eight bytes that fits four": (b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff", EvidenceFormatError),
    "a length in a longer form": (b"\x58\x01a", EvidenceFormatError),
    "a string that ends early": (b"\x42a", EvidenceFormatError),
    "a string of 2^63 bytes": (b"\x5b\x80\x00\x00\x00\x00\x00\x00\x00", EvidenceFormatError),
    "an array of 2^63 items": (b"\x9b\x80\x00\x00\x00\x00\x00\x00\x00", EvidenceFormatError),
    "a map of 2^63 items": (b"\xbb\x80\x00\x00\x00\x00\x00\x00\x00", EvidenceFormatError),
    "an array that ends early": (b"\x82\x00", EvidenceFormatError),
    "a map that ends early": (b"\xa1\x00", EvidenceFormatError),
    "a map without its length": (b"\xbf\xff", EvidenceFormatError),
    "an array without its length": (b"\x9f\xff", EvidenceFormatError),
    "a key twice": (b"\xa2\x01\x02\x01\x03", EvidenceFormatError),
    "a key of bytes": (b"\xa1\x41a\x00", EvidenceFormatError),
    "a key that is true": (b"\xa1\xf5\x00", EvidenceFormatError),
    "a key that is a list": (b"\xa1\x80\x00", EvidenceFormatError),
    "text that is not UTF-8": (b"\x61\xff", EvidenceFormatError),
    "bytes at the end": (b"\x00\x00", TrailingBytesError),
    "nine levels": (nested(9), EvidenceSizeError),
    "a thousand levels": (nested(1000), EvidenceSizeError),
    "too many items": (cbor2.dumps([0] * 1024), EvidenceSizeError),
    "too many bytes": (cbor2.dumps(bytes(LIMIT)), EvidenceSizeError),
}


@pytest.mark.parametrize("sentence", REFUSED_CBOR)
def test_cbor_is_refused_with(sentence):
    data, error = REFUSED_CBOR[sentence]
    with pytest.raises(error) as caught:
        decode(data)
    assert type(caught.value) is error


def test_bounds_hold_to_the_last_byte_item_and_level():
    assert decode(cbor2.dumps(bytes(LIMIT - 3))) == bytes(LIMIT - 3)
    assert decode(cbor2.dumps([0] * 1023)) == [0] * 1023
    value = decode(nested(8))
    for _ in range(8):
        (value,) = value
    assert value == 0


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\xbf\x01\xff", EvidenceFormatError),
        (b"\xbf\x01", EvidenceFormatError),
        (b"\x9f" * 10 + b"\xff" * 10, EvidenceSizeError),
        (b"\x9f" + b"\x00" * 1024 + b"\xff", EvidenceSizeError),
        (b"\xbf\x01\x02\x01\x03\xff", EvidenceFormatError),
        (b"\xbf\x40\x02\xff", EvidenceFormatError),
        (b"\x5f\x41a\xff", EvidenceFormatError),
    ],
)
def test_containers_without_their_length_keep_to_the_bounds(data, error):
    with pytest.raises(error):
        decode(data, indefinite=True)


def test_containers_without_their_length_are_read_where_they_are_allowed():
    assert decode(b"\xbf\x01\x9f\x02\x03\xff\x61a\xf6\xff", indefinite=True) == {1: [2, 3], "a": None}


VALUES = st.recursive(
    st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20) | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(-99, 99) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_what_is_encoded_is_decoded(value):
    encoded = cbor2.dumps(value)
    try:
        assert decode(encoded) == value
    except EvidenceSizeError:
        assert encoded.count(b"\x81") + encoded.count(b"\xa1") >= 1


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_nothing_but_attestation_errors_comes_out_of_any_bytes(data, indefinite):
    for attempt in (lambda: decode(data, indefinite=indefinite), lambda: load(data)):
        with contextlib.suppress(AttestationError):
            attempt()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_but_attestation_errors_comes_out_of_a_mutated_message(data):
    message = bytearray(sign(tag=b"\xd2"))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(AttestationError):
        verify(bytes(message))
