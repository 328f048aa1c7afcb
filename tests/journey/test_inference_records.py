"""The records of a serving manifest, verified offline; and records that do not hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_road import OWNER, Deployment, with_serving

from confed.attestation.tee.simulated import SimulatedPlatform
from confed.errors import (
    ConfedError,
    CredentialError,
    EncodingError,
    InstanceError,
    LeaseError,
    LedgerError,
    LineageError,
    ManifestMismatchError,
    NotApprovedError,
    PurposeError,
    TrustAnchorError,
)
from confed.experiment.serving_records import add_owners_part, begin_records
from confed.inference.outlet import Leaving
from confed.keybroker.client import BrokerServer
from confed.keybroker.statements import LedgerEntry
from confed.records.run_directory import RunDirectory
from confed.records.trust import Trust
from confed.records.verification import verify_run
from confed.sealing.container import Container
from confed.serving import LeaseTerms
from confed.statement import Signed, sign, unverified

SECONDS = 600


class Keeping:
    """The outlet of a host that keeps evidence."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def send(self, kind: Leaving, name: str, content: bytes) -> None:
        assert kind is Leaving.EVIDENCE
        assert self._directory.write_evidence(content) == name


@pytest.fixture(scope="module")
def deployment(quick_disk: Path) -> Iterator[Deployment]:
    folder = quick_disk / "serving-records"
    folder.mkdir()
    change = lambda manifest: with_serving(manifest, lease=LeaseTerms(seconds=SECONDS))  # noqa: E731
    with Deployment(folder=folder, change=change, floors={"lease_s": SECONDS}) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def records(deployment: Deployment) -> Path:
    """Two replicas, one of which renewed its lease, and one that was refused."""
    path = deployment.folder / "records"
    directory = begin_records(path, deployment.manifest)
    for renewals in (0, 1):
        replica = deployment.replica()
        replica._evidence_outlet = Keeping(directory)
        replica.open_model(Container.parse(deployment.sealed))
        for _ in range(renewals):
            replica.renew()
    with pytest.raises(ConfedError):
        deployment.replica(measurement="dd" * 32).open_model(Container.parse(deployment.sealed))
    server = BrokerServer(
        target=f"unix:{deployment.folder}/b.sock", certificate="", brokers=(deployment.home.party.broker,)
    )
    add_owners_part(path, owner=deployment.home, server=server)
    return path


@pytest.fixture
def copy(records: Path, tmp_path: Path) -> RunDirectory:
    target = tmp_path / "records"
    for file in (entry for entry in records.rglob("*") if entry.is_file()):
        place = target / file.relative_to(records)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return RunDirectory(target)


def trust(deployment: Deployment) -> Trust:
    return Trust(owners={OWNER: deployment.home.party.identity}, anchors={"simulated/1": (deployment.platform.anchor,)})


def test_the_records_of_serving_verify_offline(deployment: Deployment, records: Path) -> None:
    found = verify_run(records, trust=trust(deployment))
    assert (found.evidence, found.rounds, found.tickets, found.self_consistent_only) == (3, 0, 0, False)
    told = {step.step: step.what for step in found.steps}
    assert told["evidence"].startswith("3 genuine, of 2 replicas")
    assert told["leases"].startswith("3,")
    assert verify_run(records, trust=None).self_consistent_only


def test_a_model_beside_the_records_is_held_against_the_manifest(deployment: Deployment, copy: RunDirectory) -> None:
    copy.write_version(0, deployment.sealed)
    assert "model" in {step.step for step in verify_run(copy.path, trust=trust(deployment)).steps}
    told = deployment.told
    copy.write_version(0, deployment.seal({"w": np.zeros(3, np.float32)}, container_id="model-1", data_key=None))
    deployment.told = told
    with pytest.raises(LineageError):
        verify_run(copy.path, trust=trust(deployment))


def test_an_owner_or_a_root_that_is_not_trusted_is_named(deployment: Deployment, records: Path) -> None:
    known = trust(deployment)
    with pytest.raises(ManifestMismatchError):
        verify_run(records, trust=dataclasses.replace(known, owners={OWNER: bytes(32)}))
    anchor = SimulatedPlatform.create(1_800_000_000_000).anchor
    with pytest.raises(TrustAnchorError):
        verify_run(records, trust=dataclasses.replace(known, anchors={"simulated/1": (anchor,)}))


def test_evidence_that_is_gone_or_changed_is_named(deployment: Deployment, copy: RunDirectory) -> None:
    file = copy.evidence_file(copy.evidence()[0])
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b" ")
    with pytest.raises(EncodingError):
        verify_run(copy.path, trust=trust(deployment))
    file.unlink()
    with pytest.raises(LedgerError):
        verify_run(copy.path, trust=trust(deployment))


def test_records_without_the_owners_approval_do_not_hold(deployment: Deployment, copy: RunDirectory) -> None:
    copy.write_approvals([])
    with pytest.raises(NotApprovedError):
        verify_run(copy.path, trust=trust(deployment))


def test_a_directory_holds_one_manifests_records(deployment: Deployment, copy: RunDirectory) -> None:
    begin_records(copy.path, deployment.manifest)
    with pytest.raises(EncodingError):
        begin_records(copy.path, dataclasses.replace(deployment.manifest, run="another"))


# What the owner's own ledger says that was not so.

Change = Callable[[LedgerEntry], LedgerEntry | None]


def rewritten(deployment: Deployment, copy: RunDirectory, change: Change) -> None:
    """The ledger as a dishonest owner would have it: every entry signed again, in one chain."""
    entries: list[Signed] = []
    for signed in copy.ledger(OWNER):
        entry = unverified(signed, LedgerEntry)
        after = change(entry)
        if after is not None:
            last = unverified(entries[-1], LedgerEntry) if entries else None
            sequence = entry.sequence if last is None else last.sequence + 1
            previous = entry.previous if last is None else entries[-1].digest
            entries.append(
                sign(dataclasses.replace(after, sequence=sequence, previous=previous), deployment.home.broker_key)
            )
    copy.write_ledger(OWNER, entries)


def of(event: str, **changes: Any) -> Change:
    def change(entry: LedgerEntry) -> LedgerEntry | None:
        if entry.event != event:
            return entry
        body: Mapping[str, Any] = {**entry.body, **changes}
        return dataclasses.replace(entry, body=body)

    return change


def without(event: str) -> Change:
    return lambda entry: None if entry.event == event else entry


def without_the_first(event: str) -> Change:
    seen: list[LedgerEntry] = []

    def change(entry: LedgerEntry) -> LedgerEntry | None:
        seen.extend([entry] if entry.event == event else [])
        return None if seen[:1] == [entry] else entry

    return change


def until(event: str, number: int) -> Change:
    """Cut off what comes after the event's occurrence of this number."""
    seen: list[LedgerEntry] = []

    def change(entry: LedgerEntry) -> LedgerEntry | None:
        over = len(seen) >= number
        seen.extend([entry] if entry.event == event else [])
        return None if over else entry

    return change


def renamed(event: str, name: str) -> Change:
    return lambda entry: dataclasses.replace(entry, event=name) if entry.event == event else entry


def with_key(**changes: Any) -> Change:
    def change(entry: LedgerEntry) -> LedgerEntry:
        if entry.event != "released":
            return entry
        keys = [{**entry.body["keys"][0], **changes}]
        return dataclasses.replace(entry, body={**entry.body, "keys": keys})

    return change


LEDGERS: dict[str, tuple[Change, type[ConfedError]]] = {
    "a release for another purpose": (of("released", purpose="train"), PurposeError),
    "a release to another instance": (of("released", instance="dd" * 32), InstanceError),
    "a release of another model": (of("released", base="dd" * 32), LineageError),
    "a release for somebody": (of("released", identity="dd" * 32), CredentialError),
    "two keys": (of("released", keys=[{}, {}]), PurposeError),
    "another key": (with_key(key_id="dd"), PurposeError),
    "another version's key": (with_key(use="version", version=1), PurposeError),
    "no lease": (without("leased"), LeaseError),
    "no lease with the first release": (without_the_first("leased"), LeaseError),
    "no lease with the last release": (until("released", 3), LeaseError),
    "a lease without a release": (without("released"), LeaseError),
    "a lease of another instance": (of("leased", instance="dd" * 32), LeaseError),
    "a lease for another request": (of("leased", request="dd" * 32), LeaseError),
    "a longer lease": (of("leased", expires_at=2**50), LeaseError),
    "one lease twice": (of("leased", lease="dd" * 32), LeaseError),
    "a commit": (renamed("refused", "committed"), LedgerError),
    "an approval that is not": (without("approved"), LedgerError),
}


@pytest.mark.parametrize(("change", "error"), LEDGERS.values(), ids=LEDGERS)
def test_a_ledger_of_serving_that_does_not_hold_is_named(
    deployment: Deployment, copy: RunDirectory, change: Change, error: type[ConfedError]
) -> None:
    rewritten(deployment, copy, change)
    with pytest.raises(error):
        verify_run(copy.path, trust=trust(deployment))


def test_a_ledger_that_is_only_signed_again_holds(deployment: Deployment, copy: RunDirectory) -> None:
    rewritten(deployment, copy, lambda entry: entry)
    assert verify_run(copy.path, trust=trust(deployment)).evidence == 3
