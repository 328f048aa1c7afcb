"""A complete run's records, made by real brokers: three sites, two rounds, one dropout and one retried round."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.aggregation import AggregationTerms
from confed.attestation.evidence import Binding, instance_of
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedPlatform
from confed.journey import Kind, Purpose, Role, Use
from confed.keybroker.broker import Broker
from confed.keybroker.identity import OwnerHome
from confed.keybroker.statements import (
    Candidate,
    Challenge,
    ClearMetrics,
    ClosingCountersignature,
    CommitRecord,
    KeyName,
    LedgerEntry,
    ReleaseRequest,
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
from confed.model.weights import pack
from confed.privacy.accounting import after
from confed.privacy.terms import PrivacyState, PrivacyTerms
from confed.records import metrics
from confed.records.run_directory import ClosingRecord, RunDirectory
from confed.records.trust import Trust
from confed.scenario import Scenario
from confed.sealing.container import Draft, seal_to_bytes
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, sign, unverified, verify
from confed.stopping import StopTerms

START_MS = 1_800_000_000_000
CODE = {Role.CLIENT: "c1" * 32, Role.AGGREGATOR: "a9" * 32}
SITES = ("north", "south", "west")
OWNER = "owner"
PARTIES = (OWNER, *SITES)


class Enclave:
    """A simulated TEE of the run."""

    def __init__(self, run: RecordedRun, role: Role) -> None:
        self._run = run
        self.role = role
        self.hpke = HpkeIdentity.generate()
        self.signing = Ed25519PrivateKey.generate()
        self.instance = instance_of(self.hpke.public, self.signing.public_key().public_bytes_raw())
        launched = run.platform.launch(
            measurement=CODE[role],
            configuration=run.manifest.digest,
            environment="simulation",
            shared=True,
            now_ms=run.now,
        )
        self._attester = SimulatedAttester(launched, ("not-dumpable", "landlock-4"))

    def attest(self, broker: bytes, nonce: bytes) -> bytes:
        binding = Binding(
            profile="simulated/1",
            nonce=nonce,
            audience=canonical.digest(broker),
            manifest=self._run.manifest.digest,
            role=self.role,
            run=self._run.manifest.run,
            hpke_public=self.hpke.public,
            signing_public=self.signing.public_key().public_bytes_raw(),
            issued_at=self._run.now,
        )
        return self._attester.attest(binding).encode()


class RecordedRun:
    """Owners, brokers and enclaves of one run, and everything that they said."""

    def __init__(
        self,
        home: Path,
        *,
        draft: dict[str, Any] | None = None,
        version_key: Ed25519PrivateKey | None = None,
        rounds: int = 2,
        stop: StopTerms | None = None,
        privacy: PrivacyTerms | None = None,
    ) -> None:
        self._privacy = privacy
        self._rounds = rounds
        self._stop = stop or StopTerms.none()
        self._draft = draft or {}
        self._version_key = version_key
        self.now = START_MS
        self.platform = SimulatedPlatform.create(self.now)
        self.homes = {
            name: OwnerHome.create(name, home=home, environment="simulation", now_ms=self.now) for name in PARTIES
        }
        floors = KeyFloors(
            environment="simulation",
            least_cohort=2,
            purposes=(Purpose.TRAIN, Purpose.EVALUATE, Purpose.AGGREGATE),
            measurements=Unchecked(unchecked="test"),
            total_rounds=10,
            discloses_to_model_owner=False,
            counted_identities=Unchecked(unchecked="test"),
        )
        self.keys = {name: home.new_key(floors=floors)[0] for name, home in self.homes.items()}
        start, sealed = seal_to_bytes(
            pack({"w": np.zeros(4, np.float32)}),
            Draft(kind=Kind.MODEL, container_id="start", owner=self.homes[OWNER].party.identity),
            data_key=bytes(32),
            signing_key=self.homes[OWNER].identity_key,
        )
        self.files: list[bytes] = [start]
        self.manifest = self._manifest(sealed.digest, sealed.size_bytes)
        self.approvals = [home.approve(self.manifest, now_ms=self.now) for home in self.homes.values()]
        self.brokers = {name: Broker.of(home, clock=self._tick) for name, home in self.homes.items()}
        self.evidence: list[bytes] = []
        self.records: dict[tuple[Purpose, int], CommitRecord] = {}
        self.events: list[dict[str, Any]] = []
        self._attested: set[tuple[str, str]] = set()
        self._play()
        self.closing = self._close()
        self.ledgers = {name: tuple(broker.records()) for name, broker in self.brokers.items()}

    def _tick(self) -> int:
        self.now += 7
        return self.now

    def _manifest(self, digest: str, size_bytes: int) -> Manifest:
        policy = {
            "profiles": ("simulated/1",),
            "devices": (),
            "appraisal": {},
            "max_age_s": 60,
            "reattest_rounds": 3,
            "reattest_s": 600,
        }
        start = SealedReference(container_id="start", digest=digest, key_id=self.keys[OWNER], size_bytes=size_bytes)
        sites = tuple(
            Site(
                owner=self.homes[name].party,
                dataset=SealedReference(container_id=name, digest="d1" * 32, key_id=self.keys[name], size_bytes=9),
            )
            for name in SITES
        )
        return Manifest(
            format=Manifest.FORMAT,
            name="digits",
            scenario=Scenario.FEDERATED,
            run="digits-1",
            environment="simulation",
            rounds=self._rounds,
            seed=7,
            max_attempts=2,
            data_source="sealed",
            preparation=None,
            model=ModelTerms(
                owner=self.homes[OWNER].party, start=start, layout="00" * 32, trained=("weight",), tied={}
            ),
            sites=sites,
            code=CodeTerms(
                client_app="app:app",
                client_image=CODE[Role.CLIENT],
                aggregator_image=CODE[Role.AGGREGATOR],
                lock="11" * 32,
                strategy=None,
            ),
            strategy=StrategyTerms(name="FedAvg", parameters={"fraction_train": 1.0}),
            cohort=CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=1.0, extra=0),
            settings={"local-epochs": 1},
            update=UpdateTerms(norm_bound=10.0, weight_cap=1000.0, loss_cap=None),
            metrics=MetricTerms(clear=() if self._privacy else ("accuracy", "loss"), decimals=4),
            stop=self._stop,
            aggregation=AggregationTerms.at_once(),
            adapter=None,
            compression=None,
            privacy=self._privacy,
            serving=None,
            client_tee=TeePolicy(measurements=(CODE[Role.CLIENT],), **policy),
            aggregator_tee=TeePolicy(measurements=(CODE[Role.AGGREGATOR],), **policy),
            trust=TrustTerms(anchors={"simulated/1": (self.platform.anchor,)}),
        )

    @property
    def trust(self) -> Trust:
        owners = {name: home.party.identity for name, home in self.homes.items()}
        return Trust(owners=owners, anchors={"simulated/1": (self.platform.anchor,)})

    # The run.

    def _play(self) -> None:
        client, aggregator = Enclave(self, Role.CLIENT), Enclave(self, Role.AGGREGATOR)
        self._round(client, aggregator, 1, sites=SITES)
        self._evaluate(client, aggregator, 1)
        # The aggregator dies when tickets are out: another instance, another attempt, and west does not come back.
        self._attest(aggregator, 2, attempt=0)
        self._tickets(client, aggregator, SITES, round_number=2, attempt=0, purpose=Purpose.TRAIN)
        second = Enclave(self, Role.AGGREGATOR)
        self._round(client, second, 2, attempt=1, sites=SITES[:2], excluded={"west": "no-answer"})
        self._evaluate(client, second, 2)

    def _round(
        self,
        client: Enclave,
        aggregator: Enclave,
        number: int,
        *,
        attempt: int = 0,
        sites: Sequence[str],
        excluded: dict[str, str] | None = None,
    ) -> None:
        self._attest(aggregator, number, attempt=attempt)
        sealed, digest = self._version(aggregator, number, attempt)
        record = self._commit(
            client,
            aggregator,
            number,
            attempt=attempt,
            purpose=Purpose.TRAIN,
            sites=sites,
            digest=digest,
            excluded=excluded or {},
        )
        self.files.append(sealed)
        self.records[Purpose.TRAIN, number] = record

    def _evaluate(self, client: Enclave, aggregator: Enclave, number: int) -> None:
        base = self.base(number)
        self.records[Purpose.EVALUATE, number] = self._commit(
            client, aggregator, number, attempt=0, purpose=Purpose.EVALUATE, sites=SITES, digest=base, excluded={}
        )

    def _attest(self, aggregator: Enclave, number: int, *, attempt: int) -> None:
        for name in PARTIES:
            keys = ()
            if name == OWNER:
                keys = (self._model_key(number - 1), self._model_key(number, attempt=attempt))
            self.release(aggregator, name, number, attempt=attempt, purpose=Purpose.AGGREGATE, keys=keys)

    def _model_key(self, version: int, *, attempt: int | None = None) -> KeyName:
        if attempt is None:
            attempt = self._candidate(Purpose.TRAIN, version).attempt if version else 0
        use = Use.VERSION if version else Use.START
        return KeyName(
            key_id=self.keys[OWNER], use=use, container="" if version else "start", version=version, attempt=attempt
        )

    def _candidate(self, purpose: Purpose, number: int) -> Candidate:
        return unverified(self.records[purpose, number].candidate, Candidate)

    def base(self, version: int) -> str:
        return self._candidate(Purpose.TRAIN, version).digest if version else self.manifest.model.start.digest

    def _base_record(self, version: int) -> bytes:
        return self.records[Purpose.TRAIN, version].to_bytes() if version else b""

    def release(
        self,
        enclave: Enclave,
        name: str,
        number: int,
        *,
        attempt: int,
        purpose: Purpose,
        keys: tuple[KeyName, ...],
        identity: bytes = b"",
    ) -> Signed | None:
        party = self.homes[name].party
        nonce = verify(self.brokers[name].challenge(self.manifest.digest), Challenge, signer=party.broker).nonce
        version = number if purpose is Purpose.EVALUATE else number - 1
        request = ReleaseRequest(
            request_id=os.urandom(16),
            broker=party.broker,
            nonce=nonce,
            manifest=self.manifest.digest,
            run=self.manifest.run,
            instance=enclave.instance,
            role=enclave.role,
            purpose=purpose,
            identity=identity,
            round=number,
            attempt=attempt,
            base=self.base(version),
            keys=keys,
            ticket_for="",
        )
        envelope = b""
        if (enclave.instance, name) not in self._attested:
            envelope = enclave.attest(party.broker, nonce)
            self.evidence.append(envelope)
            self._attested.add((enclave.instance, name))
        signed = sign(request, enclave.signing)
        return self.brokers[name].release(signed, envelope=envelope, base_record=self._base_record(version)).credential

    def _version(self, aggregator: Enclave, number: int, attempt: int) -> tuple[bytes, str]:
        draft = Draft(
            kind=Kind.MODEL,
            container_id=f"digits-1/{number}.{attempt}",
            version=number,
            parents=(self.base(number - 1),),
            owner=self.homes[OWNER].party.identity,
            manifest=self.manifest.digest,
            detail={"attempt": attempt},
        )
        weights = {"w": np.full(4, number, np.float32)}
        draft = dataclasses.replace(draft, **self._draft)
        key = self._version_key or aggregator.signing
        data, sealed = seal_to_bytes(pack(weights), draft, data_key=bytes(32), signing_key=key)
        return data, sealed.digest

    def _tickets(
        self,
        client: Enclave,
        aggregator: Enclave,
        sites: Sequence[str],
        *,
        round_number: int,
        attempt: int,
        purpose: Purpose,
    ) -> list[Signed]:
        version = round_number if purpose is Purpose.EVALUATE else round_number - 1
        step = {"attempt": attempt, "purpose": purpose}
        tickets: list[Signed] = []
        for site in sites:
            party = self.homes[site].party
            data = KeyName(key_id=self.keys[site], use=Use.DATA, container=site, version=0, attempt=0)
            self.release(client, OWNER, round_number, keys=(self._model_key(version),), identity=party.identity, **step)
            credential = self.release(client, site, round_number, keys=(data,), identity=party.identity, **step)
            assert credential is not None
            request = TicketRequest(
                request_id=os.urandom(16),
                broker=party.broker,
                identity=party.identity,
                manifest=self.manifest.digest,
                run=self.manifest.run,
                round=round_number,
                base=self.base(version),
                aggregator=aggregator.instance,
                credential=credential.digest,
                **step,
            )
            tickets.append(self.brokers[site].ticket(sign(request, client.signing)))
        return tickets

    def _commit(
        self,
        client: Enclave,
        aggregator: Enclave,
        number: int,
        *,
        attempt: int,
        purpose: Purpose,
        sites: Sequence[str],
        digest: str,
        excluded: dict[str, str],
    ) -> CommitRecord:
        tickets = self._tickets(client, aggregator, sites, round_number=number, attempt=attempt, purpose=purpose)
        version = number if purpose is Purpose.EVALUATE else number - 1
        evaluates = purpose is Purpose.EVALUATE
        values = {"loss": 1.0 / number, "accuracy": 0.5 + number / 10} if evaluates else {"loss": 0.75}
        values = {} if self._privacy else values
        metrics = ClearMetrics(salt=bytes(32), values=values)
        candidate = Candidate(
            run=self.manifest.run,
            manifest=self.manifest.digest,
            round=number,
            attempt=attempt,
            purpose=purpose,
            base=self.base(version),
            version=number,
            digest=digest,
            state="",
            instance=aggregator.instance,
            cohort=tuple(self.homes[site].party.identity for site in sites),
            tickets=tuple(ticket.digest for ticket in tickets),
            excluded=excluded,
            metrics=metrics.digest,
            privacy=self._spent(number, attempt) if self._privacy and not evaluates else None,
        )
        signed, base_record = sign(candidate, aggregator.signing), self._base_record(version)
        agreed = tuple(
            self.brokers[site].countersign(signed, tickets=tickets, base_record=base_record) for site in SITES
        )
        commit = self.brokers[OWNER].commit(signed, tickets=tickets, countersignatures=agreed, base_record=base_record)
        self._note_events(candidate, sites, values)
        return CommitRecord(
            candidate=signed, tickets=tuple(tickets), countersignatures=agreed, commit=commit, metrics=metrics
        )

    def _spent(self, number: int, attempt: int) -> PrivacyState:
        assert self._privacy is not None
        base = self._candidate(Purpose.TRAIN, number - 1).privacy if number > 1 else PrivacyState.start(self._privacy)
        assert base is not None
        return after(self._privacy, base, attempt=attempt, next_clip=base.next_clip)

    def _note_events(self, candidate: Candidate, sites: Sequence[str], metrics: Mapping[str, float]) -> None:
        step = {"round": candidate.round, "purpose": str(candidate.purpose)}
        note = self.events.append
        note({"event": "round-started", "time": self.now, **step, "cohort": len(SITES)})
        for site in sites:
            seconds = {"fetch": 0.01, "open": 0.02, "train": 0.5, "seal": 0.02, "send": 0.01}
            note({"event": "client-done", "time": self.now + 500, **step, "site": site, "seconds": seconds})
        for site, code in candidate.excluded.items():
            note({"event": "client-failed", "time": self.now + 600, **step, "site": site, "code": code})
        event = "evaluated" if candidate.purpose is Purpose.EVALUATE else "round-combined"
        note(
            {
                "event": event,
                "time": self.now + 700,
                **step,
                "cohort": len(sites),
                "metrics": dict(metrics),
                "seconds": {"combine": 0.05, "commit": 0.1},
                "version": candidate.version,
                "digest": candidate.digest,
                "excluded": dict(candidate.excluded),
            }
        )

    def _close(self) -> ClosingRecord:
        terms = {
            "run": self.manifest.run,
            "manifest": self.manifest.digest,
            "final_record": self.records[Purpose.TRAIN, 2].to_bytes(),
            "history": tuple(record.abridged().to_bytes() for record in self.records.values()),
        }
        closing = self.brokers[OWNER].close(**terms)
        agreed = tuple(self.brokers[site].close(**terms, closing=closing) for site in SITES)
        return ClosingRecord(closing=closing, countersignatures=agreed)

    # The records, honest or forged.

    def write(self, path: Path) -> RunDirectory:
        directory = RunDirectory.create(path)
        directory.write_manifest(self.manifest)
        directory.write_approvals(self.approvals)
        for number, data in enumerate(self.files):
            directory.write_version(number, data)
        for (purpose, number), record in self.records.items():
            directory.write_commit(purpose, number, record.to_bytes())
        for envelope in self.evidence:
            directory.write_evidence(envelope)
        for name, entries in self.ledgers.items():
            directory.write_ledger(name, entries)
        directory.write_closing(self.closing)
        directory.events_file.write_text("".join(json.dumps(event) + "\n" for event in self.events))
        directory.write_metrics(metrics.collect(directory))
        last = str(directory.version_file(2))
        directory.write_summary(metrics.summarize(directory, engine="local", total_s=1.5, model=last))
        return directory

    def forge_ledger(
        self,
        directory: RunDirectory,
        name: str,
        change: Callable[[list[LedgerEntry]], list[LedgerEntry]],
        *,
        closing: Mapping[str, Any] | None = None,
    ) -> None:
        """Let a dishonest owner rewrite its whole ledger with its own key, its closing countersignature with it.

        ``closing`` are changes of the last entry, about that countersignature.
        """
        key, broker = self.homes[name].broker_key, self.homes[name].party.broker
        entries = [unverified(signed, LedgerEntry) for signed in self.ledgers[name]]
        kept = [entry for entry in entries if entry.event != "closing-countersigned"]
        chain: list[Signed] = []
        for entry in change(kept):
            chain.append(_chained(entry, chain, key))
        record = directory.closing()
        assert record is not None
        for at, signed in enumerate(record.countersignatures):
            if signed.signer == broker:
                agreed = unverified(signed, ClosingCountersignature)
                forged = sign(dataclasses.replace(agreed, head=chain[-1].digest), key)
                last = next(entry for entry in entries if entry.event == "closing-countersigned")
                chain.append(_chained(_with_body(last, statement=forged.digest, **(closing or {})), chain, key))
                others = record.countersignatures
                directory.write_closing(
                    ClosingRecord(closing=record.closing, countersignatures=(*others[:at], forged, *others[at + 1 :]))
                )
        directory.write_ledger(name, chain)


def _chained(entry: LedgerEntry, chain: Sequence[Signed], key: Ed25519PrivateKey) -> Signed:
    previous = chain[-1].digest if chain else ""
    time = max(entry.time, unverified(chain[-1], LedgerEntry).time) if chain else entry.time
    return sign(dataclasses.replace(entry, sequence=len(chain), previous=previous, time=time), key)


def _with_body(entry: LedgerEntry, **changes: Any) -> LedgerEntry:
    return dataclasses.replace(entry, body={**entry.body, **changes})


def edit(event: str, *, at: int = 0, **changes: Any) -> Callable[[list[LedgerEntry]], list[LedgerEntry]]:
    """Change fields of the ``at``-th entry of an event."""

    def change(entries: list[LedgerEntry]) -> list[LedgerEntry]:
        place = _place(entries, event, at)
        entries[place] = _with_body(entries[place], **changes)
        return entries

    return change


def leave_out(event: str, *, at: int = 0) -> Callable[[list[LedgerEntry]], list[LedgerEntry]]:
    """Leave out the ``at``-th entry of an event."""

    def change(entries: list[LedgerEntry]) -> list[LedgerEntry]:
        del entries[_place(entries, event, at)]
        return entries

    return change


def repeat(event: str, *, at: int = 0, **changes: Any) -> Callable[[list[LedgerEntry]], list[LedgerEntry]]:
    """Repeat the ``at``-th entry of an event at once, with changes."""

    def change(entries: list[LedgerEntry]) -> list[LedgerEntry]:
        place = _place(entries, event, at)
        entries.insert(place + 1, _with_body(entries[place], **changes))
        return entries

    return change


def _place(entries: list[LedgerEntry], event: str, at: int) -> int:
    return [place for place, entry in enumerate(entries) if entry.event == event][at]
