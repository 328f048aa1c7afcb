"""What travels, who handles it, and the only steps that are permitted: data, which the key broker enforces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from confed.scenario import Scenario


class Kind(StrEnum):
    """What a sealed container holds."""

    MODEL = "model"
    UPDATE = "update"
    METRICS = "metrics"
    DATASET = "dataset"
    STRATEGY_STATE = "strategy-state"
    CHECKPOINT = "checkpoint"
    FINDINGS = "findings"
    ANSWER = "answer"


class Role(StrEnum):
    """Who attests: the role is in the binding, and each role has its own measurements in the policy."""

    CLIENT = "client"
    AGGREGATOR = "aggregator"
    INFERENCE = "inference"


class Purpose(StrEnum):
    """What a key is asked for."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    AGGREGATE = "aggregate"
    INFER = "infer"


class Use(StrEnum):
    """Which key of an owner is meant.

    DATA is the key of a dataset; START the starting model's container key; VERSION a later version's key; STATE
    the key of the strategy or training state that belongs to a version; CHECKPOINT the key of checkpoints on the way to
    a version, the same in every attempt at it.
    """

    DATA = "data"
    START = "start"
    VERSION = "version"
    STATE = "state"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One permitted step: this role, for this purpose, may have a key of this use, for a version this far ahead.

    ``ahead`` is the key's version minus the base version (round - 1 when training and aggregating, round when
    evaluating, the served version in inference); ``None`` for keys that have no version.
    """

    role: Role
    purpose: Purpose
    use: Use
    ahead: int | None


_CLIENT: frozenset[Step] = frozenset(
    {
        # A client opens its own data and the one base version of the round.
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.DATA, ahead=None),
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.START, ahead=0),
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.VERSION, ahead=0),
        Step(role=Role.CLIENT, purpose=Purpose.EVALUATE, use=Use.DATA, ahead=None),
        Step(role=Role.CLIENT, purpose=Purpose.EVALUATE, use=Use.START, ahead=0),
        Step(role=Role.CLIENT, purpose=Purpose.EVALUATE, use=Use.VERSION, ahead=0),
    }
)

_AGGREGATOR: frozenset[Step] = frozenset(
    {
        # The aggregator opens the base and its state, and seals the next version and its state.
        Step(role=Role.AGGREGATOR, purpose=Purpose.AGGREGATE, use=Use.START, ahead=0),
        Step(role=Role.AGGREGATOR, purpose=Purpose.AGGREGATE, use=Use.VERSION, ahead=0),
        Step(role=Role.AGGREGATOR, purpose=Purpose.AGGREGATE, use=Use.VERSION, ahead=1),
        Step(role=Role.AGGREGATOR, purpose=Purpose.AGGREGATE, use=Use.STATE, ahead=0),
        Step(role=Role.AGGREGATOR, purpose=Purpose.AGGREGATE, use=Use.STATE, ahead=1),
    }
)

_ALONE: frozenset[Step] = frozenset(
    {
        # A client that trains alone also seals what it makes: checkpoints, and the next version with its state.
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.VERSION, ahead=1),
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.STATE, ahead=0),
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.STATE, ahead=1),
        Step(role=Role.CLIENT, purpose=Purpose.TRAIN, use=Use.CHECKPOINT, ahead=1),
    }
)

_REPLICA: frozenset[Step] = frozenset(
    {
        # An inference TEE opens the one model that its manifest names: a start, or a version that a run made.
        Step(role=Role.INFERENCE, purpose=Purpose.INFER, use=Use.START, ahead=0),
        Step(role=Role.INFERENCE, purpose=Purpose.INFER, use=Use.VERSION, ahead=0),
    }
)

STEPS: Mapping[Scenario, frozenset[Step]] = {
    Scenario.FEDERATED: _CLIENT | _AGGREGATOR,
    Scenario.TRAINING: _CLIENT | _ALONE,
    Scenario.TUNING: _CLIENT | _ALONE,
    Scenario.INFERENCE: _REPLICA,
}
"""By scenario. Everything not listed is refused."""


def permitted(scenario: Scenario, role: Role, purpose: Purpose) -> bool:
    """Return whether a role may ask for anything for this purpose.

    No step gives an aggregator a key to evaluate; it may need a new instance's credential for that, and only that.
    """
    asked = {(step.role, step.purpose) for step in STEPS[scenario]}
    if scenario.combines:
        asked.add((Role.AGGREGATOR, Purpose.EVALUATE))
    return (role, purpose) in asked


def base_version(*, purpose: Purpose, round_number: int) -> int:
    """Return the version that a step of this purpose starts from: evaluation looks at the round's own result."""
    return round_number if purpose is Purpose.EVALUATE else round_number - 1
