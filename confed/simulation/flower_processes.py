"""Flower's deployment runtime as real processes on loopback, for as long as a ``with`` block lasts.

The processes, each in its own process group with its own log file in the work folder:

1. ``flower-superlink`` with TLS, SuperNode authentication, process isolation and a SuperExec secret.
2. ``flwr-serverapp``, one per run, started by ``start_run`` with the token of the task that the run made.

No SuperNode, SuperExec or ClientApp process runs: hosts (``confed.flower.serving.serve_client_app``) are the nodes.
Telemetry, update checks and run-time installation are off, and Flower's home is in the work folder.

The processes end with this one, even where that is killed with SIGKILL.

Not promised: Flower 1.41 leaves its Control API open to whoever reaches the port.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import PrivateFormat

from confed.errors import DeploymentError
from confed.flower.control import ControlConnection, RunStatus, build_bundle
from confed.flower.fleet import FleetAccess, public_key_bytes
from confed.simulation.loopback import LOOPBACK, Certificates, Ports, private_pem, write_secret
from confed.simulation.processes import ChildProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Flower's HTTP clients fail where a proxy of an unknown kind is named, even one that they would not use.
_NOT_INHERITED = re.compile(r"FLWR_|(https?|all)_proxy$", re.IGNORECASE)
_SWITCHED_OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    # A proxy that the caller's environment names must not see, or stop, what stays on this machine.
    "NO_PROXY": LOOPBACK,
    "no_proxy": LOOPBACK,
    # The last log line of a process that died must be in its file.
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHandle:
    """One node of the federation.

    Args:
        index: its place in the ``node_configs`` that were given.
        node_id: the id under which the ServerApp addresses it; known before any run starts.
        name: ``node-<index>``, registered with the SuperLink.
        access: what its host connects with; may be sent to another process.
    """

    index: int
    node_id: int
    name: str
    access: FleetAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHandle:
    """One run and the name of its ServerApp's process."""

    run_id: int
    process: str


@dataclass(kw_only=True)
class FlowerProcesses:
    """A Flower federation on loopback: entering starts it, leaving ends every process of it.

    Args:
        work_folder: where logs, keys and everything that Flower writes go.
        node_configs: what each node's ``Context.node_config`` holds; their order gives the nodes' indices.
        certificates: for TLS on 127.0.0.1; made in the work folder if absent.
        start_timeout_s: how long starting may take, in all.
    """

    work_folder: Path
    node_configs: Sequence[Mapping[str, bool | int | float | str]]
    certificates: Certificates | None = None
    start_timeout_s: float = 60.0
    nodes: tuple[NodeHandle, ...] = field(default=(), init=False)
    superlink_address: str = field(default="", init=False)
    _processes: ChildProcesses = field(default_factory=ChildProcesses, init=False, repr=False)
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False, repr=False)
    _ports: Ports = field(init=False, repr=False)
    _control: ControlConnection = field(init=False, repr=False)
    _tls: Certificates = field(init=False, repr=False)

    def __enter__(self) -> Self:
        """Start the SuperLink, and register the nodes.

        Raises:
            DeploymentError: a process died or did not get ready in time.
            UnreachableError: the SuperLink stopped answering.
        """
        with contextlib.ExitStack() as opened:
            self._prepare(opened)
            self._start_superlink()
            self._control = opened.enter_context(
                ControlConnection(
                    self.superlink_address,
                    root_certificates=self._tls.root.read_bytes(),
                    superexec_secret=self._secret_of("superlink").read_bytes(),
                )
            )
            self._processes.wait(self._control.answers, what="the SuperLink answers", timeout_s=self.start_timeout_s)
            self.nodes = tuple(self._add_node(index) for index in range(len(self.node_configs)))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End every process, whatever happened."""
        self._open.close()

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The ids of the processes that were started; each is also the id of a process group."""
        return self._processes.process_ids

    def wait_until_online(self, *, timeout_s: float) -> None:
        """Wait until every node is online; a node is once its host has connected.

        Raises:
            DeploymentError: a process died, or the time is over.
        """
        wanted = {node.node_id for node in self.nodes}
        self._processes.wait(
            lambda: wanted <= self._control.online_nodes(), what="every node is online", timeout_s=timeout_s
        )

    def start_run(
        self,
        app: Path,
        *,
        server_app: str = "server_app:app",
        run_config: Mapping[str, bool | int | float | str] | None = None,
        environment: Mapping[str, str] | None = None,
        online_timeout_s: float = 60.0,
    ) -> RunHandle:
        """Wait until every node is online, then start a run whose ServerApp is in the folder ``app``.

        Args:
            app: a folder of Python files; it is bundled, so the ServerApp does not run from there.
            server_app: ``module:attribute`` inside ``app``.
            run_config: what ``Context.run_config`` holds, in the ServerApp and, unverified, in ClientApps.
            environment: variables for the ServerApp's process alone, beside those of this process.
            online_timeout_s: how long nodes may take to come online.

        Raises:
            DeploymentError: nodes are missing, Flower refuses the app, or a process died.
            UnreachableError: the SuperLink stopped answering.
        """
        self.wait_until_online(timeout_s=online_timeout_s)
        config = run_config or {}
        bundle = build_bundle(app, server_app=server_app, run_config=config)
        run_id = self._control.start_run(bundle, run_config=config)
        name = f"server-app-{run_id}"
        token_file = self.work_folder / f"{name}.token"
        self._processes.wait(lambda: self._claim(token_file), what="the run's ServerApp can be claimed", timeout_s=10.0)
        command = ["--runtime-api-address", self.superlink_address, "--root-certificates", str(self._tls.root)]
        command += ["--token-file", str(token_file), "--parent-pid", str(os.getpid())]
        self._start(name, "flwr-serverapp", command, environment=environment or {}, may_end=True)
        return RunHandle(run_id=run_id, process=name)

    def run_status(self, run: RunHandle) -> RunStatus:
        """Return where the run stands.

        Raises:
            UnreachableError, DeploymentError: the SuperLink does not answer, or refuses.
        """
        return self._control.run_status(run.run_id)

    def wait_for_run(self, run: RunHandle, *, timeout_s: float, check: Callable[[], None] | None = None) -> RunStatus:
        """Wait until the run has completed and its ServerApp's process has ended.

        Args:
            run: what ``start_run`` returned.
            timeout_s: how long to wait.
            check: called every few hundredths of a second; raises to give up, say because a host died.

        Raises:
            DeploymentError: the run failed or was stopped, a process died, or the time is over.
        """
        process = self._processes[run.process]
        self._processes.wait(
            lambda: process.popen.poll() is not None,
            what="the run ends",
            timeout_s=timeout_s,
            check=check,
        )
        status = self.run_status(run)
        if not status.completed:
            ended = f"exit code {process.popen.returncode}, run {status.status}:{status.sub_status}"
            raise DeploymentError(process.name, expected="to complete", got=f"{ended}: {process.last_line()}")
        return status

    def _prepare(self, opened: contextlib.ExitStack) -> None:
        self.work_folder.mkdir(parents=True, exist_ok=True)
        self.work_folder = self.work_folder.resolve()
        self._tls = self.certificates or Certificates.generate(self.work_folder)
        self._ports = Ports()
        self._processes = opened.enter_context(ChildProcesses())

    def _start_superlink(self) -> None:
        port = self._ports.take()
        self.superlink_address = f"{LOOPBACK}:{port}"
        command = ["--host", LOOPBACK, "--port", str(port), *self._server_tls(), *self._isolation("superlink")]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        self._start("superlink", "flower-superlink", command)

    def _add_node(self, index: int) -> NodeHandle:
        name, key = f"node-{index}", ec.generate_private_key(ec.SECP384R1())
        node_id = self._control.register_node(public_key_bytes(key.public_key()), name=name)
        root = self._tls.root.read_bytes()
        access = FleetAccess(
            address=self.superlink_address,
            root_certificates=root,
            private_key=private_pem(key, PrivateFormat.PKCS8),
            node_id=node_id,
            node_config=dict(self.node_configs[index]),
        )
        return NodeHandle(index=index, node_id=node_id, name=name, access=access)

    def _server_tls(self) -> list[str]:
        tls = self._tls
        files = ["--ssl-certfile", tls.server, "--ssl-keyfile", tls.server_key, "--ssl-ca-certfile", tls.root]
        return [str(argument) for argument in files]

    def _isolation(self, name: str) -> list[str]:
        secret = self._secret_of(name)
        write_secret(secret, secrets.token_bytes(32))
        return ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]

    def _secret_of(self, name: str) -> Path:
        return self.work_folder / f"{name}.secret"

    def _claim(self, token_file: Path) -> bool:
        token = self._control.claim_server_app()
        if token is None:
            return False
        write_secret(token_file, token.encode())
        return True

    def _start(
        self,
        name: str,
        program: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        may_end: bool = False,
    ) -> None:
        executable = Path(sys.executable).parent / program
        if not executable.is_file():
            raise DeploymentError(name, expected=f"{program} beside the interpreter", got=f"no {executable}")
        inherited = {name: value for name, value in os.environ.items() if not _NOT_INHERITED.match(name)}
        home = {"FLWR_HOME": str(self.work_folder / "flower-home")}
        self._processes.start(
            name,
            [str(executable), *arguments],
            folder=self.work_folder,
            environment={**inherited, **(environment or {}), **_SWITCHED_OFF, **home},
            may_end=may_end,
        )
