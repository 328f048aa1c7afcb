"""The HPKE suite, pinned by a published vector and a committed one, both recomputed from separate primitives."""

from __future__ import annotations

import hashlib
import hmac
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from confed.errors import ConfedError, RecipientError, SizeError, WrongKeyError
from confed.journey import Kind
from confed.sealing.identities import HpkeIdentity
from confed.sealing.recipients import PUBLIC_BYTES, HpkeRecipient, Method, RecipientEntry

_VECTORS = Path(__file__).parents[2] / "vectors" / "hpke" / "mlkem768_x25519.json"
_AES_256_GCM, _CHACHA20_POLY1305 = 2, 3
INFO = b"i" * 32


@pytest.fixture(scope="module")
def vectors() -> dict[str, dict[str, Any]]:
    return json.loads(_VECTORS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def identity() -> HpkeIdentity:
    return HpkeIdentity.generate()


def decapsulate(private: bytes, enc: bytes) -> bytes:
    """The hybrid KEM from its two parts.

    Source: draft-connolly-cfrg-xwing-kem §5.3 (the combiner, with its label), as draft-ietf-hpke-pq uses it.
    """
    mlkem, x25519 = MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    first = mlkem.decapsulate(enc[:1088])
    second = x25519.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    public = x25519.public_key().public_bytes_raw()
    return hashlib.sha3_256(first + second + enc[1088:] + public + rb"\.//^" + b"\\").digest()


def schedule(shared_secret: bytes, info: bytes, *, aead_id: int) -> tuple[bytes, bytes]:
    """Key and nonce of base mode with HKDF-SHA256. Source: RFC 9180 §5.1."""
    suite = b"HPKE" + (0x647A).to_bytes(2, "big") + (1).to_bytes(2, "big") + aead_id.to_bytes(2, "big")

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + material, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
        labeled = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return hmac.digest(secret, labeled + b"\x01", "sha256")[:size]

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared_secret, b"secret", b"")
    return expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)


def test_the_recomputation_meets_the_published_vector(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["published"]
    assert (vector["mode"], vector["kem_id"], vector["kdf_id"], vector["aead_id"]) == (0, 0x647A, 1, 3)
    private = hashlib.shake_256(bytes.fromhex(vector["skRm"])).digest(96)
    assert HpkeIdentity.from_private_bytes(private).public.hex() == vector["pkRm"]
    shared_secret = decapsulate(private, bytes.fromhex(vector["enc"]))
    assert shared_secret.hex() == vector["shared_secret"]
    key, nonce = schedule(shared_secret, bytes.fromhex(vector["info"]), aead_id=_CHACHA20_POLY1305)
    assert (key.hex(), nonce.hex()) == (vector["key"], vector["base_nonce"])
    first = vector["encryptions"][0]
    opened = ChaCha20Poly1305(key).decrypt(nonce, bytes.fromhex(first["ct"]), bytes.fromhex(first["aad"]))
    assert opened.hex() == first["pt"]


def test_the_committed_vector_opens(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["confed"]
    identity = HpkeIdentity.from_private_bytes(bytes.fromhex(vector["private"]))
    assert identity.key_id == vector["public_sha256"]
    opened = identity.unwrap(bytes.fromhex(vector["wrapped"]), info=bytes.fromhex(vector["info"]))
    assert opened.hex() == vector["secret"]


def test_the_committed_vector_is_what_separate_primitives_compute(vectors: dict[str, dict[str, Any]]) -> None:
    vector = vectors["confed"]
    wrapped = bytes.fromhex(vector["wrapped"])
    shared_secret = decapsulate(bytes.fromhex(vector["private"]), wrapped[:1120])
    key, nonce = schedule(shared_secret, bytes.fromhex(vector["info"]), aead_id=_AES_256_GCM)
    assert AESGCM(key).decrypt(nonce, wrapped[1120:], None).hex() == vector["secret"]


def test_what_is_wrapped_now_is_what_separate_primitives_open(identity: HpkeIdentity) -> None:
    wrapped = identity.recipient.wrap(b"s" * 32, info=INFO)
    key, nonce = schedule(decapsulate(identity.to_private_bytes(), wrapped[:1120]), INFO, aead_id=_AES_256_GCM)
    assert AESGCM(key).decrypt(nonce, wrapped[1120:], None) == b"s" * 32


def test_an_identity_survives_its_private_bytes(identity: HpkeIdentity) -> None:
    again = HpkeIdentity.from_private_bytes(identity.to_private_bytes())
    assert again.public == identity.public
    assert len(identity.public) == PUBLIC_BYTES
    assert again.unwrap(identity.recipient.wrap(b"secret", info=INFO), info=INFO) == b"secret"


def test_wrapping_twice_gives_different_bytes(identity: HpkeIdentity) -> None:
    assert identity.recipient.wrap(b"s" * 32, info=INFO) != identity.recipient.wrap(b"s" * 32, info=INFO)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("sentence", "change", "info", "error"),
    [
        ("another info", lambda wrapped: wrapped, b"j" * 32, WrongKeyError),
        ("a bit of the ML-KEM ciphertext", lambda wrapped: _flipped(wrapped, 0), INFO, WrongKeyError),
        ("a bit of the X25519 share", lambda wrapped: _flipped(wrapped, 1088), INFO, WrongKeyError),
        ("a bit of the ciphertext", lambda wrapped: _flipped(wrapped, 1120), INFO, WrongKeyError),
        ("a bit of the tag", lambda wrapped: _flipped(wrapped, len(wrapped) - 1), INFO, WrongKeyError),
        ("a byte more", lambda wrapped: wrapped + b"\x00", INFO, WrongKeyError),
        ("cut", lambda wrapped: wrapped[:1135], INFO, RecipientError),
        ("nothing", lambda _: b"", INFO, RecipientError),
        (
            "an X25519 share of low order",
            lambda wrapped: wrapped[:1088] + bytes(32) + wrapped[1120:],
            INFO,
            (RecipientError, WrongKeyError),
        ),
    ],
)
def test_a_wrapped_key_is_refused_when_changed(
    identity: HpkeIdentity, sentence: str, change: Any, info: bytes, error: Any
) -> None:
    wrapped = identity.recipient.wrap(b"s" * 32, info=INFO)
    with pytest.raises(error):
        identity.unwrap(change(wrapped), info=info)


def test_another_identity_does_not_unwrap(identity: HpkeIdentity) -> None:
    with pytest.raises(WrongKeyError):
        HpkeIdentity.generate().unwrap(identity.recipient.wrap(b"s" * 32, info=INFO), info=INFO)


@pytest.mark.parametrize(
    ("sentence", "make", "error"),
    [
        ("a short public key", lambda: HpkeRecipient(bytes(PUBLIC_BYTES - 1)), RecipientError),
        ("coefficients above the modulus", lambda: HpkeRecipient(b"\xff" * PUBLIC_BYTES), RecipientError),
        ("a short private key", lambda: HpkeIdentity.from_private_bytes(bytes(95)), RecipientError),
        (
            "an entry of the owner with a wrapped key",
            lambda: RecipientEntry(method=Method.OWNER_KEY, key_id="k", wrapped=b"x"),
            RecipientError,
        ),
        (
            "an HPKE entry without a wrapped key",
            lambda: RecipientEntry(method=Method.HPKE, key_id="k", wrapped=b""),
            RecipientError,
        ),
        ("an entry without a key id", lambda: RecipientEntry.owner_key(""), RecipientError),
    ],
)
def test_malformed_recipients_are_refused(sentence: str, make: Any, error: type[ConfedError]) -> None:
    with pytest.raises(error):
        make()


def test_a_public_key_of_low_order_is_refused(identity: HpkeIdentity) -> None:
    recipient = HpkeRecipient(identity.public[:1184] + bytes(32))
    with pytest.raises(RecipientError):
        recipient.wrap(b"s" * 32, info=INFO)


def test_a_long_info_is_refused(identity: HpkeIdentity) -> None:
    with pytest.raises(SizeError):
        identity.recipient.wrap(b"s" * 32, info=bytes(1025))


def test_an_identity_neither_shows_nor_pickles_its_private_half(identity: HpkeIdentity) -> None:
    private = identity.to_private_bytes().hex()
    assert not any(private[at : at + 16] in repr(identity) for at in range(0, len(private), 16))
    with pytest.raises(TypeError):
        pickle.dumps(identity)


def test_a_wrapped_key_serves_one_container_only(identity: HpkeIdentity) -> None:
    entry = RecipientEntry.hpke(identity.recipient, b"k" * 32, kind=Kind.UPDATE, container_id="a")
    other = RecipientEntry.hpke(identity.recipient, b"k" * 32, kind=Kind.UPDATE, container_id="b")
    assert entry.key_id == other.key_id == identity.key_id
