"""Endorsements on disk, so that a vendor's service is asked once and not for every key release.

- An entry's file is named by the digest of its need. It is written beside and renamed, so a reader sees a whole entry
  or none; processes may share a directory.
- What is read back must be exactly what was written: an entry that is not is left out with a log line and fetched
  again. It is no more trusted than what comes from the network; a verifier checks it as if it were new.
- The directory holds a bounded number of bytes and entries; the ones written first go first.
- What could not be had is never kept.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from confed import canonical
from confed.attestation.endorsements import ENDORSEMENT_LIMIT_BYTES, Endorsement, Need, need_digest
from confed.errors import EncodingError, EndorsementFormatError, SizeError, StorageError
from confed.files import write_whole

FORMAT = "confed-endorsement/1"

_log = logging.getLogger(__name__)
_FILE_LIMIT_BYTES = 2 * ENDORSEMENT_LIMIT_BYTES
_SUFFIX = ".json"


class EndorsementCache:
    """Endorsements in a directory, by their needs.

    Args:
        directory: made where it is not there, readable by its owner alone.
        limit_bytes, limit_entries: how much it holds.

    Raises:
        StorageError: a directory that cannot be made.
    """

    def __init__(self, directory: Path, *, limit_bytes: int = 256 * 1024 * 1024, limit_entries: int = 4096) -> None:
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._limit_entries = limit_entries
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(str(directory), expected="a directory for endorsements", got=error.strerror) from error

    def get(self, need: Need) -> Endorsement | None:
        """Return the endorsement that is kept for a need, or ``None`` where none is, or one that is not whole."""
        path = self._path(need)
        try:
            with path.open("rb") as file:
                data = file.read(_FILE_LIMIT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("endorsement cache: %s cannot be read (%s), fetching again", path.name, error.strerror)
            return None
        try:
            return _decoded(data, need)
        except (EncodingError, EndorsementFormatError, SizeError) as error:
            _log.warning("endorsement cache: %s is corrupt (%s), fetching again", path.name, error.code)
            return None

    def put(self, endorsement: Endorsement) -> None:
        """Keep an endorsement in place of what was kept for its need.

        Raises:
            StorageError: a disk that is full or fails, or more than the whole directory may hold.
        """
        path = self._path(endorsement.need)
        value = {"digest": canonical.digest(endorsement.data), "entry": endorsement.to_entry(), "format": FORMAT}
        encoded = canonical.encode(value)
        if len(encoded) > self._limit_bytes:
            raise StorageError("endorsement cache", expected=f"at most {self._limit_bytes} bytes", got=len(encoded))
        try:
            self._make_room(path, len(encoded))
            write_whole(path, encoded)
        except OSError as error:
            raise StorageError("endorsement cache", expected="a file that is written", got=error.strerror) from error

    def _path(self, need: Need) -> Path:
        return self._directory / f"{need_digest(need)}{_SUFFIX}"

    def _make_room(self, path: Path, size_bytes: int) -> None:
        """Remove the entries written first until one more fits, drafts that a killed process left among them."""
        kept: list[tuple[int, int, Path]] = []
        for other in self._directory.iterdir():
            if other != path and (other.name.endswith(_SUFFIX) or other.name.startswith(".")):
                try:
                    status = other.stat()
                except FileNotFoundError:
                    continue  # another process removed it
                kept.append((status.st_mtime_ns, status.st_size, other))
        kept.sort(reverse=True)
        while kept and (
            len(kept) >= self._limit_entries or sum(size for _, size, _ in kept) + size_bytes > self._limit_bytes
        ):
            kept.pop()[2].unlink(missing_ok=True)


def _decoded(data: bytes, need: Need) -> Endorsement:
    value: Any = canonical.decode(data, limit_bytes=_FILE_LIMIT_BYTES)
    if not isinstance(value, dict) or set(value) != {"digest", "entry", "format"} or value["format"] != FORMAT:  # pyright: ignore[reportUnknownArgumentType]
        raise EndorsementFormatError("entry", expected=FORMAT, got="something else")
    fields: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
    endorsement = Endorsement.from_entry(fields["entry"], at="entry")
    if endorsement.need != need or canonical.digest(endorsement.data) != fields["digest"]:
        raise EndorsementFormatError("entry", expected="what was written", got="something else")
    return endorsement
