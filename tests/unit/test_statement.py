from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.errors import EncodingError, SignatureError
from confed.statement import (
    Signed,
    _Known,  # pyright: ignore[reportPrivateUsage]
    public_bytes,
    sign,
    unverified,
    verify,
)

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    TYPE: ClassVar[str] = "test/promise"
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Threat:
    TYPE: ClassVar[str] = "test/threat"
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    TYPE: ClassVar[str] = "test/open"
    words: Mapping[str, int]


SIGNED = sign(Promise(number=7), KEY)


def test_a_signed_statement_verifies_against_its_signer():
    assert verify(SIGNED, Promise, signer=public_bytes(KEY)) == Promise(number=7)


def test_a_statement_survives_the_way_to_json_and_back():
    assert Signed.from_json(SIGNED.to_json()) == SIGNED


def flipped(data, at=0):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("sentence", "signed", "kind", "error"),
    [
        ("another signer is refused", sign(Promise(number=7), OTHER), Promise, SignatureError),
        (
            "a signer's name on another's signature is refused",
            replace(sign(Promise(number=7), OTHER), signer=public_bytes(KEY)),
            Promise,
            SignatureError,
        ),
        (
            "a flipped bit of the signature is refused",
            replace(SIGNED, signature=flipped(SIGNED.signature)),
            Promise,
            SignatureError,
        ),
        (
            "a flipped bit of the payload is refused",
            replace(SIGNED, payload=flipped(SIGNED.payload, 12)),
            Promise,
            SignatureError,
        ),
        ("a short signature is refused", replace(SIGNED, signature=b""), Promise, SignatureError),
        ("one kind of statement is no other", SIGNED, Threat, EncodingError),
    ],
)
def test_a_false_statement_is_refused(sentence, signed, kind, error):
    with pytest.raises(error):
        verify(signed, kind, signer=public_bytes(KEY))


def test_an_unverified_statement_is_only_parsed():
    assert unverified(replace(SIGNED, signature=b""), Promise).number == 7


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"payload": "!", "signer": "00", "signature": "00"}, {"payload": 1, "signer": 2, "signature": 3}],
)
def test_other_json_is_no_statement(value):
    with pytest.raises(EncodingError):
        Signed.from_json(value)


def test_what_was_verified_once_vouches_for_nothing_else():
    verify(SIGNED, Promise, signer=public_bytes(KEY))
    moved = replace(SIGNED, signature=SIGNED.signature + SIGNED.payload[:1], payload=SIGNED.payload[1:])
    for changed in (moved, replace(SIGNED, signature=flipped(SIGNED.signature))):
        with pytest.raises(SignatureError):
            verify(changed, Promise, signer=public_bytes(KEY))


def test_what_does_not_change_is_parsed_once_and_what_could_is_not():
    assert unverified(SIGNED, Promise) is unverified(replace(SIGNED, signature=b""), Promise)
    first, second = (unverified(sign(Open(words={"a": 1}), KEY), Open) for _ in range(2))
    assert first == second
    assert first is not second
    with pytest.raises(EncodingError):
        unverified(SIGNED, Threat)


def test_what_holds_is_remembered_within_bounds_and_the_older_half_forgotten():
    known = _Known(100)
    names = [number.to_bytes(32, "big") for number in range(1_000)]
    for at, name in enumerate(names):
        known.add(name)
        assert all(newest in known for newest in names[max(0, at - 49) : at + 1])
        assert sum(earlier in known for earlier in names[: at + 1]) <= 100
    assert names[0] not in known
