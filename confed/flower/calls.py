"""Calls to Flower's HTTP APIs, all of them protobuf over HTTPS, and how they end.

Guarantees, whatever the peer sends:

- No call waits for ever, and no answer of the peer kills the process. Flower's own helpers do both (they retry without
  end, raise SIGINT on a 401 and exit on a version mismatch), so none of those helpers is used.
- No call goes through a proxy, and none takes credentials from a netrc file: the environment is not read.

``tests/contracts/test_flower_adapter.py`` pins every private name that this package uses.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from confed.errors import DeploymentError, UnreachableError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Sequence

    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supercore.retry import RetryInvoker

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

# Flower drops a task or node that it has not heard from for its interval (30 s); three tries fit in one.
_HEARTBEAT_INTERVAL_S = HEARTBEAT_DEFAULT_INTERVAL / 3
_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.1
_WORTH_RETRYING = frozenset({502, 503, 504})


class FlowerRefusedError(DeploymentError):
    """Flower answered a call with an HTTP error.

    Args:
        status: the HTTP status.
    """

    code = "flower-refused"

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__("Flower API", expected="to be served", got=f"HTTP {status}")

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes with the status."""
        return (type(self), (self.status,))


class _Direct(ProtobufClient):
    """A client that reads no proxy and no credentials from the environment."""

    def __init__(
        self,
        base_url: str,
        *,
        interceptors: Sequence[ProtobufClientInterceptor] = (),
        verify: ssl.SSLContext | bool | str = True,
        timeout: float = 30.0,
        retry_invoker: RetryInvoker | None = None,
    ) -> None:
        # In place of Flower's own, which makes its HTTP client from the environment and fails where that names a proxy
        # of an unknown kind.
        self._base_url = base_url.rstrip("/")
        self._interceptors = tuple(interceptors)
        self._retry_invoker = retry_invoker
        self._client = httpx.Client(verify=verify, timeout=timeout, follow_redirects=True, trust_env=False)


class DirectRuntimeClient(_Direct, RuntimeHttpClient):
    """Flower's client of the Runtime API, whatever proxies the environment names."""


class DirectFleetClient(_Direct, FleetHttpClient):
    """Flower's client of the Fleet API, whatever proxies the environment names."""


class DirectControlClient(_Direct, ControlHttpClient):
    """Flower's client of the Control API, whatever proxies the environment names."""


def call(method: Callable[[_Request], _Response], request: _Request) -> _Response:
    """Call the peer, again if it does not answer, for a bounded time.

    Raises:
        UnreachableError: it does not answer.
        FlowerRefusedError: it answers with an HTTP error.
    """
    for earlier in range(_ATTEMPTS - 1):
        try:
            return attempt(method, request)
        except httpx.TransportError:
            time.sleep(_FIRST_PAUSE_S * 2**earlier)
    try:
        return attempt(method, request)
    except httpx.TransportError as error:
        raise UnreachableError("Flower API", expected="an answer", got=type(error).__name__) from error


def attempt(method: Callable[[_Request], _Response], request: _Request) -> _Response:
    """Call the peer once.

    Raises:
        httpx.TransportError: it does not answer, or says that it cannot now.
        FlowerRefusedError: it answers with an HTTP error.
    """
    try:
        return method(request)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _WORTH_RETRYING:
            raise httpx.RemoteProtocolError(f"HTTP {status}") from error
        raise FlowerRefusedError(status) from error


@contextlib.contextmanager
def heartbeats(beat: Callable[[], None]) -> Generator[contextlib.ExitStack]:
    """Call ``beat`` every few seconds in a thread; keep going past a failure, the next pull or push will tell.

    Raises:
        Nothing.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_HEARTBEAT_INTERVAL_S):
            with contextlib.suppress(httpx.HTTPError, RuntimeError, ValueError):
                beat()

    thread = threading.Thread(target=run, name="flower-heartbeat", daemon=True)
    with contextlib.ExitStack() as running:
        thread.start()
        running.callback(thread.join)
        running.callback(stop.set)
        yield running
