"""The processes of one run on this machine: brokers, courier, aggregator; and what each is told.

Secrets (a simulated TEE's instance key, a TLS key) go over an inherited pipe, never into a file or an argument; but the
key by which the governor may read at the courier, and no more, stands in its launch document among the run's sockets.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from confed import canonical, record
from confed.attestation.attesters.launch import AttesterTerms
from confed.attestation.tee.simulated import PROFILE as SIMULATED_PROFILE
from confed.client.launch import ClientLaunch
from confed.experiment.owners import Owners
from confed.experiment.processes import Process
from confed.experiment.resolution import Prepared
from confed.experiment.tees import attester_terms
from confed.governor.callers import Caller, Callers
from confed.keybroker.client import BrokerServer
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.simulation.workers import WorkerPool, workers_for
from confed.wire.addresses import GOVERNOR_BOX, handed_folder
from confed.wire.channel import Endpoint, TlsIdentity

_POLL_S = 0.01
AGGREGATOR = "the aggregator"
GOVERNOR = GOVERNOR_BOX
"""Names of the courier's callers beside the sites; no site's, since these have spaces."""
_SITE_LETTERS_BYTES = 256 * 1024**2
_STORE_BYTES = 1024**4
_DYING_S = 1.0
"""How long a process that caused a failure may take to be seen dead: its sockets close before it can be reaped."""


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
    callers: dict[str, TlsIdentity] = field(default_factory=dict[str, TlsIdentity], repr=False)
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

    def courier_for(self, caller: str) -> Endpoint:
        """Return where the courier listens, with what a caller shows there (nothing on a Unix socket)."""
        return replace(self.courier, identity=self.callers[caller]) if caller else self.courier

    def client_launch(self, *, sites: Sequence[str], measurement: str, shared: bool) -> ClientLaunch:
        """Return the launch document of a client TEE, with a fresh simulated instance for it."""
        return ClientLaunch(
            manifest=base64.b64encode(self.manifest.encoded).decode(),
            attester=self._attester(measurement, shared=shared),
            brokers=self.brokers,
            courier=self.courier_for(sites[0] if self.network else ""),
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
            "courier": record.to_json(self.courier_for(AGGREGATOR if self.network else "")),
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
    if services.manifest.scenario.combines:
        _start_aggregator(services, apart=apart)


def _start_courier(services: Services, files: Mapping[str, Path], *, apart: bool) -> None:
    endpoint_file = services.sockets / "courier.json"
    callers_file = services.sockets / "callers.json"
    if apart:
        now = datetime.datetime.now(datetime.UTC)
        names = [site.owner.name for site in services.manifest.sites]
        services.callers = {name: TlsIdentity.generate(now=now) for name in (*names, AGGREGATOR, GOVERNOR)}
        callers_file.write_text(json.dumps(record.to_json(_shares(services))))

    def arguments(listen: str) -> list[str]:
        return [
            *_confed("courier", "serve"),
            *("--directory", str(services.courier_directory)),
            *("--listen", listen),
            *("--endpoint-file", str(endpoint_file)),
            *(("--callers", str(callers_file)) if apart else ()),
            *("--manifest", str(services.run_directory / "manifest.json")),
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


def _shares(services: Services) -> Callers:
    """Return who may call the courier: each site may hold what its attempts at a round and an evaluation come to.

    The one TEE of a run without an aggregator keeps versions and checkpoints there, as much as there is room for.
    """
    manifest = services.manifest
    site_bytes = (manifest.max_attempts + 1) * 2 * manifest.model.start.size_bytes + _SITE_LETTERS_BYTES
    if not manifest.scenario.combines:
        site_bytes = _STORE_BYTES
    shares = {AGGREGATOR: _STORE_BYTES, GOVERNOR: 0}
    return Callers(
        callers=tuple(
            Caller(name=name, certificate=identity.certificate, share_bytes=shares.get(name, site_bytes))
            for name, identity in services.callers.items()
        )
    )


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
        forget_sealed(folder, services.courier_directory)
        return arguments, document(services.aggregator.target)

    arguments = [sys.executable, "-m", "aggregator", "--launch-fd", "{fd}"]
    listen = "127.0.0.1:0" if apart else f"unix:{folder}/aggregator.sock"
    log = services.log_directory / "aggregator.log"
    aggregator = Process("aggregator", arguments, log=log, secret=document(listen))
    services.processes.append(aggregator)
    told = aggregator.wait_for_endpoint(folder / "endpoint.json")
    services.aggregator = Endpoint(target=told["target"], certificate=told["certificate"])
    aggregator.start_again_with(start_again)


def forget_sealed(folder: Path, courier_directory: Path) -> None:
    """Delete the ciphertext that an aggregator which is gone has left: its own, and what it meant to hand over."""
    for left in folder.glob("sealed-*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in handed_folder(courier_directory).glob("*"):
        left.unlink(missing_ok=True)


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
