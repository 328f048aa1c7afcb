"""The way of whoever operates the federation to the SuperLink: registers nodes, starts runs, reads status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import httpx
import tomli_w
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.constant import NodeStatus

from confed.errors import DeploymentError
from confed.flower.calls import DirectControlClient, attempt, call
from confed.flower.runtime import RuntimeAccess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run stands, in Flower's words.

    Args:
        status: ``pending``, ``starting``, ``running`` or ``finished``.
        sub_status: once finished: ``completed``, ``failed`` or ``stopped``.
        details: Flower's explanation; it may hold the text of an exception in the ServerApp.
    """

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self.status == "finished"

    @property
    def completed(self) -> bool:
        """Whether the run has ended well."""
        return self.finished and self.sub_status == "completed"


class ControlConnection:
    """An operator's connection to the SuperLink, for a federation whose Control API only the operator can reach."""

    def __init__(self, address: str, *, root_certificates: bytes, superexec_secret: bytes) -> None:
        self._client = DirectControlClient.from_server_address(
            address, insecure=False, root_certificates=root_certificates, interceptors=[]
        )
        self._runtime = RuntimeAccess(
            address=address, root_certificates=root_certificates, superexec_secret=superexec_secret
        )

    def __enter__(self) -> Self:
        """Return the connection; leaving closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()

    def answers(self) -> bool:
        """Tell whether the SuperLink answers yet.

        Raises:
            DeploymentError: something answers, but refuses.
        """
        try:
            attempt(self._client.ListNodes, ListNodesRequest())
        except httpx.TransportError:
            return False
        return True

    def register_node(self, public_key: bytes, *, name: str) -> int:
        """Let the node with ``public_key`` (PEM) join, and return its node id.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or refuses the key.
        """
        return call(self._client.RegisterNode, RegisterNodeRequest(public_key=public_key, name=name)).node_id

    def online_nodes(self) -> frozenset[int]:
        """Return the ids of the nodes that are online.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or refuses.
        """
        nodes = call(self._client.ListNodes, ListNodesRequest()).nodes_info
        return frozenset(node.node_id for node in nodes if node.status == NodeStatus.ONLINE)

    def start_run(self, bundle: bytes, *, run_config: Mapping[str, bool | int | float | str]) -> int:
        """Submit a run and return its id; its ServerApp waits until somebody claims it.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or refuses the bundle.
        """
        override = user_config_to_proto(dict(run_config))
        run_id = call(self._client.StartRun, StartRunRequest(fab=Fab(content=bundle), override_config=override)).run_id
        if not run_id:
            raise DeploymentError("run", expected="a run id from the SuperLink", got="none")
        return run_id

    def claim_server_app(self) -> str | None:
        """Claim the oldest ServerApp that waits and return its token, or nothing if none waits.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or the SuperExec secret is wrong.
        """
        return self._runtime.claim_server_app()

    def run_status(self, run_id: int) -> RunStatus:
        """Return where the run stands.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or does not know the run.
        """
        status = call(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return RunStatus(status=status.status, sub_status=status.sub_status, details=status.details)


def build_bundle(app: Path, *, server_app: str, run_config: Mapping[str, bool | int | float | str]) -> bytes:
    """Pack the files under ``app`` as a FAB that holds a ServerApp and no ClientApp.

    An own ``pyproject.toml`` in ``app`` is replaced: name, version and components are fixed, so the same files and
    configuration give the same bytes.

    Args:
        app: a folder of Python files; what Flower does not bundle (other suffixes, dot folders) is left out.
        server_app: ``module:attribute`` inside ``app``.
        run_config: what ``Context.run_config`` holds in the ServerApp.

    Raises:
        DeploymentError: there is nothing to pack, or Flower refuses the bundle.
    """
    files: dict[str, bytes | Path] = {
        path.relative_to(app).as_posix(): path for path in sorted(app.rglob("*")) if path.is_file()
    }
    if not files:
        raise DeploymentError("app", expected="a folder with a ServerApp", got=str(app))
    # Flower insists on a ClientApp reference but checks no module: hosts run what is baked into their image.
    components = {"serverapp": server_app, "clientapp": "not_in_this_bundle:app"}
    project = {
        "project": {"name": "confed-run", "version": "1.0.0", "dependencies": []},
        "tool": {"flwr": {"app": {"publisher": "confed", "components": components, "config": dict(run_config)}}},
    }
    files["pyproject.toml"] = tomli_w.dumps(project).encode()
    try:
        return build_fab_from_files(files)[0]
    except ValueError as error:
        raise DeploymentError("app", expected="what Flower can bundle", got=str(error)) from error
