"""When a run ends: the rules as a pure function of what commit records show."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confed import record
from confed.errors import ConfigError, RoundError
from confed.stopping import BudgetTerms, Ending, PatienceTerms, Shown, StopTerms, TargetTerms, ending

START = 1_800_000_000_000
PATIENCE: dict[str, Any] = {"metric": "acc", "purpose": "evaluate", "mode": "max", "rounds": 2, "min_delta": 0.01}
TARGET: dict[str, Any] = {"metric": "acc", "purpose": "evaluate", "mode": "max", "value": 0.9}


def terms(**rules):
    kinds = {"target": TargetTerms, "patience": PatienceTerms, "budget": BudgetTerms}
    return StopTerms(**{name: kinds[name](**rules[name]) if name in rules else None for name in kinds})


def shown(*values, purpose="evaluate", metric="acc", step_ms=1000):
    """Rounds with these values; ``None`` is a result that lacks the metric."""
    found = []
    for number, value in enumerate(values, 1):
        metrics = {} if value is None else {metric: value}
        train, evaluate = (metrics, {}) if purpose == "train" else ({}, metrics)
        time = START + (number - 1) * step_ms
        found.append(Shown(round=number, committed_at=time, train=train, evaluate=evaluate))
    return found


def patience(**changes):
    return terms(patience={**PATIENCE, **changes})


def target(**changes):
    return terms(target={**TARGET, **changes})


TABLE = [
    ("without a rule the run goes on", StopTerms.none(), shown(0.1, 0.1, 0.1), None),
    ("without a rule it ends after its last round", StopTerms.none(), shown(*[0.1] * 9), ("rounds", 9)),
    ("nothing shown ends nothing", patience(), [], None),
    ("patience counts rounds without an improvement", patience(), shown(0.5, 0.5, 0.5), ("patience", 3)),
    ("patience does not end before", patience(), shown(0.5, 0.5), None),
    ("an improvement starts the count again", patience(), shown(0.5, 0.5, 0.6, 0.6), None),
    ("the count goes on from there", patience(), shown(0.5, 0.5, 0.6, 0.6, 0.6), ("patience", 5)),
    ("exactly min_delta is no improvement", patience(), shown(0.9, 0.91, 0.91), ("patience", 3)),
    ("more than min_delta is one", patience(), shown(0.9, 0.9101, 0.9), None),
    ("small steps are measured from the best", patience(), shown(0.5, 0.508, 0.516), None),
    ("without min_delta any rise counts", patience(min_delta=0.0), shown(0.5, 0.5001, 0.5002, 0.5003), None),
    ("a worse value is no new best", patience(rounds=3), shown(0.5, 0.2, 0.3, 0.4), ("patience", 4)),
    ("in mode min a fall is an improvement", patience(mode="min"), shown(0.5, 0.4, 0.3, 0.2), None),
    ("in mode min a rise is none", patience(mode="min"), shown(0.5, 0.6, 0.7), ("patience", 3)),
    (
        "patience reads training's metrics",
        patience(purpose="train"),
        shown(0.5, 0.5, 0.5, purpose="train"),
        ("patience", 3),
    ),
    ("a round without the metric does not count", patience(), shown(0.5, None, 0.5), None),
    ("but the others do", patience(), shown(0.5, None, 0.5, None, 0.5), ("patience", 5)),
    ("a metric that never comes ends nothing", patience(), shown(None, None, None, None), None),
    ("another purpose's metric is not read", patience(purpose="train"), shown(0.5, 0.5, 0.5), None),
    ("a target that is reached ends the run", target(), shown(0.5, 0.9), ("target", 2)),
    ("the first round that reaches it counts", target(), shown(0.95, 0.5, 0.96), ("target", 1)),
    ("below the target it goes on", target(), shown(0.5, 0.8999), None),
    ("in mode min a target is reached from above", target(mode="min", value=0.2), shown(0.3, 0.2), ("target", 2)),
    ("in mode min above it goes on", target(mode="min", value=0.2), shown(0.3, 0.21), None),
    ("time is counted from the first version", terms(budget={"seconds": 2}), shown(*[0.5] * 3), ("budget", 3)),
    ("and not before it is spent", terms(budget={"seconds": 3}), shown(*[0.5] * 3), None),
    ("a budget waits for no evaluation", terms(budget={"seconds": 3}), shown(*[0.5] * 3), None),
    ("a target goes before patience", terms(target=TARGET, patience=PATIENCE), shown(0.895, 0.895, 0.9), ("target", 3)),
    (
        "patience goes before the budget",
        terms(patience=PATIENCE, budget={"seconds": 2}),
        shown(0.5, 0.5, 0.5),
        ("patience", 3),
    ),
    ("a rule goes before the last round", patience(rounds=8), shown(*[0.5] * 9), ("patience", 9)),
    ("and else that ends the run", patience(rounds=8), shown(*[0.5] * 8, 0.6), ("rounds", 9)),
]


@pytest.mark.parametrize(("rules", "rounds", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_a_run_ends_by_its_rules(rules, rounds, expected):
    found = ending(rules, rounds=9, shown=rounds)
    assert (None if found is None else (found.rule, found.round)) == expected


def test_the_reason_names_what_was_compared():
    found = ending(patience(), rounds=9, shown=shown(0.5, 0.7, 0.7, 0.705))
    assert found == Ending(
        rule="patience",
        round=4,
        purpose="evaluate",
        metric="acc",
        values={"best": 0.7, "best_round": 2.0, "min_delta": 0.01, "rounds": 2.0, "value": 0.705},
    )
    assert "0.7 of round 2" in found.told
    assert record.from_json(Ending, record.to_json(found)) == found
    spent = ending(terms(budget={"seconds": 2}), rounds=9, shown=shown(0.5, 0.5, step_ms=2500))
    assert spent.values == {"budget": 2.0, "seconds": 2.5}
    assert ending(target(), rounds=9, shown=shown(0.93)).values == {"target": 0.9, "value": 0.93}


def test_a_rule_on_an_evaluation_waits_for_it():
    rounds = shown(0.5, 0.5)
    rounds[1] = Shown(round=2, committed_at=START, train={}, evaluate=None)
    with pytest.raises(RoundError):
        ending(patience(), rounds=9, shown=rounds)
    assert ending(terms(budget={"seconds": 9}), rounds=9, shown=rounds) is None


def test_rounds_are_read_from_the_first_on():
    with pytest.raises(RoundError):
        ending(patience(), rounds=9, shown=shown(0.5, 0.5)[1:])


@given(st.lists(st.none() | st.floats(0, 1).map(lambda value: round(value, 2)), max_size=9))
def test_what_comes_after_the_end_does_not_change_it(values):
    rules = terms(target=TARGET, patience=PATIENCE, budget={"seconds": 6})
    whole = ending(rules, rounds=9, shown=shown(*values))
    ends = [ending(rules, rounds=9, shown=shown(*values[:count])) for count in range(len(values) + 1)]
    assert ends == [whole if whole is not None and whole.round <= count else None for count in range(len(values) + 1)]


WRONG = [
    ("an unknown purpose", lambda: target(purpose="test"), "stop.target.purpose"),
    ("an unknown mode", lambda: patience(mode="best"), "stop.patience.mode"),
    ("a target that is no number", lambda: target(value=float("nan")), "stop.target.value"),
    ("no patience", lambda: patience(rounds=0), "stop.patience.rounds"),
    ("a negative min_delta", lambda: patience(min_delta=-0.1), "stop.patience.min_delta"),
    ("an endless min_delta", lambda: patience(min_delta=float("inf")), "stop.patience.min_delta"),
    ("no time", lambda: terms(budget={"seconds": 0}), "stop.budget.seconds"),
    (
        "a metric that does not leave in clear",
        lambda: target().require(rounds=9, clear=("loss",)),
        "stop.target.metric",
    ),
    ("the same for patience", lambda: patience().require(rounds=9, clear=("loss",)), "stop.patience.metric"),
    (
        "patience as long as the run",
        lambda: patience(rounds=9).require(rounds=9, clear=("acc",)),
        "stop.patience.rounds",
    ),
]


@pytest.mark.parametrize(("make", "field"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_rule_that_cannot_be_is_refused_by_name(make, field):
    with pytest.raises(ConfigError) as refused:
        make()
    assert refused.value.field == field
