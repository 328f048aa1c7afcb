"""A small world for the brokers' tests: a model owner, three sites, simulated TEEs and a clock that stands still."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.aggregation import AggregationTerms
from confed.attestation.evidence import Binding, instance_of
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedPlatform
from confed.journey import Purpose, Role, Use
from confed.keybroker.broker import Broker
from confed.keybroker.identity import OwnerHome
from confed.keybroker.lineage import lineage_of
from confed.keybroker.replies import Released
from confed.keybroker.statements import (
    Candidate,
    Challenge,
    ClearMetrics,
    CommitRecord,
    Grant,
    KeyName,
    ReleaseRequest,
    Ticket,
    TicketRequest,
)
from confed.keybroker.vault import KeyFloors
from confed.manifest import (
    CodeTerms,
    CohortTerms,
    Manifest,
    MetricTerms,
    ModelTerms,
    SealedReference,
    Site,
    StrategyTerms,
    TeePolicy,
    TrustTerms,
    Unchecked,
    UpdateTerms,
)
from confed.privacy.accounting import epsilon
from confed.privacy.terms import PrivacyState
from confed.scenario import Scenario
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, sign, unverified, verify
from confed.stopping import StopTerms

START_MS = 1_800_000_000_000
CLIENT_CODE = "c1" * 32
AGGREGATOR_CODE = "a9" * 32
SITES = ("north", "south", "west")
MODEL_OWNER = "owner"


def floors(**changes: Any) -> KeyFloors:
    """Floors that the world's manifest satisfies."""
    values: dict[str, Any] = {
        "environment": "simulation",
        "least_cohort": 2,
        "purposes": (Purpose.TRAIN, Purpose.EVALUATE, Purpose.AGGREGATE),
        "measurements": Unchecked(unchecked="the manifest's list will do"),
        "total_rounds": 10,
        "discloses_to_model_owner": False,
        "counted_identities": Unchecked(unchecked="every site counts"),
    }
    return KeyFloors(**{**values, **changes})


class Enclave:
    """A simulated TEE with its keys; it can be told to lie."""

    def __init__(self, world: World, role: Role, **launch: Any) -> None:
        self.world = world
        self.role = role
        self.hpke = HpkeIdentity.generate()
        self.signing = Ed25519PrivateKey.generate()
        self.signing_public = self.signing.public_key().public_bytes_raw()
        self.instance = instance_of(self.hpke.public, self.signing_public)
        code = CLIENT_CODE if role is Role.CLIENT else AGGREGATOR_CODE
        settings = {
            "measurement": code,
            "configuration": world.digest,
            "environment": "simulation",
            "shared": True,
            "now_ms": world.now,
        }
        self._attester = SimulatedAttester(world.platform.launch(**{**settings, **launch}))

    def attest(self, broker: bytes, fresh: bytes, **changes: Any) -> bytes:
        """Return an envelope for a broker's nonce, with changes of the binding."""
        binding = Binding(
            profile=self._attester.profile,
            nonce=fresh,
            audience=canonical.digest(broker),
            manifest=self.world.digest,
            role=self.role,
            run=self.world.manifest.run,
            hpke_public=self.hpke.public,
            signing_public=self.signing_public,
            issued_at=self.world.now,
        )
        return self._attester.attest(dataclasses.replace(binding, **changes)).encode()


METRICS = ClearMetrics(salt=bytes(range(32)), values={"loss": 0.5})
"""What every honest cohort of the world measures."""


class World:
    """Owners in a directory, their brokers, one approved manifest."""

    def __init__(
        self,
        home: Path,
        *,
        change: Callable[[Manifest], Manifest] = lambda manifest: manifest,
        data_floors: Mapping[str, Any] | None = None,
        model_floors: Mapping[str, Any] | None = None,
        homes_that_approve: Sequence[str] = (MODEL_OWNER, *SITES),
        counted: Callable[[Mapping[str, OwnerHome]], tuple[bytes, ...]] | None = None,
    ) -> None:
        self.now = START_MS
        self.home = home
        self.platform = SimulatedPlatform.create(self.now)
        self.homes = {
            name: OwnerHome.create(name, home=home, environment="simulation", now_ms=self.now)
            for name in (MODEL_OWNER, *SITES)
        }
        data = dict(data_floors or {})
        if counted is not None:
            data["counted_identities"] = counted(self.homes)
        self.keys = {MODEL_OWNER: self.homes[MODEL_OWNER].new_key(floors=floors(**(model_floors or {})))}
        self.keys |= {name: self.homes[name].new_key(floors=floors(**data)) for name in SITES}
        self.manifest = change(self._manifest())
        for name in homes_that_approve:
            self.homes[name].approve(self.manifest, now_ms=self.now)
        self.brokers = {name: Broker.of(owner, clock=lambda: self.now) for name, owner in self.homes.items()}
        self.records: dict[int, bytes] = {}

    @property
    def digest(self) -> str:
        """The manifest's digest, computed once for each manifest."""
        return lineage_of(self.manifest).digest

    def clone(self, home: Path) -> World:
        """Return a copy of this (closed) world in another directory: quicker than making its owners anew."""
        shutil.copytree(self.home, home)
        world = copy.copy(self)
        world.home, world.records = home, dict(self.records)
        world._open()
        return world

    def close(self) -> None:
        for owner in self.homes.values():
            owner.close()

    def restart(self) -> None:
        """Kill every broker and start it again from its store."""
        self.close()
        self._open()

    def _open(self) -> None:
        self.homes = {name: OwnerHome.load(name, home=self.home) for name in self.homes}
        self.brokers = {name: Broker.of(owner, clock=lambda: self.now) for name, owner in self.homes.items()}

    def _manifest(self) -> Manifest:
        policy = {
            "profiles": ("simulated/1",),
            "devices": (),
            "appraisal": {},
            "max_age_s": 60,
            "reattest_rounds": 2,
            "reattest_s": 600,
        }
        return Manifest(
            format=Manifest.FORMAT,
            name="test",
            scenario=Scenario.FEDERATED,
            run="run-1",
            environment="simulation",
            rounds=3,
            seed=7,
            max_attempts=3,
            data_source="sealed",
            preparation=None,
            model=ModelTerms(
                owner=self.homes[MODEL_OWNER].party,
                start=self.reference(MODEL_OWNER),
                layout="00" * 32,
                trained=("weight",),
                tied={},
            ),
            sites=tuple(Site(owner=self.homes[name].party, dataset=self.reference(name)) for name in SITES),
            code=CodeTerms(
                client_app="app:app",
                client_image=CLIENT_CODE,
                aggregator_image=AGGREGATOR_CODE,
                lock="11" * 32,
                strategy=None,
            ),
            strategy=StrategyTerms(name="FedAvg", parameters={}),
            cohort=CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=1.0, extra=0),
            settings={},
            update=UpdateTerms(norm_bound=10.0, weight_cap=1000.0, loss_cap=None),
            metrics=MetricTerms(clear=("loss",), decimals=4),
            stop=StopTerms.none(),
            aggregation=AggregationTerms.at_once(),
            adapter=None,
            compression=None,
            privacy=None,
            serving=None,
            client_tee=TeePolicy(measurements=(CLIENT_CODE,), **policy),
            aggregator_tee=TeePolicy(measurements=(AGGREGATOR_CODE,), **policy),
            trust=TrustTerms(anchors={"simulated/1": (self.platform.anchor,)}),
        )

    def reference(self, name: str) -> SealedReference:
        digest = canonical.digest(name.encode())
        return SealedReference(
            container_id=f"container-{name}", digest=digest, key_id=self.keys[name][0], size_bytes=1000
        )

    def identity(self, name: str) -> bytes:
        return self.homes[name].party.identity

    def public(self, name: str) -> bytes:
        return self.homes[name].party.broker

    # What enclaves ask for.

    def data_key(self, site: str, **changes: Any) -> KeyName:
        reference = self.reference(site)
        values = {
            "key_id": reference.key_id,
            "use": Use.DATA,
            "container": reference.container_id,
            "version": 0,
            "attempt": 0,
        }
        return KeyName(**{**values, **changes})

    def model_key(self, version: int, *, attempt: int = 0, use: Use = Use.VERSION, **changes: Any) -> KeyName:
        reference = self.reference(MODEL_OWNER)
        start = version == 0 and use is Use.VERSION
        values = {
            "key_id": reference.key_id,
            "use": Use.START if start else use,
            "container": reference.container_id if start else "",
            "version": version,
            "attempt": attempt,
        }
        return KeyName(**{**values, **changes})

    def base(self, version: int) -> str:
        if version == 0:
            return self.manifest.model.start.digest
        record = CommitRecord.from_bytes(self.records[version])
        return unverified(record.candidate, Candidate).digest

    def nonce(self, name: str) -> bytes:
        challenge = verify(self.brokers[name].challenge(self.digest), Challenge, signer=self.public(name))
        return challenge.nonce

    def request(
        self, enclave: Enclave, name: str, *, nonce: bytes, round_number: int = 1, **changes: Any
    ) -> ReleaseRequest:
        """A good request of ``enclave`` to the broker of ``name``, with changes."""
        client = enclave.role is Role.CLIENT
        purpose = changes.get("purpose", Purpose.TRAIN if client else Purpose.AGGREGATE)
        version = round_number if purpose is Purpose.EVALUATE else round_number - 1
        values: dict[str, Any] = {
            "request_id": os.urandom(16),
            "broker": self.public(name),
            "nonce": nonce,
            "manifest": self.digest,
            "run": self.manifest.run,
            "instance": enclave.instance,
            "role": enclave.role,
            "purpose": purpose,
            "identity": self.identity(name if name in SITES else SITES[0]) if client else b"",
            "round": round_number,
            "attempt": 0,
            "base": self.base(version),
            "keys": self._good_keys(enclave, name, version, changes.get("attempt", 0)),
            "ticket_for": "",
        }
        return ReleaseRequest(**{**values, **changes})

    def _good_keys(self, enclave: Enclave, name: str, version: int, attempt: int) -> tuple[KeyName, ...]:
        if name in SITES:
            return (self.data_key(name),) if enclave.role is Role.CLIENT else ()
        base = self.model_key(version, attempt=self._attempt_of(version))
        if enclave.role is Role.CLIENT:
            return (base,)
        following = tuple(self.model_key(version + 1, attempt=attempt, use=use) for use in (Use.VERSION, Use.STATE))
        return (base, *following)

    def _attempt_of(self, version: int) -> int:
        if version == 0:
            return 0
        return unverified(CommitRecord.from_bytes(self.records[version]).candidate, Candidate).attempt

    def release(
        self,
        enclave: Enclave,
        name: str,
        *,
        round_number: int = 1,
        evidence: bool = True,
        binding: Mapping[str, Any] | None = None,
        record: bytes | None = None,
        **changes: Any,
    ) -> Released:
        """Attest to the broker of ``name`` under a fresh nonce and ask, with changes of request or binding."""
        nonce = changes.pop("nonce", None) or self.nonce(name)
        request = self.request(enclave, name, nonce=nonce, round_number=round_number, **changes)
        envelope = enclave.attest(self.public(name), nonce, **(binding or {})) if evidence else b""
        if record is None:
            evaluates = request.purpose is Purpose.EVALUATE
            record = self.records.get(round_number if evaluates else round_number - 1, b"")
        signed = sign(request, enclave.signing)
        return self.brokers[name].release(signed, envelope=envelope, base_record=record)

    def unwrap(self, enclave: Enclave, name: str, released: Released) -> list[bytes]:
        grant = verify(released.grant, Grant, signer=self.public(name))
        return [enclave.hpke.unwrap(wrapped, info=grant.context) for wrapped in released.wrapped_keys]

    def aggregator(self, *, round_number: int = 1, attempt: int = 0, sites: Sequence[str] = SITES) -> Enclave:
        """An aggregator that attested to the model owner and the sites."""
        enclave = Enclave(self, Role.AGGREGATOR)
        for name in (MODEL_OWNER, *sites):
            self.release(enclave, name, round_number=round_number, attempt=attempt)
        return enclave

    def ticket_request(
        self, client: Enclave, site: str, aggregator: Enclave, credential: Signed, /, **changes: Any
    ) -> TicketRequest:
        values: dict[str, Any] = {
            "request_id": os.urandom(16),
            "broker": self.public(site),
            "identity": self.identity(site),
            "manifest": self.digest,
            "run": self.manifest.run,
            "round": 1,
            "attempt": 0,
            "purpose": Purpose.TRAIN,
            "base": self.base(0),
            "aggregator": aggregator.instance,
            "credential": credential.digest,
        }
        return TicketRequest(**{**values, **changes})

    def ticket(
        self,
        client: Enclave,
        site: str,
        aggregator: Enclave,
        *,
        round_number: int = 1,
        attempt: int = 0,
        purpose: Purpose = Purpose.TRAIN,
    ) -> Signed:
        """Release to a client and buy its ticket."""
        released = self.release(client, site, round_number=round_number, attempt=attempt, purpose=purpose)
        assert released.credential is not None
        version = round_number if purpose is Purpose.EVALUATE else round_number - 1
        request = self.ticket_request(
            client,
            site,
            aggregator,
            released.credential,
            round=round_number,
            attempt=attempt,
            purpose=purpose,
            base=self.base(version),
        )
        return self.brokers[site].ticket(sign(request, client.signing))

    def candidate(self, aggregator: Enclave, tickets: Mapping[str, Signed], /, **changes: Any) -> Candidate:
        """The candidate that an honest aggregator makes of these tickets, with changes."""
        first = unverified(next(iter(tickets.values())), Ticket)
        evaluates = first.purpose is Purpose.EVALUATE
        digest = first.base if evaluates else canonical.digest(f"{first.round}/{first.attempt}".encode())
        values: dict[str, Any] = {
            "run": self.manifest.run,
            "manifest": self.digest,
            "round": first.round,
            "attempt": first.attempt,
            "purpose": first.purpose,
            "base": first.base,
            "version": first.round,
            "digest": digest,
            "state": "",
            "instance": aggregator.instance,
            "cohort": tuple(self.identity(name) for name in tickets),
            "tickets": tuple(ticket.digest for ticket in tickets.values()),
            "excluded": {},
            "metrics": self.metrics.digest,
            "privacy": self.spent(first),
        }
        return Candidate(**{**values, **changes})

    @property
    def metrics(self) -> ClearMetrics:
        return METRICS if self.manifest.metrics.clear else ClearMetrics.none()

    def spent(self, step: Ticket) -> PrivacyState | None:
        """The account of an honest enclave after this step."""
        terms = self.manifest.privacy
        if terms is None or step.purpose is Purpose.EVALUATE:
            return None
        base = PrivacyState.start(terms)
        if step.round > 1:
            record = CommitRecord.from_bytes(self.records[step.round - 1])
            base = unverified(record.candidate, Candidate).privacy or base
        releases = base.releases + step.attempt + 1
        spends = epsilon(terms, releases)
        return PrivacyState(releases=releases, epsilon=spends, clip=base.next_clip, next_clip=base.next_clip)

    def tickets(self, aggregator: Enclave, sites: Sequence[str] = SITES, **step: Any) -> dict[str, Signed]:
        client = Enclave(self, Role.CLIENT)
        return {site: self.ticket(client, site, aggregator, **step) for site in sites}

    def countersign(
        self, aggregator: Enclave, candidate: Candidate, tickets: Sequence[Signed], *, by: Sequence[str] = SITES
    ) -> list[Signed]:
        signed = sign(candidate, aggregator.signing)
        record = self.records.get(candidate.round - (candidate.purpose is Purpose.TRAIN), b"")
        return [self.brokers[name].countersign(signed, tickets=tickets, base_record=record) for name in by]

    def commit(
        self, aggregator: Enclave, candidate: Candidate, tickets: Sequence[Signed], countersignatures: Sequence[Signed]
    ) -> CommitRecord:
        signed = sign(candidate, aggregator.signing)
        commit = self.brokers[MODEL_OWNER].commit(signed, tickets=tickets, countersignatures=countersignatures)
        return CommitRecord(
            candidate=signed,
            tickets=tuple(tickets),
            countersignatures=tuple(countersignatures),
            commit=commit,
            metrics=self.metrics,
        )

    def run_round(self, round_number: int, *, attempt: int = 0, sites: Sequence[str] = SITES) -> Enclave:
        """One honest round, from attestation to the committed record; returns the aggregator."""
        aggregator = self.aggregator(round_number=round_number, attempt=attempt)
        tickets = self.tickets(aggregator, sites, round_number=round_number, attempt=attempt)
        candidate = self.candidate(aggregator, tickets)
        listed = list(tickets.values())
        signatures = self.countersign(aggregator, candidate, listed)
        record = self.commit(aggregator, candidate, listed, signatures)
        self.records[round_number] = record.to_bytes()
        return aggregator
