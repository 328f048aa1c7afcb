"""The ``ray`` engine: Flower's own simulation runtime, whose actors become client TEEs when their first message comes.

Ray starts the processes, so a session cannot be confined as one that confed starts; its evidence lists what is active.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from confed.client.host import load_client_app
from confed.client.launch import LAUNCH_FILE, ClientLaunch
from confed.errors import DeploymentError

_ACTOR_CPUS = 1


def run_on_ray(
    launch: ClientLaunch,
    *,
    server_app: ServerApp,
    launch_file: Path,
    run_config: Mapping[str, Any],
    run_in_thread: Callable[[Callable[[], object]], None],
) -> None:
    """Run a ServerApp on Flower's simulation runtime with one virtual node for each site.

    The launch document, secret included, is in a file of mode 0600 for as long as the run lasts: Ray's actors read it.

    Raises:
        DeploymentError: Ray did not start.
        ConfedError: the run was refused or fell short.
    """
    os.environ["FLWR_HOME"] = str(launch_file.parent / "flower-home")
    from flwr.simulation import run_simulation  # noqa: PLC0415 (Ray is slow to import)

    manifest = launch.manifest_decoded()
    descriptor = os.open(launch_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(launch.encode())
    os.environ[LAUNCH_FILE] = str(launch_file)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

    def run() -> None:
        _start_ray()
        run_simulation(
            server_app=_WithRunConfig(server_app, run_config),
            client_app=load_client_app(launch, manifest),
            num_supernodes=len(manifest.sites),
            backend_config={"client_resources": {"num_cpus": _ACTOR_CPUS, "num_gpus": 0.0}},
        )

    try:
        run_in_thread(run)
    finally:
        del os.environ[LAUNCH_FILE]
        launch_file.unlink(missing_ok=True)


def _start_ray() -> None:
    """Start Ray on this machine; Flower's runtime uses the one that is there.

    Ray gives its own processes 30 s to start, a constant in its source, and a cold start on a busy machine can take
    longer: it is tried once more.

    Raises:
        DeploymentError: it did not start twice.
    """
    import ray  # noqa: PLC0415 (Ray is slow to import)

    # Ray's workers are fresh interpreters: they find modules where this one does.
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    for last in (False, True):
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        # Ray raises bare exceptions when its processes do not start.
        except Exception as error:
            ray.shutdown()
            if last:
                got = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise DeploymentError("ray", expected="to start", got=got) from error
        else:
            return


class _WithRunConfig(ServerApp):
    """Gives a ServerApp the manifest's settings, which ``run_simulation`` has no argument for."""

    def __init__(self, app: ServerApp, run_config: Mapping[str, Any]) -> None:
        super().__init__()
        self._inner = app
        self._run_config = dict(run_config)

    def __call__(self, grid: Grid, context: Context) -> None:
        context.run_config = self._run_config
        self._inner(grid, context)
