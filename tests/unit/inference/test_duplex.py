"""What of a stream's connection is a word of the other side, and what is only the protocol's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from confed.errors import ConfigError
from confed.inference.duplex import BROKEN, Duplex

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[Duplex, socket.socket]]:
    """A connection, and the other side's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        duplex = Duplex(url, "/", content_type="x/y", wait_s=5, tls=None)
        other, _ = listener.accept()
        with other:
            yield duplex, other
        duplex.close()


def came(duplex: Duplex, *, bytes_waiting: int) -> None:
    """Wait until so many bytes can be read."""
    pause = threading.Event()
    for _ in range(500):
        if len(duplex._socket.recv(100, socket.MSG_PEEK)) >= bytes_waiting:
            return
        pause.wait(0.01)
    raise AssertionError("nothing came")


def test_the_end_of_a_chunk_is_no_word_of_the_other_side(ends: tuple[Duplex, socket.socket]) -> None:
    duplex, other = ends
    other.sendall(HEAD + b"2\r\nab")
    assert duplex.status() == 200
    assert duplex.read() == b"ab"
    assert not duplex.is_readable
    other.sendall(b"\r\n")
    came(duplex, bytes_waiting=2)
    assert not duplex.is_readable  # else who reads would wait for what never comes
    other.sendall(b"1\r\nc\r\n")
    came(duplex, bytes_waiting=4)
    assert duplex.is_readable
    assert duplex.is_readable  # looking takes nothing away
    assert duplex.read() == b"c"


def test_an_end_is_seen_and_told_to_who_reads(ends: tuple[Duplex, socket.socket]) -> None:
    duplex, other = ends
    other.sendall(HEAD)
    assert duplex.status() == 200
    other.close()
    pause = threading.Event()
    assert any(duplex.is_readable or pause.wait(0.01) for _ in range(500))
    with pytest.raises(BROKEN):
        duplex.read()


def test_an_address_with_https_needs_something_that_speaks_it() -> None:
    with pytest.raises(ConfigError):
        Duplex("https://127.0.0.1:9", "/", content_type="x/y", wait_s=5, tls=None)
