"""Files that the courier alone opens: never through a link, never readable for others, each held locked in use."""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path

_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


def take_over(kept: Path, path: Path, *, size_bytes: int) -> io.FileIO | None:
    """Rename and lock what a cut upload left at ``kept``, if it is there, of that size and nobody else's."""
    try:
        file = io.FileIO(kept, "r+", opener=open_private)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found, named = os.fstat(file.fileno()), kept.stat()
    except (BlockingIOError, FileNotFoundError):
        file.close()
        return None
    if found.st_size != size_bytes or found.st_ino != named.st_ino:
        file.close()
        return None
    kept.rename(path)
    return file


def size_of(path: Path) -> int:
    """Return the size of a file in bytes, 0 where there is none."""
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def open_private(path: str, flags: int) -> int:
    """Open or make a file that nobody else may read; an ``opener``."""
    return os.open(path, flags | _OPEN_FLAGS, 0o600)


def open_to_read(path: str, flags: int) -> int:
    """Open a file; an ``opener``."""
    return os.open(path, flags | _OPEN_FLAGS)
