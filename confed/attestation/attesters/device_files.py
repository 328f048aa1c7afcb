"""The files through which a kernel, or a library operating system, gives evidence: read and written within bounds.

``SystemFiles`` makes plain system calls and nothing else. The seam is there so that a test can play the kernel behind a
real tree of files.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

from confed.errors import EvidenceUnavailableError


class DeviceFiles(Protocol):
    """What an attester does with a tree of pseudo-files; every method raises OSError as the system call does."""

    def make(self, directory: Path) -> None:
        """Make a directory that is not there yet."""
        ...

    def remove(self, directory: Path) -> None:
        """Remove a directory."""
        ...

    def read(self, file: Path, *, limit_bytes: int) -> bytes:
        """Return all of a file, one byte more than ``limit_bytes`` at most."""
        ...

    def write(self, file: Path, data: bytes) -> None:
        """Write ``data`` to a file that is there, in one call."""
        ...


class SystemFiles:
    """The machine's own files."""

    def make(self, directory: Path) -> None:
        """Make a directory; FileExistsError if it is there."""
        os.mkdir(directory, mode=0o700)  # noqa: PTH102 (the system call, and no more)

    def remove(self, directory: Path) -> None:
        """Remove an empty directory; configfs removes an entry's own files with it."""
        os.rmdir(directory)  # noqa: PTH106 (the same)

    def read(self, file: Path, *, limit_bytes: int) -> bytes:
        """Return all of a file, one byte more than ``limit_bytes`` at most."""
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            data = b""
            while len(data) <= limit_bytes:
                chunk = os.read(descriptor, limit_bytes + 1 - len(data))
                if not chunk:
                    break
                data += chunk
            return data
        finally:
            os.close(descriptor)

    def write(self, file: Path, data: bytes) -> None:
        """Write ``data`` in one call; a binary attribute of configfs takes it in when the file is closed."""
        descriptor = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
        if written != len(data):
            raise OSError(errno.EIO, "short write", str(file))


def unavailable(path: Path, error: OSError, *, expected: str) -> EvidenceUnavailableError:
    """Return the error that says which file gave no evidence, and what the system said."""
    reason = errno.errorcode.get(error.errno or 0, "an error of no number")
    return EvidenceUnavailableError(str(path), expected=expected, got=f"{reason}: {os.strerror(error.errno or 0)}")


def require_size(data: bytes, *, limit_bytes: int, what: str) -> bytes:
    """Return ``data``, or refuse what is empty or larger than its bound.

    Raises:
        EvidenceUnavailableError: either.
    """
    if not 0 < len(data) <= limit_bytes:
        size = f"more than {limit_bytes}" if data else 0
        raise EvidenceUnavailableError(f"{what} in bytes", expected=f"1 to {limit_bytes}", got=size)
    return data
