"""A client host's way straight to the SuperLink: the Fleet API, in place of a SuperNode.

It polls as often as it is told; a SuperNode sleeps 3 s between polls and 0.5 s between looks for a reply, both
constants in its source. A FAB is not even downloaded.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from flwr.app import Context, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import user_config_from_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from confed.errors import DeploymentError
from confed.flower.assignment import Assignment, KeptStates, forget_oldest
from confed.flower.calls import DirectFleetClient, FlowerRefusedError, call, heartbeats
from confed.flower.objects import dropping_what_is_gone, identified, pull_content, push_content

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import Message, UserConfig

# Flower's answer to a node that it holds to be online (and, without node authentication, to an unknown key).
_ACTIVE_ALREADY = 412


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAccess:
    """What a host needs to serve without a SuperNode; may be sent to another process.

    Args:
        address: host and port of the SuperLink.
        root_certificates: PEM.
        private_key: PEM of the node's elliptic-curve key, whose public half the SuperLink has registered.
        node_id: what the SuperLink called the node when it registered that key.
        node_config: what a SuperNode would be given as ``--node-config``.
    """

    address: str
    root_certificates: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    node_id: int
    node_config: Mapping[str, bool | int | float | str] = field(default_factory=dict[str, "bool | int | float | str"])

    def connect(self) -> FleetConnection:
        """Connect to the SuperLink and activate the node.

        Raises:
            UnreachableError: the SuperLink does not answer.
            DeploymentError: it refuses this node.
        """
        return FleetConnection(self)


class FleetConnection:
    """A client host's connection straight to the SuperLink, as the node itself.

    One message at a time, from one thread. A heartbeat thread keeps the node online for as long as it is open.
    ``Context.run_config`` is the run's override of its configuration; the defaults inside the FAB are not read.
    """

    def __init__(self, access: FleetAccess) -> None:
        key = load_pem_private_key(access.private_key, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise DeploymentError("private_key", expected="an elliptic-curve key", got=type(key).__name__)
        self._node_config: UserConfig = dict(access.node_config)
        self._states = KeptStates()
        self._run_configs: dict[int, UserConfig] = {}
        self._client = DirectFleetClient.from_server_address(
            access.address,
            insecure=False,
            root_certificates=access.root_certificates,
            interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        )
        with contextlib.ExitStack() as opened:
            opened.callback(self._client.close)
            self._node = Node(node_id=self._activate(key.public_key(), access.node_id))
            opened.enter_context(heartbeats(self._beat))
            self._open = opened.pop_all()

    def __enter__(self) -> Self:
        """Return the connection; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Deactivate the node and close the connection."""
        self.close()

    @property
    def node_id(self) -> int:
        """The id under which ServerApps address this node."""
        return self._node.node_id

    def pull(self) -> Assignment | None:
        """Return the next message for this node, or nothing if none waits.

        Raises:
            UnreachableError: the SuperLink does not answer.
            DeploymentError: the SuperLink refuses this node.
        """
        pulled = call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not pulled.messages_list:
            return None
        run_id = pulled.messages_list[0].metadata.run_id
        with dropping_what_is_gone():
            message = pull_content(self._client, self._node, run_id, pulled.message_object_trees[0])
            context = Context(
                run_id=run_id,
                node_id=self.node_id,
                node_config=dict(self._node_config),
                state=RecordDict(),
                run_config=dict(self._run_config(run_id)),
            )
            restored = self._states.restore(context)
            return Assignment(message=message, context=restored, started_at=time.monotonic())
        return None

    def push(self, assignment: Assignment, reply: Message) -> None:
        """Deliver the reply; a reply to a run that has ended is dropped.

        Raises:
            UnreachableError: the SuperLink does not answer.
            DeploymentError: the SuperLink refuses the reply.
        """
        self._states.keep(assignment.context)
        with dropping_what_is_gone(), identified(reply) as (bare, tree):
            accepted = call(
                self._client.PushMessages,
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[bare],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[time.monotonic() - assignment.started_at],
                ),
            )
            push_content(self._client, self._node, assignment.context.run_id, reply, accepted)

    def close(self) -> None:
        """Tell the SuperLink that the node leaves, and close the connection.

        Raises:
            Nothing: a SuperLink that is gone is left alone.
        """
        with contextlib.suppress(httpx.HTTPError, RuntimeError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self._open.close()

    def _activate(self, key: ec.EllipticCurvePublicKey, node_id: int) -> int:
        request = ActivateNodeRequest(public_key=public_key_bytes(key), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            return call(self._client.ActivateNode, request).node_id
        except FlowerRefusedError as error:
            if error.status != _ACTIVE_ALREADY:
                raise
        # For the SuperLink a host that was killed, or whose connection was cut, is online for another minute.
        with contextlib.suppress(FlowerRefusedError):
            call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=node_id))
        return call(self._client.ActivateNode, request).node_id

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        self._client.SendNodeHeartbeat(request)

    def _run_config(self, run_id: int) -> UserConfig:
        if run_id not in self._run_configs:
            run = call(self._client.GetRun, GetRunRequest(node=self._node, run_id=run_id)).run
            self._run_configs[run_id] = user_config_from_proto(run.override_config)
            forget_oldest(self._run_configs)
        return self._run_configs[run_id]


def public_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Encode a node's public key as Flower registers it.

    Raises:
        Nothing.
    """
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
