"""Where an upload's bytes come from, and the messages that carry them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from confed.errors import MissingFileError, TruncatedError
from confed.wire.addresses import PART_BYTES
from confed.wire.parts import encode_put
from confed.wire.v1 import confed_pb2 as pb

Buffer = bytes | bytearray | memoryview
"""What holds bytes in memory (``collections.abc.Buffer`` needs Python 3.12)."""


class Source(Protocol):
    """Bytes to upload, readable from anywhere and more than once."""

    size_bytes: int

    def digest(self) -> str:
        """Return the SHA-256 of all of them."""
        ...

    def read(self, offset: int) -> bytes | memoryview:
        """Return up to 1 MiB from an offset on."""
        ...

    def close(self) -> None:
        """Let go of them."""
        ...


class BufferSource:
    """Bytes in memory."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self.size_bytes = self._view.nbytes

    def digest(self) -> str:
        """Return the SHA-256 of all of them."""
        return hashlib.sha256(self._view).hexdigest()

    def read(self, offset: int) -> memoryview:
        """Return up to 1 MiB from an offset on: a view."""
        return self._view[offset : offset + PART_BYTES]

    def close(self) -> None:
        """Let go of them."""
        self._view.release()


class FileSource:
    """Bytes of a file.

    Raises:
        MissingFileError: no such file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = io.FileIO(path)
        except OSError as error:
            raise MissingFileError("file to send", expected="a readable file", got=path) from error
        self.size_bytes = os.fstat(self._file.fileno()).st_size

    def digest(self) -> str:
        """Return the SHA-256 of all of them."""
        self._file.seek(0)
        return hashlib.file_digest(self._file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]

    def read(self, offset: int) -> bytes:
        """Return up to 1 MiB from an offset on."""
        return os.pread(self._file.fileno(), PART_BYTES, offset)

    def close(self) -> None:
        """Let go of them."""
        self._file.close()


class PutParts:
    """The encoded messages of one upload from an offset on.

    gRPC takes them in a thread of its own and would swallow what goes wrong with the source there, so it is kept for
    ``raise_if_failed``. ``moved`` is called whenever it takes one, which it does when there is room for it.
    """

    def __init__(self, source: Source, digest: str, offset: int, *, moved: Callable[[], None] = lambda: None) -> None:
        self._source, self._digest, self._offset, self._moved = source, digest, offset, moved
        self._failure: OSError | None = None
        self._short = False

    def __iter__(self) -> Iterator[bytes]:
        size = self._source.size_bytes
        first = pb.PutPart(digest=self._digest, size_bytes=size, offset=self._offset)
        yield encode_put(first, self._read(self._offset))
        for offset in range(self._offset + PART_BYTES, size, PART_BYTES):
            data = self._read(offset)
            if self._short:
                return
            yield encode_put(pb.PutPart(offset=offset), data)

    def raise_if_failed(self) -> None:
        """Raise what went wrong with the source.

        Raises:
            TruncatedError: a file that is shorter now than when the upload began, or that can no longer be read.
        """
        if self._short:
            error = TruncatedError("file to send, size in bytes", expected=self._source.size_bytes, got="fewer")
            raise error from self._failure

    def _read(self, offset: int) -> bytes | memoryview:
        self._moved()
        wanted = min(PART_BYTES, self._source.size_bytes - offset)
        try:
            data = self._source.read(offset)[:wanted]
        except OSError as error:
            self._failure, data = error, b""
        self._short = len(data) < wanted
        return data
