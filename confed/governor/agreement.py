"""What a ServerApp asks for at ``start``: caught when an experiment is resolved, held to the manifest when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from confed.errors import ConfigError, ManifestMismatchError
from confed.flower.constructor import constructor_parameters
from confed.manifest import Manifest

_DEFAULTS = {
    "train_metrics_aggr_fn": "flwr.serverapp.strategy.strategy_utils.aggregate_metricrecords",
    "evaluate_metrics_aggr_fn": "flwr.serverapp.strategy.strategy_utils.aggregate_metricrecords",
    "selection_rule": "flwr.serverapp.strategy.multikrum.select_multikrum",
}
"""Parameters that take a function, and the one of Flower's that stands where none is given."""
_READ: Mapping[str, object] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "weighted_by_key": "num-examples",
    "arrayrecord_key": "arrays",
    "configrecord_key": "config",
}
"""Attributes that cohorts and clients go by, and Flower's defaults: what is not a parameter must be as these."""
_MISSING = object()
Scalar = bool | int | float | str | None
_resolving: ContextVar[bool] = ContextVar("confed_resolving", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a ServerApp asked of ``start``: caught when an experiment is resolved, checked when it runs."""

    name: str
    parameters: Mapping[str, Scalar]
    rounds: int
    arrays: ArrayRecord
    train_config: Mapping[str, Any]
    evaluate_config: Mapping[str, Any]


class StartCaught(BaseException):
    """Ends a ServerApp at ``start`` while its experiment is being resolved."""

    def __init__(self, start: Start) -> None:
        super().__init__("resolved")
        self.start = start


def resolving() -> bool:
    """Whether an experiment is being resolved, so that ``start`` is to be caught."""
    return _resolving.get()


def strategy_parameters(strategy: Strategy) -> dict[str, Scalar]:
    """Return every constructor parameter of a Flower strategy by name.

    Raises:
        ConfigError: a parameter that is not a scalar, or a function of the app's own: the enclave runs only what the
            manifest can name.
    """
    found: dict[str, Scalar] = {}
    for name, parameter in constructor_parameters(type(strategy)).items():
        value = getattr(strategy, name, _MISSING)
        if value is _MISSING:
            raise ConfigError(f"strategy.{name}", expected="an attribute of the parameter's name", got="none")
        if name in _DEFAULTS:
            if f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}" != _DEFAULTS[name]:
                raise ConfigError(f"strategy.{name}", expected="Flower's default", got="a function of the app")
            continue
        if not isinstance(value, bool | int | float | str | None):
            raise ConfigError(f"strategy.{name}", expected="a scalar", got=type(value).__name__)
        found[name] = float(value) if isinstance(parameter.default, float) and isinstance(value, int) else value
    for name, default in _READ.items():
        if name not in found and getattr(strategy, name, default) != default:
            raise ConfigError(f"strategy.{name}", expected=f"{default!r}, or a parameter", got="set in the constructor")
    return found


def strategy_name(strategy: Strategy) -> str:
    """Return the name of a strategy's class: ``module:Class`` unless it is Flower's or confed's."""
    kind = type(strategy)
    if kind.__module__.split(".")[0] in ("flwr", "confed"):
        return kind.__name__
    return f"{kind.__module__}:{kind.__qualname__}"


def require_same(asked: Start, manifest: Manifest) -> None:
    """Check what a ServerApp asks for against the manifest.

    Raises:
        ManifestMismatchError: names the first parameter that differs.
    """
    if asked.name != manifest.strategy.name:
        raise ManifestMismatchError("strategy", expected=manifest.strategy.name, got=asked.name)
    for name in sorted({*asked.parameters, *manifest.strategy.parameters}):
        expected, got = manifest.strategy.parameters.get(name), asked.parameters.get(name)
        if expected != got:
            raise ManifestMismatchError(f"strategy.{name}", expected=expected, got=got)
    if asked.rounds != manifest.rounds:
        raise ManifestMismatchError("num_rounds", expected=manifest.rounds, got=asked.rounds)
    for name, expected, got in (
        ("train_config", manifest.train_config, asked.train_config),
        ("evaluate_config", manifest.evaluate_config, asked.evaluate_config),
    ):
        if dict(expected) != dict(got):
            raise ManifestMismatchError(name, expected=dict(expected), got=dict(got))


def catch_start(run: Callable[[], object]) -> Start:
    """Run a ServerApp until its strategy's ``start`` and return what it asked for.

    Raises:
        ConfigError: it ended without starting a ConfidentialStrategy.
    """
    token = _resolving.set(True)
    try:
        run()
    except StartCaught as caught:
        return caught.start
    finally:
        _resolving.reset(token)
    raise ConfigError("server", expected="a ServerApp that starts a ConfidentialStrategy", got="one that does not")
