"""A caller that asks for signs of life is not sent away by a service that was busy, and reads many of them at once."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from confed.wire.channel import serve

PINGS = 8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _PING, _GOAWAY, _ACKNOWLEDGED = 4, 6, 7, 1
"""Types and a flag of HTTP/2's frames. Source: RFC 9113, section 6."""


def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0) + payload


def frames(connection: socket.socket) -> Iterator[tuple[int, int]]:
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            kind, flags = head[3], head[4]
            stream.read(int.from_bytes(head[:3], "big"))
            yield kind, flags


def test_many_signs_of_life_at_once_end_no_connection(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with (
        serve(lambda _server: None, listen=f"unix:{path}", tls=None),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(10)
        connection.connect(str(path))
        pings = b"".join(frame(_PING, number.to_bytes(8, "big")) for number in range(PINGS))
        connection.sendall(_PREFACE + frame(_SETTINGS) + pings)
        answered = 0
        for kind, flags in frames(connection):
            assert kind != _GOAWAY, f"sent away after {answered}"
            answered += kind == _PING and flags == _ACKNOWLEDGED
            if answered == PINGS:
                connection.sendall(frame(_PING, bytes(8)))  # what ends a connection may come after all answers
            elif answered > PINGS:
                break
        assert answered == PINGS + 1
