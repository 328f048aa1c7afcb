"""A connection that outlives its peer's absence: it is made again, after pauses that double, until an end to patience.

An app's ``Context.state`` does not outlive it: confidential apps keep theirs in the session (``client.mod``).
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from confed.errors import UnreachableError
from confed.flower.serving import Connection

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from flwr.app import Message

    from confed.flower.assignment import Assignment

_logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

AWAY_S = 600.0
"""How long a peer may be away before a host gives up and ends."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class Closeable(Connection, Protocol):
    """A connection that can be closed."""

    def close(self) -> None:
        """Close it; never raises."""
        ...


class Reconnecting:
    """A client host's connection that is made again whenever the peer does not answer.

    Guarantees: pauses double from half a second to half a minute, each shortened by up to a half by chance, so that
    the sites of a federation do not come back all at once; after ``away_s`` without an answer it raises. A reply that
    could not be brought is brought on the next connection; what the peer has forgotten meanwhile is dropped there.

    Args:
        connect: makes a connection; may raise ``UnreachableError``.
        stop: ends the pauses when set; a pull then returns nothing.
        away_s: how long the peer may be away.
        wait: waits for ``stop`` for some seconds; injectable for tests.
        clock: monotonic seconds; injectable for tests.
    """

    def __init__(
        self,
        connect: Callable[[], Closeable],
        stop: threading.Event,
        *,
        away_s: float = AWAY_S,
        wait: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._stop = stop
        self._away_s = away_s
        self._wait = wait or stop.wait
        self._clock = clock
        self._connection: Closeable | None = None

    def __enter__(self) -> Self:
        """Return the connection; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def pull(self) -> Assignment | None:
        """Return the next message, or nothing if none waits or the host shall stop.

        Raises:
            UnreachableError: the peer stayed away.
            DeploymentError: it answers, but refuses this node.
        """
        try:
            return self._reaching(lambda connection: connection.pull())
        except UnreachableError:
            if self._stop.is_set():
                return None
            raise

    def push(self, assignment: Assignment, reply: Message) -> None:
        """Deliver a reply.

        Raises:
            UnreachableError: the peer stayed away, or the host shall stop while it is away.
            DeploymentError: it answers, but refuses this node.
        """
        self._reaching(lambda connection: connection.push(assignment, reply))

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _reaching(self, call: Callable[[Closeable], _Answer]) -> _Answer:
        since, pause_s = self._clock(), _FIRST_PAUSE_S
        while True:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                    if pause_s > _FIRST_PAUSE_S:
                        _logger.warning("Flower answers again after %.1f s", self._clock() - since)
                return call(self._connection)
            except UnreachableError as error:
                self.close()
                if self._stop.is_set() or self._clock() - since >= self._away_s:
                    raise UnreachableError(
                        "Flower", expected=f"an answer within {self._away_s:g} s", got="none"
                    ) from error
                _logger.warning("Flower does not answer: connecting again within %g s", pause_s)
                self._wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (spreads load; no secret)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
