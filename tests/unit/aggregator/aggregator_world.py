"""A small world around the enclave: owners with keys, a courier in memory, brokers that sign, clients that seal.

The brokers do not appraise: attestation has tests of its own. What they refuse, a test tells them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.combine.weights import Weights
from aggregator.enclave import Enclave
from aggregator.run import Run
from confed import canonical
from confed.aggregation import AggregationTerms
from confed.attestation.evidence import Binding, Envelope
from confed.compression import name_of
from confed.errors import ConfedError, InstanceError, MissingFileError, SizeError, UnreachableError
from confed.journey import Kind, Purpose, Use
from confed.keybroker.client import Release
from confed.keybroker.lineage import lineage_of
from confed.keybroker.statements import (
    AggregatorCredential,
    Candidate,
    Challenge,
    ClientCredential,
    Closing,
    ClosingCountersignature,
    Commit,
    Countersignature,
    Grant,
    KeyName,
    ReleaseRequest,
    Ticket,
)
from confed.manifest import (
    FORMAT,
    CodeTerms,
    CohortTerms,
    Manifest,
    MetricTerms,
    ModelTerms,
    Party,
    SealedReference,
    Site,
    StrategyTerms,
    TeePolicy,
    TrustTerms,
    UpdateTerms,
)
from confed.model.bfloat16 import widened
from confed.model.compressed import CompressedForm, compress
from confed.model.trained import Trained
from confed.model.update import Declaration, UpdateDetail, update_key_info
from confed.model.weights import flats_of, layout_of, pack, unpack
from confed.scenario import Scenario
from confed.sealing.container import CHUNK_BYTES, Container, Draft, seal_to_bytes
from confed.sealing.derivation import container_key, state_key, version_key
from confed.sealing.identities import HpkeIdentity
from confed.sealing.recipients import HpkeRecipient, Method, RecipientEntry
from confed.statement import Signed, public_bytes, sign, unverified
from confed.stopping import Ending, StopTerms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NOW = 1_800_000_000_000
HOUR = 3_600_000
MODEL_KEY = bytes(range(32))


def small_model() -> dict[str, np.ndarray]:
    """Return a model with the things that go wrong: a scalar, a counter, a flag, an order that is not sorted."""
    generator = np.random.default_rng(1)
    return {
        "weight": generator.normal(size=(7, 5)).astype(np.float32),
        "bias": generator.normal(size=5).astype(np.float32),
        "scale": np.array(0.5, dtype=np.float64),
        "counter": np.array(3, dtype=np.int64),
        "flag": np.array([True, False]),
    }


@dataclass
class Keys:
    """An owner's private keys."""

    name: str
    identity: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    broker: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def party(self) -> Party:
        return Party(name=self.name, identity=public_bytes(self.identity), broker=public_bytes(self.broker))


class MemoryCourier:
    """A courier without disk or network; ``down`` makes it unreachable."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.letters: dict[str, list[bytes]] = defaultdict(list)
        self.down = False

    def put(self, data: Any, *, digest: str | None = None) -> str:
        self._up()
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        address = canonical.digest(content)
        assert digest in (None, address)
        self.objects[address] = content
        return address

    def get(self, digest: str, *, limit_bytes: int | None = None) -> bytearray:
        self._up()
        if digest not in self.objects:
            raise MissingFileError("object", expected=digest, got="none")
        if limit_bytes is not None and len(self.objects[digest]) > limit_bytes:
            raise SizeError("object", expected=limit_bytes, got=len(self.objects[digest]))
        return bytearray(self.objects[digest])

    def get_to_file(self, digest: str, path: Path) -> None:
        path.write_bytes(self.get(digest))

    def read_unverified(self, digest: str, *, offset: int, size_bytes: int) -> bytes:
        return bytes(self.get(digest)[offset : offset + size_bytes])

    def post(self, topic: str, body: bytes) -> None:
        self._up()
        self.letters[topic].append(body)

    def collect(self, topic: str) -> list[bytes]:
        self._up()
        return list(self.letters[topic])

    def _up(self) -> None:
        if self.down:
            raise UnreachableError("courier", expected="an answer", got="none")


class PaperAttester:
    """Evidence that nobody will look at."""

    profile = "simulated/1"

    def attest(self, binding: Binding) -> Envelope:
        return Envelope(profile=self.profile, evidence=b"paper", binding=binding.encoded)


class SigningBrokers:
    """All owners' brokers behind one server. ``refuse[call, party name]`` is what that broker answers instead."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refuse: dict[tuple[str, str], ConfedError] = {}
        self.requests: list[ReleaseRequest] = []
        self.envelopes: list[bytes] = []
        self.time = NOW
        self.credential_rounds = 5
        self.forgets_evidence = False
        self.tamper: dict[str, Callable[[Any], Any]] = {}
        self.grants: dict[bytes, str] = {}
        self.bindings: dict[bytes, Binding] = {}
        self.commits: list[Signed] = []
        self.histories: list[tuple[bytes, ...]] = []

    def _said(self, name: str, statement: Any) -> Any:
        return self.tamper.get(name, lambda same: same)(statement)

    def _each(self, call: str, brokers: Sequence[bytes], answer: Callable[[int, Keys], Any]) -> list[Any]:
        results: list[Any] = []
        for at, broker in enumerate(brokers):
            keys = self.world.keys_of(broker)
            refused = self.refuse.get((call, keys.name))
            if isinstance(refused, UnreachableError):
                raise refused
            results.append(refused or answer(at, keys))
        return results

    def challenge(self, items: Sequence[tuple[bytes, str]]) -> list[Any]:
        def answer(at: int, keys: Keys) -> Challenge:
            return Challenge(
                broker=keys.party.broker,
                nonce=os.urandom(32),
                manifest=items[at][1],
                issued_at=self.time,
                expires_at=self.time + HOUR,
            )

        return self._each("challenge", [broker for broker, _ in items], answer)

    def release(self, items: Sequence[tuple[Signed, bytes, bytes]]) -> list[Any]:
        asked = [unverified(signed, ReleaseRequest) for signed, _, _ in items]
        self.requests += asked
        self.envelopes += [envelope for _, envelope, _ in items]

        def answer(at: int, keys: Keys) -> Release | ConfedError:
            request, (signed, envelope, _) = asked[at], items[at]
            binding = Binding.decode(Envelope.decode(envelope).binding) if envelope else None
            if self.forgets_evidence and not binding:
                return InstanceError("evidence", expected="some", got="none")
            if binding:
                self.grants[request.broker] = binding.digest
                self.bindings[request.broker] = binding
            grant = Grant(
                broker=request.broker,
                binding=self.grants[request.broker],
                request=signed.digest,
                policy="0" * 64,
                claims="1" * 64,
                entry="2" * 64,
                time=self.time,
                next_nonce=b"",
                next_expires_at=0,
            )
            grant = self._said("grant", grant)
            recipient = HpkeRecipient(self.bindings[request.broker].hpke_public)
            wrapped = tuple(recipient.wrap(self.world.key(name), info=grant.context) for name in request.keys)
            credential = None
            if keys is not self.world.owner:
                credential = sign(self._said("credential", self._credential(request, keys, signed)), keys.broker)
            return Release(
                grant=grant, signed_grant=sign(grant, keys.broker), wrapped_keys=wrapped, credential=credential
            )

        return self._each("release", [request.broker for request in asked], answer)

    def _credential(self, request: ReleaseRequest, keys: Keys, signed: Signed) -> AggregatorCredential:
        binding = self.bindings[request.broker]
        return AggregatorCredential(
            broker=request.broker,
            identity=keys.party.identity,
            manifest=request.manifest,
            run=request.run,
            instance=request.instance,
            signing_public=signed.signer,
            hpke_public=binding.hpke_public,
            first_round=request.round,
            last_round=request.round + self.credential_rounds - 1,
            evidence="3" * 64,
            nonce=binding.nonce,
            issued_at=self.time,
            expires_at=self.time + HOUR,
        )

    def countersign(
        self, brokers: Sequence[bytes], *, candidate: Signed, tickets: Sequence[Signed], base_record: bytes = b""
    ) -> list[Any]:
        proposed = unverified(candidate, Candidate)
        lineage_of(self.world.manifest).verify_candidate(proposed, tickets)
        assert bool(base_record) == (proposed.base != self.world.manifest.model.start.digest)

        def answer(_: int, keys: Keys) -> Signed:
            said = Countersignature(
                broker=keys.party.broker,
                identity=keys.party.identity,
                candidate=candidate.digest,
                run=proposed.run,
                round=proposed.round,
                attempt=proposed.attempt,
                purpose=proposed.purpose,
                base=proposed.base,
                digest=proposed.digest,
                time=self.time,
            )
            return sign(said, keys.broker)

        return self._each("countersign", brokers, answer)

    def commit(
        self,
        broker: bytes,
        *,
        candidate: Signed,
        tickets: Sequence[Signed],
        countersignatures: Sequence[Signed],
        base_record: bytes = b"",
    ) -> Signed:
        del tickets, base_record
        proposed = unverified(candidate, Candidate)

        def answer(_: int, keys: Keys) -> Signed:
            said = Commit(
                broker=broker,
                candidate=candidate.digest,
                run=proposed.run,
                round=proposed.round,
                attempt=proposed.attempt,
                purpose=proposed.purpose,
                version=proposed.version,
                digest=proposed.digest,
                countersignatures=tuple(signed.digest for signed in countersignatures),
                time=self.time,
            )
            return sign(self._said("commit", said), keys.broker)

        (signed,) = self._each("commit", [broker], answer)
        if isinstance(signed, ConfedError):
            raise signed
        self.commits.append(signed)
        return signed

    def close(
        self,
        brokers: Sequence[bytes],
        *,
        run: str,
        manifest: str,
        final_record: bytes,
        closing: Signed | None = None,
        history: Sequence[bytes] = (),
    ) -> list[Any]:
        assert final_record
        self.histories.append(tuple(history))

        def answer(_: int, keys: Keys) -> Signed:
            if closing is None:
                return sign(
                    Closing(
                        broker=keys.party.broker, run=run, manifest=manifest, rounds=1, version=1, digest="4" * 64,
                        ending=Ending(rule="rounds", round=1), time=self.time,
                    ),
                    keys.broker,
                )  # fmt: skip
            return sign(
                ClosingCountersignature(
                    broker=keys.party.broker, identity=keys.party.identity, closing=closing.digest, run=run,
                    version=1, digest="4" * 64, head="5" * 64, time=self.time,
                ),
                keys.broker,
            )  # fmt: skip

        return self._each("close", brokers, answer)


@dataclass
class Changes:
    """What is different from an honest client's result."""

    detail: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)
    credential: Mapping[str, Any] = field(default_factory=dict)
    ticket: Mapping[str, Any] = field(default_factory=dict)
    declaration: bytes | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)
    plaintext: Callable[[bytes], bytes] = bytes
    sealed: Callable[[bytes], bytes] = bytes
    credential_key: Ed25519PrivateKey | None = None
    ticket_key: Ed25519PrivateKey | None = None
    signing_key: Ed25519PrivateKey | None = None
    recipient: HpkeRecipient | None = None
    info_site: str | None = None
    letter: Callable[[bytes], bytes] = bytes
    chunk_bytes: int = 0


class World:
    """Owners, manifest, courier and brokers; ``enclave()`` starts an aggregator in it."""

    def __init__(
        self,
        folder: Path,
        *,
        sites: int = 4,
        least: int = 2,
        strategy: StrategyTerms | None = None,
        rounds: int = 5,
        model: Mapping[str, np.ndarray] | None = None,
        trained: tuple[str, ...] | None = None,
        tied: Mapping[str, str] | None = None,
        **terms: Any,
    ) -> None:
        self.folder = folder
        self.owner = Keys("owner")
        self.sites = [Keys(f"site-{number}") for number in range(sites)]
        self.model = dict(model or small_model())
        self.courier = MemoryCourier()
        start_id = "start"
        layout = layout_of(self.model)
        draft = Draft(
            kind=Kind.MODEL,
            container_id=start_id,
            owner=self.owner.party.identity,
            recipients=(RecipientEntry.owner_key("model-key"),),
        )
        sealed, told = seal_to_bytes(
            pack(self.model),
            draft,
            data_key=container_key(MODEL_KEY, container_id=start_id),
            signing_key=self.owner.identity,
        )
        self.courier.put(sealed)
        policy = TeePolicy(
            profiles=("simulated/1",),
            measurements=("0" * 64,),
            devices=(),
            appraisal={},
            max_age_s=60,
            reattest_rounds=5,
            reattest_s=3600,
        )
        chosen: dict[str, Any] = {
            "format": FORMAT,
            "name": "test",
            "scenario": Scenario.FEDERATED,
            "run": "run-1",
            "environment": "simulation",
            "rounds": rounds,
            "seed": 1,
            "max_attempts": 3,
            "data_source": "sealed",
            "preparation": None,
            "model": ModelTerms(
                owner=self.owner.party,
                start=SealedReference(
                    container_id=start_id, digest=told.digest, key_id="model-key", size_bytes=told.size_bytes
                ),
                layout=layout.digest,
                trained=trained or tuple(name for name, array in self.model.items() if is_floating(array)),
                tied=tied or {},
            ),
            "sites": tuple(
                Site(
                    owner=keys.party,
                    dataset=SealedReference(
                        container_id="data",
                        digest=canonical.digest(keys.name.encode()),
                        key_id="data-key",
                        size_bytes=1,
                    ),
                )
                for keys in self.sites
            ),
            "code": CodeTerms(
                client_app="app:app", client_image="0" * 64, aggregator_image="0" * 64, lock="0" * 64, strategy=None
            ),
            "strategy": strategy or StrategyTerms(name="FedAvg", parameters={}),
            "cohort": CohortTerms(least=least, fraction_train=1.0, fraction_evaluate=1.0, extra=0),
            "settings": {},
            "update": UpdateTerms(norm_bound=100.0, weight_cap=1000.0, loss_cap=None),
            "metrics": MetricTerms(clear=("loss", "accuracy"), decimals=4),
            "stop": StopTerms.none(),
            "aggregation": AggregationTerms.at_once(),
            "adapter": None,
            "compression": None,
            "privacy": None,
            "serving": None,
            "client_tee": policy,
            "aggregator_tee": policy,
            "trust": TrustTerms(anchors={}),
        }
        self.manifest = Manifest(**{**chosen, **terms})
        self.brokers = SigningBrokers(self)
        self.code_files: dict[str, str] = {}

    def keys_of(self, broker: bytes) -> Keys:
        return next(keys for keys in (self.owner, *self.sites) if keys.party.broker == broker)

    def key(self, name: KeyName) -> bytes:
        if name.use is Use.START:
            return container_key(MODEL_KEY, container_id=name.container)
        derive = version_key if name.use is Use.VERSION else state_key
        return derive(MODEL_KEY, run=self.manifest.run, version=name.version, attempt=name.attempt)

    def run(self, *, threads: int = 1) -> Run:
        """Start an aggregator instance."""
        brokers = {keys.party.broker: self.brokers for keys in (self.owner, *self.sites)}
        enclave = Enclave(manifest=self.manifest, attester=PaperAttester(), brokers=brokers, letters=self.courier)
        self.enclave = enclave
        self.folder.mkdir(exist_ok=True)
        return Run(enclave, self.courier, folder=self.folder, threads=threads, strategy=self.code_files)

    def trained(self, number: int, base: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what site ``number`` makes of a base."""
        generator = np.random.default_rng(100 + number)
        return {
            name: np.asarray(array + generator.normal(size=array.shape) * 0.1, dtype=array.dtype)
            if array.dtype.kind == "f"
            else np.asarray(array + 1 if array.dtype.kind == "i" else array, dtype=array.dtype)
            for name, array in base.items()
        }

    @property
    def form(self) -> CompressedForm | None:
        """The form of compressed updates; none where they are not."""
        if self.manifest.compression is None:
            return None
        terms = self.manifest.model
        part = Trained.of(layout_of(self.model), names=terms.trained, tied=terms.tied).part
        return CompressedForm.of(part, self.manifest.compression)

    def traveling(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors that the manifest trains."""
        return {name: array for name, array in arrays.items() if name in self.manifest.model.trained}

    def open_version(self, digest: str, *, version: int, attempt: int = 0) -> dict[str, np.ndarray]:
        """Open a version as its owner does."""
        key = version_key(MODEL_KEY, run=self.manifest.run, version=version, attempt=attempt)
        return unpack(Container.parse(self.courier.get(digest)).unlock(key).read_all())

    def send(
        self,
        number: int,
        arrays: Mapping[str, np.ndarray] | None,
        *,
        base: Mapping[str, np.ndarray] | None = None,
        base_digest: str = "",
        round_number: int = 1,
        attempt: int = 0,
        weight: float | None = None,
        metrics: Mapping[str, float] | None = None,
        changes: Changes | None = None,
        whole: bool = False,
    ) -> str:
        """Seal and send a site's result as an honest client would, but for ``changes``; return its digest.

        ``whole`` sends every tensor given, also those that the manifest does not train.
        """
        changes = changes or Changes()
        keys, base = self.sites[number], base if base is not None else self.model
        sent = None if arrays is None else arrays if whole else self.traveling(arrays)
        form = None if sent is None else self.form
        if form is not None and sent is not None:
            flats = [flats_of(self.traveling(which), form.layout) for which in (sent, base)]
            made = compress(form, *flats, carried=None, generator=np.random.default_rng(number))
        purpose = Purpose.TRAIN if arrays is not None else Purpose.EVALUATE
        signing_key = changes.signing_key or Ed25519PrivateKey.generate()
        base_digest = base_digest or self.manifest.model.start.digest
        step: dict[str, Any] = {
            "manifest": self.manifest.digest,
            "run": self.manifest.run,
            "round": round_number,
            "attempt": attempt,
            "purpose": purpose,
        }
        common = {
            **step,
            "broker": keys.party.broker,
            "identity": keys.party.identity,
            "signing_public": public_bytes(signing_key),
            "issued_at": NOW,
            "expires_at": NOW + HOUR,
        }
        credential = sign(
            ClientCredential(**{**common, "instance": "6" * 64, "evidence": "7" * 64, **changes.credential}),
            changes.credential_key or keys.broker,
        )
        told = {
            **common,
            "ticket_id": os.urandom(16),
            "base": base_digest,
            "aggregator": self.enclave.instance,
            "credential": credential.digest,
            **changes.ticket,
        }
        ticket = sign(Ticket(**told), changes.ticket_key or keys.broker)
        letter = canonical.encode({"credential": credential.to_json(), "ticket": ticket.to_json()})
        self.courier.post(f"run-1/{purpose}/{round_number}/{attempt}/{keys.name}", changes.letter(letter))
        detail = UpdateDetail(
            **step,
            base=base_digest,
            aggregator=self.enclave.instance,
            site=keys.name,
            credential=credential.digest,
            ticket=ticket.digest,
            layout=self.manifest.model.layout,
            compression=name_of(self.manifest.compression),
        ).to_detail()
        declared: dict[str, Any] = {
            "weight": float(10 * (number + 1)) if weight is None else weight,
            "norm": 0.0 if sent is None else norm_of(sent, base) if form is None else made.norm,
            "metrics": metrics or {},
            "dataset": canonical.digest(keys.name.encode()),
            **changes.declared,
        }
        declaration = changes.declaration
        if declaration is None:
            declaration = Declaration(**declared).to_bytes()
        recipient = changes.recipient or HpkeRecipient(self.enclave.hpke.public)
        data_key = os.urandom(32)
        info = update_key_info(
            run=self.manifest.run,
            round_number=round_number,
            attempt=attempt,
            purpose=purpose,
            site=changes.info_site or keys.name,
        )
        draft = Draft(
            kind=Kind.UPDATE if arrays is not None else Kind.METRICS,
            container_id=os.urandom(8).hex(),
            version=round_number,
            parents=(base_digest,),
            owner=keys.party.identity,
            manifest=self.manifest.digest,
            detail={**detail, **changes.detail},
            recipients=(
                RecipientEntry(
                    method=Method.HPKE, key_id=recipient.key_id, wrapped=recipient.wrap(data_key, info=info)
                ),
            ),
            declaration_plaintext=declaration,
        )
        parts = [] if sent is None else pack(sent) if form is None else made.parts
        plaintext = b"".join(bytes(part) for part in parts)
        sealed, _ = seal_to_bytes(
            [changes.plaintext(plaintext)],
            replace(draft, **changes.header),
            data_key=data_key,
            signing_key=signing_key,
            chunk_bytes=changes.chunk_bytes or (CHUNK_BYTES if form is None else form.chunk_bytes),
        )
        return self.courier.put(changes.sealed(sealed))


def norm_of(arrays: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray]) -> float:
    """Return the L2 norm of the difference over floating tensors."""
    total = 0.0
    for name, array in arrays.items():
        if is_floating(array) and name in base and array.shape == base[name].shape:
            difference = as_floats(array).ravel() - as_floats(base[name]).ravel()
            total += float(difference @ difference)
    return float(np.sqrt(total))


def is_floating(array: np.ndarray) -> bool:
    """Return whether an array is of a type that is trained; bfloat16 is."""
    return array.dtype.kind == "f" or (array.dtype.metadata or {}).get("safetensors") == "BF16"


def as_floats(array: np.ndarray) -> np.ndarray:
    """Return a floating array's numbers in float64."""
    return (array if array.dtype.kind == "f" else widened(array)).astype(np.float64)


def weights_of(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Return arrays as the base of a fold."""
    return Weights.of(arrays, layout_of(arrays))


def stranger() -> HpkeRecipient:
    """Return somebody else's public key."""
    return HpkeRecipient(HpkeIdentity.generate().public)
