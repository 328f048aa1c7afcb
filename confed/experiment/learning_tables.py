"""The tables of an experiment file that say what is learned and what leaves: each becomes a part of the manifest.

What of the model is trained, how updates travel and add up, by which bounds, when the run ends, and at what privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from confed.adapter import AdapterTerms
from confed.aggregation import AggregationTerms
from confed.compression import CompressionTerms
from confed.manifest import UpdateTerms
from confed.privacy.terms import (
    BY_MANIFEST,
    GAUSSIAN,
    UNIFORM,
    ZERO_OUT,
    AdaptiveClip,
    FixedClip,
    PrivacyTerms,
    SamplingTerms,
)
from confed.stopping import BudgetTerms, PatienceTerms, StopTerms, TargetTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """What of the model is trained, and what Flower's arrays cannot say about it.

    Attributes:
        trained: patterns of names as shells know them (``head.*``): what travels. Only floating tensors ever do.
        tied: groups of names of one and the same tensor, which travels once.
        bfloat16: patterns of names of tensors that are bfloat16; apps get them, and give them back, as float32.
    """

    trained: tuple[str, ...] = ("*",)
    tied: tuple[tuple[str, ...], ...] = ()
    bfloat16: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTable:
    """L2 norm bound of an update and the largest weight (number of examples) of one client.

    ``loss_cap`` is the largest training loss, for strategies that weigh by it (QFedAvg), and left out for others.
    """

    norm_bound: float
    weight_cap: float
    loss_cap: float | None = None

    @property
    def terms(self) -> UpdateTerms:
        """What the manifest holds of it."""
        return UpdateTerms(norm_bound=self.norm_bound, weight_cap=self.weight_cap, loss_cap=self.loss_cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTable:
    """A low-rank adapter in the base's place; an experiment without this table trains tensors of the model itself.

    Attributes: see ``confed.adapter``. ``ranks`` names every site where they differ: ``{ site-01 = 2, site-02 = 4 }``.
    """

    method: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    ranks: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        _ = self.terms

    @property
    def terms(self) -> AdapterTerms:
        """What the manifest holds of it."""
        return AdapterTerms(
            method=self.method,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            targets=self.targets,
            ranks=self.ranks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionTable:
    """How updates are compressed: ``name = "bf16"``, ``"int8"``, or ``"top-k"`` with its ``fraction``.

    ``feedback``: a site carries over what one update left out; its TEE must be the same process in every round.
    """

    name: str
    fraction: float | None = None
    feedback: bool = False

    def __post_init__(self) -> None:
        CompressionTerms(name=self.name, fraction=self.fraction, feedback=self.feedback)

    @property
    def terms(self) -> CompressionTerms:
        """What the manifest holds of it."""
        return CompressionTerms(name=self.name, fraction=self.fraction, feedback=self.feedback)


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationTable:
    """In batches of how many sites a cohort is folded; left out: all at once (see ``confed.aggregation``)."""

    batch: int | None = None

    def __post_init__(self) -> None:
        AggregationTerms(batch=self.batch)

    @property
    def terms(self) -> AggregationTerms:
        """What the manifest holds of it."""
        return AggregationTerms(batch=self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTable:
    """Metrics that leave in clear as weighted means of the cohort, and their decimals."""

    clear: tuple[str, ...]
    decimals: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTable:
    """Rules by which the run may end before ``run.rounds``; a rule that is left out is not there.

    Attributes: see ``confed.stopping``; in a rule itself no key is optional. Such as
    ``patience = { metric = "accuracy", purpose = "evaluate", mode = "max", rounds = 3, min_delta = 0.001 }``,
    ``target = { metric = "loss", purpose = "train", mode = "min", value = 0.1 }``, ``budget = { seconds = 3600 }``.
    """

    target: TargetTerms | None = None
    patience: PatienceTerms | None = None
    budget: BudgetTerms | None = None

    @property
    def terms(self) -> StopTerms:
        """What the manifest holds of it."""
        return StopTerms(target=self.target, patience=self.patience, budget=self.budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyTable:
    """Central differential privacy; an experiment without this table has none.

    Attributes: see ``confed.privacy.terms``. ``clip`` is ``{ norm = 1.0 }`` or ``{ initial = 1.0, quantile = 0.5,
    learning_rate = 0.2, count_noise = 5.0 }``; ``denominator``, where it is left out, is the number of sites that a
    round expects.
    """

    clip: FixedClip | AdaptiveClip
    noise_multiplier: float
    delta: float
    epsilon_budget: float
    weighting: str = UNIFORM
    adjacency: str = ZERO_OUT
    denominator: float | None = None
    sampling: SamplingTerms = field(default_factory=lambda: SamplingTerms(by=BY_MANIFEST, rate=1.0))

    def __post_init__(self) -> None:
        self.terms(drawn=1)  # the manifest's own rules, before anything is made

    def terms(self, *, drawn: int) -> PrivacyTerms:
        """Return what the manifest holds of it, for a round that draws so many sites.

        Raises:
            ConfigError: a value out of its range.
        """
        return PrivacyTerms(
            mechanism=GAUSSIAN,
            adjacency=self.adjacency,
            clip=self.clip,
            noise_multiplier=self.noise_multiplier,
            weighting=self.weighting,
            denominator=drawn * self.sampling.rate if self.denominator is None else self.denominator,
            sampling=self.sampling,
            delta=self.delta,
            epsilon_budget=self.epsilon_budget,
        )
