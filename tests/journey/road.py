"""The whole road in one process: real owners, brokers, courier, aggregator and client sessions, over real gRPC.

A ``Land`` is what stands before a run: owners with homes, a sealed model and sealed datasets, an approved manifest.
A ``Road`` is a run on a copy of it: each owner's broker, the courier and the aggregator listen on Unix sockets of
their own, each site has an attested ``ClientSession``. ``Road.round`` walks one honest round.

``Turns`` are the wrong turns: each changes one thing on the way. With none, the road is the honest one.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.enclave import Enclave
from aggregator.run import Run
from aggregator.service import AggregatorService
from confed import canonical
from confed.adapter import AdapterTerms
from confed.aggregation import AggregationTerms
from confed.attestation.attester import Attester
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedInstance, SimulatedPlatform
from confed.attestation.tee.simulated_certificate import Launch, issue_instance
from confed.attestation.verifier import Registry
from confed.client.session import ClientSession, Services
from confed.client.step import Grants, Step
from confed.compression import name_of
from confed.errors import ConfedError
from confed.governor.courier import Courier, serve_courier
from confed.governor.enclave_client import ClosedRound, EnclaveClient, OpenedRound
from confed.journey import Kind, Purpose
from confed.keybroker.broker import Broker
from confed.keybroker.client import BrokerClient, ReleaseItem
from confed.keybroker.identity import OwnerHome
from confed.keybroker.ledger import verify_ledger
from confed.keybroker.server import serve_brokers
from confed.keybroker.statements import (
    Candidate,
    Challenge,
    CommitRecord,
    LedgerEntry,
    ReleaseRequest,
    TicketRequest,
)
from confed.keybroker.vault import KeyFloors
from confed.manifest import (
    FORMAT,
    SIMULATION,
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
from confed.model.update import UpdateDetail, update_key_info
from confed.model.weights import layout_of, pack, unpack
from confed.scenario import Scenario
from confed.sealing.container import Container, Draft, seal_to_bytes
from confed.sealing.derivation import container_key, version_key
from confed.sealing.recipients import HpkeRecipient, Method, RecipientEntry
from confed.statement import Signed, sign, unverified
from confed.stopping import StopTerms
from confed.wire.channel import Endpoint, RunningServer, open_channel, serve
from confed.wire.courier_client import CourierClient

Arrays = Mapping[str, np.ndarray]

NOW = 1_800_000_000_000
OWNER = "model-owner"
SITES = ("east", "north", "south", "west")
CLIENT_CODE = "c1" * 32
AGGREGATOR_CODE = "a9" * 32
OTHER = "0e" * 32
"""A digest of nothing."""

MAX_ATTEMPTS = 100
REATTEST_ROUNDS = 2
REATTEST_S = 600


def small_model() -> dict[str, np.ndarray]:
    """A model of a few hundred numbers, with a counter among them."""
    generator = np.random.default_rng(1)
    return {
        "weight": generator.normal(size=(16, 16)).astype(np.float32),
        "bias": generator.normal(size=16).astype(np.float32),
        "steps": np.array(3, dtype=np.int64),
    }


def small_data(index: int) -> dict[str, np.ndarray]:
    """A site's data: nobody trains on it here, but it is sealed, released and opened like any other."""
    return {"x": np.full((4, 3), float(index), dtype=np.float32), "y": np.arange(4, dtype=np.int64)}


@dataclass(kw_only=True)
class Land:
    """Owners, sealed files and an approved manifest in ``folder``; closed, to be copied by each road.

    ``trained`` names what travels (every floating tensor if it is empty); ``change`` has the last word on the manifest; ``floors`` those of one owner's key by name.
    """

    folder: Path
    sites: Sequence[str] = SITES
    least: int = 2
    rounds: int = 3
    environment: str = SIMULATION
    model: Arrays = field(default_factory=small_model)
    data: Callable[[int], Arrays] = small_data
    trained: tuple[str, ...] = ()
    adapter: AdapterTerms | None = None
    change: Callable[[Manifest], Manifest] = lambda manifest: manifest
    floors: Callable[[str, Mapping[str, OwnerHome]], Mapping[str, Any]] = lambda _name, _homes: {}

    def __post_init__(self) -> None:
        self.platform = SimulatedPlatform.create(NOW)
        home = self.folder / "home"
        homes = {
            name: OwnerHome.create(name, home=home, environment=self.environment, now_ms=NOW)
            for name in (OWNER, *self.sites)
        }
        self._data: dict[str, Any] = {"data_source": "sealed", "preparation": None}
        self.files: dict[str, bytes] = {}
        self.keys: dict[str, bytes] = {}
        references = {OWNER: self._sealed(homes, OWNER, Kind.MODEL, self.model)}
        for index, name in enumerate(self.sites):
            references[name] = self._sealed(homes, name, Kind.DATASET, self.data(index))
        self.manifest = self.change(self._manifest(homes, references))
        for owner in homes.values():
            owner.approve(self.manifest, now_ms=NOW)
            owner.close()

    def _sealed(self, homes: Mapping[str, OwnerHome], name: str, kind: Kind, arrays: Arrays) -> SealedReference:
        floors = self._floors_of(homes, name)
        key_id, self.keys[name] = homes[name].new_key(floors=floors)
        container_id = f"container-{name}"
        draft = Draft(
            kind=kind,
            container_id=container_id,
            owner=homes[name].party.identity,
            recipients=(RecipientEntry.owner_key(key_id),),
        )
        sealed, told = seal_to_bytes(
            pack(arrays),
            draft,
            data_key=container_key(self.keys[name], container_id=container_id),
            signing_key=homes[name].identity_key,
        )
        self.files[told.digest] = sealed
        return SealedReference(container_id=container_id, digest=told.digest, key_id=key_id, size_bytes=told.size_bytes)

    def _floors_of(self, homes: Mapping[str, OwnerHome], name: str) -> KeyFloors:
        values: dict[str, Any] = {
            "environment": self.environment,
            "least_cohort": self.least,
            "purposes": (Purpose.TRAIN, Purpose.EVALUATE, Purpose.AGGREGATE),
            "measurements": Unchecked(unchecked="the manifest's list will do"),
            "total_rounds": 10,
            "discloses_to_model_owner": False,
            "counted_identities": Unchecked(unchecked="every site counts"),
        }
        return KeyFloors(**{**values, **self.floors(name, homes)})

    def _manifest(self, homes: Mapping[str, OwnerHome], references: Mapping[str, SealedReference]) -> Manifest:
        policy: dict[str, Any] = {
            "profiles": ("simulated/1",),
            "devices": (),
            "appraisal": {},
            "max_age_s": 60,
            "reattest_rounds": REATTEST_ROUNDS,
            "reattest_s": REATTEST_S,
        }
        return Manifest(
            format=FORMAT,
            name="journey",
            scenario=Scenario.FEDERATED,
            run="run-1",
            environment=self.environment,
            rounds=self.rounds,
            seed=7,
            max_attempts=MAX_ATTEMPTS,
            **self._data,
            model=ModelTerms(
                owner=homes[OWNER].party,
                start=references[OWNER],
                layout=layout_of(self.model).digest,
                trained=self.trained or tuple(name for name, array in self.model.items() if array.dtype.kind == "f"),
                tied={},
            ),
            sites=tuple(Site(owner=homes[name].party, dataset=references[name]) for name in self.sites),
            code=CodeTerms(
                client_app="app:app",
                client_image=CLIENT_CODE,
                aggregator_image=AGGREGATOR_CODE,
                lock="11" * 32,
                strategy=None,
            ),
            strategy=StrategyTerms(name="FedAvg", parameters={}),
            cohort=CohortTerms(least=self.least, fraction_train=1.0, fraction_evaluate=1.0, extra=0),
            settings={},
            update=UpdateTerms(norm_bound=10.0, weight_cap=1000.0, loss_cap=None),
            metrics=MetricTerms(clear=("loss",), decimals=4),
            stop=StopTerms.none(),
            aggregation=AggregationTerms.at_once(),
            adapter=self.adapter,
            compression=None,
            privacy=None,
            serving=None,
            client_tee=TeePolicy(measurements=(CLIENT_CODE,), **policy),
            aggregator_tee=TeePolicy(measurements=(AGGREGATOR_CODE,), **policy),
            trust=TrustTerms(anchors={"simulated/1": (self.platform.anchor,)}),
        )


def _same(value: Any) -> Any:
    return value


@dataclass(kw_only=True)
class Turns:
    """What is changed on one enclave's way to the brokers; nothing, unless said.

    Attributes:
        launch: other arguments of the TEE's launch.
        binding: of the evidence, before the TEE attests it.
        challenge: as a broker's answer arrives.
        request, envelope, record: of a release, as it leaves; a changed request is signed again.
        signing: signs changed requests, in place of the enclave's own key.
        ticket: request of one, as it leaves.
        released: the items of every release, as they left.
    """

    launch: Mapping[str, Any] = field(default_factory=dict)
    binding: Callable[[Binding], Binding] = _same
    challenge: Callable[[Challenge], Challenge] = _same
    request: Callable[[ReleaseRequest], ReleaseRequest] = _same
    envelope: Callable[[bytes], bytes] = _same
    record: Callable[[bytes], bytes] = _same
    signing: Ed25519PrivateKey | None = None
    ticket: Callable[[TicketRequest], TicketRequest] = _same
    released: list[ReleaseItem] = field(default_factory=list)


class _TurningAttester:
    """A TEE that attests what it is told."""

    def __init__(self, inner: Attester, turns: Turns) -> None:
        self._inner = inner
        self._turns = turns

    @property
    def profile(self) -> str:
        return self._inner.profile

    def attest(self, binding: Binding) -> Envelope:
        return self._inner.attest(self._turns.binding(binding))


class _TurningBrokers:
    """A BrokerClient with the turns on the way to it."""

    def __init__(self, inner: BrokerClient, turns: Turns) -> None:
        self._inner = inner
        self._turns = turns
        self.key: Ed25519PrivateKey | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def challenge(self, items: Sequence[tuple[bytes, str]]) -> list[Challenge | ConfedError]:
        return [
            reply if isinstance(reply, ConfedError) else self._turns.challenge(reply)
            for reply in self._inner.challenge(items)
        ]

    def release(self, items: Sequence[ReleaseItem]) -> list[Any]:
        turned = [
            (
                self._signed(request, ReleaseRequest, self._turns.request),
                self._turns.envelope(envelope),
                self._turns.record(record),
            )
            for request, envelope, record in items
        ]
        self._turns.released += turned
        return self._inner.release(turned)

    def ticket(self, requests: Sequence[Signed]) -> list[Signed | ConfedError]:
        return self._inner.ticket([self._signed(entry, TicketRequest, self._turns.ticket) for entry in requests])

    def _signed(self, signed: Signed, kind: type[Any], turn: Callable[[Any], Any]) -> Signed:
        said = unverified(signed, kind)
        turned = turn(said)
        if turned == said and self._turns.signing is None:
            return signed
        key = self._turns.signing or self.key
        assert key is not None
        return sign(turned, key)


class HostileCourier(Courier):
    """The real courier; ``letters_instead`` says what it hands out under a topic in place of what was posted."""

    def __init__(self, directory: Path, **terms: Any) -> None:
        super().__init__(directory, durable=False, **terms)
        self.letters_instead: dict[str, list[bytes]] = {}

    def collect(self, topic: str) -> list[bytes]:
        return self.letters_instead[topic] if topic in self.letters_instead else super().collect(topic)

    def serve_instead(self, digest: str, content: bytes) -> None:
        """Hand out other bytes under a digest from now on."""
        path = self.path(digest)
        path.chmod(0o600)
        path.write_bytes(content)


class Door:
    """Where a broker answers; the broker behind it may be restarted from its store."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self.broker, name)


class Aggregator:
    """A real aggregator that listens, and the governor's client of it."""

    def __init__(self, road: Road, turns: Turns, number: int) -> None:
        self._stack = ExitStack()
        launch = {"measurement": AGGREGATOR_CODE, "shared": False, **turns.launch}
        brokers = road.turning(turns)
        courier = self._stack.enter_context(road.courier_client())
        self.enclave = Enclave(
            manifest=road.manifest,
            attester=_TurningAttester(SimulatedAttester(road.launch(**launch)), turns),
            brokers=brokers,
            letters=courier,
        )
        for entry in brokers.values():
            entry.key = self.enclave.signing_key
        folder = road.folder / f"aggregator-{number}"
        folder.mkdir()
        self.run = Run(self.enclave, courier, folder=folder)
        service = AggregatorService(self.run)
        server = serve(service.register, listen=road.socket(f"aggregator-{number}"), tls=None)
        self._stack.callback(server.stop)
        self.governor = self._stack.enter_context(EnclaveClient(server.endpoint))

    @property
    def instance(self) -> str:
        return self.enclave.instance

    def open(self, round_number: int, *, attempt: int = 0, purpose: str = "train") -> OpenedRound:
        """Attest, if this instance has not yet, and open a round."""
        if self.run._rounds.version == 0 and not self.run._keys:
            self.governor.attest(first_round=round_number, attempt=attempt)
        return self.governor.open_round(round_number=round_number, attempt=attempt, purpose=purpose)

    def close_round(self, absent: Mapping[str, str] | None = None) -> ClosedRound:
        return self.governor.close_round(absent=absent or {})

    def stop(self) -> None:
        self._stack.close()


@dataclass(frozen=True, kw_only=True)
class Held:
    """A client between its step and its seal: everything that an update is made from."""

    session: ClientSession
    site: Site
    step: Step
    grants: Grants


class Road:
    """One run on a copy of a land; every service listens on a Unix socket.

    Args:
        registry: the kinds of TEE that brokers verify, in place of the real list.
        apart: each owner's broker has a server of its own; otherwise one server holds them all.
        courier: the courier's limits and expiry.
    """

    def __init__(
        self,
        land: Land,
        folder: Path,
        *,
        registry: Registry | None = None,
        apart: bool = False,
        courier: Mapping[str, Any] | None = None,
    ) -> None:
        self.land = land
        self.manifest = land.manifest
        self.folder = folder
        self.now = NOW
        self._registry = registry
        self._stack = ExitStack()
        # Paths of sockets are short, wherever the folder is.
        self._sockets = Path(tempfile.mkdtemp(prefix="road-"))
        self._stack.callback(shutil.rmtree, self._sockets, ignore_errors=True)
        shutil.copytree(land.folder / "home", folder / "home")
        self.homes: dict[str, OwnerHome] = {}
        self.doors: dict[str, Door] = {}
        self.servers: dict[str, RunningServer] = {}
        self.broker_clients: dict[bytes, BrokerClient] = {}
        self._start_brokers(apart=apart)
        self.courier = HostileCourier(folder / "courier", **(courier or {}))
        for content in land.files.values():
            self.courier.put(content)
        self._courier_server = serve_courier(self.courier, listen=self.socket("courier"), tls=None)
        self._stack.callback(self._courier_server.stop)
        self.aggregators: list[Aggregator] = []
        self._attempts = itertools.count(1)
        self.sessions: dict[str, ClientSession] = {}
        self._every_session: list[ClientSession] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for aggregator in self.aggregators:
            aggregator.stop()
        for server in set(self.servers.values()):
            server.stop()
        for home in self.homes.values():
            home.close()
        self._stack.close()

    # Services.

    def socket(self, name: str) -> str:
        return f"unix:{self._sockets}/{name}"

    def _start_brokers(self, *, apart: bool) -> None:
        names = (OWNER, *self.land.sites)
        for name in names:
            self._open_broker(name)
        for number, group in enumerate([(name,) for name in names] if apart else [names]):
            doors: Any = {self.homes[name].party.broker: self.doors[name] for name in group}
            server = serve_brokers(doors, listen=self.socket(f"brokers-{number}"), tls=None)
            channel = open_channel(server.endpoint)
            self._stack.callback(channel.close)
            client = BrokerClient(channel)
            self.servers |= dict.fromkeys(group, server)
            self.broker_clients |= dict.fromkeys(doors, client)

    def turning(self, turns: Turns) -> dict[bytes, _TurningBrokers]:
        """Return clients of all brokers with these turns on the way; brokers behind one server share one."""
        ways = {id(client): _TurningBrokers(client, turns) for client in self.broker_clients.values()}
        return {key: ways[id(client)] for key, client in self.broker_clients.items()}

    def _open_broker(self, name: str) -> None:
        home = self.homes[name] = OwnerHome.load(name, home=self.folder / "home")
        broker = Broker(
            party=home.party,
            key=home.broker_key,
            vault=home.vault,
            store=home.store,
            clock=lambda: self.now,
            registry=self._registry,
        )
        if name in self.doors:
            self.doors[name].broker = broker
        else:
            self.doors[name] = Door(broker)

    def restart_broker(self, name: str, *, store: Path | None = None) -> None:
        """Close an owner's broker and open it again from its store, or from an earlier copy of its home."""
        self.homes[name].close()
        if store is not None:
            place = self.folder / "home" / "owners" / name
            shutil.rmtree(place)
            shutil.copytree(store, place)
        self._open_broker(name)

    def copy_of_home(self, name: str) -> Path:
        """Copy an owner's home as it is now, to be put back later."""
        self.homes[name].close()
        copy = Path(tempfile.mkdtemp(dir=self.folder)) / name
        shutil.copytree(self.folder / "home" / "owners" / name, copy)
        self._open_broker(name)
        return copy

    def client_of(self, name: str) -> BrokerClient:
        return self.broker_clients[self.homes[name].party.broker]

    def courier_client(self) -> CourierClient:
        endpoint = Endpoint(target=self.socket("courier"), certificate="")
        return CourierClient(endpoint, sleep=lambda _: None)

    def launch(self, *, measurement: str, shared: bool, debug: bool = False, **changes: Any) -> SimulatedInstance:
        """Launch a TEE on the land's platform."""
        terms: dict[str, Any] = {
            "measurement": measurement,
            "configuration": self.manifest.digest,
            "environment": self.manifest.environment,
            "shared": shared,
            **changes,
        }
        platform = terms.pop("platform", self.land.platform)
        if not debug:
            return platform.launch(**terms, now_ms=self.now)
        key = Ed25519PrivateKey.generate()
        certificate = issue_instance(
            Launch(**terms, debug=True),
            key=key.public_key(),
            root=platform._certificate,
            root_key=platform._key,
            now_ms=self.now,
        )
        return SimulatedInstance(key=key, certificate=certificate)

    def wait(self, milliseconds: int) -> None:
        """Let time pass, for brokers and inside the enclaves alike."""
        self.now += milliseconds
        for session in self._every_session:
            session._clock.advance(self.now)
        for aggregator in self.aggregators:
            for clock in aggregator.enclave._clocks.values():
                clock.advance(self.now)

    def new_attempt(self) -> int:
        """Return an attempt that nobody has made yet: tests that share a road stand in each other's way no further."""
        return next(self._attempts)

    # Enclaves.

    def aggregator(self, turns: Turns | None = None) -> Aggregator:
        """Start a new aggregator instance."""
        self.aggregators.append(Aggregator(self, turns or Turns(), len(self.aggregators)))
        return self.aggregators[-1]

    def session(self, *sites: str, turns: Turns | None = None) -> ClientSession:
        """Start a new client TEE for these sites."""
        turns = turns or Turns()
        launch = {"measurement": CLIENT_CODE, "shared": len(sites) > 1, **turns.launch}
        brokers = self.turning(turns)
        courier = self._stack.enter_context(self.courier_client())
        services: Any = Services(brokers=brokers, courier=courier)  # pyright: ignore[reportArgumentType]
        session = ClientSession(
            manifest=self.manifest,
            attester=_TurningAttester(SimulatedAttester(self.launch(**launch)), turns),
            services=services,
            sites=sites,
        )
        for entry in brokers.values():
            entry.key = session._signing
        self._every_session.append(session)
        return session

    def session_of(self, site: str) -> ClientSession:
        """Return the site's own session, started when first asked for."""
        if site not in self.sessions:
            self.sessions[site] = self.session(site)
        return self.sessions[site]

    # The honest round, in parts.

    def hold(
        self,
        site: str,
        round_number: int = 1,
        *,
        attempt: int = 0,
        purpose: Purpose = Purpose.TRAIN,
        session: ClientSession | None = None,
    ) -> Held:
        """Take a client through its step: attest, keys, credential, aggregator, ticket, opened base and data."""
        session = session or self.session_of(site)
        named = self.manifest.site_named(site)
        step, grants = session.step(named, round_number=round_number, attempt=attempt, purpose=purpose)
        return Held(session=session, site=named, step=step, grants=grants)

    def trained(self, site: str, base: Arrays) -> dict[str, np.ndarray]:
        """What a site makes of a base: a small change of its own."""
        change = 0.01 * (1 + self.land.sites.index(site))
        return {
            name: np.asarray(array + array.dtype.type(change)) if array.dtype.kind == "f" else np.asarray(array + 1)
            for name, array in base.items()
        }

    def weight(self, site: str) -> float:
        return 10.0 * (1 + self.land.sites.index(site))

    def seal(self, held: Held, *, weight: float | None = None, metrics: Mapping[str, float] | None = None) -> str:
        """Seal and send a held client's honest result, by its session; return its digest."""
        name = held.site.owner.name
        train = held.step.purpose is Purpose.TRAIN
        return held.session.seal_result(
            held.site,
            held.step,
            held.grants,
            arrays=self.trained(name, held.step.arrays) if train else None,
            weight=self.weight(name) if weight is None else weight,
            metrics={"loss": 0.5} if metrics is None else metrics,
            seconds=dict.fromkeys(held.step.seconds, 0.0),
        )

    def send(self, aggregator: Aggregator, sites: Iterable[str], round_number: int = 1, **step: Any) -> None:
        """Step, train, seal and submit for each of these sites."""
        for site in sites:
            digest = self.seal(self.hold(site, round_number, **step))
            aggregator.governor.submit(site=site, digest=digest)

    def round(
        self,
        round_number: int = 1,
        *,
        attempt: int = 0,
        sites: Sequence[str] | None = None,
        aggregator: Aggregator | None = None,
    ) -> ClosedRound:
        """Walk one honest round."""
        aggregator = aggregator or (self.aggregators[-1] if self.aggregators else self.aggregator())
        aggregator.open(round_number, attempt=attempt)
        self.send(aggregator, sites or self.land.sites, round_number, attempt=attempt)
        return aggregator.close_round()

    # What is there afterwards.

    def record(self, round_number: int, purpose: str = "train") -> CommitRecord:
        """Return the published commit record of a round."""
        (body,) = Courier.collect(self.courier, self.commit_topic(round_number, purpose))
        return CommitRecord.from_bytes(body)

    def record_body(self, round_number: int) -> bytes:
        (body,) = Courier.collect(self.courier, self.commit_topic(round_number))
        return body

    def commit_topic(self, round_number: int, purpose: str = "train") -> str:
        return f"{self.manifest.run}/commit/{purpose}/{round_number}"

    def published(self, round_number: int) -> list[bytes]:
        return Courier.collect(self.courier, self.commit_topic(round_number))

    def candidate(self, round_number: int) -> Candidate:
        return unverified(self.record(round_number).candidate, Candidate)

    def open_version(self, round_number: int) -> dict[str, np.ndarray]:
        """Open a committed version as its owner does."""
        candidate = self.candidate(round_number)
        key = self.version_key(round_number, candidate.attempt)
        content = self.courier.path(candidate.digest).read_bytes()
        return unpack(Container.parse(content).unlock(key).read_all())

    def version_key(self, version: int, attempt: int = 0) -> bytes:
        return version_key(self.land.keys[OWNER], run=self.manifest.run, version=version, attempt=attempt)

    def mean(self, sites: Iterable[str], base: Arrays) -> dict[str, np.ndarray]:
        """The weighted mean of honest updates in float64."""
        names = list(sites)
        total = sum(self.weight(name) for name in names)
        updates = [(self.trained(name, base), self.weight(name) / total) for name in names]
        return {
            name: sum(np.asarray(update[name], dtype=np.float64) * share for update, share in updates)  # pyright: ignore[reportReturnType]
            for name in base
        }

    def ledger(self, name: str) -> tuple[LedgerEntry, ...]:
        """Return an owner's ledger, its whole chain verified."""
        public = self.homes[name].party.broker
        return verify_ledger(list(self.doors[name].broker.records()), broker=public)

    def events(self, name: str, event: str) -> list[Mapping[str, Any]]:
        return [entry.body for entry in self.ledger(name) if entry.event == event]

    def released_to(self, instance: str) -> list[str]:
        """Return the owners whose broker released anything to an instance."""
        return [
            name for name in self.homes if any(body["instance"] == instance for body in self.events(name, "released"))
        ]


def crafted(road: Road, held: Held, **changes: Any) -> bytes:
    """Seal a result by hand as an honest session does, but for ``changes``; return the container.

    Args:
        changes: ``arrays``, ``weight``, ``norm``, ``dataset``, ``metrics``, ``declaration`` (its bytes), ``plaintext``
            (bytes to bytes), ``detail`` and ``header`` (fields), ``recipient``, ``info`` (fields of the key's info),
            ``key`` (signs).
    """
    site, step, grants = held.site, held.step, held.grants
    name = site.owner.name
    arrays = changes.pop("arrays", None) or traveling(road, road.trained(name, step.arrays))
    run, digest = road.manifest.run, road.manifest.digest
    detail = UpdateDetail(
        run=run,
        manifest=digest,
        round=step.round_number,
        attempt=step.attempt,
        purpose=step.purpose,
        base=step.base,
        aggregator=grants.aggregator.instance,
        site=name,
        credential=grants.credential.digest,
        ticket=grants.ticket.digest,
        layout=road.manifest.model.layout,
        compression=name_of(road.manifest.compression),
    ).to_detail()
    declaration: dict[str, Any] = {
        "weight": changes.pop("weight", road.weight(name)),
        "norm": changes.pop("norm", None),
        "metrics": changes.pop("metrics", {"loss": 0.5}),
        "dataset": changes.pop("dataset", site.dataset.digest if site.dataset else ""),
    }
    if declaration["norm"] is None:
        declaration["norm"] = norm_of(arrays, step.arrays)
    info: dict[str, Any] = {
        "run": run,
        "round_number": step.round_number,
        "attempt": step.attempt,
        "purpose": step.purpose,
        "site": name,
        **changes.pop("info", {}),
    }
    recipient = changes.pop("recipient", None) or HpkeRecipient(grants.aggregator.hpke_public)
    data_key = b"\x07" * 32
    wrapped = recipient.wrap(data_key, info=update_key_info(**info))
    draft = Draft(
        kind=Kind.UPDATE,
        container_id="crafted",
        version=step.round_number,
        parents=(step.base,),
        owner=site.owner.identity,
        manifest=digest,
        detail={**detail, **changes.pop("detail", {})},
        recipients=(RecipientEntry(method=Method.HPKE, key_id=recipient.key_id, wrapped=wrapped),),
        # Not by ``Declaration``: it would refuse what a dishonest sender writes.
        declaration_plaintext=changes.pop("declaration", None) or canonical.encode(declaration),
    )
    draft = dataclasses.replace(draft, **changes.pop("header", {}))
    plaintext = changes.pop("plaintext", bytes)(b"".join(bytes(part) for part in pack(arrays)))
    key = changes.pop("key", held.session._signing)
    assert not changes, changes
    return seal_to_bytes([plaintext], draft, data_key=data_key, signing_key=key)[0]


def traveling(road: Road, arrays: Arrays) -> dict[str, np.ndarray]:
    """Return the tensors that the manifest trains."""
    return {name: array for name, array in arrays.items() if name in road.manifest.model.trained}


def norm_of(arrays: Arrays, base: Arrays) -> float:
    """L2 norm of the difference over floating tensors that both have in the same shape."""
    total = 0.0
    for name, array in arrays.items():
        if name in base and array.shape == base[name].shape and array.dtype.kind == "f":
            difference = np.asarray(array, dtype=np.float64).ravel() - np.asarray(base[name], dtype=np.float64).ravel()
            total += float(difference @ difference)
    return float(np.sqrt(total)) if np.isfinite(total) else 1.0
