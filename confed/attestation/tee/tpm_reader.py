"""Reading a TPM's structures: forward, within bounds, to the end."""

from __future__ import annotations

from confed.errors import EvidenceFormatError, EvidenceSizeError, TrailingBytesError

STRUCTURE_LIMIT_BYTES = 4 * 1024
"""Largest structure; a quote is below 300 bytes, a public area or a signature of RSA 4096 below 700."""


class Reader:
    """Reads forward through big-endian bytes; what is not there, or too much, is an error."""

    __slots__ = ("_data", "_position", "_what")

    def __init__(self, data: bytes, *, what: str, limit_bytes: int = STRUCTURE_LIMIT_BYTES) -> None:
        if len(data) > limit_bytes:
            raise EvidenceSizeError(f"{what} in bytes", expected=f"at most {limit_bytes}", got=len(data))
        self._data = data
        self._position = 0
        self._what = what

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes.

        Raises:
            EvidenceFormatError: fewer are left.
        """
        end = self._position + count
        if end > len(self._data):
            raise EvidenceFormatError(self._what, expected=f"{count} bytes at {self._position}", got="its end")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, size_bytes: int) -> int:
        """Return the next unsigned number.

        Raises:
            EvidenceFormatError: fewer bytes are left.
        """
        return int.from_bytes(self.take(size_bytes), "big")

    def sized(self, limit_bytes: int) -> bytes:
        """Return the bytes of a TPM2B.

        Raises:
            EvidenceSizeError: more than ``limit_bytes``.
            EvidenceFormatError: fewer are left than it says.
        """
        size = self.number(2)
        if size > limit_bytes:
            raise EvidenceSizeError(f"{self._what}: a field in bytes", expected=f"at most {limit_bytes}", got=size)
        return self.take(size)

    def end(self) -> None:
        """Refuse bytes that are left.

        Raises:
            TrailingBytesError: there are some.
        """
        if self._position != len(self._data):
            raise TrailingBytesError(self._what, expected="its end", got=f"{len(self._data) - self._position} bytes")
