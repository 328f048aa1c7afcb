"""Credentials that one TPM alone can open: how a verifier learns that two keys live in the same TPM.

An endorsement key (EK) has a certificate and signs nothing; an attestation key (AK) signs quotes and has none. The
verifier wraps a secret for the EK and for the *name* of the AK, and the TPM gives the secret up only if it holds both:
the EK's private half, and a key of that name. The name covers the AK's attributes, so these are proven too.

1. A seed is drawn and wrapped for the EK: by OAEP, or by a key agreement with a fresh key.
2. From the seed and the AK's name comes an AES key, which encrypts the secret.
3. From the seed comes an HMAC key, which authenticates the ciphertext together with the name.

The seed and the fresh key come from the operating system's generator, never from an argument.

Source: TPM 2.0 Library Specification 1.59, part 1, section 24 (credential protection), 11.4.10 (KDFa, KDFe), annexes
B.10.4 (RSA secret exchange) and C.6.4 (ECC secret exchange).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from confed.attestation.tee.tpm_structures import TpmPublic, hash_of
from confed.errors import EvidenceSizeError, KeyBindingError

SECRET_BYTES = 32
"""Size of the secrets that confed's verifiers use."""

# Part 1, section 24.4 and 24.5; labels end with a zero byte.
_IDENTITY, _STORAGE, _INTEGRITY = b"IDENTITY\x00", b"STORAGE\x00", b"INTEGRITY\x00"
# TCG EK Credential Profile 2.6, section 4.5: what every endorsement key is.
_DEMANDED = ("fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "decrypt")
_AES_BLOCK_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A secret for one TPM: ``blob`` (TPM2B_ID_OBJECT) and ``seed`` (TPM2B_ENCRYPTED_SECRET), as it takes them."""

    blob: bytes
    seed: bytes


def require_endorsement_key(public: TpmPublic) -> None:
    """Refuse a key that is no endorsement key: one that signs, or that may exist outside its TPM.

    Raises:
        KeyBindingError: another kind of key.
    """
    missing = [name for name in _DEMANDED if name not in public.attributes]
    if missing or "sign" in public.attributes or public.symmetric_bits == 0:
        raise KeyBindingError(
            "endorsement key attributes",
            expected=f"{', '.join(_DEMANDED)}, with a symmetric key",
            got=", ".join(public.attributes) or "none",
        )


def make_credential(endorsement_key: TpmPublic, *, name: bytes, secret: bytes) -> Credential:
    """Wrap a secret for the TPM that holds ``endorsement_key`` and a key called ``name``.

    Args:
        endorsement_key: the EK's public area, its key checked against a certificate by the caller.
        name: the AK's name (``TpmPublic.name``).
        secret: at most as long as a digest of the EK's name algorithm.

    Raises:
        KeyBindingError: not an endorsement key.
        EvidenceSizeError: a secret that is too long.
    """
    require_endorsement_key(endorsement_key)
    digest = endorsement_key.name_algorithm
    size = hash_of(digest).digest_size
    if not 1 <= len(secret) <= size:
        raise EvidenceSizeError("credential secret in bytes", expected=f"1 to {size}", got=len(secret))
    # 1.
    match endorsement_key.key:
        case rsa.RSAPublicKey() as key:
            seed = os.urandom(size)
            wrapped = _wrap_with_rsa(key, seed, digest)
        case key:
            seed, wrapped = _agree_with_ecc(key, digest)
    return Credential(
        blob=_sized(_protected(secret, seed=seed, name=name, endorsement_key=endorsement_key)), seed=_sized(wrapped)
    )


def _protected(secret: bytes, *, seed: bytes, name: bytes, endorsement_key: TpmPublic) -> bytes:
    digest = endorsement_key.name_algorithm
    # 2.
    key = _kdfa(digest, seed, _STORAGE, name, bits=endorsement_key.symmetric_bits)
    # The specification fixes CFB with a zero IV; the key is used once, since the seed is fresh.
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(_AES_BLOCK_BYTES))).encryptor()
    encrypted = encryptor.update(_sized(secret)) + encryptor.finalize()
    # 3.
    integrity = _kdfa(digest, seed, _INTEGRITY, b"", bits=hash_of(digest).digest_size * 8)
    return _sized(hmac.digest(integrity, encrypted + name, digest)) + encrypted


def _wrap_with_rsa(key: rsa.RSAPublicKey, seed: bytes, digest: str) -> bytes:
    algorithm = hash_of(digest)
    return key.encrypt(seed, padding.OAEP(mgf=padding.MGF1(algorithm), algorithm=algorithm, label=_IDENTITY))


def _agree_with_ecc(key: ec.EllipticCurvePublicKey, digest: str) -> tuple[bytes, bytes]:
    fresh = ec.generate_private_key(key.curve)
    shared = fresh.exchange(ec.ECDH(), key)
    ours, theirs = fresh.public_key().public_numbers(), key.public_numbers()
    width = (key.curve.key_size + 7) // 8
    x, y, static = (number.to_bytes(width, "big") for number in (ours.x, ours.y, theirs.x))
    seed = _kdfe(digest, shared, _IDENTITY, x, static, bits=hash_of(digest).digest_size * 8)
    return seed, _sized(x) + _sized(y)


def _kdfa(digest: str, key: bytes, label: bytes, context: bytes, *, bits: int) -> bytes:
    """Derive bits as SP 800-108 does in counter mode."""
    derived = b""
    counter = 0
    while len(derived) * 8 < bits:
        counter += 1
        derived += hmac.digest(key, counter.to_bytes(4, "big") + label + context + bits.to_bytes(4, "big"), digest)
    return derived[: bits // 8]


def _kdfe(digest: str, shared: bytes, label: bytes, party_u: bytes, party_v: bytes, *, bits: int) -> bytes:
    """Derive bits as SP 800-56A does; one digest is as much as a seed needs."""
    return hashlib.new(digest, (1).to_bytes(4, "big") + shared + label + party_u + party_v).digest()[: bits // 8]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
