"""A file inside a sealed container, as libraries read files: only the chunks that are asked for are opened."""

from __future__ import annotations

import io
from typing import Any

from confed.errors import SizeError
from confed.memory import room_for
from confed.sealing.container import OpenContainer


class SealedFile(io.RawIOBase):
    """Bytes ``offset`` to ``offset + size_bytes`` of a container's plaintext, read-only and seekable.

    Guarantees: every byte that is returned was authenticated; nothing is written anywhere.

    Raises:
        SizeError: a range that is not within the plaintext.
    """

    def __init__(self, container: OpenContainer, *, offset: int, size_bytes: int) -> None:
        super().__init__()
        if offset < 0 or size_bytes < 0 or offset + size_bytes > container.plaintext_bytes:
            expected = f"within {container.plaintext_bytes} bytes"
            raise SizeError("file in the container", expected=expected, got=f"{offset} + {size_bytes}")
        self._container = container
        self._offset, self._size, self._at = offset, size_bytes, 0

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that any place can be read."""
        return True

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place, and return it.

        Raises:
            SizeError: before the start.
        """
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if place < 0:
            raise SizeError("place in the file", expected="0 or more", got=place)
        self._at = place
        return place

    # Arrow takes any buffer, so what was opened is not copied into bytes.
    def read(self, size: int | None = -1, /) -> Any:
        """Return the next bytes, at most ``size``.

        Raises:
            TamperedError: the tag of a chunk that holds some of them does not match.
            TruncatedError: the container was cut meanwhile.
        """
        left = max(0, self._size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        found = room_for(count)
        if not count:  # behind the end there is no place in the container to read nothing from
            return found
        self._container.read_into(self._offset + self._at, found, count)
        self._at += count
        return found

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer with the next bytes and return how many there were.

        Raises:
            TamperedError, TruncatedError: as ``read``.
        """
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
