"""The processes of one run on this machine: brokers, courier, aggregator; and what each is told.

Secrets (a simulated TEE's instance key, a TLS key) go over an inherited pipe, never into a file or an argument.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confed import canonical, record
from confed.attestation.attesters.launch import AttesterTerms
from confed.attestation.tee.simulated import PROFILE as SIMULATED_PROFILE
from confed.client.launch import ClientLaunch
from confed.errors import DeploymentError
from confed.experiment.owners import Owners
from confed.experiment.resolution import Prepared
from confed.experiment.tees import attester_terms
from confed.keybroker.client import BrokerServer
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.simulation.tethered import tether
from confed.simulation.workers import WorkerPool, workers_for
from confed.wire.channel import Endpoint, TlsIdentity

_START_S = 60.0
_STOP_S = 5.0
_POLL_S = 0.01
_RESTARTS = 3
_DYING_S = 1.0
"""How long a process that caused a failure may take to be seen dead: its sockets close before it can be reaped."""


class Process:
    """A child process with its log; it ends with this one, and its early death is told by name."""

    def __init__(self, name: str, arguments: Sequence[str], *, log: Path, secret: bytes | None = None) -> None:
        self.name = name
        self._log = log
        self._starts_again: Callable[[], tuple[Sequence[str], bytes]] | None = None
        self._starts = 0
        self.process = self._spawn(arguments, secret or b"")

    def _spawn(self, arguments: Sequence[str], secret: bytes) -> subprocess.Popen[bytes]:
        self._starts += 1
        read_end, write_end = os.pipe()
        filled = [str(read_end) if argument == "{fd}" else argument for argument in arguments]
        with self._log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603
                tether(filled),
                pass_fds=(read_end,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        os.close(read_end)
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as stream:
            stream.write(secret)
        return process

    def start_again_with(self, document: Callable[[], tuple[Sequence[str], bytes]]) -> None:
        """Let ``keep_alive`` start it again, with the arguments and secret that ``document`` then returns."""
        self._starts_again = document

    def keep_alive(self) -> None:
        """Start it again if it has died, a few times.

        Raises:
            DeploymentError: it died too often, or is not of those that go on.
        """
        if self.process.poll() is None:
            return
        if self._starts_again is None or self._starts > _RESTARTS:
            self.require_alive()
            return
        arguments, secret = self._starts_again()
        self.process = self._spawn(arguments, secret)

    def require_alive(self) -> None:
        """Raise if the process has ended.

        Raises:
            DeploymentError: names it and its last words.
        """
        if self.process.poll() is not None:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            raise DeploymentError(self.name, expected="a running process", got=lines[-1] if lines else "its end")

    def wait_for_endpoint(self, path: Path) -> Mapping[str, Any]:
        """Return the endpoint document that the process writes once it listens.

        Raises:
            DeploymentError: it died, or took longer than a minute.
        """
        deadline = time.monotonic() + _START_S
        while not path.is_file():
            self.require_alive()
            if time.monotonic() > deadline:
                raise DeploymentError(self.name, expected=f"to listen within {_START_S:.0f} s", got="nothing")
            time.sleep(_POLL_S)
        return json.loads(path.read_bytes())

    def stop(self) -> None:
        """Ask it to end, and end it if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def reap(self) -> None:
        """Wait for its end."""
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(kw_only=True)
class Services:
    """What runs for one run, and where it listens."""

    prepared: Prepared
    owners: Owners
    manifest: Manifest
    run_directory: Path
    sockets: Path
    network: bool
    brokers: tuple[BrokerServer, ...] = ()
    courier: Endpoint = field(default_factory=lambda: Endpoint(target="unix:none", certificate=""))
    aggregator: Endpoint = field(default_factory=lambda: Endpoint(target="unix:none", certificate=""))
    pool: WorkerPool | None = None
    processes: list[Process] = field(default_factory=list[Process])

    @property
    def log_directory(self) -> Path:
        """Where processes log."""
        return self.run_directory / "logs"

    @property
    def courier_directory(self) -> Path:
        """Where the courier keeps ciphertext."""
        return self.run_directory / "courier"

    def keep_alive(self) -> None:
        """Start what has died again, where the run can go on with it: the courier and the aggregator.

        Raises:
            DeploymentError: names a process that died too often, or without which the run cannot go on.
        """
        for process in self.processes:
            process.keep_alive()

    def require_alive(self) -> None:
        """Raise if any process has ended early.

        Raises:
            DeploymentError: names it.
        """
        for process in self.processes:
            process.require_alive()

    def require_no_death(self) -> None:
        """Raise if a process has ended, or is about to: for after a failure that its death may have caused.

        Raises:
            DeploymentError: names it.
        """
        deadline = time.monotonic() + _DYING_S
        while time.monotonic() < deadline:
            self.require_alive()
            time.sleep(_POLL_S)

    def client_launch(self, *, sites: Sequence[str], measurement: str, shared: bool) -> ClientLaunch:
        """Return the launch document of a client TEE, with a fresh simulated instance for it."""
        return ClientLaunch(
            manifest=base64.b64encode(self.manifest.encoded).decode(),
            attester=self._attester(measurement, shared=shared),
            brokers=self.brokers,
            courier=self.courier,
            sites=tuple(sites),
            client_app=self.manifest.code.client_app,
            app_directory=str(self.prepared.directory),
            readable=(str(self.prepared.directory), *_code_directories()),
            network=self.network,
        )

    def aggregator_launch(self, *, measurement: str, listen: str, tls: TlsIdentity | None) -> bytes:
        """Return the launch document of the aggregator enclave."""
        document = {
            "manifest": base64.b64encode(self.manifest.encoded).decode(),
            "attester": record.to_json(self._attester(measurement, shared=False)),
            "brokers": record.to_json(self.brokers),
            "courier": record.to_json(self.courier),
            "listen": listen,
            "tls": record.to_json(tls) if tls else None,
            "endpoint_file": str(self.sockets / "aggregator" / "endpoint.json"),
            "courier_directory": str(self.courier_directory),
            "readable": [*_code_directories(), str(self.courier_directory)],
            "network": self.network,
        }
        if self.prepared.strategy_source is not None:
            document["strategy"] = dict(self.prepared.strategy_source.files)
        return canonical.encode(document)

    def _attester(self, measurement: str, *, shared: bool) -> AttesterTerms:
        tee = self.prepared.experiment.tee
        if tee.profile != SIMULATED_PROFILE:
            return attester_terms(tee, self.prepared.config_directory)
        instance = self.owners.platform.launch(
            measurement=measurement,
            configuration=self.manifest.digest,
            environment=self.manifest.environment,
            shared=shared,
            now_ms=time.time_ns() // 1_000_000,
        )
        return AttesterTerms(profile=tee.profile, instance=instance.to_bytes())


@contextlib.contextmanager
def running_services(
    prepared: Prepared,
    owners: Owners,
    manifest: Manifest,
    *,
    run_directory: Path,
    files: Mapping[str, Path],
    apart: bool,
    pool: WorkerPool | None = None,
) -> Generator[Services]:
    """Start brokers, courier and aggregator for a run, and end them all at the end, however it comes.

    ``files`` are sealed containers by digest that the courier starts with. ``apart`` puts every broker in a process of
    its own on TCP with TLS (``deployment``); otherwise all are in one process on a Unix socket.

    Raises:
        DeploymentError: a process did not start.
    """
    sockets = Path(tempfile.mkdtemp(prefix="confed-"))
    services = Services(
        prepared=prepared,
        owners=owners,
        manifest=manifest,
        run_directory=run_directory,
        sockets=sockets,
        network=apart,
        pool=pool,
    )
    services.log_directory.mkdir(parents=True, exist_ok=True)
    try:
        _start(services, files, apart=apart)
        yield services
    finally:
        for process in services.processes:
            process.stop()
        for process in services.processes:
            process.reap()
        if pool is not None:
            shutil.copy(pool.log, services.log_directory)
        shutil.rmtree(sockets, ignore_errors=True)


def _start(services: Services, files: Mapping[str, Path], *, apart: bool) -> None:
    groups = _groups(services.owners, apart=apart)
    waiting = [_start_brokers(services, number, group, apart=apart) for number, group in enumerate(groups)]
    _start_courier(services, files, apart=apart)
    servers: list[BrokerServer] = []
    for process, path in waiting:
        told = process.wait_for_endpoint(path)
        servers.append(record.from_json(BrokerServer, dict(told), at="broker endpoint"))
    services.brokers = tuple(servers)
    _start_aggregator(services, apart=apart)


def _start_courier(services: Services, files: Mapping[str, Path], *, apart: bool) -> None:
    endpoint_file = services.sockets / "courier.json"

    def arguments(listen: str) -> list[str]:
        return [
            *_confed("courier", "serve"),
            *("--directory", str(services.courier_directory)),
            *("--listen", listen),
            *("--endpoint-file", str(endpoint_file)),
            *(argument for path in files.values() for argument in ("--keep", str(path))),
            # On one machine for one run: a process that dies loses nothing, and a power cut ends the run anyway.
            *([] if apart else ["--without-fsync"]),
        ]

    listen = "127.0.0.1:0" if apart else f"unix:{services.sockets}/courier.sock"
    courier = Process("courier", arguments(listen), log=services.log_directory / "courier.log")
    services.processes.append(courier)
    found = courier.wait_for_endpoint(endpoint_file)
    services.courier = Endpoint(target=found["target"], certificate=found["certificate"])
    # The same directory at the same address: whoever was cut off goes on where it stopped.
    courier.start_again_with(lambda: (arguments(services.courier.target), b""))


def _groups(owners: Owners, *, apart: bool) -> list[list[OwnerHome]]:
    """Return whose brokers share a process: nobody's, or the sites' of one client TEE, so that TEEs do not wait."""
    if apart:
        return [[owner] for owner in owners.every]
    count = workers_for(len(owners.sites))
    groups = [list(owners.sites[number::count]) for number in range(count)]
    return [[owners.model, *groups[0]], *groups[1:]]


def _start_brokers(services: Services, number: int, group: Sequence[OwnerHome], *, apart: bool) -> tuple[Process, Path]:
    name = group[0].party.name if apart else f"brokers-{number + 1}"
    path = services.sockets / f"broker-{number}.json"
    process = Process(
        f"broker of {name}" if apart else name,
        [
            *_confed("broker", "serve"),
            *(argument for owner in group for argument in ("--owner", owner.party.name)),
            *("--home", str(services.owners.home)),
            *("--listen", "127.0.0.1:0" if apart else f"unix:{services.sockets}/brokers-{number + 1}.sock"),
            *("--endpoint-file", str(path)),
        ],
        log=services.log_directory / f"{'broker-' if apart else ''}{name}.log",
    )
    services.processes.append(process)
    return process, path


def _start_aggregator(services: Services, *, apart: bool) -> None:
    folder = services.sockets / "aggregator"
    folder.mkdir()
    tls = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC)) if apart else None

    def document(listen: str) -> bytes:
        measurement = services.manifest.code.aggregator_image
        return services.aggregator_launch(measurement=measurement, listen=listen, tls=tls)

    def start_again() -> tuple[Sequence[str], bytes]:
        # A new instance: nothing of the one before is of use to it, least of all its ciphertext.
        for left in folder.glob("sealed-*"):
            shutil.rmtree(left, ignore_errors=True)
        return arguments, document(services.aggregator.target)

    arguments = [sys.executable, "-m", "aggregator", "--launch-fd", "{fd}"]
    listen = "127.0.0.1:0" if apart else f"unix:{folder}/aggregator.sock"
    log = services.log_directory / "aggregator.log"
    aggregator = Process("aggregator", arguments, log=log, secret=document(listen))
    services.processes.append(aggregator)
    told = aggregator.wait_for_endpoint(folder / "endpoint.json")
    services.aggregator = Endpoint(target=told["target"], certificate=told["certificate"])
    aggregator.start_again_with(start_again)


def _confed(*words: str) -> list[str]:
    return [sys.executable, "-m", "confed.cli.main", *words]


def _code_directories() -> tuple[str, ...]:
    """Directories of the packages that TEEs import (an editable installation is outside the interpreter's)."""
    import aggregator  # noqa: PLC0415
    import clients  # noqa: PLC0415
    import confed  # noqa: PLC0415

    return tuple(
        sorted(
            {str(Path(module.__file__).resolve().parent) for module in (clients, aggregator, confed) if module.__file__}
        )
    )
