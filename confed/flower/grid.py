"""A ServerApp's way to the SuperLink, in place of the Grid that sleeps 3 s between looks for replies."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import HttpGrid

from confed.flower.calls import call
from confed.flower.objects import pull_content

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.app import Message, RecordDict
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run


class PromptGrid(Grid):
    """A ServerApp's Grid that looks for replies often.

    Flower's own sleeps 3 s between looks, and 1 s whenever it sees a reply before the reply's content has arrived.
    Wrap the one that ``ServerApp.main`` gets; a Grid that is not Flower's HTTP one pulls in its own way.
    """

    def __init__(self, grid: Grid, *, poll_interval_s: float = 0.05) -> None:
        super().__init__()
        self._grid = grid
        self._poll_interval_s = poll_interval_s

    def set_run(self, run: Run) -> None:
        """Set the run on the wrapped Grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the wrapped Grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message as the wrapped Grid does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes that are online."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes that are online, with the names under which they were registered."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; one whose content never arrives is an error reply.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or refuses.
        """
        if not isinstance(self._grid, HttpGrid):
            return self._grid.pull_messages(message_ids)
        client = self._grid._runtime_client  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        run_id = self._grid.run.run_id
        pulled = call(client.PullMessages, PullAppMessagesRequest(message_ids=list(message_ids)))
        replies: list[Message] = []
        for bare, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            try:
                replies.append(pull_content(client, self._grid.node, run_id, tree))
            except ObjectPullError:
                bare.error.code, bare.error.reason = ErrorCode.MESSAGE_UNAVAILABLE, "reply-unavailable"
                replies.append(message_from_proto(bare))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that arrive within ``timeout`` seconds, or all of them without one."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            if waiting and not arrived:
                time.sleep(self._poll_interval_s)
        return replies
