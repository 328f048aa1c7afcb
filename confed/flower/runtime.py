"""A client host's way to its SuperNode: the Runtime API, in place of Flower's process per message.

A FAB that the SuperNode sends along is not unpacked, installed or imported.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

from confed.flower.assignment import Assignment, KeptStates
from confed.flower.calls import DirectRuntimeClient, call, heartbeats
from confed.flower.objects import dropping_what_is_gone, identified, pull_content, push_content

if TYPE_CHECKING:
    import contextlib

    import httpx
    from flwr.app import Message
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
    from flwr.supercore.runtime import RuntimeHttpClient


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeAccess:
    """What a host needs to serve behind a SuperNode; may be sent to another process.

    Args:
        address: host and port of the SuperNode's Runtime API.
        root_certificates: PEM.
        superexec_secret: what the SuperNode got as ``--superexec-auth-secret-file``.
    """

    address: str
    root_certificates: bytes = field(repr=False)
    superexec_secret: bytes = field(repr=False)

    def connect(self) -> RuntimeConnection:
        """Connect to the SuperNode.

        Raises:
            Nothing: the first call on the connection tells whether the SuperNode is there.
        """
        return RuntimeConnection(self)


class TaskToken:
    """Put the current task's token on every call but the one that asks for a task."""

    def __init__(self) -> None:
        self.token = ""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the header, and go on."""
        if self.token:
            context.request.headers[TASK_TOKEN_HEADER] = self.token
        return call_next(context)


class RuntimeConnection:
    """A client host's connection to its SuperNode's Runtime API.

    One message at a time, from one thread. A heartbeat thread holds the task while the app works on it.
    """

    def __init__(self, access: RuntimeAccess) -> None:
        self._token = TaskToken()
        self._client = runtime_client(access, self._token)
        self._states = KeptStates()
        self._heartbeat: contextlib.ExitStack | None = None

    def __enter__(self) -> Self:
        """Return the connection; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def pull(self) -> Assignment | None:
        """Claim the next task and return its message, or nothing if none waits.

        Raises:
            UnreachableError: the SuperNode does not answer.
            DeploymentError: the SuperNode refuses this host (wrong secret).
        """
        token = claim_task(self._client, TaskType.CLIENT_APP)
        if token is None:
            return None
        self._token.token = token
        with heartbeats(self._beat) as heartbeat:
            assignment = self._receive()
            if assignment is None:
                self._token.token = ""
                return None
            self._heartbeat = heartbeat.pop_all()
        return assignment

    def push(self, assignment: Assignment, reply: Message) -> None:
        """Deliver the reply and finish the task; a reply to a run that has ended is dropped.

        Raises:
            UnreachableError: the SuperNode does not answer.
            DeploymentError: the SuperNode refuses the reply.
        """
        self._states.keep(assignment.context)
        run_id, node = assignment.context.run_id, Node(node_id=assignment.context.node_id)
        try:
            with dropping_what_is_gone():
                with identified(reply) as (bare, tree):
                    request = PushAppMessagesRequest(messages_list=[bare], message_object_trees=[tree])
                    accepted = call(self._client.PushMessages, request)
                    push_content(self._client, node, run_id, reply, accepted)
                # Without its context: the app's state is none of the SuperNode's business.
                outcome = "failed" if reply.has_error() else "completed"
                call(self._client.PushTaskOutput, PushTaskOutputRequest(sub_status=outcome))
        finally:
            self._release()

    def close(self) -> None:
        """Close the connection.

        Raises:
            Nothing.
        """
        self._release()
        self._client.close()

    def _receive(self) -> Assignment | None:
        with dropping_what_is_gone():
            task = call(self._client.PullTaskInput, PullTaskInputRequest())
            context = self._states.restore(context_from_proto(task.context))
            pulled = call(self._client.PullMessages, PullAppMessagesRequest())
            if not pulled.messages_list:
                call(self._client.PushTaskOutput, PushTaskOutputRequest(sub_status="failed", details="no-message"))
                return None
            message = pull_content(
                self._client, Node(node_id=context.node_id), context.run_id, pulled.message_object_trees[0]
            )
            return Assignment(message=message, context=context, started_at=time.monotonic())
        return None

    def _beat(self) -> None:
        self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    def _release(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.close()
            self._heartbeat = None
        self._token.token = ""


def runtime_client(access: RuntimeAccess, token: TaskToken) -> RuntimeHttpClient:
    """Make a client of a Runtime API that signs its request for a task, and names the task in all others.

    Raises:
        Nothing: the first call tells whether anybody answers.
    """
    # The constant that Flower's SuperExec signs with: it protects asking for a task, and nothing else.
    secret = SuperExecAuthHttpInterceptor(
        master_secret=access.superexec_secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
    )
    return DirectRuntimeClient.from_server_address(
        access.address, insecure=False, root_certificates=access.root_certificates, interceptors=[token, secret]
    )


def claim_task(client: RuntimeHttpClient, task_type: TaskType) -> str | None:
    """Claim the oldest task of a type and return its token, or nothing if none waits.

    Raises:
        UnreachableError, DeploymentError: the peer does not answer, or the SuperExec secret is wrong.
    """
    claimed = call(client.AcquireTask, AcquireTaskRequest(supported_task_types=[task_type]))
    return claimed.token or None
