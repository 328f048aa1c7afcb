"""The attested session: one TEE, its keys, and what its owners' brokers gave it for a round.

A step (one round, attempt and purpose) is prepared once for all identities that this TEE hosts:

1. the base version is known by the manifest (version 0) or by a countersigned commit record, never by the governor;
2. every broker is attested to under its own nonce and asked for keys and a credential, in one batch a server, all
   servers side by side (``releases``);
3. the aggregator's credential (from the site's own broker) and its evidence are verified here;
4. a ticket is bought for each identity, after both brokers have agreed; a TEE of many sites asks the model owner's
   broker first, and then each site's own for credential and ticket at once, where its data are open already;
5. the base is fetched and opened once, each site's dataset once; the base from the moment that its key is there, beside
   what is left of 2 to 4. Nothing is trained on and nothing sealed before all of them are done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.attestation.attester import Attester
from confed.attestation.evidence import instance_of
from confed.client.alone import Alone
from confed.client.counterpart import AggregatorCheck
from confed.client.datasets import Datasets
from confed.client.feedback import Feedback
from confed.client.frozen import frozen_digest
from confed.client.outbox import LARGEST_RESULT_BYTES, Outbox
from confed.client.releases import Ask, Asked, Born, Opened, Releases, Terms, by_server
from confed.client.result import seal_result
from confed.client.statistics import Statistics
from confed.client.step import Arrays, Grants, Itself, Step, no_seconds, timed, timed_apart
from confed.errors import (
    ConfedError,
    CredentialError,
    LineageError,
    RefusedError,
    SessionError,
    ShapeError,
    UnreachableError,
)
from confed.journey import Kind, Purpose, Use, base_version
from confed.keybroker.client import BrokerClient
from confed.keybroker.clock import EnclaveClock
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import (
    AggregatorCredential,
    Candidate,
    ClientCredential,
    CommitRecord,
    KeyName,
    Ticket,
    TicketRequest,
)
from confed.manifest import Manifest, Site
from confed.memory import KeptRoom, give_back, room_for
from confed.model.weights import layout_of, unpack
from confed.sealing.arrival import open_arriving
from confed.sealing.container import Container
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, public_bytes, sign, verify
from confed.wire.courier_client import CourierClient

_LARGE_BYTES = 1024**3
_SIDE_BY_SIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Whom a session talks to: broker clients by broker key, and the courier."""

    brokers: Mapping[bytes, BrokerClient]
    courier: CourierClient


class ClientSession:
    """One client TEE. Its HPKE and signing keys are born here and end with the process.

    Args:
        manifest: the run's contract; everything that matters is taken from it.
        attester: makes this TEE's evidence.
        sites: names of the sites it acts for; empty: whichever Flower assigns, one at a time.
    """

    def __init__(self, *, manifest: Manifest, attester: Attester, services: Services, sites: Sequence[str]) -> None:
        self.manifest = manifest
        self._digest = manifest.digest
        self._services = services
        self._hosted = tuple(sites)
        self._hosts = frozenset(sites)
        self._cohort: tuple[tuple[Purpose, int], Mapping[str, Site]] | None = None
        self._hpke = HpkeIdentity.generate()
        self._signing = Ed25519PrivateKey.generate()
        self.instance = instance_of(self._hpke.public, public_bytes(self._signing))
        self._clock = EnclaveClock()
        self._lock = threading.RLock()
        self._steps: dict[tuple[int, int, Purpose, str], Step] = {}
        self._pool = ThreadPoolExecutor(max_workers=_SIDE_BY_SIDE, thread_name_prefix="confed-session")
        self._releases = Releases(
            manifest,
            digest=self._digest,
            attester=attester,
            born=Born(hpke=self._hpke, signing=self._signing),
            clock=self._clock,
            brokers=services.brokers,
            courier=services.courier,
            pool=self._pool,
        )
        self._datasets = Datasets(manifest, courier=services.courier, signing_key=self._signing)
        self._statistics = Statistics(
            manifest, datasets=self._datasets, courier=services.courier, signing_key=self._signing
        )
        self._bases: dict[str, Arrays] = {}
        self._room = KeptRoom()
        self._frozen = ""
        self._counterpart = AggregatorCheck(manifest, courier=services.courier, now=self._clock.now)
        self._records: dict[int, tuple[CommitRecord, Candidate]] = {}
        self.alone = None if manifest.scenario.combines else self._as_the_one()
        compression = manifest.compression
        self._feedback = Feedback(self._tickets_of) if compression is not None and compression.feedback else None
        self.states: dict[str, Any] = {}
        self.listens = False
        """Whether its host waits at the site's box for what the governor leaves there."""
        self.outbox: Outbox | None = None
        """Where small results wait to be sent together, in a TEE that hosts many sites; else each is sent alone."""

    @property
    def courier(self) -> CourierClient:
        """Where sealed things are fetched from and sent to."""
        return self._services.courier

    @property
    def follows_flower(self) -> bool:
        """True where Flower decides which identity a worker acts for, so that nothing may stay in one worker."""
        return not self._hosted

    def site_for(self, partition: int | None) -> Site:
        """Return the site that a message is for: the only hosted one, or the manifest's at this partition index.

        Raises:
            SessionError: none, or one that this TEE does not act for.
        """
        if len(self._hosted) == 1:
            return self.manifest.site_named(self._hosted[0])
        if partition is None or not 0 <= partition < len(self.manifest.sites):
            raise SessionError("partition-id", expected=f"from 0 to {len(self.manifest.sites) - 1}", got=partition)
        site = self.manifest.sites[partition]
        if self._hosted and site.owner.name not in self._hosts:
            raise SessionError("site", expected="one that this TEE acts for", got=site.owner.name)
        return site

    def step(
        self, site: Site, *, round_number: int, attempt: int, purpose: Purpose, aggregator: str = ""
    ) -> tuple[Step, Grants]:
        """Return the prepared step and what ``site`` holds in it, preparing it for all hosted sites if need be.

        ``aggregator`` is the instance that the governor says the round is of: see ``counterpart``.

        Raises:
            ConfedError: any refusal, of the class that says why; nothing that was opened is kept then.
        """
        if site.owner.name not in self._drawn(purpose, round_number):
            raise SessionError("site", expected="one drawn for this round", got=site.owner.name)
        if self._hosted and site.owner.name not in self._hosts:
            raise SessionError("site", expected="one that this TEE acts for", got=site.owner.name)
        key = (round_number, attempt, purpose, "" if self._hosted else site.owner.name)
        with self._lock:
            step = self._steps.get(key)
            if step is None:
                group = self._drawn(purpose, round_number) if self._hosted else {site.owner.name: site}
                hosted = [entry for name, entry in group.items() if not self._hosted or name in self._hosts]
                step = self._prepare(
                    hosted, round_number=round_number, attempt=attempt, purpose=purpose, aggregator=aggregator
                )
                self._steps = {old: kept for old, kept in self._steps.items() if old[0] >= round_number - 1}
                self._steps[key] = step
        grants = step.grants[site.owner.name]
        if isinstance(grants, ConfedError):
            raise grants
        return step, grants

    def _drawn(self, purpose: Purpose, round_number: int) -> Mapping[str, Site]:
        """Return the drawn sites by name, in identity order; worked out once a round."""
        if self._cohort is None or self._cohort[0] != (purpose, round_number):
            drawn = self.manifest.draw(purpose=purpose, round_number=round_number)
            self._cohort = ((purpose, round_number), {site.owner.name: site for site in drawn})
        return self._cohort[1]

    @property
    def datasets(self) -> Datasets:
        """The sites' data, opened in this TEE."""
        return self._datasets

    def _prepare(
        self, group: Sequence[Site], *, round_number: int, attempt: int, purpose: Purpose, aggregator: str
    ) -> Step:
        seconds = no_seconds()
        version = base_version(purpose=purpose, round_number=round_number)
        with timed(seconds, "fetch"):
            base, record, base_attempt = self._base(version)
        if self.alone is not None:
            with timed(seconds, "fetch"):
                self.alone.begin(version=version, purpose=purpose, round_number=round_number)
        asks = self._asks(group, version=version, base_attempt=base_attempt)
        makes = self.alone if purpose is Purpose.TRAIN else None
        if makes is not None:
            names = makes.asked(version=version, attempt=attempt, base_record=record)
            asks[0] = replace(asks[0], keys=(*asks[0].keys, *names))
        terms = Terms(round_number=round_number, attempt=attempt, purpose=purpose, base=base, record=record)
        asked = self._releases.begin(asks if len(group) == 1 else asks[:1], terms)
        opening = None if base in self._bases else self._pool.submit(self._opened_base, base, asked)
        try:
            model_key, *replies = asked.all(seconds)
            if isinstance(model_key, ConfedError):
                raise model_key
            known: dict[str, AggregatorCredential | Itself] = {}
            if len(group) > 1:
                with timed(seconds, "attest"):
                    known = self._counterparts(group, asks[1:], terms, named=aggregator)
                asks = [
                    replace(ask, ticket_for=known[site.owner.name].instance) if site.owner.name in known else ask
                    for site, ask in zip(group, asks[1:], strict=True)
                ]
                replies = self._releases.begin(asks, terms).all(seconds)
            grants = self._granted(group, replies, terms, seconds, known=known, named=aggregator)
        finally:
            if opening is not None:
                wait((opening,))
        if opening is not None:
            opened, self._frozen, spent = opening.result()
            self._bases = {base: opened}
            for stage, value in spent.items():
                seconds[stage] += value
        return Step(
            round_number=round_number,
            attempt=attempt,
            purpose=purpose,
            base=base,
            arrays=self._bases[base],
            grants=grants,
            record=record,
            keys=None if makes is None else makes.keys_of(model_key.keys[1:]),
            seconds=seconds,
            frozen=self._frozen,
        )

    def _counterparts(
        self, group: Sequence[Site], asks: Sequence[Ask], terms: Terms, *, named: str
    ) -> dict[str, AggregatorCredential | Itself]:
        """Return the aggregators of those sites that have nothing to open before they buy a ticket."""
        found: dict[str, AggregatorCredential | Itself] = {}
        for site, ask in zip(group, asks, strict=True):
            if not ask.keys:
                # Who has none is looked at again, and told why, once it has its credential.
                with suppress(ConfedError):
                    found[site.owner.name] = self._counterpart_of(site, terms.round_number, named)
        return found

    def _granted(
        self,
        group: Sequence[Site],
        replies: Sequence[Opened | ConfedError],
        terms: Terms,
        seconds: dict[str, float],
        *,
        known: Mapping[str, AggregatorCredential | Itself],
        named: str,
    ) -> dict[str, Grants | ConfedError]:
        """Return what each site was granted (steps 3 and 4)."""
        grants: dict[str, Grants | ConfedError] = {}
        waiting: list[tuple[Site, Signed, AggregatorCredential | Itself]] = []
        for site, reply in zip(group, replies, strict=True):
            try:
                if isinstance(reply, ConfedError):
                    raise reply
                if not self._datasets.has(site):
                    self._datasets.open(site, reply.keys[0], seconds)
                counterpart = known.get(site.owner.name)
                if counterpart is None:
                    with timed(seconds, "attest"):
                        counterpart = self._counterpart_of(site, terms.round_number, named)
                if reply.credential is None:
                    raise CredentialError("client credential", expected=f"one for {site.owner.name}", got="none")
                if reply.ticket is None:
                    waiting.append((site, reply.credential, counterpart))
                    continue
                self._require_own(site, reply.credential)
                held = Grants(credential=reply.credential, ticket=reply.ticket, aggregator=counterpart)
                grants[site.owner.name] = self._shown(site, held, terms)
            except ConfedError as error:
                grants[site.owner.name] = error
        with timed(seconds, "release"):
            grants.update(self._tickets(waiting, terms))
            self._statistics.release(
                {site.owner.name: site for site in group},
                grants,
                round_number=terms.round_number,
                attempt=terms.attempt,
                purpose=terms.purpose,
                broker_of=lambda broker: self._services.brokers[broker],
            )
        return grants

    def _opened_base(self, base: str, asked: Asked) -> tuple[Arrays, str, dict[str, float]]:
        """Open the base once its key is there; return it, the digest of what stays frozen, and seconds (step 5)."""
        model_key, seconds = asked.first(), no_seconds()
        if isinstance(model_key, ConfedError):
            raise model_key
        arrays, frozen = self._open_base(base, model_key.keys[0], seconds)
        return arrays, frozen, seconds

    def _as_the_one(self) -> Alone:
        """Return what makes versions where no aggregator does."""
        return Alone(
            self.manifest,
            digest=self._digest,
            itself=Itself(instance=self.instance, hpke_public=self._hpke.public),
            signing_key=self._signing,
            brokers=self._services.brokers,
            courier=self._services.courier,
        )

    def _counterpart_of(self, site: Site, round_number: int, named: str) -> AggregatorCredential | Itself:
        if self.alone is not None:
            return self.alone.itself
        return self._counterpart.aggregator_of(site, round_number=round_number, named=named)

    def _base(self, version: int) -> tuple[str, bytes, int]:
        """Return the base's file digest, its commit record and its attempt (step 1)."""
        if version == 0:
            return self.manifest.model.start.digest, b"", 0
        known = self._records.get(version)
        if known is None:
            failure: ConfedError = LineageError("commit record", expected=f"one of version {version}", got="none")
            for body in self._services.courier.collect(f"{self.manifest.run}/commit/train/{version}"):
                try:
                    found = CommitRecord.from_bytes(body)
                    known = (found, verify_commit_record(found, manifest=self.manifest, round_number=version))
                    break
                except ConfedError as error:
                    failure = error
            if known is None:
                raise failure
            # Of a thousand sites a record has megabytes; those of long ago are collected again if they are asked for.
            recent = {number: record for number, record in self._records.items() if number >= version - 2}
            self._records = {**recent, version: known}
        return known[1].digest, known[0].to_bytes(), known[1].attempt

    def _tickets_of(self, version: int) -> tuple[str, ...]:
        """Return the digests of the tickets whose updates are in a committed version."""
        self._base(version)
        return self._records[version][1].tickets

    def _asks(self, group: Sequence[Site], *, version: int, base_attempt: int) -> list[Ask]:
        """Return (broker, identity, keys) of every broker to ask: the model owner's first."""
        start = self.manifest.model.start
        model_key = KeyName(
            key_id=start.key_id,
            use=Use.START if version == 0 else Use.VERSION,
            container=start.container_id if version == 0 else "",
            version=version,
            attempt=base_attempt,
        )
        owner = self.manifest.model.owner.broker
        asks = [Ask(broker=owner, identity=group[0].owner.identity, keys=(model_key,))]
        for site in group:
            keys: tuple[KeyName, ...] = ()
            if site.dataset is not None and not self._datasets.has(site):
                keys = (
                    KeyName(
                        key_id=site.dataset.key_id,
                        use=Use.DATA,
                        container=site.dataset.container_id,
                        version=0,
                        attempt=0,
                    ),
                )
            asks.append(Ask(broker=site.owner.broker, identity=site.owner.identity, keys=keys))
        return asks

    def _open_base(self, base: str, key: bytes, seconds: dict[str, float]) -> tuple[Arrays, str]:
        def key_of(container: Container) -> bytes:
            # The digest of the whole file is the manifest's or a countersigned commit's, so the signer is covered.
            if container.header.kind is not Kind.MODEL:
                raise ShapeError("container kind", expected=Kind.MODEL, got=container.header.kind)
            return key

        with timed_apart(seconds, "open", self._services.courier.stream(base), "fetch") as parts:
            _, plaintext = open_arriving(parts, key_of=key_of, room=self._room.lend)
            arrays = unpack(plaintext)
        if layout_of(arrays).digest != self.manifest.model.layout:
            raise ShapeError("base version", expected="the manifest's tensors", got="others")
        if self.manifest.adapter is None:
            return arrays, ""
        return arrays, frozen_digest(arrays, trained=self.manifest.model.trained)

    def _tickets(
        self, waiting: Sequence[tuple[Site, Signed, AggregatorCredential | Itself]], terms: Terms
    ) -> dict[str, Grants | ConfedError]:
        """Buy a ticket for each identity and show it, with its credential, to the aggregator (step 4)."""
        results: dict[str, Grants | ConfedError] = {}
        for client, positions in by_server(self._services.brokers, [site.owner.broker for site, _, _ in waiting]):
            items: list[Signed] = []
            for at in positions:
                site, credential, aggregator = waiting[at]
                self._require_own(site, credential)
                items.append(sign(self._ticket_request(site, credential, aggregator, terms), self._signing))
            try:
                replies = client.ticket(items)
            except UnreachableError as error:
                replies = [error] * len(items)
            for at, reply in zip(positions, replies, strict=True):
                site, credential, aggregator = waiting[at]
                results[site.owner.name] = (
                    reply
                    if isinstance(reply, ConfedError)
                    else self._shown(site, Grants(credential=credential, ticket=reply, aggregator=aggregator), terms)
                )
        return results

    def _require_own(self, site: Site, credential: Signed) -> None:
        own = verify(credential, ClientCredential, signer=site.owner.broker)
        if own.instance != self.instance or own.identity != site.owner.identity:
            raise CredentialError("client credential", expected="for this TEE and site", got="for another")

    def _ticket_request(
        self, site: Site, credential: Signed, aggregator: AggregatorCredential | Itself, terms: Terms
    ) -> TicketRequest:
        return TicketRequest(
            request_id=os.urandom(16),
            broker=site.owner.broker,
            identity=site.owner.identity,
            manifest=self._digest,
            run=self.manifest.run,
            round=terms.round_number,
            attempt=terms.attempt,
            purpose=terms.purpose,
            base=terms.base,
            aggregator=aggregator.instance,
            credential=credential.digest,
        )

    def _shown(self, site: Site, grants: Grants, terms: Terms) -> Grants:
        ticket = verify(grants.ticket, Ticket, signer=site.owner.broker)
        if (ticket.base, ticket.aggregator) != (terms.base, grants.aggregator.instance):
            raise RefusedError("ticket", expected="for this base and aggregator", got="for another")
        if self.outbox is None:
            self._post(site, grants, purpose=terms.purpose, round_number=terms.round_number, attempt=terms.attempt)
        return grants

    def _post(self, site: Site, grants: Grants, *, purpose: Purpose, round_number: int, attempt: int) -> None:
        topic = f"{self.manifest.run}/{purpose}/{round_number}/{attempt}/{site.owner.name}"
        documents = {"credential": grants.credential.to_json(), "ticket": grants.ticket.to_json()}
        self._services.courier.post(topic, canonical.encode(documents))

    def seal_result(
        self,
        site: Site,
        step: Step,
        grants: Grants,
        *,
        arrays: Arrays | None,
        weight: float,
        metrics: Mapping[str, float],
        seconds: dict[str, float],
    ) -> str:
        """Seal an update (or, with no arrays, metrics alone) to the aggregator, and return its digest.

        It is sent, or put into the outbox, from where it is sent with others. Where the run has no aggregator, the
        next version is made and committed here, and its digest is returned.

        Raises:
            ShapeError: tensors other than the base's.
            SessionError: something to carry over, where the next round may run in another TEE.
            ConfedError: the courier refused or is down.
        """
        if self.alone is not None:
            digest = self.alone.finish(
                site, step, grants, arrays=arrays, weight=weight, metrics=metrics, seconds=seconds
            )
            if arrays is not None:
                self._let_go(step)
            return digest
        if arrays is not None and self._feedback is not None and self.follows_flower:
            raise SessionError(
                "compression.feedback", expected="none: Ray may run the next round elsewhere", got="some"
            )
        if arrays is not None and len(step.grants) == 1:
            self._let_go(step)
        with timed(seconds, "seal"):
            data, sealed = seal_result(
                self.manifest,
                site,
                step,
                grants,
                manifest_digest=self._digest,
                arrays=arrays,
                weight=weight,
                metrics=metrics,
                signing_key=self._signing,
                feedback=self._feedback,
                room=self._room.lend if len(step.grants) == 1 else room_for,
            )
        with timed(seconds, "send"):
            if self.outbox is not None and len(data) <= LARGEST_RESULT_BYTES:
                self.outbox.add(site.owner.name, grants, data, digest=sealed.digest)
                return sealed.digest
            if self.outbox is not None:
                self._post(site, grants, purpose=step.purpose, round_number=step.round_number, attempt=step.attempt)
            sent = self._services.courier.put(data, digest=sealed.digest)
        if self.manifest.model.start.size_bytes >= _LARGE_BYTES:
            give_back()  # what the app worked in: a machine with several TEEs may need it meanwhile
        return sent

    def _let_go(self, step: Step) -> None:
        """Keep no reference to a base that its only site has trained on: models are large, and the next is another."""
        with self._lock:
            self._steps = {key: kept for key, kept in self._steps.items() if kept is not step}
            self._bases.pop(step.base, None)
