"""When the courier is asked who aggregates: whenever the governor does not name the one whose credential is held."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from confed.client.counterpart import AggregatorCheck
from confed.errors import CredentialError
from confed.keybroker.statements import AggregatorCredential

NOW = 1_800_000_000_000
SITE: Any = SimpleNamespace(owner=SimpleNamespace(name="east"))


def credential(instance: str, **changes: Any) -> AggregatorCredential:
    terms: dict[str, Any] = {
        "broker": b"b",
        "identity": b"i",
        "manifest": "m",
        "run": "run-1",
        "instance": instance,
        "signing_public": b"s",
        "hpke_public": b"h",
        "first_round": 1,
        "last_round": 3,
        "evidence": "e",
        "nonce": b"n",
        "issued_at": NOW,
        "expires_at": NOW + 1000,
    }
    return AggregatorCredential(**{**terms, **changes})


class Asked:
    """A courier with one letter, and how often it was asked."""

    def __init__(self, newest: AggregatorCredential) -> None:
        self.newest, self.times, self.now = newest, 0, NOW
        manifest: Any = SimpleNamespace(digest="m", run="run-1")
        courier: Any = self
        self.check = AggregatorCheck(manifest, courier=courier, now=lambda: self.now)
        self.check._checked = lambda *_: self.newest  # pyright: ignore[reportAttributeAccessIssue] (tested by journeys)

    def collect(self, topic: str) -> list[bytes]:
        assert topic == "run-1/aggregator/east"
        self.times += 1
        return [b"letter"]

    def instance(self, **step: Any) -> str:
        return self.check.aggregator_of(SITE, **{"round_number": 2, **step}).instance


def test_the_one_that_is_named_and_known_is_not_asked_for() -> None:
    asked = Asked(credential("one"))
    assert [asked.instance(named="one") for _ in range(3)] == ["one"] * 3
    assert asked.times == 1


@pytest.mark.parametrize(
    ("step", "later_ms"),
    [
        ({"named": "two"}, 0),
        ({"named": ""}, 0),
        ({}, 0),
        ({"named": "one", "round_number": 4}, 0),
        ({"named": "one"}, 1001),
        ({"named": "one"}, -5000),
    ],
    ids=["another", "none", "nothing said", "rounds are over", "time is over", "not yet issued"],
)
def test_any_other_is(step: dict[str, Any], later_ms: int) -> None:
    asked = Asked(credential("one"))
    asked.instance()
    asked.now += later_ms
    asked.newest = credential("two", last_round=9)
    assert asked.instance(**step) == "two"
    assert asked.times == 2


def test_what_was_refused_is_not_held() -> None:
    asked = Asked(credential("one"))

    def refuse(*_: Any) -> AggregatorCredential:
        raise CredentialError("aggregator credential", expected="one that holds", got="another")

    asked.check._checked = refuse  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(2):
        with pytest.raises(CredentialError):
            asked.instance(named="one")
    assert asked.times == 2
