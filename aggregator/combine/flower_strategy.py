"""The one file that imports Flower here: server optimizers are Flower's own strategy classes.

Flower's FedOpt family computes everything from the weighted mean and the base, so one message that carries the
folded mean, with weight 1, gives the result that all the updates would give. Strategies that need every update
(medians, Krum) are not in the table and are refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from numpy.typing import NDArray

from confed.errors import ManifestMismatchError, NotFiniteError, ShapeError

if TYPE_CHECKING:
    from confed.manifest import StrategyTerms

Arrays = Mapping[str, NDArray[Any]]

STATE_FORMAT = "confed-strategy-state/1"
"""Names in a state are ``m_t/NAME`` and ``v_t/NAME``, in the order of the model's tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Permitted:
    """A strategy class, and the attributes of it that must survive from round to round."""

    make: type[FedAvg]
    state: tuple[str, ...]


PERMITTED: Mapping[str, _Permitted] = {
    "FedAvg": _Permitted(make=FedAvg, state=()),
    "FedAdam": _Permitted(make=FedAdam, state=("m_t", "v_t")),
}
"""Every other name is refused."""

_SCALARS = (bool, int, float, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an optimizer made of a mean: the next version as numbers, and its state (empty without one)."""

    arrays: Arrays
    state: Arrays = field(default_factory=dict)


class ServerOptimizer:
    """Flower's strategy class of the manifest, applied to one folded mean at a time; it keeps nothing itself.

    Raises:
        ManifestMismatchError: a name that is not permitted, or a parameter that the class does not take.
    """

    def __init__(self, terms: StrategyTerms) -> None:
        permitted = PERMITTED.get(terms.name)
        if permitted is None:
            raise ManifestMismatchError("strategy.name", expected="one of " + ", ".join(PERMITTED), got=terms.name)
        self._permitted = permitted
        self._parameters = {name: value for name, value in terms.parameters.items() if value is not None}
        for name, value in self._parameters.items():
            if not isinstance(value, _SCALARS):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ManifestMismatchError(f"strategy.{name}", expected="a scalar", got=type(value).__name__)
        self._new()

    @property
    def stateful(self) -> bool:
        """True where a state travels, sealed, with every version."""
        return bool(self._permitted.state)

    def apply(self, *, round_number: int, base: Arrays, mean: Arrays, state: Arrays) -> Applied:
        """Return the next version and the next state, as numbers in the types that Flower computes in.

        Args:
            round_number: Flower's ``server_round``, from 1.
            base: the version that the round started from, as numbers.
            mean: the folded weighted mean, same names and shapes.
            state: what the last call returned, empty in the first round.

        Raises:
            ShapeError: a state that does not fit the base.
            NotFiniteError: a result with NaN or infinity.
        """
        if not self.stateful:  # FedAvg: the mean is the version; Flower's own aggregation multiplies it by 1.0
            _require_finite(mean)
            return Applied(arrays=mean)
        strategy: Any = self._new()
        strategy.current_arrays = dict(base)
        for attribute in self._permitted.state:
            setattr(strategy, attribute, self._restored(state, attribute, base))
        arrays, _ = strategy.aggregate_train(round_number, [_message(mean, strategy.weighted_by_key)])
        result = {name: np.asarray(arrays[name].numpy()) for name in base}
        kept = {
            f"{attribute}/{name}": np.asarray(getattr(strategy, attribute)[name])
            for attribute in self._permitted.state
            for name in base
        }
        _require_finite(result)
        _require_finite(kept)
        return Applied(arrays=result, state=kept)

    def _restored(self, state: Arrays, attribute: str, base: Arrays) -> dict[str, NDArray[Any]] | None:
        """Return one attribute of the state; ``None`` makes Flower begin with zeros."""
        if not state:
            return None
        names = [f"{entry}/{name}" for entry in self._permitted.state for name in base]
        if list(state) != names:
            raise ShapeError("strategy state", expected=f"{len(names)} tensors of {STATE_FORMAT}", got=len(state))
        found = {name: state[f"{attribute}/{name}"] for name in base}
        for name, array in found.items():
            if array.shape != base[name].shape:
                raise ShapeError(f"strategy state {attribute}/{name}", expected=base[name].shape, got=array.shape)
        return found

    def _new(self) -> FedAvg:
        try:
            return self._permitted.make(**self._parameters)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise ManifestMismatchError(
                "strategy.parameters",
                expected=f"those of {self._permitted.make.__name__}",
                got=", ".join(sorted(self._parameters)),
            ) from error


def _message(mean: Arrays, weighted_by_key: str) -> Message:
    """Return the one reply that stands for all: the mean, with weight 1."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(np.asarray(array)) for name, array in mean.items()}),
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
