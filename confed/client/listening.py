"""A client host that listens at the courier: a call reaches it when it is made, not when the SuperLink is next asked.

1. The first message comes through Flower's SuperLink, with which the node is registered and online; the answer to it
   says that this host listens.
2. It waits at the site's box for what the governor leaves there: Flower messages, in bytes. An answer goes to the
   governor's box under the name of what it answers.
3. The SuperLink is still asked, after each wait, for a governor that does not know of boxes; waits grow to a second.
4. A message that comes again was answered by what was lost: the answer is left again, and nothing is done twice.

A message says no more here than there, and is as little believed (``client.mod``).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from flwr.app import Context, RecordDict
from google.protobuf.message import DecodeError

from confed.errors import UnreachableError
from confed.flower.assignment import Assignment
from confed.flower.messages import decode_message, encode_message
from confed.wire.addresses import GOVERNOR_BOX

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from flwr.app import Message

    from confed.flower.serving import Connection
    from confed.wire.boxes import Received

_WAIT_S = 1.0
_REMEMBERED = 8
_logger = logging.getLogger(__name__)


class OwnBox(Protocol):
    """The site's side of the boxes; ``confed.wire.boxes.Boxes`` is one."""

    def begin(self) -> None:
        """Pass over what is there."""
        ...

    def leave(self, box: str, *, name: str, body: bytes) -> None:
        """Leave a message in somebody's box."""
        ...

    def wait(self, seconds: float) -> list[Received]:
        """Return what has come since."""
        ...


class Listening:
    """A connection that brings messages from the site's box as well; one thread's.

    Args:
        connection: the way to Flower.
        stop: ends pauses when set.
        node_config: what the app finds in ``Context.node_config``.
        poll_interval_s: how often Flower is asked at most, until the host has said that it listens.
    """

    waits = True

    def __init__(
        self,
        connection: Connection,
        boxes: OwnBox,
        stop: threading.Event,
        *,
        node_config: Mapping[str, bool | int | float | str],
        poll_interval_s: float,
    ) -> None:
        self._connection, self._boxes, self._stop = connection, boxes, stop
        self._node_config, self._poll_interval_s = dict(node_config), poll_interval_s
        self._begun = self._told = False
        self._idle_since = time.monotonic()
        self._arrived: list[Received] = []
        self._names: dict[str, str] = {}
        self._answers: dict[str, bytes] = {}

    def pull(self) -> Assignment | None:
        """Return the next message, from the box or from Flower, or nothing if none comes for a second.

        Raises:
            UnreachableError, DeploymentError: as the way to Flower raises them.
        """
        found = self._from_box() or self._connection.pull()
        if found is not None:
            self._idle_since = time.monotonic()
        return found

    def push(self, assignment: Assignment, reply: Message) -> None:
        """Deliver an answer the way that its message came.

        Raises:
            UnreachableError, DeploymentError: as the way to Flower raises them.
        """
        name = self._names.pop(assignment.message.metadata.message_id, None)
        if name is None:
            self._connection.push(assignment, reply)
            self._told = True
            return
        self._answers[name] = encode_message(reply)
        for old in list(self._answers)[:-_REMEMBERED]:
            del self._answers[old]
        self._leave(name)

    def _from_box(self) -> Assignment | None:
        try:
            if not self._begun:
                self._boxes.begin()
                self._begun = True
            self._arrived += [] if self._arrived else self._boxes.wait(self._wait_s)
        except UnreachableError:
            self._stop.wait(self._wait_s)  # the courier is started again, and what it lost is left again
        while self._arrived:
            received = self._arrived.pop(0)
            message = self._new(received)
            if message is not None:
                self._names[message.metadata.message_id] = received.name
                return Assignment(message=message, context=self._context(message), started_at=time.monotonic())
        return None

    @property
    def _wait_s(self) -> float:
        if self._told or self._answers:
            return _WAIT_S
        return min(max(self._poll_interval_s, (time.monotonic() - self._idle_since) / 20), _WAIT_S)

    def _context(self, message: Message) -> Context:
        """Return a context as Flower's way makes it; an app's own, and its state, is the session's affair."""
        return Context(
            run_id=message.metadata.run_id,
            node_id=message.metadata.dst_node_id,
            node_config=dict(self._node_config),
            state=RecordDict(),
            run_config={},
        )

    def _new(self, received: Received) -> Message | None:
        """Return a message that was not answered before; the answer of one that was is left again."""
        if received.sender not in ("", GOVERNOR_BOX):
            return None
        if received.name in self._answers:
            self._leave(received.name)
            return None
        try:
            return decode_message(received.body)
        except (DecodeError, ValueError, KeyError, TypeError):
            _logger.warning("a message in the box is none")
            return None

    def _leave(self, name: str) -> None:
        try:
            self._boxes.leave(GOVERNOR_BOX, name=name, body=self._answers[name])
        except UnreachableError:
            _logger.warning("an answer could not be left: it is left again when it is asked for again")
