"""Files that a command reads and writes: within bounds, whole or not at all, and a mistake in one clear line."""

from __future__ import annotations

import sys
from pathlib import Path

from confed.errors import ConfigError, MissingFileError
from confed.files import write_whole

LIMIT_BYTES = 64 * 1024 * 1024
"""Largest file that is read unless a command sets a smaller bound."""


def read_file(what: str, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """Return all of a file; a device without end costs no more memory than the bound.

    Raises:
        MissingFileError: nothing that can be read.
        ConfigError: more than ``limit_bytes``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise MissingFileError(what, expected="a file that can be read", got=f"{path} ({error.strerror})") from error
    if len(data) > limit_bytes:
        raise ConfigError(what, expected=f"at most {limit_bytes} bytes", got=f"more, in {path}")
    return data


def write_file(what: str, data: bytes, path: Path | None) -> None:
    """Write all of a file or nothing, readable for its owner alone; to the output where no path is given.

    Raises:
        ConfigError: a place that cannot be written to.
    """
    if path is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        write_whole(path, data)
    except OSError as error:
        raise ConfigError(what, expected="a place to write", got=f"{path} ({error.strerror})") from error


def remove_file(what: str, path: Path) -> None:
    """Remove a file that is there.

    Raises:
        ConfigError: one that cannot be removed.
    """
    try:
        path.unlink()
    except OSError as error:
        raise ConfigError(what, expected="a file that can be removed", got=f"{path} ({error.strerror})") from error
