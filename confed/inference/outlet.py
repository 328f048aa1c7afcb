"""How anything but an exchange leaves a replica: through one inherited socket, to the launcher that owns its files.

The TEE may write nowhere. What its manifest lets out (clear records, answers sealed to recipients) goes as frames to
the launcher, which puts each where it belongs and says so with one byte; only then does the answer go on. The launcher
is the host's: it may drop or keep, but what is sealed stays sealed, and what is in clear is signed and numbered.

A frame: kind (1 byte), length of the name (1 byte), length (8 bytes, big-endian), name, content.
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from confed.errors import ConfedError, ConfigError, DeliveryError
from confed.files import PRIVATE, write_whole
from confed.serving import FILE, STDOUT

_FRAME = struct.Struct(">BBQ")
_DONE, _FAILED = b"\x01", b"\x00"
_LARGEST_BYTES = 2 * 1024**3
_POST_S = 5.0
_NAME_CHARACTERS = frozenset("0123456789abcdef")


class Leaving(IntEnum):
    """What a frame carries."""

    CLEAR = 1
    ANSWER = 2
    EVIDENCE = 3


class Outlet(Protocol):
    """Where a replica's other outputs go."""

    def send(self, kind: Leaving, name: str, content: bytes) -> None:
        """Hand something over, and return once it is where it belongs.

        Args:
            kind: what it is.
            name: of an answer or an evidence: its digest; empty for a clear record.
            content: a line, a sealed answer, or an evidence envelope.

        Raises:
            DeliveryError: it did not get there.
        """
        ...


class SocketOutlet:
    """The replica's end of the socket; threads may share it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: Leaving, name: str, content: bytes) -> None:
        """Hand something over; see ``Outlet``.

        Raises:
            DeliveryError: it did not get there.
        """
        encoded = name.encode("ascii")
        with self._lock:
            try:
                self._connection.sendall(_FRAME.pack(kind, len(encoded), len(content)) + encoded)
                self._connection.sendall(content)
                said = self._connection.recv(1)
            except OSError as error:
                raise DeliveryError("outlet", expected="the launcher", got=type(error).__name__) from error
        if said != _DONE:
            raise DeliveryError(f"{kind.name.lower()} output", expected="one that got where it must", got="a failure")

    def close(self) -> None:
        """Let go of the socket: the launcher's thread ends."""
        self._connection.close()


class Carrier:
    """The launcher's end: a thread that puts what a replica lets out where its manifest and its host say.

    Args:
        sink: of clear records, as the manifest names it; ``None`` where there are none.
        folder: of the serving file: where ``file:NAME`` is.
        answers: folder of sealed answers, one file each by its digest; ``None`` where there are none.
        keep_evidence: is given each evidence under which a key was released.
    """

    def __init__(
        self,
        *,
        sink: str | None,
        folder: Path,
        answers: Path | None,
        keep_evidence: Callable[[bytes], object] | None = None,
    ) -> None:
        self._places: dict[int, Callable[[str, bytes], object]] = {}
        if sink is not None:
            self._places[Leaving.CLEAR] = _sink_of(sink, folder)
        if answers is not None:
            answers.mkdir(parents=True, exist_ok=True)
            self._places[Leaving.ANSWER] = lambda name, content: _keep_answer(answers, name, content)
        if keep_evidence is not None:
            self._places[Leaving.EVIDENCE] = lambda _name, content: keep_evidence(content)
        self._connection, self.other = socket.socketpair()
        """``other`` is for the replica to inherit."""
        self._thread = threading.Thread(target=self._carry, name="outlet", daemon=True)

    def start(self) -> None:
        """Carry until the replica ends; its end of the socket must have been handed over."""
        self.other.close()
        self._thread.start()

    def _carry(self) -> None:
        with self._connection, suppress(EOFError, ConnectionError):
            while True:
                kind, name_bytes, size = _FRAME.unpack(self._read(_FRAME.size))
                if size > _LARGEST_BYTES:
                    return
                name, content = self._read(name_bytes).decode("ascii", "replace"), self._read(size)
                self._connection.sendall(_DONE if self._put(kind, name, content) else _FAILED)

    def _put(self, kind: int, name: str, content: bytes) -> bool:
        place = self._places.get(kind)
        try:
            if place is None:
                raise ConfigError("outlet", expected="what the manifest lets out", got=kind)
            place(name, content)
        except (OSError, http.client.HTTPException, ConfedError) as error:
            # Told to the replica, which ends the answer; the content itself is in no log.
            sys.stderr.write(f"inference: an output did not get where it must: {type(error).__name__}\n")
            return False
        return True

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._connection.recv(min(size - len(data), 1024 * 1024))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def _keep_answer(folder: Path, name: str, content: bytes) -> None:
    if not name or set(name) - _NAME_CHARACTERS:
        raise ConfigError("answer name", expected="a digest", got="another")
    write_whole(folder / f"{name}.answer", content, mode=PRIVATE)


def _sink_of(sink: str, folder: Path) -> Callable[[str, bytes], None]:
    if sink == STDOUT:
        return lambda _name, line: _write_out(line)
    if sink.startswith(FILE):
        path = folder / sink.removeprefix(FILE)
        return lambda _name, line: _append(path, line)
    return lambda _name, line: _post(sink, line)


def _write_out(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line)


def _post(address: str, line: bytes) -> None:
    asked = urllib.request.Request(address, data=line, headers={"content-type": "application/json"})  # noqa: S310 (http or https, by the manifest's rule)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    with opener.open(asked, timeout=_POST_S):
        return


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The manifest names one address: an answer that names another is a failure."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """Follow nothing."""
        del req, fp, code, msg, headers, newurl
