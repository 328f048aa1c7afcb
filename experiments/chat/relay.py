"""A relay on the network between requester and TEE: it carries every byte on, and keeps them with their times."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

_AT_ONCE_BYTES = 65536
_EPOCH = re.compile(rb'"epoch":"([0-9a-f]{64})"')
_LINE = re.compile(rb"(POST|GET) (/[!-~]*) HTTP/1\.1|HTTP/1\.1 ([0-9]{3})")


@dataclass(frozen=True, slots=True)
class Piece:
    """What came in one read: when (seconds since the relay began), from whom, on which connection."""

    at_s: float
    upward: bool
    connection: int
    data: bytes

    @property
    def line(self) -> str:
        """The request line or status that it begins with in clear, if it does."""
        found = _LINE.match(self.data)
        return found[0].decode() if found else ""


class Relay:
    """Listens on loopback for one target; use it as a context.

    Args:
        target: host and port that everything is carried to.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.pieces: list[Piece] = []
        self._target = target
        self._began = time.monotonic()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @classmethod
    def before(cls, url: str) -> Self:
        """Return the relay in front of ``http://HOST:PORT``."""
        host, _, port = url.removeprefix("http://").partition(":")
        return cls((host, int(port)))

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()

    @property
    def seen(self) -> bytes:
        """Everything that passed, in the order in which it came."""
        return b"".join(piece.data for piece in self.pieces)

    @property
    def epochs(self) -> set[str]:
        """The names of the keys that requests were sealed to: they stand in clear in an exchange's header."""
        return {found.decode() for found in _EPOCH.findall(self.seen)}

    def saw(self, text: str) -> bool:
        """Whether a text passed, as it is or as a JSON string; an empty one did not."""
        forms = (text.encode(), json.dumps(text)[1:-1].encode())
        return bool(text) and any(form in stream for form in forms for stream in self._streams())

    def _streams(self) -> Iterator[bytes]:
        """Each direction of each connection by itself: a text may have come in several reads."""
        for way in sorted({(piece.connection, piece.upward) for piece in self.pieces}):
            yield b"".join(piece.data for piece in self.pieces if (piece.connection, piece.upward) == way)

    def _accept(self) -> None:
        with suppress(OSError), self._listener:
            for number in range(1_000_000):
                caller, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(caller, number), daemon=True).start()

    def _join(self, caller: socket.socket, number: int) -> None:
        with suppress(OSError), caller, socket.create_connection(self._target) as target:
            back = threading.Thread(target=self._carry, args=(target, caller, number), daemon=True)
            back.start()
            self._carry(caller, target, number, upward=True)
            back.join()

    def _carry(self, one: socket.socket, other: socket.socket, number: int, *, upward: bool = False) -> None:
        with suppress(OSError):
            while data := one.recv(_AT_ONCE_BYTES):
                self.pieces.append(Piece(time.monotonic() - self._began, upward, number, data))
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
