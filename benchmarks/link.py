"""A TCP link between a client and a server that is slow, far, or cut: a proxy on loopback that counts what passes.

It stands in for ``tc netem``, which needs a kernel module and rights that most machines do not give.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from confed.wire.channel import Endpoint

_READ_BYTES = 256 * 1024
_SLOW_READ_BYTES = 16 * 1024
_QUEUE_BYTES = 256 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass(kw_only=True)
class Direction:
    """One way of a link.

    Attributes:
        rate: bytes a second through all connections together; none: as fast as it goes.
        delay_s: how long each byte is under way.
        cuts: after how many bytes in all the link is cut, each once.
        bytes_passed: what has gone through so far.
    """

    rate: float | None = None
    delay_s: float = 0.0
    cuts: Sequence[int] = ()
    bytes_passed: int = 0
    _free_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, size: int) -> tuple[float, bool]:
        """Count bytes; return when they arrive at the other end, and whether the link is cut now."""
        with self._lock:
            before, self.bytes_passed = self.bytes_passed, self.bytes_passed + size
            cut = any(before < at <= self.bytes_passed for at in self.cuts)
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + (size / self.rate if self.rate else 0.0)
            return self._free_at + self.delay_s, cut


class Link:
    """Listens on loopback and carries every connection to ``endpoint``'s service; as a context, ends with it.

    Args:
        endpoint: where the service listens, TCP.
        up, down: what the way to the service and back is like.
    """

    def __init__(self, endpoint: Endpoint, *, up: Direction | None = None, down: Direction | None = None) -> None:
        host, _, port = endpoint.target.rpartition(":")
        self._target = (host, int(port))
        self.up, self.down = up or Direction(), down or Direction()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint(
            target=f"127.0.0.1:{self._listener.getsockname()[1]}", certificate=endpoint.certificate
        )
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Break every connection at once, with a reset at both ends."""
        with self._lock:
            ends, self._open = self._open, set()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # Whoever waits for its bytes holds it open until then.
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self.connections += 1
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {near, far}
            for source, target, way in ((near, far, self.up), (far, near, self.down)):
                threading.Thread(target=self._carry, args=(source, target, way), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, way: Direction) -> None:
        slow = way.rate is not None or way.delay_s > 0
        # What is under way fills the link; what does not fit waits in the sender, as in a router's short queue.
        room = max(1, int(((way.rate or 1e9) * way.delay_s + _QUEUE_BYTES) / _SLOW_READ_BYTES))
        under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(room)
        if slow:
            threading.Thread(target=_deliver, args=(under_way, target), daemon=True).start()
        try:
            while data := source.recv(_SLOW_READ_BYTES if slow else _READ_BYTES):
                due, cut = way.take(len(data))
                if slow:
                    under_way.put((due, data))
                else:
                    target.sendall(data)
                if cut:
                    self.cut()
        except OSError:
            pass
        under_way.put((0.0, b""))
        if not slow:
            _end(target)


def _deliver(under_way: queue.Queue[tuple[float, bytes]], target: socket.socket) -> None:
    while (entry := under_way.get())[1]:
        due, data = entry
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            target.sendall(data)
        except OSError:
            # The connection is gone: what is still under way is lost, and whoever fills the link is not held up.
            while under_way.get()[1]:
                pass
            return
    _end(target)


def _end(target: socket.socket) -> None:
    try:
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
