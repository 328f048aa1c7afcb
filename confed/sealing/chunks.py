"""AES-256-GCM chunks in the STREAM construction: each alone authentic, in its place, and the last one marked.

The nonce of chunk i is four zero bytes ‖ i (7 bytes, big-endian) ‖ 1 for the last chunk, else 0. A chunk at another
place, or a container cut at a chunk's end, therefore meets another nonce and its tag does not match. The key is
fresh with every container (its salt and header are in it), so no nonce repeats under a key.

Source: Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015, §7 (STREAM).
"""

from __future__ import annotations

import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confed.errors import TamperedError
from confed.sealing.header import TAG_BYTES

_scratches = threading.local()


class ChunkCipher:
    """Seals and opens the chunks of one container; holds its key and no position.

    One instance serves one thread at a time.
    """

    __slots__ = ("_aead", "_last")

    def __init__(self, key: bytes, *, chunk_count: int) -> None:
        self._aead = AESGCM(key)
        self._last = chunk_count - 1

    def seal_into(self, index: int, plaintext: memoryview, sealed: memoryview) -> None:
        """Write chunk ``index`` with its tag to ``sealed``, which is 16 bytes longer than ``plaintext``."""
        self._aead.encrypt_into(self._nonce(index), plaintext, None, sealed)

    def open_into(self, index: int, sealed: memoryview, plaintext: memoryview) -> None:
        """Write chunk ``index`` to ``plaintext``, which is 16 bytes shorter than ``sealed``.

        Guarantees: when it raises, ``plaintext`` holds zeros only.

        Raises:
            TamperedError: the tag does not match: changed, moved, cut, or of another container.
        """
        try:
            self._aead.decrypt_into(self._nonce(index), sealed, None, plaintext)
        except InvalidTag as error:
            # OpenSSL has written the unauthenticated bytes already.
            plaintext[:] = bytes(len(plaintext))
            raise TamperedError(f"chunk {index}", expected="a matching tag", got="another") from error

    def _nonce(self, index: int) -> bytes:
        return b"\x00\x00\x00\x00" + index.to_bytes(7, "big") + (b"\x01" if index == self._last else b"\x00")


def scratch(size_bytes: int) -> memoryview:
    """Return this thread's own buffer of that length; what a former call returned is overwritten.

    Chunks are at most 4 MiB, so a thread keeps no more than that however many containers it reads.
    """
    held: bytearray | None = getattr(_scratches, "buffer", None)
    if held is None or len(held) < size_bytes:
        held = bytearray(size_bytes)
        _scratches.buffer = held
    return memoryview(held)[:size_bytes]


def sealed_offset(index: int, *, chunk_bytes: int) -> int:
    """Return where chunk ``index`` starts, counted from the first chunk's first byte."""
    return index * (chunk_bytes + TAG_BYTES)
