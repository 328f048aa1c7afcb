"""The SuperLink's Runtime API, as far as an operator needs it: who claims a run's ServerApp runs it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

from confed.flower.calls import DirectRuntimeClient, call


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeAccess:
    """Where tasks are claimed, and with what.

    Args:
        address: host and port of the Runtime API.
        root_certificates: PEM.
        superexec_secret: what the SuperLink got as ``--superexec-auth-secret-file``.
    """

    address: str
    root_certificates: bytes = field(repr=False)
    superexec_secret: bytes = field(repr=False)

    def claim_server_app(self) -> str | None:
        """Claim the oldest ServerApp that waits and return its token, or nothing if none waits.

        Raises:
            UnreachableError, DeploymentError: the peer does not answer, or the SuperExec secret is wrong.
        """
        # The constant that Flower's SuperExec signs with: it protects asking for a task, and nothing else.
        secret = SuperExecAuthHttpInterceptor(
            master_secret=self.superexec_secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"}
        )
        client = DirectRuntimeClient.from_server_address(
            self.address, insecure=False, root_certificates=self.root_certificates, interceptors=[secret]
        )
        with contextlib.closing(client):
            claimed = call(client.AcquireTask, AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        return claimed.token or None
