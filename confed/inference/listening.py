"""Serves an ASGI application over HTTP with uvicorn, quietly: no log of requests, no headers that name the server."""

from __future__ import annotations

import socket
import threading
from typing import Any, Self

from confed.errors import ConfigError, PortInUseError, UnreachableError

_BACKLOG = 512
_START_S = 20.0
_EXTRA = "confed[inference]"


def bound_socket(listen: str, *, loopback_only: bool) -> socket.socket:
    """Return a socket that listens at ``HOST:PORT`` (port 0 for a free one).

    Raises:
        ConfigError: no such address, or one that others than this machine reach where only it may.
        PortInUseError: it is taken.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError("listen", expected="HOST:PORT", got=listen)
    if loopback_only and host not in ("127.0.0.1", "localhost"):
        raise ConfigError("listen", expected="127.0.0.1: who reaches it reads in clear", got=host)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise PortInUseError("listen", expected="a free address", got=listen) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return ``http://HOST:PORT`` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


def serve(app: Any, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: uvicorn is not installed.
    """
    _server(app).run(sockets=[listener])


class Serving:
    """An application that is served in a thread of this process; use it as a context."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        self.url = address_of(listener)
        self._server = _server(app)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        waited = threading.Event()
        for _ in range(int(_START_S * 100)):
            if self._server.started:
                return self
            waited.wait(0.01)
        raise UnreachableError("server", expected=f"to listen within {_START_S:.0f} s", got="nothing")

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)


def _server(app: Any) -> Any:
    try:
        import uvicorn  # noqa: PLC0415 (an extra's)
    except ModuleNotFoundError as error:
        raise ConfigError("uvicorn", expected=f"installed (pip install {_EXTRA!r})", got="none") from error
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
