"""One run from an experiment file to its records: the order of things, nothing else."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confed import canonical
from confed.errors import ConfedError, LineageError
from confed.experiment.config import load_experiment
from confed.experiment.early import early_libraries
from confed.experiment.engines import early_pool, require_engine, require_staying, run_engine, uses_separate_brokers
from confed.experiment.owners import Owners, approve, load_owners, seal_everything
from confed.experiment.resolution import Prepared, prepare, resolve
from confed.experiment.services import GOVERNOR, Services, running_services
from confed.governor.events import EventReader
from confed.journey import Purpose
from confed.keybroker.client import connect_brokers
from confed.keybroker.statements import Candidate, CommitRecord
from confed.manifest import Manifest
from confed.memory import give_back
from confed.records import metrics
from confed.records.findings import collect_findings
from confed.records.report import write_report
from confed.records.run_directory import ClosingRecord, RunDirectory
from confed.records.statistics import collect_statistics
from confed.sealing.container import Container
from confed.sealing.derivation import version_key
from confed.statement import unverified
from confed.wire.addresses import evidence_topics
from confed.wire.courier_client import CourierClient


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What ``confed run`` was asked for: which file on which engine, whose home, and where records go."""

    config_file: Path
    engine: str
    home: Path | None
    runs_directory: Path


Watcher = Callable[[Manifest, EventReader], None]


def run_experiment(request: RunRequest, *, watcher: Watcher) -> dict[str, Any]:
    """Run an experiment and return its summary; everything that it leaves is in its run directory.

    ``watcher`` is called about ten times a second with the manifest and the run's events.

    Raises:
        ConfedError: a user's mistake, or a check that refused; the run directory then says how far it came.
    """
    started = time.perf_counter()
    require_engine(request.engine)
    experiment = load_experiment(request.config_file)
    require_staying(request.engine, None if experiment.compression is None else experiment.compression.terms)
    early = early_libraries(request.config_file.parent / experiment.app.directory, experiment.app.client)
    with early_pool(request.engine, sites=experiment.sites.count, early=early) as pool:
        prepared = prepare(experiment, config_file=request.config_file)
        owners = load_owners(prepared, home=request.home)
        run = f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(3).hex()}"
        directory = RunDirectory.create(request.runs_directory / run)
        manifest, files = _agree(prepared, owners, directory, run=run)
        prepared = prepared.without_arrays()
        give_back()
        failure: ConfedError | None = None
        events = EventReader(directory.events_file)
        with running_services(
            prepared,
            owners,
            manifest,
            run_directory=directory.path,
            files=files,
            apart=uses_separate_brokers(request.engine),
            pool=pool,
        ) as services:
            try:
                run_engine(request.engine, services, watch=lambda: watcher(manifest, events))
            except ConfedError as error:
                failure = error
            watcher(manifest, events)
            try:
                collect_records(services, directory)
            except ConfedError as error:
                # What ended the run is the news; that its records are incomplete follows from it.
                raise failure or error from error
    last = directory.version_file(max(directory.versions()))
    if failure is None:
        open_version(owners, manifest, last)
    directory.write_metrics(metrics.collect(directory))
    summary = metrics.summarize(
        directory, engine=request.engine, total_s=time.perf_counter() - started, model=str(last)
    )
    if failure is not None:
        summary["failed"] = failure.code
    directory.write_summary(summary)

    summary["report"] = str(write_report(directory))
    if failure is not None:
        raise failure
    return summary


def _agree(
    prepared: Prepared, owners: Owners, directory: RunDirectory, *, run: str
) -> tuple[Manifest, dict[str, Path]]:
    """Seal what the run starts from and let every owner approve its manifest; return it and the sealed files."""
    parts, files = seal_everything(prepared, owners, folder=directory.path / "sealed")
    manifest = resolve(
        prepared,
        run=run,
        model_owner=owners.model.party,
        site_owners=[owner.party for owner in owners.sites],
        sealed=parts,
        anchors=owners.anchors,
    )
    directory.write_manifest(manifest)
    directory.write_approvals(approve(owners, manifest))
    return manifest, files


def collect_records(services: Services, directory: RunDirectory) -> None:
    """Bring what the run left with the courier and the brokers into the run directory, as it was received.

    Raises:
        ConfedError: the courier or a broker does not answer.
    """
    manifest = services.manifest
    courier = CourierClient(services.courier_for(GOVERNOR if services.network else ""))
    for topic in evidence_topics(manifest.run):
        for body in courier.collect(topic):
            directory.write_evidence(body)
    for site in manifest.sites:
        for body in courier.collect(f"{manifest.run}/aggregator/{site.owner.name}"):
            directory.write_evidence(base64.b64decode(canonical.decode(body)["envelope"], validate=True))
    _collect_version(courier, directory, 0, digest=manifest.model.start.digest)
    for purpose in (Purpose.TRAIN, Purpose.EVALUATE):
        for number in range(1, manifest.rounds + 1):
            _collect_commits(courier, directory, manifest, purpose, number)
    for body in courier.collect(f"{manifest.run}/closing"):
        directory.write_closing(ClosingRecord.from_bytes(body))
    if manifest.preparation is not None:
        collect_findings(courier, directory, run=manifest.run, sites=manifest.sites)
        collect_statistics(courier, directory, run=manifest.run, sites=manifest.sites)
    _collect_ledgers(services, directory)


def _collect_commits(
    courier: CourierClient, directory: RunDirectory, manifest: Manifest, purpose: Purpose, number: int
) -> None:
    for body in courier.collect(f"{manifest.run}/commit/{purpose}/{number}"):
        directory.write_commit(purpose, number, body)
        if purpose is Purpose.TRAIN:
            candidate = unverified(CommitRecord.from_bytes(body).candidate, Candidate)
            _collect_version(courier, directory, number, digest=candidate.digest)


def _collect_version(courier: CourierClient, directory: RunDirectory, number: int, *, digest: str) -> None:
    path = directory.version_file(number)
    path.parent.mkdir(exist_ok=True)
    courier.get_to_file(digest, path)
    path.chmod(0o644)  # as all records of the run


def _collect_ledgers(services: Services, directory: RunDirectory) -> None:
    manifest = services.manifest
    clients = connect_brokers(services.brokers)
    for owner in services.owners.every:
        # This run's part: what an owner did in other runs is nobody's business here.
        first = owner.approved_at(manifest)
        owner.close()
        directory.write_ledger(owner.party.name, clients[owner.party.broker].records(owner.party.broker, first=first))


def open_version(owners: Owners, manifest: Manifest, path: Path) -> int:
    """Open a sealed version with the model owner's one key, as ``confed model open`` does; return its size in bytes.

    Raises:
        LineageError: it is the start, so the run made no version.
        SealError: it does not open.
    """
    container = Container.map(path)
    version = container.header.version
    if version < 1:
        raise LineageError("last version", expected="one that the run made", got="the start")
    key = version_key(
        owners.model.key(manifest.model.start.key_id),
        run=manifest.run,
        version=version,
        attempt=int(container.header.detail["attempt"]),
    )
    opened, size_bytes = container.unlock(key), 0
    room = memoryview(bytearray(container.header.chunk_bytes))
    for index in range(opened.chunk_count):
        start, end = opened.chunk_span(index)
        opened.read_chunk_into(index, room[: end - start])
        size_bytes += end - start
    return size_bytes
