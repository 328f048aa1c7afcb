"""Flower messages as bytes, their ids, and the identity without which a process can make none.

Not promised: that a message is authentic. Flower is a relay; what it carries is opened and checked by ``client.mod``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from flwr.app import Message

# Flower draws the ids of its tasks from the positive integers: no task of a deployment has this one.
_LOCAL_TASK = 0


def encode_message(message: Message) -> bytes:
    """Encode a whole Flower message (metadata, and content or error) for a pipe or a socket.

    The id that Flower gave to the message is part of the metadata and survives.

    Raises:
        ValueError: the message is larger than protobuf allows (2 GiB).
    """
    return message_to_proto(message).SerializeToString(deterministic=True)


def decode_message(data: bytes) -> Message:
    """Decode what ``encode_message`` made.

    Raises:
        google.protobuf.message.DecodeError: ``data`` is not an encoded message.
    """
    return message_from_proto(MessageProto.FromString(data))


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as Flower itself does: an id is a digest of the message, and has no setter.

    Raises:
        Nothing.
    """
    message.metadata.__dict__["_message_id"] = message_id


def use_local_task_identity(run_id: int, node_id: int) -> None:
    """Let this process make messages as the ServerApp ``node_id`` of the run ``run_id``, without a Flower deployment.

    Flower keeps this identity in a global of the process, and sets it before a ServerApp starts; without it
    ``Message(content, dst_node_id=…)`` raises. For an in-process Grid only: it holds until somebody sets it again.

    Raises:
        Nothing.
    """
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = _LOCAL_TASK
