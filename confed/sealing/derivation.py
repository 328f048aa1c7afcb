"""Every key that is derived from another, in one place: which secret, bound to which words.

All of them are HKDF-SHA256 with 32-byte results. The words that bind a key are canonical JSON (owners' keys) or a
domain followed by fixed-length bytes (keys inside a container), so no two of them can be spelled alike.
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confed import canonical
from confed.errors import SizeError

KEY_BYTES = 32
SALT_BYTES = 32


def new_data_key() -> bytes:
    """Return a fresh 32-byte data key from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def new_salt() -> bytes:
    """Return a fresh 32-byte salt from the operating system's generator."""
    return os.urandom(SALT_BYTES)


def container_key(owner_key: bytes, *, container_id: str) -> bytes:
    """Return the data key of a starting model's or a dataset's container.

    Raises:
        SizeError: an owner's key that is not 32 bytes.
    Source: RFC 5869 (HKDF).
    """
    return _derive(owner_key, info=canonical.encode(["confed/v1/container-key", container_id]))


def version_key(model_key: bytes, *, run: str, version: int, attempt: int) -> bytes:
    """Return the data key of a model version that a run made (DESIGN §4): one per run, version and attempt.

    Raises:
        SizeError: a model key that is not 32 bytes.
    """
    return _derive(model_key, info=canonical.encode(["confed/v1/version-key", run, version, attempt]))


def state_key(model_key: bytes, *, run: str, version: int, attempt: int) -> bytes:
    """Return the data key of the strategy state that belongs to a version; clients never get it.

    Raises:
        SizeError: a model key that is not 32 bytes.
    """
    return _derive(model_key, info=canonical.encode(["confed/v1/state-key", run, version, attempt]))


def checkpoint_key(model_key: bytes, *, run: str, version: int) -> bytes:
    """Return the data key of the checkpoints on the way to a version: every attempt at it opens and seals with it.

    Raises:
        SizeError: a model key that is not 32 bytes.
    """
    return _derive(model_key, info=canonical.encode(["confed/v1/checkpoint-key", run, version]))


def chunk_key(data_key: bytes, *, salt: bytes, header_digest: str) -> bytes:
    """Return the key of a container's chunks: bound to every byte of its header, fresh with every salt.

    Raises:
        SizeError: a data key that is not 32 bytes.
    """
    return _derive(data_key, salt=salt, info=b"confed/v1/chunks\x00" + bytes.fromhex(header_digest))


def declaration_key(data_key: bytes, *, salt: bytes) -> bytes:
    """Return the key of the one declaration in a container's header.

    Raises:
        SizeError: a data key that is not 32 bytes.
    """
    return _derive(data_key, salt=salt, info=b"confed/v1/declaration\x00")


def key_commitment(data_key: bytes, *, salt: bytes) -> bytes:
    """Return what a header says about its data key: no second key gives the same 32 bytes.

    AES-GCM alone commits to no key: one ciphertext can be made to open under two. HMAC-SHA256 is collision
    resistant, so a header names exactly one.

    Raises:
        SizeError: a data key that is not 32 bytes.
    Source: Albertini, Duong, Gueron, Kölbl, Luykx, Schmieg, "How to Abuse and Fix Authenticated Encryption
        Without Key Commitment", USENIX Security 2022, §5.3.
    """
    return _derive(data_key, salt=salt, info=b"confed/v1/key-commitment\x00")


def exchange_request_key(secret: bytes, *, transcript: bytes, epoch: str) -> bytes:
    """Return the key of a sealed request's frames for one replica's epoch; ``transcript`` is its header's digest.

    Raises:
        SizeError: a secret that is not 32 bytes.
    """
    return _derive(secret, salt=transcript, info=b"confed/v1/exchange-request\x00" + bytes.fromhex(epoch))


def exchange_answer_key(secret: bytes, *, transcript: bytes, epoch: str, nonce: bytes) -> bytes:
    """Return the key of the frames of one answer: of one replica's epoch, under that replica's fresh nonce (32 bytes).

    Raises:
        SizeError: a secret that is not 32 bytes.
    """
    return _derive(secret, salt=transcript, info=b"confed/v1/exchange-answer\x00" + bytes.fromhex(epoch) + nonce)


def exchange_window_key(secret: bytes, *, transcript: bytes, epoch: str, nonce: bytes) -> bytes:
    """Return the key of what a requester says once an answer has begun: windows, to the replica that drew the nonce.

    Raises:
        SizeError: a secret that is not 32 bytes.
    """
    return _derive(secret, salt=transcript, info=b"confed/v1/exchange-windows\x00" + bytes.fromhex(epoch) + nonce)


def receipt_salt(secret: bytes, *, transcript: bytes) -> bytes:
    """Return what hides a request and its answer in the digests of their receipt (32 bytes).

    Raises:
        SizeError: a secret that is not 32 bytes.
    """
    return _derive(secret, salt=transcript, info=b"confed/v1/receipt-salt\x00")


def _derive(key: bytes, *, info: bytes, salt: bytes | None = None) -> bytes:
    if len(key) != KEY_BYTES:
        raise SizeError("key size in bytes", expected=KEY_BYTES, got=len(key))
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(key)
