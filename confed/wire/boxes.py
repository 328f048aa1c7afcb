"""Boxes of messages as their users see them; nothing that comes out of one is verified, nor whose it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

from confed.wire.channel import Endpoint, open_channel, raise_if_refused, reaching
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

_SERVICE = "courier"
_ANSWER_S = 30.0
_TOO_SOON = 0.5
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message: its name, its bytes, and who the courier says has left it (nobody, where it asks nobody)."""

    name: str
    body: bytes
    sender: str


class Boxes:
    """A client of one courier's boxes, on a connection of its own: no transfer of a model stands in the way.

    Args:
        own: the box that it reads.
    """

    def __init__(self, endpoint: Endpoint, *, own: str) -> None:
        self._channel = open_channel(endpoint)
        self._stub = services.CourierStub(self._channel)
        self._own = own
        self._after = 0

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Pass over what lies in the own box now.

        Raises:
            RefusedError: it is not ours.
            UnreachableError: the courier is down.
        """
        self._after = self._asked(0, 0).place

    def leave(self, box: str, *, name: str, body: bytes) -> None:
        """Leave a message in somebody's box.

        Raises:
            RefusedError, EncodingError, SizeError: the courier does not take it.
            UnreachableError: the courier is down.
        """
        with reaching(_SERVICE):
            reply = self._stub.Leave(pb.LeaveCall(box=box, name=name, body=body), timeout=_ANSWER_S)
        raise_if_refused(reply, who=_SERVICE)

    def wait(self, seconds: float) -> list[Received]:
        """Return what has come into the own box since the last time, waiting so long for the first.

        Raises:
            RefusedError: it is not ours.
            UnreachableError: the courier is down.
        """
        started = time.monotonic()
        reply = self._asked(self._after or 1, seconds)
        self._after = max(self._after, reply.place)
        if not reply.items and time.monotonic() - started < seconds * _TOO_SOON:
            time.sleep(min(_PAUSE_S, seconds))  # So many wait that it did not let us: look again a little later.
        return [Received(name=item.name, body=item.body, sender=item.sender) for item in reply.items]

    def _asked(self, after: int, seconds: float) -> pb.AwaitReply:
        call = pb.AwaitCall(box=self._own, after=after, wait_ms=int(seconds * 1000))
        with reaching(_SERVICE):
            reply: pb.AwaitReply = self._stub.Await(call, timeout=_ANSWER_S + seconds)
        raise_if_refused(reply, who=_SERVICE)
        return reply
