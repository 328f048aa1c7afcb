"""The ``deployment`` engine: real processes on loopback, as partner sites would run them on machines of their own.

A SuperLink with TLS, node authentication and process isolation; each site's client TEE is a long-lived process that
runs the installed ClientApp, never a FAB's code, and is a node of the SuperLink itself. The ServerApp is a process of
its own too, and tells how far it is through the run's events.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from confed.client.launch import FlowerNode
from confed.errors import DeploymentError, error_for
from confed.experiment.processes import Process
from confed.experiment.services import Services
from confed.governor.events import EventName, read_events
from confed.governor.launch import GOVERNOR_FILE
from confed.simulation.flower_processes import FlowerProcesses, NodeHandle

_HOST_START_S = 120.0
_RUN_S = 24 * 3600.0
_RESTARTS = 3


def run_deployment(services: Services, *, watch: Callable[[], None]) -> None:
    """Start Flower's processes and one client host a site, run the ServerApp, and end everything.

    Raises:
        DeploymentError: a process died or did not start.
        ConfedError: the run was refused, of the class that the governor's events name.
    """
    manifest = services.manifest
    sites = [site.owner.name for site in manifest.sites]
    configs = [{"partition-id": number, "num-partitions": len(sites)} for number in range(len(sites))]
    with FlowerProcesses(
        work_folder=services.log_directory / "flower",
        node_configs=configs,
        start_timeout_s=_HOST_START_S,
    ) as flower:
        hosts = [_Host(services, site, _flower(node)) for node, site in zip(flower.nodes, sites, strict=True)]
        run = flower.start_run(
            services.prepared.directory,
            server_app=services.prepared.experiment.app.server,
            run_config=dict(manifest.settings),
            environment={
                GOVERNOR_FILE: os.environ[GOVERNOR_FILE],
                "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry and Path(entry).is_dir()),
            },
            online_timeout_s=_HOST_START_S,
        )

        def check() -> None:
            services.keep_alive()
            for host in hosts:
                host.keep_alive()
            watch()

        try:
            flower.wait_for_run(run, timeout_s=_RUN_S, check=check)
        except DeploymentError as error:
            watch()
            services.require_no_death()
            code = _refusal_code(services)
            if code:
                raise error_for(code, "the governor's run") from error
            raise
        finally:
            for host in hosts:
                host.stop()


def _flower(node: NodeHandle) -> FlowerNode:
    access = node.access
    return FlowerNode(
        address=access.address,
        root_certificates=access.root_certificates,
        private_key=access.private_key,
        node_id=str(access.node_id),
        node_config=access.node_config,
    )


class _Host:
    """A site's client TEE; started again when it dies, as a new instance that attests anew.

    What it was working on is lost: the round goes on without the site if the cohort rule holds.
    """

    def __init__(self, services: Services, site: str, flower: FlowerNode) -> None:
        self._services, self._site, self._flower = services, site, flower
        self._starts = 0
        self._process = self._start()

    def keep_alive(self) -> None:
        """Start it again if it has died.

        Raises:
            DeploymentError: it died too often.
        """
        if self._process.process.poll() is None:
            return
        if self._starts > _RESTARTS:
            self._process.require_alive()
        self._process = self._start()

    def stop(self) -> None:
        """End it."""
        self._process.stop()
        self._process.reap()

    def _start(self) -> Process:
        self._starts += 1
        services = self._services
        launch = services.client_launch(
            sites=(self._site,), measurement=services.manifest.code.client_image, shared=False
        )
        return Process(
            f"client host of {self._site}",
            [sys.executable, "-m", "clients", "--launch-fd", "{fd}"],
            log=services.log_directory / f"client-{self._site}.log",
            secret=replace(launch, flower=self._flower).encode(),
        )


def _refusal_code(services: Services) -> str:
    """Return the code with which the governor's events say that the run failed."""
    path = services.run_directory / "events.jsonl"
    if not path.is_file():
        return ""
    failed = [event for event in read_events(path) if event.event is EventName.RUN_FAILED]
    return str(failed[-1].fields.get("code", "")) if failed else ""
