"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import tempfile
from collections.abc import Callable, Generator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600
PUBLIC = 0o644
_WRITE = 2  # Source: Linux, include/uapi/linux/fs.h, SYNC_FILE_RANGE_WRITE


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = PRIVATE, durable: bool = True) -> Generator[BinaryIO]:
    """Return a file to write that gets its name once the block ends, in place of what had that name before.

    Guarantees: readers see the old file or all of the new one; what is written lies under a name of its own beside it
    until then, readable for its owner alone, and is removed where the block raises. ``durable``: file and name are on
    the disk when the block ends. Without it a power cut may lose them: for what means nothing after a restart, and
    where the folder may not be opened.

    Raises:
        OSError: the file system refuses, also after the name was given, when the folder cannot be put on the disk.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_whole(path: Path, data: bytes | memoryview, *, mode: int = PRIVATE, durable: bool = True) -> None:
    """Write a file as ``replacing`` does.

    Raises:
        OSError: as there.
    """
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)


def sync_folder(path: Path) -> None:
    """Put a folder's entries on the disk, so that a rename in it outlives a power cut.

    Raises:
        OSError: it is not a folder, may not be read, or the disk fails.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(file: FileIO, *, offset: int, size_bytes: int) -> None:
    """Have the kernel begin to put a part of a file on the disk, and do not wait: a later fsync has less to wait for.

    Promises nothing: only fsync does. A system that cannot goes on as before.
    """
    if _sync_file_range is not None:
        _sync_file_range(file.fileno(), ctypes.c_int64(offset), ctypes.c_int64(size_bytes), _WRITE)


def forget_pages(descriptor: int, *, offset: int, size_bytes: int) -> None:
    """Let the kernel give up what it holds in memory of a part of a file that is on the disk, for what comes next.

    Where others map the file, or parts of it are not on the disk, those stay.

    Raises:
        OSError: not a file's descriptor.
    """
    os.posix_fadvise(descriptor, offset, size_bytes, os.POSIX_FADV_DONTNEED)


def sync_file_system(descriptor: int) -> None:
    """Put everything that was written to a file system on its disk, by whomever: one wait for very many files.

    ``descriptor`` is of any file or folder on it, opened before what is written, so that an error on the way is told.

    Raises:
        OSError: the disk fails, or the system cannot do it (``can_sync_file_systems``).
    Source: syncfs(2); that it tells errors since Linux 5.8.
    """
    if _syncfs is None:
        raise OSError("no syncfs on this system")
    if _syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def can_sync_file_systems() -> bool:
    """Whether this system has ``syncfs`` and tells its errors."""
    return _syncfs is not None


def _find_syncfs() -> Callable[[int], int] | None:
    system = os.uname()
    release = tuple(int(part) for part in re.findall(r"\d+", system.release)[:2])
    if system.sysname != "Linux" or release < (5, 8):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


_syncfs = _find_syncfs()
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
