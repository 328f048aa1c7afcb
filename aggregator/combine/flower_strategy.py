"""Flower's strategy classes, by name, and what the enclave makes of each.

A strategy is a rule that is folded over the sealed updates (``fold``, ``robust``) and, for some, an optimizer that is
applied to the folded mean. FedAvgM and Flower's FedOpt family compute everything from the weighted mean and the base,
so one message that carries the folded mean, with weight 1, gives the result that all the updates would give: their
arithmetic is Flower's own. FedProx differs from FedAvg in what the clients are told (``confed/client/mod.py``).
QFedAvg is a rule of its own (``fair``), by the declared training losses. Every other name is refused.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from aggregator.combine import buffered, robust
from aggregator.combine.fair import QFedAvg
from aggregator.combine.fold import Rule, WeightedMean
from confed.errors import ManifestMismatchError, NotFiniteError, ShapeError
from confed.flower.constructor import constructor_parameters
from confed.flower.fed_buff import FedBuff
from confed.flower.geometric_median import GeometricMedian

if TYPE_CHECKING:
    from confed.manifest import StrategyTerms

Arrays = Mapping[str, NDArray[Any]]

LARGEST_Q = 15.0
"""The largest that its authors tried; with more, one site's loss decides alone."""
STATE_FORMAT = "confed-strategy-state/1"
"""Names in a state are ``ATTRIBUTE/NAME`` (``m_t/NAME``), attribute by attribute, in the order of the tensors."""


def _mean(strategy: Any) -> Rule:
    del strategy
    return WeightedMean()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Permitted:
    """A strategy class, its rule, and the attributes of it that must survive from round to round."""

    make: type[flower.FedAvg]
    rule: Callable[[Any], Rule] = _mean
    optimizes: bool = False
    state: tuple[str, ...] = ()


def _krum(strategy: Any) -> Rule:
    return robust.Krum(faulty=strategy.num_malicious_nodes, select=strategy.num_nodes_to_select)


def _qfedavg(strategy: Any) -> Rule:
    rate, q = strategy.client_learning_rate, strategy.q
    if not 0 < rate < math.inf or not 0 <= q <= LARGEST_Q:
        raise ManifestMismatchError(
            "strategy.parameters", expected=f"client_learning_rate above 0, q from 0 to {LARGEST_Q}", got="another"
        )
    return QFedAvg(q=q, learning_rate=rate, losses={})


def _fed_buff(strategy: Any) -> Rule:
    return buffered.FedBuff(learning_rate=strategy.server_learning_rate)


def _geometric_median(strategy: Any) -> Rule:
    return robust.GeometricMedian(
        smoothing=strategy.smoothing, tolerance=strategy.tolerance, max_iterations=strategy.max_iterations
    )


PERMITTED: Mapping[str, _Permitted] = {
    "FedAvg": _Permitted(make=flower.FedAvg),
    "FedProx": _Permitted(make=flower.FedProx),
    "FedAvgM": _Permitted(make=flower.FedAvgM, optimizes=True, state=("momentum_vector",)),
    "FedAdam": _Permitted(make=flower.FedAdam, optimizes=True, state=("m_t", "v_t")),
    "FedYogi": _Permitted(make=flower.FedYogi, optimizes=True, state=("m_t", "v_t")),
    # Its beta_1 is 0: m_t is the round's own difference, and only v_t goes on.
    "FedAdagrad": _Permitted(make=flower.FedAdagrad, optimizes=True, state=("v_t",)),
    "QFedAvg": _Permitted(make=flower.QFedAvg, rule=_qfedavg),
    "FedMedian": _Permitted(make=flower.FedMedian, rule=lambda _: robust.Median()),
    "FedTrimmedAvg": _Permitted(make=flower.FedTrimmedAvg, rule=lambda made: robust.TrimmedMean(cut=made.beta)),
    "Krum": _Permitted(make=flower.Krum, rule=_krum),
    "MultiKrum": _Permitted(make=flower.MultiKrum, rule=_krum),
    "Bulyan": _Permitted(make=flower.Bulyan, rule=lambda made: robust.Bulyan(faulty=made.num_malicious_nodes)),
    "FedBuff": _Permitted(make=FedBuff, rule=_fed_buff),
    "GeometricMedian": _Permitted(make=GeometricMedian, rule=_geometric_median),
}
"""Every other name is refused."""

_FUNCTIONS = frozenset({"train_metrics_aggr_fn", "evaluate_metrics_aggr_fn", "selection_rule"})
"""Parameters that take functions: a manifest names none, so Flower's defaults hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a strategy is given of a round before its updates: the state of the last, and what senders declared."""

    round_number: int
    state: Arrays
    metrics: Mapping[str, Mapping[str, float]] = field(repr=False)
    """By site name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an optimizer made of a mean: the next version as numbers, and its state (empty without one)."""

    arrays: Arrays
    state: Arrays = field(default_factory=dict)


class ServerOptimizer:
    """Flower's strategy class of the manifest: its rule, and what it makes of a folded mean; it keeps nothing itself.

    Raises:
        ManifestMismatchError: a name that is not permitted, or a parameter that the class does not take.
    """

    def __init__(self, terms: StrategyTerms) -> None:
        permitted = PERMITTED.get(terms.name)
        if permitted is None:
            raise ManifestMismatchError("strategy.name", expected="one of " + ", ".join(PERMITTED), got=terms.name)
        self._permitted = permitted
        self._loss_key = terms.loss_key
        self._parameters = {name: value for name, value in terms.parameters.items() if value is not None}
        for name, value in self._parameters.items():
            _require_parameter(permitted.make, name, value)
        made: Any = self._new()
        self.rule = permitted.rule(made)
        """How the updates become one model."""
        # Flower's FedAvgM is FedAvg at its defaults, and keeps no momentum where it is 0.
        self.optimizes = permitted.optimizes and bool(getattr(made, "server_opt", True))
        """True where the rule's result is not the next version yet, and ``apply`` needs the base."""
        kept = self.optimizes and getattr(made, "server_momentum", 1.0) > 0
        self._state = permitted.state if kept else ()

    @property
    def stateful(self) -> bool:
        """True where a state travels, sealed, with every version."""
        return bool(self._state)

    def rule_for(self, given: Given) -> Rule:
        """Return the rule of one round."""
        if self._loss_key is None or not isinstance(self.rule, QFedAvg):
            return self.rule
        return replace(self.rule, losses={site: metrics[self._loss_key] for site, metrics in given.metrics.items()})

    def apply(self, *, round_number: int, base: Arrays, mean: Arrays, state: Arrays) -> Applied:
        """Return the next version and the next state, as numbers in the types that Flower computes in.

        Args:
            round_number: Flower's ``server_round``, from 1.
            base: the version that the round started from, as numbers; not looked at unless it ``optimizes``.
            mean: what the rule made of the updates, same names and shapes.
            state: what the last call returned, empty in the first round.

        Raises:
            ShapeError: a state that does not fit the base.
            NotFiniteError: a result with NaN or infinity.
        """
        if not self.optimizes:  # the rule's result is the version; Flower's own aggregation multiplies it by 1.0
            _require_finite(mean)
            return Applied(arrays=mean)
        strategy: Any = self._new()
        listed = isinstance(strategy, flower.FedAvgM)  # the FedOpt family keeps dicts, FedAvgM lists in their order
        strategy.current_arrays = _record(base) if listed else dict(base)
        for attribute in self._state:
            restored = self._restored(state, attribute, base)
            setattr(strategy, attribute, list(restored.values()) if listed and restored is not None else restored)
        arrays, _ = strategy.aggregate_train(round_number, [_message(mean, strategy.weighted_by_key)])
        result = {name: np.asarray(arrays[name].numpy()) for name in base}
        kept: dict[str, NDArray[Any]] = {}
        for attribute in self._state:
            value = getattr(strategy, attribute)
            named = dict(zip(base, value, strict=True)) if listed else value
            kept |= {f"{attribute}/{name}": np.asarray(named[name]) for name in base}
        _require_finite(result)
        _require_finite(kept)
        return Applied(arrays=result, state=kept)

    def _restored(self, state: Arrays, attribute: str, base: Arrays) -> dict[str, NDArray[Any]] | None:
        """Return one attribute of the state; ``None`` makes Flower begin with zeros."""
        if not state:
            return None
        names = [f"{entry}/{name}" for entry in self._state for name in base]
        if list(state) != names:
            raise ShapeError("strategy state", expected=f"{len(names)} tensors of {STATE_FORMAT}", got=len(state))
        found = {name: state[f"{attribute}/{name}"] for name in base}
        for name, array in found.items():
            if array.shape != base[name].shape:
                raise ShapeError(f"strategy state {attribute}/{name}", expected=base[name].shape, got=array.shape)
        return found

    def _new(self) -> flower.FedAvg:
        try:
            return self._permitted.make(**self._parameters)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:  # Flower's FedTrimmedAvg refuses a value
            raise ManifestMismatchError(
                "strategy.parameters",
                expected=f"those of {self._permitted.make.__name__}",
                got=", ".join(sorted(self._parameters)),
            ) from error


def _require_parameter(make: type[flower.FedAvg], name: str, value: object) -> None:
    """Require a parameter that the class takes, of the type of its default (a whole number serves as a float)."""
    taken = constructor_parameters(make).get(name)
    if taken is None:
        raise ManifestMismatchError(f"strategy.{name}", expected=f"a parameter of {make.__name__}", got="none")
    if name in _FUNCTIONS:
        raise ManifestMismatchError(f"strategy.{name}", expected="Flower's default", got="another")
    # Parameters without a default are numbers: QFedAvg's client_learning_rate, FedBuff's whole ones.
    number = taken.default is inspect.Parameter.empty or isinstance(taken.default, float)
    kinds = (int, float) if number else (type(taken.default),)
    if type(value) not in kinds:
        raise ManifestMismatchError(f"strategy.{name}", expected=kinds[-1].__name__, got=type(value).__name__)


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _message(mean: Arrays, weighted_by_key: str) -> Message:
    """Return the one reply that stands for all: the mean, with weight 1."""
    content = RecordDict(
        {
            "arrays": _record(mean),
            "metrics": MetricRecord({weighted_by_key: 1.0}),
        }
    )
    # With metadata of its own the message needs no Flower task around it; nothing of it is looked at.
    metadata = Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN)
    return Message(content, metadata=metadata)  # pyright: ignore[reportCallIssue]


def _require_finite(arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFiniteError(f"combined {name}", expected="finite values", got="NaN or infinity")
