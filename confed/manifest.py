"""The run's contract: what runs, on what, for whom, under which guarantees; and its digest.

A manifest is canonical JSON in which every reference is a digest or a public key. Owners approve its digest;
brokers, clients and the aggregator take every parameter that matters from it and nothing from the governor.
Settings that cannot change a guarantee (where a server listens, how many workers) are not in it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from confed import canonical, record
from confed.adapter import AdapterTerms
from confed.aggregation import AggregationTerms
from confed.compression import CompressionTerms
from confed.errors import ConfigError, ManifestMismatchError
from confed.preparation.terms import PreparationTerms
from confed.privacy.terms import PrivacyTerms
from confed.scenario import Scenario
from confed.serving import ServingTerms
from confed.stopping import StopTerms
from confed.strategy import StrategyCode, StrategyTerms

FORMAT = "confed-manifest/1"
PRODUCTION = "production"
SIMULATION = "simulation"
SEALED, FILES, APP = "sealed", "files", "app"
Scalar = bool | int | float | str
OLDEST_S = 24 * 3600
"""Age beyond which evidence serves no more, whatever a policy says."""

UNTRAINED = ("*",)
"""What ``model.trained`` says where nothing is: that no tensor is told apart."""

_MAX_MODEL_BYTES = 64 * 1024**3
_KEPT_COHORTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchecked:
    """A check that an owner left out on purpose, and why."""

    unchecked: str

    def __post_init__(self) -> None:
        _require(bool(self.unchecked.strip()), "unchecked", "a reason", "nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """An owner: a name, its identity key and the public key of its own broker (raw Ed25519, 32 bytes each)."""

    name: str
    identity: bytes
    broker: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedReference:
    """A sealed container that a run starts from: its file digest, its container id and the owner's key id."""

    container_id: str
    digest: str
    key_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """The model, and what of it is trained.

    Attributes:
        owner, start: whose it is, and the version it starts from.
        layout: digest of all its tensors' names, types and shapes.
        trained: names of the tensors that travel in an update; every version has the others as the start has them.
        tied: names of tensors that are always equal to another, by that other's name (see ``confed.model.trained``).
    """

    owner: Party
    start: SealedReference
    layout: str
    trained: tuple[str, ...]
    tied: Mapping[str, str]

    def __post_init__(self) -> None:
        _require(bool(self.trained), "model.trained", "at least one tensor", "none")
        _require(len(set(self.trained)) == len(self.trained), "model.trained", "each tensor once", "one twice")
        for name, source in self.tied.items():
            free = name not in self.trained and source not in self.tied
            _require(free, f"model.tied.{name}", "a name that does not travel, tied to one that is not tied", source)

    def require(self, *, sites: int, adapter: AdapterTerms | None) -> None:
        """Check that what is trained can be combined over so many sites.

        Raises:
            ConfigError: both factors of a low-rank adapter (by PEFT's names), where there is more than one site and no
                way to combine them is chosen: the product of two means is not the mean of the products. One of the
                two may be trained.

        Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (2024), section 3.
        """
        combined = adapter is not None and adapter.recombines
        for name in self.trained if sites > 1 and not combined else ():
            factor = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
            alone = factor == name or factor not in self.trained
            _require(alone, "model.trained", "one factor of an adapter: means of both do not multiply", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A data owner in this run, and its sealed dataset (none where the app brings data of its own)."""

    owner: Party
    dataset: SealedReference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTerms:
    """The code that may run: the ClientApp's entry point, the image digests and the lock file's digest.

    ``strategy`` is the code of a strategy class of one's own (null for Flower's, which are in the aggregator's image).
    """

    client_app: str
    client_image: str
    aggregator_image: str
    lock: str
    strategy: StrategyCode | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTerms:
    """Least number of distinct identities in a combined result, and the fractions that a round takes (0 < f <= 1).

    ``extra`` sites are drawn beyond those, in training and evaluation alike: the first that answer fill the round.
    """

    least: int
    fraction_train: float
    fraction_evaluate: float
    extra: int

    def __post_init__(self) -> None:
        _require(self.least >= 1, "cohort.least", "at least 1", self.least)
        _require(0 < self.fraction_train <= 1, "cohort.fraction_train", "above 0 and at most 1", self.fraction_train)
        _require(0 <= self.fraction_evaluate <= 1, "cohort.fraction_evaluate", "from 0 to 1", self.fraction_evaluate)
        _require(self.extra >= 0, "cohort.extra", "0 or more", self.extra)

    def taken(self, sites: int, *, purpose: str) -> int:
        """Return how many results a round takes of so many sites: with that many it is full."""
        fraction = self.fraction_evaluate if purpose == "evaluate" else self.fraction_train
        return max(int(sites * fraction), self.least) if fraction else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTerms:
    """What an update may be: L2 norm of its difference from the base, the largest weight (examples), the largest loss.

    ``loss_cap`` bounds the training loss that a strategy weighs updates by; null where the strategy reads none.
    """

    norm_bound: float
    weight_cap: float
    loss_cap: float | None

    def __post_init__(self) -> None:
        _require(self.norm_bound > 0, "update.norm_bound", "above 0", self.norm_bound)
        _require(self.weight_cap > 0, "update.weight_cap", "above 0", self.weight_cap)
        capped = self.loss_cap is None or 0 < self.loss_cap < math.inf
        _require(capped, "update.loss_cap", "above 0 and finite", self.loss_cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTerms:
    """The metrics that leave in clear as weighted means of a cohort, and the decimals they are rounded to."""

    clear: tuple[str, ...]
    decimals: int

    def __post_init__(self) -> None:
        _require(0 <= self.decimals <= 9, "metrics.decimals", "from 0 to 9", self.decimals)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeePolicy:
    """Which evidence is acceptable for one role. No field is optional.

    Attributes:
        profiles: TEE kinds by their evidence profile, such as ``simulated/1``.
        measurements: code digests (hexadecimal) that may run.
        devices: device evidence that must come along, by profile, such as ``nvidia-gpu/1``; none is a policy too.
        appraisal: the owners' appraisal policy for each profile of a TEE or device that says more than the fields above
            (all but the simulated one), as ``confed.attestation.policy.document`` writes it.
        max_age_s: how old evidence may be when it is appraised.
        reattest_rounds, reattest_s: for how long later releases need only a fresh signed nonce; at most a day.
    """

    profiles: tuple[str, ...]
    measurements: tuple[str, ...]
    devices: tuple[str, ...]
    appraisal: Mapping[str, Mapping[str, Any]]
    max_age_s: int
    reattest_rounds: int
    reattest_s: int

    def __post_init__(self) -> None:
        _require(bool(self.profiles), "tee.profiles", "at least one", "none")
        _require(bool(self.measurements), "tee.measurements", "at least one", "none")
        named = {*self.profiles, *self.devices}
        for profile in self.appraisal:
            _require(profile in named, f"tee.appraisal.{profile}", "a profile that the policy names", "another")
        for name in ("max_age_s", "reattest_rounds", "reattest_s"):
            _require(getattr(self, name) > 0, f"tee.{name}", "above 0", getattr(self, name))
        for name in ("max_age_s", "reattest_s"):
            _require(getattr(self, name) <= OLDEST_S, f"tee.{name}", f"at most {OLDEST_S}", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustTerms:
    """Trust anchors by evidence profile: DER certificates."""

    anchors: Mapping[str, tuple[bytes, ...]]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole contract of one run. It has no slots, so that what is worked out from it is kept with it.

    Attributes:
        scenario: what kind of run it is: which steps of the journey are permitted, and who makes its versions.
        run: unique name of this run, in every statement made for it.
        rounds: the last round; ``stop`` may end the run in an earlier one.
        seed: seed of cohorts and clients; never of keys, nonces or noise.
        max_attempts: how often one round may be tried.
        aggregation: in how large batches a cohort is folded.
        adapter: low-rank adapter that is trained in the base's place, and how it is combined; ``null`` without one.
        compression: of updates; ``null`` where they travel as they are.
        privacy: central differential privacy; ``null`` where there is none.
        serving: how the model is served in the scenario ``inference``; ``null`` in any other. Nothing is trained there,
            so what says how to has one form (``confed.manifest.untrained``); ``client_tee`` is the replicas' policy.
        settings: what the ClientApp gets as ``run_config``.
        train_config, evaluate_config: what it gets as a message's config, with ``server-round`` added.
        data_source: ``sealed`` (each site's arrays, sealed), ``files`` (each site's sealed table) or ``app`` (the
            ClientApp brings its own data).
        preparation: what is done to a sealed table before the app sees it; ``null`` where there is none.
    """

    FORMAT: ClassVar[str] = FORMAT

    format: str
    name: str
    scenario: Scenario
    run: str
    environment: str
    rounds: int
    seed: int
    max_attempts: int
    data_source: str
    preparation: PreparationTerms | None
    model: ModelTerms
    sites: tuple[Site, ...]
    code: CodeTerms
    strategy: StrategyTerms
    cohort: CohortTerms
    settings: Mapping[str, bool | int | float | str]
    update: UpdateTerms
    metrics: MetricTerms
    stop: StopTerms
    aggregation: AggregationTerms
    adapter: AdapterTerms | None
    compression: CompressionTerms | None
    privacy: PrivacyTerms | None
    serving: ServingTerms | None
    client_tee: TeePolicy
    aggregator_tee: TeePolicy
    trust: TrustTerms
    train_config: Mapping[str, bool | int | float | str] = field(default_factory=dict[str, bool | int | float | str])
    evaluate_config: Mapping[str, bool | int | float | str] = field(default_factory=dict[str, bool | int | float | str])

    def __post_init__(self) -> None:
        _require(self.format == FORMAT, "format", FORMAT, self.format)
        _require(
            self.environment in (PRODUCTION, SIMULATION),
            "environment",
            f"{PRODUCTION} or {SIMULATION}",
            self.environment,
        )
        _require(1 <= self.rounds <= 100_000, "rounds", "from 1 to 100000", self.rounds)
        _require(1 <= self.max_attempts <= 100, "max_attempts", "from 1 to 100", self.max_attempts)
        known = self.data_source in (SEALED, FILES, APP)
        _require(known, "data.source", f"{SEALED}, {FILES} or {APP}", self.data_source)
        prepared = (self.data_source == FILES) == (self.preparation is not None)
        _require(prepared, "preparation", "some exactly where data.source is files", "the contrary")
        _require(
            (self.serving is None) == self.scenario.trains, "serving", "terms exactly for inference", "the contrary"
        )
        if not self.scenario.trains:
            self._require_untrained()
            return
        _require(bool(self.sites), "sites", "at least one", "none")
        for what, values in (
            ("name", [site.owner.name for site in self.sites]),
            ("identity", [site.owner.identity for site in self.sites]),
            ("broker", [site.owner.broker for site in self.sites]),
        ):
            _require(len(set(values)) == len(values), f"sites.{what}", "distinct values", "the same one twice")
        _require(
            self.cohort.least <= len(self.sites),
            "cohort.least",
            f"at most the {len(self.sites)} sites",
            self.cohort.least,
        )
        needed = self.strategy.least_cohort
        _require(
            self.cohort.least >= needed,
            "cohort.least",
            f"at least {needed} for {self.strategy.name}",
            self.cohort.least,
        )
        self.model.require(sites=len(self.sites), adapter=self.adapter)
        for site in self.sites:
            _require(
                (site.dataset is not None) == (self.data_source != APP),
                f"sites.{site.owner.name}.dataset",
                "a sealed dataset exactly where data.source is not app",
                "the contrary",
            )
        if self.preparation is not None:
            self.preparation.require(sites={site.owner.name for site in self.sites})
        drawn = len(self.draw(purpose="train", round_number=1))
        _require(drawn >= self.cohort.least, "cohort.fraction_train", f"a cohort of {self.cohort.least}", drawn)
        _require(
            (self.strategy.loss_key is None) == (self.update.loss_cap is None),
            "update.loss_cap",
            "a cap exactly where the strategy weighs by losses (QFedAvg)",
            self.update.loss_cap,
        )
        self._require_asynchronous()
        self._require_alone()
        self.strategy.require_code(self.code.strategy, updates=drawn, size_bytes=self.model.start.size_bytes)
        self.stop.require(rounds=self.rounds, clear=self.metrics.clear)
        _require(
            self.cohort.fraction_evaluate > 0 or not self.stop.evaluates,
            "cohort.fraction_evaluate",
            "above 0, since a stop rule reads evaluations",
            self.cohort.fraction_evaluate,
        )
        self.aggregation.require(strategy=self.strategy.name, extra=self.cohort.extra)
        if self.adapter is not None:
            self.adapter.require(
                trained=self.model.trained,
                tied=self.model.tied,
                sites=[site.owner.name for site in self.sites],
                strategy=self.strategy.name,
                private=self.privacy is not None,
                compressed=self.compression is not None,
                at_once=self.scenario.combines and self.aggregation.batch is None,
                rounds=self.rounds,
                updates=self.cohort.taken(len(self.sites), purpose="train"),
            )
        if self.compression is not None:
            self.compression.require(strategy=self.strategy.name)
        if self.privacy is not None:
            # Who is absent would have somebody else counted in its place: twice the difference that noise is for.
            _require(self.cohort.extra == 0, "cohort.extra", "0 where privacy is on", self.cohort.extra)
            self.privacy.require(
                strategy=self.strategy.name,
                clear=self.metrics.clear,
                norm_bound=self.update.norm_bound,
                sites=len(self.sites),
            )
        self._require_size()

    def _require_size(self) -> None:
        _require(0 < self.model.start.size_bytes <= _MAX_MODEL_BYTES, "model.start.size_bytes", "a size", "another")

    def _require_untrained(self) -> None:
        """Where nothing is trained, whatever says how to train has its one form."""
        self._require_size()
        _require((self.model.trained, self.model.tied) == (UNTRAINED, {}), "model.trained", UNTRAINED[0], "another")
        for name, expected in untrained().items():
            _require(
                getattr(self, name) == expected, f"{name} in the scenario {self.scenario}", "its one form", "another"
            )

    def _require_alone(self) -> None:
        """Without an aggregator there is one site, whose result is not combined, compressed or noised by anybody."""
        if self.scenario.combines:
            return
        _require(len(self.sites) == 1, "sites", f"one in the scenario {self.scenario}", len(self.sites))
        for name, expected, got in (
            ("strategy", "FedAvg, whose mean of one is that one", self.strategy.name),
            ("compression", "none: there is no update", self.compression),
            ("aggregation.batch", "none: there is no cohort", self.aggregation.batch),
            ("privacy", "none: there is no cohort (DP-SGD in the app is another thing)", self.privacy),
        ):
            _require(got in ("FedAvg", None), f"{name} in the scenario {self.scenario}", expected, "another")
        self.scenario.require_adapter(named=self.adapter is not None)

    def _require_asynchronous(self) -> None:
        """A buffer needs everybody in every round, to train and to evaluate: whoever has time is in it."""
        buffer, staleness = self.strategy.buffer, self.strategy.staleness
        if buffer is None:
            return
        _require(1 <= staleness <= 100, "strategy.max_staleness", "from 1 to 100", staleness)
        within = self.cohort.least <= buffer <= len(self.sites)
        _require(within, "strategy.buffer_size", f"from {self.cohort.least} to the {len(self.sites)} sites", buffer)
        _require(self.cohort.fraction_train == 1, "cohort.fraction_train", "1 with FedBuff", self.cohort.fraction_train)
        fraction = self.cohort.fraction_evaluate
        _require(fraction in (0, 1), "cohort.fraction_evaluate", "0 or 1 with FedBuff: whoever has time", fraction)

    @cached_property
    def encoded(self) -> bytes:
        """The manifest as canonical JSON: what is signed, stored and sent."""
        return canonical.encode(record.to_json(self))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``encoded`` in hexadecimal."""
        return canonical.digest(self.encoded)

    @cached_property
    def _by_identity(self) -> Mapping[bytes, Site]:
        return {site.owner.identity: site for site in self.sites}

    @cached_property
    def _by_name(self) -> Mapping[str, Site]:
        return {site.owner.name: site for site in self.sites}

    @cached_property
    def _cohorts(self) -> dict[tuple[str, int], tuple[Site, ...]]:
        return {}

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Return the manifest of canonical JSON.

        Raises:
            EncodingError: bytes that are not canonical JSON.
            ConfigError: a key that is unknown, missing, of the wrong type or contradictory.
        """
        return record.from_json(cls, canonical.decode(data), error=ConfigError)

    def site_of(self, identity: bytes) -> Site:
        """Return the site with this identity key.

        Raises:
            ManifestMismatchError: no such site.
        """
        site = self._by_identity.get(identity)
        if site is None:
            raise ManifestMismatchError("identity", expected="one that the manifest lists", got=identity.hex()[:16])
        return site

    def site_with(self, *, identity: bytes, broker: bytes) -> Site | None:
        """Return the site with this identity and broker key, if the manifest lists it."""
        site = self._by_identity.get(identity)
        return site if site is not None and site.owner.broker == broker else None

    def site_named(self, name: str) -> Site:
        """Return the site of this name.

        Raises:
            ManifestMismatchError: no such site.
        """
        site = self._by_name.get(name)
        if site is None:
            raise ManifestMismatchError("site", expected="one that the manifest lists", got=name)
        return site

    def broker_key(self, broker: bytes) -> Party:
        """Return the party whose broker has this public key.

        Raises:
            ManifestMismatchError: no such party.
        """
        for party in (self.model.owner, *(site.owner for site in self.sites)):
            if party.broker == broker:
                return party
        raise ManifestMismatchError("broker", expected="one that the manifest lists", got=broker.hex()[:16])

    @property
    def quorum(self) -> int:
        """How many identities' brokers must countersign: more than half."""
        return len(self.sites) // 2 + 1

    def draw(self, *, purpose: str, round_number: int) -> tuple[Site, ...]:
        """Return the round's cohort in identity order (by site name), drawn from the manifest's seed alone.

        At least ``cohort.least`` sites are drawn (for evaluation only if its fraction is not zero), and ``extra`` more.
        """
        known = self._cohorts.get((purpose, round_number))
        if known is not None:
            return known
        taken = self.cohort.taken(len(self.sites), purpose=purpose)
        if taken == 0:
            return ()
        count = min(taken + self.cohort.extra, len(self.sites))
        ordered = sorted(self.sites, key=lambda site: site.owner.name)
        drawn = random.Random(self._seed_for(purpose, str(round_number))).sample(ordered, count)  # noqa: S311
        cohort = tuple(sorted(drawn, key=lambda site: site.owner.name))
        if len(self._cohorts) >= _KEPT_COHORTS:
            self._cohorts.clear()
        self._cohorts[purpose, round_number] = cohort
        return cohort

    def client_seed(self, *, site: str, round_number: int) -> int:
        """Return the 63-bit seed of one client in one round; the attempt is left out, so a retry repeats it."""
        return self._seed_for("client", str(round_number), site) & (2**63 - 1)

    def _seed_for(self, *parts: str) -> int:
        text = canonical.encode(["confed/v1/seed", self.seed, *parts])
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def untrained() -> dict[str, Any]:
    """Return the fields of a manifest that say how a run trains, as a manifest has them in which nothing is trained."""
    return {
        "rounds": 1,
        "seed": 0,
        "max_attempts": 1,
        "data_source": "app",
        "sites": (),
        "strategy": StrategyTerms(name="FedAvg", parameters={}),
        "cohort": CohortTerms(least=1, fraction_train=1.0, fraction_evaluate=0.0, extra=0),
        "update": UpdateTerms(norm_bound=1.0, weight_cap=1.0, loss_cap=None),
        "metrics": MetricTerms(clear=(), decimals=0),
        "stop": StopTerms.none(),
        "aggregation": AggregationTerms.at_once(),
        "adapter": None,
        "preparation": None,
        "compression": None,
        "privacy": None,
        "train_config": {},
        "evaluate_config": {},
    }


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(field, expected=expected, got=got)
