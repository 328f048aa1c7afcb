"""Who may call the courier, by the key that they show in TLS, and how much of its disk each may hold.

A site's operator makes a key, the courier's operator writes its certificate down beside the site's name. It shows which
site a machine is, and nothing of what it may see: whoever steals it can fill that site's share, and read ciphertext.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from confed import record
from confed.errors import ConfigError, MissingFileError, QuotaError, RefusedError
from confed.wire.addresses import check_digest
from confed.wire.channel import caller_digest, certificate_digest

_BLOCK_BYTES = 4096
"""What a letter counts at least: the disk gives no less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One who may call: a name, a PEM certificate, and the bytes that may be held for it (0: it may only read)."""

    name: str
    certificate: str
    share_bytes: int

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not 1 <= len(self.name) <= 60:
            raise ConfigError("callers.name", expected="1 to 60 printable characters", got=repr(self.name)[:80])
        if self.share_bytes < 0:
            raise ConfigError(f"callers.{self.name}.share_bytes", expected="0 or more", got=self.share_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Everybody who may call.

    Raises:
        ConfigError: nobody, or one name or certificate twice.
    """

    callers: tuple[Caller, ...]

    def __post_init__(self) -> None:
        if not self.callers:
            raise ConfigError("callers", expected="at least one", got="none")
        for what, values in (
            ("name", [caller.name for caller in self.callers]),
            ("certificate", [certificate_digest(caller.certificate) for caller in self.callers]),
        ):
            if len(set(values)) != len(values):
                raise ConfigError(f"callers.{what}", expected="distinct values", got="the same one twice")

    @classmethod
    def read(cls, path: Path) -> Callers:
        """Return those in a JSON file.

        Raises:
            MissingFileError: no such file.
            ConfigError: not its form.
        """
        try:
            value = json.loads(path.read_bytes())
        except OSError as error:
            raise MissingFileError("callers", expected="a file", got=path) from error
        except ValueError as error:
            raise ConfigError("callers", expected="JSON", got="something else") from error
        return record.from_json(cls, value, at="callers", error=ConfigError)

    @property
    def certificates(self) -> tuple[str, ...]:
        """What TLS is to accept."""
        return tuple(caller.certificate for caller in self.callers)

    def calling(self, context: grpc.ServicerContext) -> Caller:
        """Return who calls.

        Raises:
            RefusedError: a certificate that is not one of these, even if one of their keys has signed it.
        """
        digest = caller_digest(context)
        for caller in self.callers:
            if certificate_digest(caller.certificate) == digest:
                return caller
        raise RefusedError("caller", expected="a certificate that is known", got=digest[:16] or "none")


class Shares:
    """What is held for each caller. The files are the count: markers say who sent what, sizes are the disk's.

    Letters count for as long as the process runs. Safe between threads, not between processes.

    Args:
        directory: where markers are kept, one folder a caller.
        size_of: bytes that are stored of an object, whole or in part.
    """

    def __init__(self, directory: Path, size_of: Callable[[str], int]) -> None:
        self._directory, self._size_of = directory, size_of
        self._promised: dict[tuple[str, str], int] = {}
        self._letters: dict[str, int] = {}
        self._lock = threading.Lock()

    def held_bytes(self, caller: Caller) -> int:
        """Return the bytes held for a caller, and promised to its uploads in progress."""
        with self._lock:
            return self._held(caller)

    @contextmanager
    def uploading(self, caller: Caller, digest: str, size_bytes: int) -> Generator[None]:
        """Count an object of this size for the caller during the block, and what is stored of it afterwards.

        Raises:
            EncodingError: not a digest.
            QuotaError: it does not fit into the caller's share.
        """
        check_digest(digest)
        marker = self._folder(caller) / digest
        with self._lock:
            others = self._held(caller) - self._counted(caller.name, digest, marker)
            _require_room(caller, others, size_bytes)
            marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            marker.touch(mode=0o600)
            self._promised[caller.name, digest] = size_bytes
        try:
            yield
        finally:
            with self._lock:
                del self._promised[caller.name, digest]
                self._counted(caller.name, digest, marker)

    def post(self, caller: Caller, size_bytes: int) -> None:
        """Count a letter.

        Raises:
            QuotaError: it does not fit into the caller's share.
        """
        counted = max(size_bytes, _BLOCK_BYTES)
        with self._lock:
            _require_room(caller, self._held(caller), counted)
            self._letters[caller.name] = self._letters.get(caller.name, 0) + counted

    def _held(self, caller: Caller) -> int:
        folder = self._folder(caller)
        markers = list(folder.iterdir()) if folder.is_dir() else []
        objects = sum(self._counted(caller.name, marker.name, marker) for marker in markers)
        return objects + self._letters.get(caller.name, 0)

    def _counted(self, name: str, digest: str, marker: Path) -> int:
        """Return what an object counts; forget one of which nothing is there any more."""
        found = self._promised.get((name, digest)) or (self._size_of(digest) if marker.exists() else 0)
        if not found:
            with suppress(FileNotFoundError):
                marker.unlink()
        return found

    def _folder(self, caller: Caller) -> Path:
        return self._directory / hashlib.sha256(caller.name.encode()).hexdigest()


def _require_room(caller: Caller, held_bytes: int, size_bytes: int) -> None:
    if held_bytes + size_bytes > caller.share_bytes:
        free = max(0, caller.share_bytes - held_bytes)
        raise QuotaError(f"courier share of {caller.name} in bytes", expected=f"at most {free} more", got=size_bytes)
