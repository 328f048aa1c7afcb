"""A client host's loop: pull a message, answer it with the ClientApp in this process, push the reply.

An exception in the ClientApp leaves this process as a stable code, never as its text.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Protocol, cast

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

if TYPE_CHECKING:
    import threading

    from flwr.clientapp.typing import ClientAppCallable

    from confed.flower.assignment import Assignment

_logger = logging.getLogger(__name__)

_LONGEST_POLL_S = 1.0

UNKNOWN_FAILURE = "client-app-failed"
_CODE = re.compile(r"[a-z][a-z0-9-]{0,63}")


class Connection(Protocol):
    """Where a client host gets messages from and brings replies to."""

    def pull(self) -> Assignment | None:
        """Return the next message for this node, or nothing if none waits."""
        ...

    def push(self, assignment: Assignment, reply: Message) -> None:
        """Deliver ``reply`` to the one message that was pulled."""
        ...


def serve_client_app(
    client_app: ClientAppCallable,
    connection: Connection,
    stop: threading.Event,
    *,
    poll_interval_s: float = 0.1,
) -> int:
    """Answer messages with ``client_app`` in this process until ``stop`` is set; return how many were answered.

    A message that is being worked on when ``stop`` is set is answered first. An exception in the app becomes an error
    reply whose reason is the exception's ``code``, or ``client-app-failed`` if it has none.

    A poll costs the SuperLink a few milliseconds of CPU: with many nodes on one, allow it about 10 ms per node. The
    longer no message comes the less often it is asked, up to once a second: a twentieth of the wait is lost at most.

    Raises:
        UnreachableError, DeploymentError: what the connection raises; a supervisor starts the host again.
    """
    answered, idle_since = 0, time.monotonic()
    while not stop.is_set():
        assignment = connection.pull()
        if assignment is None:
            if getattr(connection, "waits", False):  # it has waited already
                continue
            stop.wait(max(poll_interval_s, min((time.monotonic() - idle_since) / 20, _LONGEST_POLL_S)))
            continue
        connection.push(assignment, _answer(client_app, assignment))
        answered, idle_since = answered + 1, time.monotonic()
    return answered


def _answer(client_app: ClientAppCallable, assignment: Assignment) -> Message:
    try:
        # An app is not checked by the types that its signature promises.
        reply = cast("object", client_app(assignment.message, assignment.context))
        if not isinstance(reply, Message):
            raise TypeError(type(reply))
    # The one service edge: whatever an app raises must leave as a code, and must not end the host.
    except Exception as error:  # noqa: BLE001
        code = getattr(error, "code", None)
        reason = code if isinstance(code, str) and _CODE.fullmatch(code) else UNKNOWN_FAILURE
        _logger.warning("client app failed: %s", reason)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=assignment.message)
    return reply
