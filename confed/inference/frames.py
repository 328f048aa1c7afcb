"""Frames of an exchange: AES-256-GCM in the STREAM construction, each authentic, in its place, and the last one marked.

On the wire a frame is its ciphertext's length (4 bytes, big-endian), a flag (1 for the last frame, else 0) and the
ciphertext with its tag. Inside are a kind (1 byte), the content's length (4 bytes), the content, and zeros as padding.
The nonce of frame i is four zero bytes ‖ i (7 bytes, big-endian) ‖ flag; length and flag are authenticated too. A key
serves one direction of one exchange, so no nonce repeats under it.

Source: Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015, §7 (STREAM), as in ``confed.sealing.chunks``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confed.errors import EncodingError, ExchangeError, SizeError, TamperedError, TruncatedError
from confed.serving import LARGEST_FRAME_BYTES, PaddingTerms

_OUTER = struct.Struct(">IB")
_INNER = struct.Struct(">BI")
_NONCE = struct.Struct(">4xQ")
_TAG_BYTES = 16
_LEAST_SEALED_BYTES, _MOST_SEALED_BYTES = _INNER.size + _TAG_BYTES, LARGEST_FRAME_BYTES + _TAG_BYTES
LARGEST_CONTENT_BYTES = LARGEST_FRAME_BYTES - _INNER.size
"""What a frame carries at most."""
PIECE_BYTES = 64 * 1024 - _INNER.size
"""Into which pieces a long body is cut: with them a frame's memory is used again, where larger ones are new each time,
which takes longer than sealing them."""


class Frame(NamedTuple):
    """One opened frame. A tuple, since there is one for each token; its ``repr`` shows no content."""

    kind: int
    content: bytes
    final: bool

    def __repr__(self) -> str:
        return f"Frame(kind={self.kind}, final={self.final})"


class FrameSealer:
    """Seals the frames of one direction; holds its key and position. One thread at a time."""

    __slots__ = ("_aead", "_count", "_ended", "_padding")

    def __init__(self, key: bytes, *, padding: PaddingTerms) -> None:
        self._aead = AESGCM(key)
        self._padding = padding
        self._count = 0
        self._ended = False

    def seal(self, kind: int, content: bytes | memoryview, *, final: bool) -> bytes:
        """Return the next frame as it goes on the wire.

        Raises:
            SizeError: more than a frame carries.
            ExchangeError: a frame after the last one.
        """
        size = len(content)
        if size > LARGEST_CONTENT_BYTES:
            raise SizeError("frame content in bytes", expected=f"at most {LARGEST_CONTENT_BYTES}", got=size)
        if self._ended:
            raise ExchangeError("frame", expected="none after the last one", got="one")
        padded = self._padding.padded(_INNER.size + size)
        plaintext = b"".join((_INNER.pack(kind, size), content)).ljust(padded, b"\x00")
        outer = _OUTER.pack(padded + _TAG_BYTES, final)
        sealed = self._aead.encrypt(_NONCE.pack(self._count << 8 | final), plaintext, outer)
        self._count += 1
        self._ended = final
        return outer + sealed


def sealed_bytes(content_bytes: int, *, padding: PaddingTerms) -> int:
    """Return how long a frame of so much content is on the wire."""
    return _OUTER.size + padding.padded(_INNER.size + content_bytes) + _TAG_BYTES


class FrameOpener:
    """Opens the frames of one direction as their bytes come in; what is not authentic is never returned.

    Args:
        key: of this direction.
        what: which direction, for errors.
        largest_bytes: of all contents together; ``None`` for answers, which their reader may stop reading.
    """

    __slots__ = ("_buffer", "_count", "_decrypt", "_ended", "_largest", "_total", "_what")

    def __init__(self, key: bytes, *, what: str, largest_bytes: int | None) -> None:
        self._decrypt = AESGCM(key).decrypt
        self._what = what
        self._largest = largest_bytes
        self._buffer = bytearray()
        self._count = 0
        self._total = 0
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether the last frame has been opened."""
        return self._ended

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Return the frames that these further bytes complete.

        Raises:
            TamperedError: a frame that was changed, moved, or is of another exchange.
            SizeError: a frame or all contents together beyond their bound.
            EncodingError: bytes after the last frame, or an authentic one that is not of its one form.
        """
        frames: list[Frame] = []
        with memoryview(data) as view:
            at, have = self._fill(view, frames) if self._buffer else 0, len(view)
            while (start := at + _OUTER.size) <= have:
                size, flag = self._outer(view, at)
                if start + size > have:
                    break
                frames.append(self._open(view[at:start], view[start : start + size], flag))
                at = start + size
            self._buffer += view[at:]
        if self._buffer:
            self._require_open()
        return frames

    def close(self) -> None:
        """Check that the last frame came.

        Raises:
            TruncatedError: it did not: what was read is not the whole.
        """
        if not self._ended:
            raise TruncatedError(self._what, expected="its last frame", got="its end before that")

    def _require_open(self) -> None:
        if self._ended:
            raise EncodingError(self._what, expected="nothing after the last frame", got="more")

    def _fill(self, view: memoryview, frames: list[Frame]) -> int:
        """Open the frame that earlier bytes began, if these complete it; return how many of them belong to it."""
        kept, at = self._buffer, 0
        while True:
            known = len(kept) >= _OUTER.size
            size, flag = self._outer(kept, 0) if known else (0, 0)
            missing = _OUTER.size + size - len(kept)
            if known and not missing:
                with memoryview(kept) as frame:
                    frames.append(self._open(frame[: _OUTER.size], frame[_OUTER.size :], flag))
                kept.clear()
                return at
            if at == len(view):
                return at
            kept += view[at : at + missing]
            at = min(at + missing, len(view))

    def _outer(self, data: memoryview | bytearray, at: int) -> tuple[int, int]:
        """Return the length of the frame that begins there, and its flag."""
        if self._ended:
            self._require_open()
        size, flag = _OUTER.unpack_from(data, at)
        if not _LEAST_SEALED_BYTES <= size <= _MOST_SEALED_BYTES or flag > 1:
            raise SizeError(f"{self._what} frame", expected=f"up to {LARGEST_FRAME_BYTES} bytes", got="another")
        return size, flag

    def _open(self, outer: memoryview, sealed: memoryview, flag: int) -> Frame:
        try:
            plaintext = self._decrypt(_NONCE.pack(self._count << 8 | flag), sealed, outer)
        except InvalidTag as error:
            where = f"{self._what} frame {self._count}"
            raise TamperedError(where, expected="a matching tag", got="another") from error
        kind, size = _INNER.unpack_from(plaintext)
        end = _INNER.size + size
        content = plaintext[_INNER.size : end]
        if len(content) != size or plaintext.count(0, end) != len(plaintext) - end:
            raise EncodingError(f"{self._what} frame {self._count}", expected="its content and zeros", got="another")
        self._total += size
        if self._largest is not None and self._total > self._largest:
            raise SizeError(f"{self._what} size in bytes", expected=f"at most {self._largest}", got="more")
        self._count += 1
        self._ended = final = flag == 1
        return tuple.__new__(Frame, (kind, content, final))
