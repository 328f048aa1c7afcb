"""The road of confidential inference in one process: a model's owner with a real broker, replicas, requesters.

A ``Deployment`` is an owner's home, a sealed model, an approved manifest and a broker that listens on a Unix socket. A
replica of it is served over HTTP on loopback. ``Linear`` is the served model: y = x·W + b.
"""

from __future__ import annotations

import dataclasses
import datetime
import select
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from confed.attestation.tee.simulated import SimulatedAttester, SimulatedPlatform
from confed.inference.apis import Door
from confed.inference.client import ConfidentialClient
from confed.inference.edge import Edge
from confed.inference.listening import Serving, bound_socket
from confed.inference.replica import Replica
from confed.inference.requester import RequesterPolicy
from confed.journey import Kind, Purpose
from confed.keybroker.broker import Broker
from confed.keybroker.client import BrokerClient
from confed.keybroker.identity import OwnerHome
from confed.keybroker.server import serve_brokers
from confed.keybroker.vault import KeyFloors
from confed.manifest import (
    FORMAT,
    SIMULATION,
    UNTRAINED,
    CodeTerms,
    Manifest,
    ModelTerms,
    SealedReference,
    TeePolicy,
    TrustTerms,
    Unchecked,
    untrained,
)
from confed.model.weights import layout_of, pack
from confed.scenario import Scenario
from confed.sealing.container import Container, Draft, seal_to_bytes
from confed.sealing.derivation import container_key
from confed.sealing.recipients import RecipientEntry
from confed.serving import OutputTerms, Padding, PaddingTerms, ServingTerms
from confed.wire.channel import TlsIdentity, open_channel

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "chat"))
from relay import Piece, Relay

OWNER = "model-owner"
CODE = "c1" * 32


class Linear:
    """The served model of these tests."""

    def __init__(self, arrays: Mapping[str, np.ndarray], _settings: Mapping[str, Any]) -> None:
        self._arrays = dict(arrays)
        self.runs = 0
        self.held: threading.Event | None = None

    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"x": ("float32", (-1, 4))}

    def predict(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.runs += 1
        if self.held is not None:
            self.held.wait(20)
        if np.isnan(tensors["x"]).any():
            raise ValueError(f"canary-traceback {tensors['x'].shape}")
        return {"y": tensors["x"] @ self._arrays["weight"] + self._arrays["bias"]}


def model() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {
        "weight": generator.normal(size=(4, 3)).astype(np.float32),
        "bias": generator.normal(size=3).astype(np.float32),
    }


@dataclass(kw_only=True)
class Deployment:
    """An owner, a sealed model, its manifest and a broker; ``change`` has the last word on the manifest."""

    folder: Path
    arrays: Mapping[str, np.ndarray] = field(default_factory=model)
    environment: str = SIMULATION
    change: Callable[[Manifest], Manifest] = lambda manifest: manifest
    floors: Mapping[str, Any] = field(default_factory=dict)
    approves: bool = True

    def __post_init__(self) -> None:
        now = time.time_ns() // 1_000_000
        self.stack = ExitStack()
        self.platform = SimulatedPlatform.create(now)
        self.home = OwnerHome.create(OWNER, home=self.folder, environment=self.environment, now_ms=now)
        self.stack.callback(self.home.close)
        values: dict[str, Any] = {
            "environment": self.environment,
            "least_cohort": 5,
            "purposes": (Purpose.INFER,),
            "measurements": Unchecked(unchecked="the manifest's list will do"),
            "total_rounds": 1,
            "discloses_to_model_owner": False,
            "counted_identities": Unchecked(unchecked="nothing is combined"),
            "scenarios": (Scenario.INFERENCE,),
        }
        self.key_id, self.key = self.home.new_key(floors=KeyFloors(**{**values, **self.floors}))
        self.sealed = self.seal(self.arrays, container_id="model-1", data_key=None)
        self.manifest = self.change(self._manifest())
        if self.approves:
            self.home.approve(self.manifest, now_ms=now)
        self.broker = Broker.of(self.home)
        server = serve_brokers({self.home.party.broker: self.broker}, listen=f"unix:{self.folder}/b.sock", tls=None)
        self.stack.enter_context(server)
        channel = open_channel(server.endpoint)
        self.stack.callback(channel.close)
        self.client_of_broker = BrokerClient(channel)

    def seal(self, arrays: Mapping[str, np.ndarray], *, container_id: str, data_key: bytes | None) -> bytes:
        draft = Draft(
            kind=Kind.MODEL,
            container_id=container_id,
            owner=self.home.party.identity,
            recipients=(RecipientEntry.owner_key(self.key_id),),
        )
        key = container_key(self.key, container_id=container_id) if data_key is None else data_key
        sealed, self.told = seal_to_bytes(pack(arrays), draft, data_key=key, signing_key=self.home.identity_key)
        return sealed

    def _manifest(self) -> Manifest:
        policy = TeePolicy(
            profiles=("simulated/1",), measurements=(CODE,), devices=(), appraisal={},
            max_age_s=60, reattest_rounds=1, reattest_s=600,
        )  # fmt: skip
        return Manifest(
            **untrained(),
            format=FORMAT,
            name="linear",
            scenario=Scenario.INFERENCE,
            run="serving-1",
            environment=self.environment,
            model=ModelTerms(
                owner=self.home.party,
                start=SealedReference(
                    container_id="model-1", digest=self.told.digest, key_id=self.key_id, size_bytes=self.told.size_bytes
                ),
                layout=layout_of(self.arrays).digest,
                trained=UNTRAINED,
                tied={},
            ),
            code=CodeTerms(
                client_app="inference_road:Linear",
                client_image=CODE,
                aggregator_image=CODE,
                lock="11" * 32,
                strategy=None,
            ),
            settings={},
            serving=ServingTerms(
                origin=None,
                output=OutputTerms.to_requester(),
                lease=None,
                padding=PaddingTerms(kind=Padding.POWERS, block_bytes=0),
                largest_request_bytes=2 * 1024 * 1024,
            ),
            client_tee=policy,
            aggregator_tee=policy,
            trust=TrustTerms(anchors={"simulated/1": (self.platform.anchor,)}),
        )

    @property
    def policy(self) -> RequesterPolicy:
        return RequesterPolicy.of(self.manifest)

    def attester(self, **changes: Any) -> SimulatedAttester:
        launch: dict[str, Any] = {
            "measurement": CODE,
            "configuration": self.manifest.digest,
            "environment": self.environment,
            "shared": False,
            "now_ms": time.time_ns() // 1_000_000,
        }
        return SimulatedAttester(self.platform.launch(**{**launch, **changes}))

    def replica(self, **changes: Any) -> Replica:
        return Replica(manifest=self.manifest, attester=self.attester(**changes), broker=self.client_of_broker)

    @contextmanager
    def served(
        self, *, most_at_once: int = 8, replica: Replica | None = None, engine: Any = None, **edge: Any
    ) -> Iterator[Served]:
        """A replica that opened the model and listens."""
        replica = replica or self.replica()
        arrays = replica.open_model(Container.parse(self.sealed))
        engine = engine(arrays, self.manifest.settings) if engine else Linear(arrays, self.manifest.settings)
        app = Edge(replica, Door(engine, name=self.manifest.name), most_at_once=most_at_once, **edge)
        with Serving(app, bound_socket("127.0.0.1:0", loopback_only=True)) as serving:
            yield Served(url=serving.url, replica=replica, engine=engine, edge=app)

    def client(self, *urls: str, **changes: Any) -> ConfidentialClient:
        return ConfidentialClient(urls, **{"policy": self.policy, **changes})

    def events(self, name: str) -> list[Mapping[str, Any]]:
        from confed.keybroker.ledger import verify_ledger  # noqa: PLC0415

        entries = verify_ledger(self.client_of_broker.records(self.home.party.broker), broker=self.home.party.broker)
        return [entry.body for entry in entries if entry.event == name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


@dataclass(kw_only=True)
class Served:
    url: str
    replica: Replica
    engine: Any
    edge: Edge


def with_serving(manifest: Manifest, **changes: Any) -> Manifest:
    assert manifest.serving is not None
    return dataclasses.replace(manifest, serving=dataclasses.replace(manifest.serving, **changes))


class TlsBefore(Relay):
    """What speaks TLS before a replica, as a reverse proxy does."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.url = self.url.replace("http:", "https:")
        self.identity = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with pem_files(self.identity) as files:
            self.tls.load_cert_chain(*files)

    def require(self, caller: TlsIdentity) -> None:
        """Take nobody but this caller from now on."""
        self.tls.load_verify_locations(cadata=caller.certificate)
        self.tls.verify_mode = ssl.CERT_REQUIRED

    def context(self, caller: TlsIdentity | None = None) -> ssl.SSLContext:
        """What a caller speaks TLS with who knows this one's certificate."""
        found = ssl.create_default_context(cadata=self.identity.certificate)
        if caller is not None:
            with pem_files(caller) as files:
                found.load_cert_chain(*files)
        return found

    def _join(self, caller: socket.socket, number: int) -> None:
        with (
            suppress(OSError),
            caller,
            self.tls.wrap_socket(caller, server_side=True) as spoken,
            socket.create_connection(self._target) as target,
        ):
            while True:
                for one in [spoken] if spoken.pending() else select.select([spoken, target], [], [])[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    self.pieces.append(Piece(0.0, one is spoken, number, data))
                    (target if one is spoken else spoken).sendall(data)


@contextmanager
def pem_files(identity: TlsIdentity) -> Iterator[tuple[str, str]]:
    """The two files of an identity, as TLS libraries want them."""
    with tempfile.TemporaryDirectory() as folder:
        files = (f"{folder}/certificate.pem", f"{folder}/key.pem")
        for file, text in zip(files, (identity.certificate, identity.private_key), strict=True):
            Path(file).write_text(text)
        yield files


class Cutter(Relay):
    """A network that can cut every connection."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(target)
        self.callers: list[socket.socket] = []

    def _join(self, caller: socket.socket, number: int) -> None:
        self.callers.append(caller)
        super()._join(caller, number)

    def cut(self) -> None:
        while self.callers:
            with suppress(OSError):
                self.callers.pop().shutdown(socket.SHUT_RDWR)
