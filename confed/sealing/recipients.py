"""Public half of sealing for somebody: HPKE wrapping of 32-byte keys, and a header's list of recipients.

The suite is fixed: MLKEM768-X25519 (post-quantum hybrid), HKDF-SHA256, AES-256-GCM, base mode. Base mode does not
say who wrapped a key: that is what the signature on the header, or the grant that ``info`` hashes, is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PublicKey, Suite

from confed import canonical
from confed.errors import RecipientError, SizeError
from confed.journey import Kind

# draft-ietf-hpke-pq, MLKEM768-X25519 (KEM id 0x647a): ML-KEM-768 public key, then X25519 public key.
_MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = 1216
ENCAPSULATION_BYTES = 1120
WRAPPED_KEY_BYTES = ENCAPSULATION_BYTES + 32 + 16
"""Length of a wrapped 32-byte key: encapsulation, key and tag."""

_MAX_INFO_BYTES = 1024

SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
"""The one HPKE suite of confed; pinned by known answers in tests/unit/sealing.

Source: RFC 9180; draft-ietf-hpke-pq.
"""


class HpkeRecipient:
    """Somebody to whom keys can be wrapped: an HPKE public key (ML-KEM-768 ‖ X25519, 1216 bytes).

    Raises:
        RecipientError: bytes that are not such a key.
    """

    __slots__ = ("_key", "public")

    def __init__(self, public: bytes) -> None:
        if len(public) != PUBLIC_BYTES:
            raise RecipientError("HPKE public key size in bytes", expected=PUBLIC_BYTES, got=len(public))
        self.public = bytes(public)
        try:
            self._key = MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(self.public[:_MLKEM_PUBLIC_BYTES]),
                X25519PublicKey.from_public_bytes(self.public[_MLKEM_PUBLIC_BYTES:]),
            )
        except ValueError as error:
            raise RecipientError("HPKE public key", expected="ML-KEM-768 and X25519", got="another") from error

    def __repr__(self) -> str:
        return f"HpkeRecipient({self.key_id[:16]})"

    @property
    def key_id(self) -> str:
        """SHA-256 of the public key in hexadecimal: its name in headers."""
        return canonical.digest(self.public)

    def wrap(self, secret: bytes, *, info: bytes) -> bytes:
        """Return ``secret`` under this key, to be unwrapped only with the same ``info``.

        Guarantees: fresh randomness from the operating system in every call; encapsulation (1120 bytes) ‖ ciphertext.

        Raises:
            RecipientError: a public key with which no secret can be agreed.
            SizeError: an ``info`` above 1 KiB (hash it first).
        Source: RFC 9180 §6.1 (single-shot, base mode).
        """
        if len(info) > _MAX_INFO_BYTES:
            raise SizeError("HPKE info size in bytes", expected=f"at most {_MAX_INFO_BYTES}", got=len(info))
        try:
            return SUITE.encrypt(secret, self._key, info=info)
        except ValueError as error:
            raise RecipientError("HPKE public key", expected="one of full order", got="another") from error


class Method(StrEnum):
    """How a recipient comes to a container's data key."""

    OWNER_KEY = "owner-key"
    HPKE = "hpke"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientEntry:
    """One way to the data key, as it stands in a header.

    ``owner-key``: ``key_id`` names a key in the owner's vault from which the data key is derived; nothing is wrapped.
    ``hpke``: ``key_id`` is the SHA-256 of the recipient's public key, ``wrapped`` the data key under it.

    Raises:
        RecipientError: an entry that is neither.
    """

    method: Method
    key_id: str
    wrapped: bytes

    def __post_init__(self) -> None:
        expected = 0 if self.method is Method.OWNER_KEY else WRAPPED_KEY_BYTES
        if len(self.wrapped) != expected:
            raise RecipientError(f"wrapped key of {self.method}", expected=f"{expected} bytes", got=len(self.wrapped))
        if not 1 <= len(self.key_id) <= 128 or not self.key_id.isprintable():
            raise RecipientError("recipient key id", expected="1 to 128 printable characters", got=len(self.key_id))

    @classmethod
    def owner_key(cls, key_id: str) -> RecipientEntry:
        """Return the entry that names a key of the owner's vault."""
        return cls(method=Method.OWNER_KEY, key_id=key_id, wrapped=b"")

    @classmethod
    def hpke(cls, recipient: HpkeRecipient, data_key: bytes, *, kind: Kind, container_id: str) -> RecipientEntry:
        """Return the entry that wraps ``data_key`` for one container to ``recipient``.

        Raises:
            RecipientError: a public key with which no secret can be agreed.
        """
        wrapped = recipient.wrap(data_key, info=recipient_info(kind=kind, container_id=container_id))
        return cls(method=Method.HPKE, key_id=recipient.key_id, wrapped=wrapped)


def recipient_info(*, kind: Kind, container_id: str) -> bytes:
    """Return the HPKE ``info`` (32 bytes) of a container's recipients: a wrapped key serves one container only."""
    return bytes.fromhex(canonical.digest(canonical.encode(["confed/v1/recipient", str(kind), container_id])))
