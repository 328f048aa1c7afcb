"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

PRIVATE = 0o600
PUBLIC = 0o644


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
