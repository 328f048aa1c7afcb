"""When a run ends: after its last round, or before by a rule of the manifest; a pure function of its records.

1. A rule reads what commit records show of each round: a cohort's clear metrics, and when the model owner's broker
   committed the version. Nothing else, and nothing of the governor's.
2. Rounds are read in order; the run ends in the first one in which a rule fires. Of several that fire in one round,
   the first in the order target, patience, budget, last round is the reason.
3. A rule on an evaluation's metric waits for that evaluation: a round without it is not decided, and the next must not
   begin.
4. A round whose result lacks the metric (not every member of the cohort told it) neither ends a run nor counts towards
   its patience.

Numbers are compared as they are written, in decimals, so that 0.901 is not more than 0.9 + 0.001.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from confed.errors import ConfigError, RoundError

MAX, MIN = "max", "min"
TRAIN, EVALUATE = "train", "evaluate"
LAST_ROUND, TARGET, PATIENCE, BUDGET = "rounds", "target", "patience", "budget"
PRIVACY = "privacy"
"""Not a rule of ``StopTerms``: the privacy budget has no room for another round (``confed.keybroker.history``)."""
_LONGEST_S = 10 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTerms:
    """The run ends when a cohort's metric reaches ``value``: at least (mode max) or at most (mode min)."""

    metric: str
    purpose: str
    mode: str
    value: float

    def __post_init__(self) -> None:
        _require_metric(TARGET, self.purpose, self.mode)
        _require(math.isfinite(self.value), "stop.target.value", "a finite number", self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatienceTerms:
    """The run ends when ``rounds`` rounds in a row did not improve the best of a cohort's metric.

    An improvement is more than ``min_delta`` above the best (mode max) or below it (mode min); it is the new best.
    """

    metric: str
    purpose: str
    mode: str
    rounds: int
    min_delta: float

    def __post_init__(self) -> None:
        _require_metric(PATIENCE, self.purpose, self.mode)
        _require(self.rounds >= 1, "stop.patience.rounds", "at least 1", self.rounds)
        delta = self.min_delta
        _require(math.isfinite(delta) and delta >= 0, "stop.patience.min_delta", "a finite number from 0", delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetTerms:
    """The run ends in the first round that is committed ``seconds`` or more after the first round was.

    Both times are the model owner's broker's, as it signed them in its commits. The first round itself is before the
    first of them and is not counted.
    """

    seconds: int

    def __post_init__(self) -> None:
        _require(1 <= self.seconds <= _LONGEST_S, "stop.budget.seconds", f"from 1 to {_LONGEST_S}", self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTerms:
    """The rules by which a run may end before its last round; ``None`` says that there is no such rule."""

    target: TargetTerms | None
    patience: PatienceTerms | None
    budget: BudgetTerms | None

    @classmethod
    def none(cls) -> StopTerms:
        """Return the terms of a run that goes on to its last round."""
        return cls(target=None, patience=None, budget=None)

    @property
    def any(self) -> bool:
        """Whether there is a rule at all."""
        return any(rule is not None for rule in (self.target, self.patience, self.budget))

    @property
    def evaluates(self) -> bool:
        """Whether a rule reads an evaluation."""
        return any(rule is not None and rule.purpose == EVALUATE for rule in (self.target, self.patience))

    def require(self, *, rounds: int, clear: Sequence[str]) -> None:
        """Check the rules against the rest of a contract.

        Raises:
            ConfigError: a metric that does not leave in clear, or a patience that ends no run of ``rounds`` rounds.
        """
        for name, rule in ((TARGET, self.target), (PATIENCE, self.patience)):
            if rule is not None:
                expected = f"one of metrics.clear ({', '.join(clear) or 'none'})"
                _require(rule.metric in clear, f"stop.{name}.metric", expected, rule.metric)
        if self.patience is not None:
            got = self.patience.rounds
            _require(got < rounds, "stop.patience.rounds", f"below the run's {rounds} rounds", got)

    @property
    def told(self) -> str:
        """The rules in words."""
        said: list[str] = []
        if self.target is not None:
            sign = "≥" if self.target.mode == MAX else "≤"
            said.append(f"{self.target.purpose} {self.target.metric} {sign} {self.target.value:g}")
        if self.patience is not None:
            said.append(
                f"{self.patience.purpose} {self.patience.metric} not better by more than {self.patience.min_delta:g} "
                f"for {self.patience.rounds} rounds ({self.patience.mode})"
            )
        if self.budget is not None:
            said.append(f"{self.budget.seconds} s since the first version")
        return "; ".join(said) or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a round's commit records show: its time (Unix ms), its clear metrics; ``evaluate`` is ``None`` before it."""

    round: int
    committed_at: int
    train: Mapping[str, float]
    evaluate: Mapping[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a run ends: the rule, the round, the metric that it read (empty if none) and the values that it compared."""

    rule: str
    round: int
    purpose: str = ""
    metric: str = ""
    values: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def told(self) -> str:
        """The reason in words."""
        values, what = self.values, f"{self.purpose} {self.metric}"
        if self.rule == TARGET:
            return f"target: {what} {values['value']:g} reached {values['target']:g} in round {self.round}"
        if self.rule == PATIENCE:
            return (
                f"patience: {what} was not better than {values['best']:g} of round {values['best_round']:g} "
                f"by more than {values['min_delta']:g} for {values['rounds']:g} rounds, up to round {self.round}"
            )
        if self.rule == BUDGET:
            return f"budget: {values['seconds']:g} s of {values['budget']:g} s were spent by round {self.round}"
        if self.rule == PRIVACY:
            return (
                f"privacy: epsilon {values['epsilon']:g} of {values['budget']:g} is spent after round {self.round}, "
                f"another one would make it {values['next']:g}"
            )
        return f"rounds: round {self.round} was the last one"


def ending(terms: StopTerms, *, rounds: int, shown: Sequence[Shown]) -> Ending | None:
    """Return why and in which of the rounds shown (from the first on) a run ends, or ``None``: it goes on.

    Raises:
        RoundError: rounds that are not 1, 2, 3 …; or one without the evaluation that a rule reads.
    """
    best = _Best(terms.patience)
    for number, one in enumerate(shown, 1):
        if one.round != number:
            raise RoundError("rounds shown", expected=number, got=one.round)
        if terms.evaluates and one.evaluate is None:
            raise RoundError(f"evaluation of round {number}", expected="one, since a rule reads it", got="none")
        found = _reached(terms.target, one) or best.read(one) or _spent(terms.budget, shown[0], one)
        if found is None and number == rounds:
            found = Ending(rule=LAST_ROUND, round=number)
        if found is not None:
            return found
    return None


class _Best:
    """The best value so far, and how many rounds with the metric came since."""

    def __init__(self, terms: PatienceTerms | None) -> None:
        self._terms = terms
        self._value: float | None = None
        self._round = 0
        self._since = 0

    def read(self, one: Shown) -> Ending | None:
        terms = self._terms
        value = None if terms is None else _read(one, terms.purpose, terms.metric)
        if terms is None or value is None:
            return None
        if self._value is None or _gain(value, self._value, terms.mode) > Decimal(repr(terms.min_delta)):
            self._value, self._round, self._since = value, one.round, 0
            return None
        self._since += 1
        if self._since < terms.rounds:
            return None
        compared = {
            "best": self._value,
            "best_round": float(self._round),
            "min_delta": terms.min_delta,
            "rounds": float(terms.rounds),
            "value": value,
        }
        return Ending(rule=PATIENCE, round=one.round, purpose=terms.purpose, metric=terms.metric, values=compared)


def _reached(terms: TargetTerms | None, one: Shown) -> Ending | None:
    value = None if terms is None else _read(one, terms.purpose, terms.metric)
    if terms is None or value is None or _gain(value, terms.value, terms.mode) < 0:
        return None
    compared = {"target": terms.value, "value": value}
    return Ending(rule=TARGET, round=one.round, purpose=terms.purpose, metric=terms.metric, values=compared)


def _spent(terms: BudgetTerms | None, first: Shown, one: Shown) -> Ending | None:
    spent_ms = one.committed_at - first.committed_at
    if terms is None or spent_ms < terms.seconds * 1000:
        return None
    return Ending(rule=BUDGET, round=one.round, values={"budget": float(terms.seconds), "seconds": spent_ms / 1000})


def _read(one: Shown, purpose: str, metric: str) -> float | None:
    return ((one.evaluate or {}) if purpose == EVALUATE else one.train).get(metric)


def _gain(value: float, than: float, mode: str) -> Decimal:
    gain = Decimal(repr(value)) - Decimal(repr(than))
    return gain if mode == MAX else -gain


def _require_metric(rule: str, purpose: str, mode: str) -> None:
    _require(purpose in (TRAIN, EVALUATE), f"stop.{rule}.purpose", f"{TRAIN} or {EVALUATE}", purpose)
    _require(mode in (MAX, MIN), f"stop.{rule}.mode", f"{MAX} or {MIN}", mode)


def _require(holds: bool, name: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(name, expected=expected, got=got)
