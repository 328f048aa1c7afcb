"""A message's content on its way: Flower moves it as objects named by their digests, beside the bare message."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)

from confed.flower.calls import FlowerRefusedError, call
from confed.flower.messages import set_message_id

if TYPE_CHECKING:
    from collections.abc import Generator

    from flwr.proto.fleet_pb2 import PushMessagesResponse
    from flwr.proto.message_pb2 import Message as MessageProto
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.fleet_http_client import FleetHttpClient

_logger = logging.getLogger(__name__)

# What the peer answers when the run, the task or the message is gone: the answer is dropped, the host lives on.
_GONE = frozenset({401, 403, 404, 409, 410})
# Objects of a message arrive just after the message is visible; Flower's own first wait is 1 s.
_FIRST_OBJECT_PAUSE_S = 0.02
_LONGEST_OBJECT_PAUSE_S = 1.0
_OBJECT_TIMEOUT_S = 600.0
_CONCURRENT_OBJECTS = 4


def pull_content(client: RuntimeHttpClient | FleetHttpClient, node: Node, run_id: int, tree: ObjectTree) -> Message:
    """Pull the objects of a message, confirm them and put them together.

    Raises:
        UnreachableError, DeploymentError: the peer does not answer, or refuses.
        ObjectPullError: an object never arrives.
    """

    def confirm(object_id: str) -> None:
        request = ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=object_id)
        call(client.ConfirmMessageReceived, request)

    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(lambda request: call(client.PullObject, request), node, run_id),
        confirm,
        return_type=Message,
        max_concurrent_pulls=_CONCURRENT_OBJECTS,
        max_time=_OBJECT_TIMEOUT_S,
        initial_backoff=_FIRST_OBJECT_PAUSE_S,
        backoff_cap=_LONGEST_OBJECT_PAUSE_S,
    )
    set_message_id(message, tree.object_id)
    return message


def push_content(
    client: FleetHttpClient,
    node: Node,
    run_id: int,
    reply: Message,
    accepted: PushMessagesResponse,
) -> None:
    """Push those objects of a reply that the peer, when it accepted the reply, said it lacks.

    Raises:
        UnreachableError, DeploymentError: the peer does not answer, or refuses.
        ObjectPushError: the peer does not take an object.
    """
    push_objects(
        get_all_nested_objects(reply),
        make_push_object_fn_protobuf(
            lambda request: call(client.PushObject, request), node, run_id, accepted.session_id
        ),
        object_ids_to_push=set(accepted.objects_to_push),
        max_concurrent_pushes=_CONCURRENT_OBJECTS,
    )


@contextlib.contextmanager
def identified(reply: Message) -> Generator[tuple[MessageProto, ObjectTree]]:
    """Give the reply its id, and yield it without content beside the tree of what it holds.

    Raises:
        Nothing.
    """
    set_message_id(reply, reply.object_id)
    bare = message_to_proto(remove_content_from_message(reply))
    with no_object_id_recompute():
        yield bare, get_object_tree(reply)


@contextlib.contextmanager
def dropping_what_is_gone() -> Generator[None]:
    """Leave the block early, with a line in the log, if the message in hand is gone or cannot be moved whole.

    Raises:
        FlowerRefusedError: the peer refuses for another reason than that the run, task or message is gone.
    """
    try:
        yield
    except FlowerRefusedError as error:
        if error.status not in _GONE:
            raise
        _logger.warning("message dropped: its run or task has ended (HTTP %d)", error.status)
    # A relay may send anything: what cannot be put together as a message is no reason to stop serving.
    except (ObjectPullError, ObjectPushError, KeyError, TypeError, ValueError) as error:
        _logger.warning("message dropped: it cannot be pulled or pushed whole (%s)", type(error).__name__)
