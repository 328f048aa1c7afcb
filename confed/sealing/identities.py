"""Private half of sealing for somebody: the keys that unwrap. Nothing that only moves ciphertext imports this."""

from __future__ import annotations

from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from confed.errors import RecipientError, WrongKeyError
from confed.sealing.recipients import ENCAPSULATION_BYTES, SUITE, HpkeRecipient

_TAG_BYTES = 16
# FIPS 203 §7.1: the seed (d ‖ z) from which an ML-KEM key pair is made; then the raw X25519 scalar (RFC 7748).
_SEED_BYTES = 64
PRIVATE_BYTES = 96


class HpkeIdentity:
    """An HPKE key pair; its ``repr`` shows only the public half, and it cannot be pickled."""

    __slots__ = ("_key", "_mlkem", "_x25519", "recipient")

    def __init__(self, *, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._mlkem = mlkem
        self._x25519 = x25519
        self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
        self.recipient = HpkeRecipient(mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"HpkeIdentity({self.key_id[:16]})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an HpkeIdentity holds private keys and is not pickled")

    @classmethod
    def generate(cls) -> HpkeIdentity:
        """Return a new key pair from the operating system's generator."""
        return cls(mlkem=MLKEM768PrivateKey.generate(), x25519=X25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, data: bytes) -> HpkeIdentity:
        """Return the key pair that ``to_private_bytes`` wrote.

        Raises:
            RecipientError: another length.
        """
        if len(data) != PRIVATE_BYTES:
            raise RecipientError("HPKE private key size in bytes", expected=PRIVATE_BYTES, got=len(data))
        return cls(
            mlkem=MLKEM768PrivateKey.from_seed_bytes(data[:_SEED_BYTES]),
            x25519=X25519PrivateKey.from_private_bytes(data[_SEED_BYTES:]),
        )

    def to_private_bytes(self) -> bytes:
        """Return the private key (96 bytes: ML-KEM seed ‖ X25519 scalar), for an owner's key file only."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """The public half, 1216 bytes."""
        return self.recipient.public

    @property
    def key_id(self) -> str:
        """SHA-256 of the public half in hexadecimal."""
        return self.recipient.key_id

    def unwrap(self, wrapped: bytes, *, info: bytes) -> bytes:
        """Return the secret that ``HpkeRecipient.wrap`` wrapped for this identity with the same ``info``.

        Raises:
            RecipientError: bytes too short to be a wrapped key, or an encapsulation that is no key.
            WrongKeyError: wrapped for another identity or with another ``info``, or changed on the way.
        """
        if len(wrapped) < ENCAPSULATION_BYTES + _TAG_BYTES:
            least = ENCAPSULATION_BYTES + _TAG_BYTES
            raise RecipientError("wrapped key size in bytes", expected=f"at least {least}", got=len(wrapped))
        try:
            return SUITE.decrypt(wrapped, self._key, info=info)
        except InvalidTag as error:
            raise WrongKeyError("wrapped key", expected=f"one for {self.key_id[:16]}", got="another") from error
        except ValueError as error:
            raise RecipientError("wrapped key", expected="a valid encapsulation", got="another") from error
