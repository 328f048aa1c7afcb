"""A run of stock Flower on loopback with TLS: SuperLink, SuperNodes, and a process for every message as it comes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import tomli_w
from flwr.cli.build import build_fab_from_files

from confed.flower.control import ControlConnection
from confed.simulation.loopback import Certificates, Ports

_ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


def bundle(app: Path, *, config: Mapping[str, str | int]) -> bytes:
    """Pack the plain apps as Flower packs an app."""
    components = {"serverapp": "plain_server:app", "clientapp": "plain_client:app"}
    project = {
        "project": {"name": "plain-round", "version": "1.0.0", "dependencies": []},
        "tool": {"flwr": {"app": {"publisher": "benchmark", "components": components, "config": dict(config)}}},
    }
    files: dict[str, bytes | Path] = {name: app / name for name in ("task.py", "plain_server.py", "plain_client.py")}
    files["pyproject.toml"] = tomli_w.dumps(project).encode()
    return build_fab_from_files(files)[0]


def run_plain(app: Path, folder: Path, *, clients: int, rounds: int, parameters: int, timeout_s: float) -> list[float]:
    """Run the plain apps and return the times at which their rounds ended."""
    folder.mkdir()
    certificates, ports, ends = Certificates.generate(folder), Ports(), folder / "ends"
    address = f"127.0.0.1:{ports.take()}"
    root = ["--root-certificates", str(certificates.root)]
    superlink = ["flower-superlink", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1]]
    superlink += ["--ssl-certfile", str(certificates.server), "--ssl-keyfile", str(certificates.server_key)]
    superlink += ["--ssl-ca-certfile", str(certificates.root)]
    processes = [_start(superlink, folder / "superlink.log")]
    config = {"clients": clients, "rounds": rounds, "parameters": parameters, "ends": str(ends)}
    try:
        with ControlConnection(
            address, root_certificates=certificates.root.read_bytes(), superexec_secret=b""
        ) as control:
            _wait(control.answers, processes, 60)
            for number in range(clients):
                node = ["flower-supernode", "--superlink", address, *root, "--host", "127.0.0.1"]
                node += ["--port", str(ports.take()), "--ssl-certfile", str(certificates.server)]
                node += ["--ssl-keyfile", str(certificates.server_key), "--ssl-ca-certfile", str(certificates.root)]
                processes.append(_start(node, folder / f"supernode-{number}.log"))
            _wait(lambda: len(control.online_nodes()) == clients, processes, 60)
            run = control.start_run(bundle(app, config=config), run_config=config)
            _wait(lambda: control.run_status(run).finished, processes, timeout_s)
            status = control.run_status(run)
            if not status.completed:
                raise SystemExit(f"plain Flower: {status}")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    return [float(line) for line in ends.read_text().split()]


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    home = {"FLWR_HOME": str(log.parent / "home")}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(Path(sys.executable).parent / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **_ENVIRONMENT, **home, "PATH": path},
        )


def _wait(condition, processes: list[subprocess.Popen[bytes]], timeout_s: float) -> None:  # noqa: ANN001
    deadline = time.monotonic() + timeout_s
    while not condition():
        for process in processes:
            if process.poll() is not None:
                raise SystemExit(f"{process.args} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit("plain Flower: not in time")
        time.sleep(0.2)
