"""A Grid that calls sites through their boxes at the courier, where they listen, and through Flower's where not.

A call through the SuperLink is a dozen HTTP requests to one process, some 10 ms each, and is found when somebody asks
next; through a box it is two small messages that somebody waits for. Who listens is said in the answer to the first
message, which goes through Flower's Grid.

Guarantees: a call that was lost with the courier is left again every few seconds until it is answered, and one that a
courier which is away could not take as soon as it is back; a site whose node is no longer online is answered for, with
an error. An answer is believed to be a site's only if the courier says so where it knows; it may lie, as Flower's
SuperLink may, and what an answer refers to is checked by the enclave.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from confed.errors import UnreachableError
from confed.flower.messages import decode_message, encode_message, set_message_id
from confed.wire.patience import spread_sleep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from confed.wire.boxes import Received

LISTENS = "listens"
"""What a site's answer to the first message says if it listens at its box."""
GONE = "client-died"
_WAIT_S = 0.5
_AGAIN_S = 5.0
_LOOK_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_NOT_LEFT = -math.inf
_logger = logging.getLogger(__name__)


class GovernorBox(Protocol):
    """The governor's side of the boxes; ``confed.wire.boxes.Boxes`` is one."""

    def leave(self, box: str, *, name: str, body: bytes) -> None:
        """Leave a message in somebody's box."""
        ...

    def wait(self, seconds: float) -> list[Received]:
        """Return what has come since."""
        ...


@dataclass(slots=True)
class _Call:
    """A call that is not answered yet; ``left_at`` is ``_NOT_LEFT`` while the courier is not known to have it."""

    message: Message
    site: str
    body: bytes
    left_at: float


class CallingGrid(Grid):
    """``grid``, but sites that listen are called through their boxes.

    Args:
        record: name of the ConfigRecord in which an answer names its site.
        patience_s: how long the courier may be away.
        sleep: waits until it is asked again; injectable for tests.
    """

    waits = True

    def __init__(
        self,
        grid: Grid,
        boxes: GovernorBox,
        *,
        record: str,
        patience_s: float,
        sleep: Callable[[float], None] = spread_sleep,
    ) -> None:
        super().__init__()
        self._grid, self._boxes, self._record = grid, boxes, record
        self._away = _Away(patience_s, sleep)
        self._sites: dict[int, str] = {}
        self._calls: dict[str, _Call] = {}
        self._looked_at = 0.0

    def set_run(self, run: Any) -> None:
        """Set the run on the wrapped Grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """The run of the wrapped Grid."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message as the wrapped Grid does."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids, in their order."""
        names: list[str] = []
        for message in messages:
            site = self._sites.get(message.metadata.dst_node_id)
            if site is None:
                names += self._grid.push_messages([message])
                continue
            name = os.urandom(16).hex()
            set_message_id(message, name)
            self._calls[name] = _Call(message, site, encode_message(message), _NOT_LEFT)
            names.append(name)
        self._leave(name for name in names if name in self._calls)
        self._looked_at = time.monotonic()
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, waiting for the first of those that come through the box.

        Raises:
            UnreachableError: the courier has been away for longer than ``patience_s``.
        """
        wanted = set(message_ids)
        calls = wanted & self._calls.keys()
        replies = list(self._grid.pull_messages(wanted - calls)) if wanted - calls else []
        for reply in replies:
            self._learn(reply)
        if not calls:
            if not replies:
                time.sleep(_WAIT_S / 10)
            return replies
        late = time.monotonic() - _AGAIN_S
        self._leave(name for name in calls if self._calls[name].left_at < late)
        for received in self._come(0.0 if replies else _WAIT_S):
            reply = self._reply(received)
            if reply is not None:
                replies.append(reply)
        return [*replies, *self._gone(calls)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that arrive in time."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def _learn(self, reply: Message) -> None:
        told = None if reply.has_error() else reply.content.config_records.get(self._record, ConfigRecord())
        if told is not None and told.get(LISTENS) == 1:
            self._sites[reply.metadata.src_node_id] = str(told.get("site", ""))

    def _leave(self, names: Iterable[str]) -> None:
        """Leave calls in their sites' boxes; what a courier that is away does not take waits until it is back."""
        for name in names:
            call = self._calls[name]
            try:
                self._boxes.leave(call.site, name=name, body=call.body)
            except UnreachableError as error:
                _logger.warning("a call waits for the courier: %s", error)
                return
            call.left_at = time.monotonic()

    def _come(self, seconds: float) -> list[Received]:
        """Return what has come into the box; nothing, after a pause, while the courier is away."""
        try:
            received = self._boxes.wait(seconds)
        except UnreachableError as error:
            for call in self._calls.values():  # Boxes are in memory: what was in them may be lost.
                call.left_at = _NOT_LEFT
            self._away.pause(error)
            return []
        self._away.over()
        return received

    def _reply(self, received: Received) -> Message | None:
        call = self._calls.get(received.name)
        if call is None or received.sender not in ("", call.site):
            return None
        try:
            reply = decode_message(received.body)
        except (DecodeError, ValueError, KeyError, TypeError):
            return None  # It is asked again, and the round has its deadline.
        told = reply.metadata
        if (told.src_node_id, told.reply_to_message_id) != (call.message.metadata.dst_node_id, received.name):
            return None
        del self._calls[received.name]
        return reply

    def _gone(self, names: Iterable[str]) -> list[Message]:
        """Return an error for each call to a node that is no longer online."""
        if time.monotonic() - self._looked_at < _LOOK_S:
            return []
        self._looked_at = time.monotonic()
        online = set(self._grid.get_node_ids())
        gone = [name for name in names if name in self._calls]
        gone = [name for name in gone if self._calls[name].message.metadata.dst_node_id not in online]
        return [
            Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason=GONE), reply_to=self._calls.pop(name).message)
            for name in gone
        ]


class _Away:
    """For how long the courier has been away: pauses that double, up to an end."""

    def __init__(self, patience_s: float, sleep: Callable[[float], None]) -> None:
        self._patience_s, self._sleep = patience_s, sleep
        self._since: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def pause(self, error: UnreachableError) -> None:
        """Wait before it is asked again, or raise ``error``: it was away for too long."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._pause_s = now, _FIRST_PAUSE_S
        if now - self._since > self._patience_s:
            raise error
        self._sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def over(self) -> None:
        """Say that it has answered."""
        self._since = None
