"""Where a container's bytes come from: private memory, memory that others can write, or a file.

Bytes that somebody else can change while they are read are copied first: authenticating one value and decrypting
another must not be possible.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from pathlib import Path
from typing import Protocol

from confed.errors import MissingFileError, TruncatedError
from confed.sealing.chunks import scratch

_HASH_BYTES = 1024 * 1024


class Source(Protocol):
    """Bytes that can be read at any place."""

    @property
    def size_bytes(self) -> int:
        """Length of the whole."""
        ...

    def read(self, start: int, end: int) -> memoryview:
        """Return these bytes, within the length: valid until this thread asks for others."""
        ...

    def digest(self) -> str:
        """Return SHA-256 of the whole in hexadecimal."""
        ...


class BufferSource:
    """Bytes in memory."""

    __slots__ = ("_shared", "_view", "size_bytes")

    def __init__(self, buffer: bytes | bytearray | memoryview | mmap.mmap) -> None:
        view = memoryview(buffer)
        # SharedMemory.buf and slices of a mapping lead back to the mapping itself.
        self._shared = isinstance(view.obj, mmap.mmap)
        self._view = view.cast("B").toreadonly()
        self.size_bytes = len(self._view)

    def read(self, start: int, end: int) -> memoryview:
        """Return these bytes: a view, or a copy where others can write."""
        if not self._shared:
            return self._view[start:end]
        private = scratch(end - start)
        private[:] = self._view[start:end]
        return private

    def digest(self) -> str:
        """Return SHA-256 of the whole in hexadecimal."""
        return hashlib.sha256(self._view).hexdigest()


class FileSource:
    """Bytes of a file, opened anew for every read.

    Raises:
        MissingFileError: no such file, or not a regular one.
    """

    __slots__ = ("_path", "size_bytes")

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            status = path.stat()
        except OSError as error:
            raise MissingFileError(str(path), expected="a file", got=error.strerror) from error
        if not stat.S_ISREG(status.st_mode):
            raise MissingFileError(str(path), expected="a regular file", got="something else")
        self.size_bytes = status.st_size

    def read(self, start: int, end: int) -> memoryview:
        """Return a private copy of these bytes.

        Raises:
            TruncatedError: the file is gone or was cut.
        """
        private = scratch(end - start)
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise TruncatedError(str(self._path), expected="a readable file", got=error.strerror) from error
        try:
            filled = 0
            while filled < len(private):
                count = os.preadv(handle, [private[filled:]], start + filled)
                if count == 0:
                    raise TruncatedError("container size in bytes", expected=f"at least {end}", got=start + filled)
                filled += count
        finally:
            os.close(handle)
        return private

    def digest(self) -> str:
        """Return SHA-256 of the whole in hexadecimal.

        Raises:
            TruncatedError: the file is gone or was cut.
        """
        digest = hashlib.sha256()
        for start in range(0, self.size_bytes, _HASH_BYTES):
            digest.update(self.read(start, min(start + _HASH_BYTES, self.size_bytes)))
        return digest.hexdigest()
