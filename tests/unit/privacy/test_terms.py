"""What a manifest may say of privacy, and what the terms imply."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from privacy_world import terms

from confed.errors import ConfigError
from confed.privacy.terms import AdaptiveClip, FixedClip, PrivacyState, PrivacyTerms, SamplingTerms
from confed.record import from_json, to_json

ADAPTIVE = AdaptiveClip(initial=0.5, quantile=0.5, learning_rate=0.2, count_noise=1.0)
WHOLE = {"strategy": "FedAvg", "clear": (), "norm_bound": 10.0, "sites": 10}

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("another mechanism", {"mechanism": "laplace"}),
    ("another adjacency", {"adjacency": "add"}),
    ("another weighting", {"weighting": "losses"}),
    ("no noise", {"noise_multiplier": 0.0}),
    ("noise that is NaN", {"noise_multiplier": float("nan")}),
    ("an infinite budget", {"epsilon_budget": float("inf")}),
    ("a budget below nothing", {"epsilon_budget": -1.0}),
    ("a denominator of nothing", {"denominator": 0.0}),
    ("delta one", {"delta": 1.0}),
    ("delta nothing", {"delta": 0.0}),
    (
        "replace-one under secret sampling",
        {"adjacency": "replace-one", "sampling": SamplingTerms(by="enclave", rate=0.5)},
    ),
]


@pytest.mark.parametrize(("what", "changes"), REFUSED, ids=[what for what, _ in REFUSED])
def test_terms_that_promise_nothing_are_refused(what: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        terms(**changes)


def test_a_public_draw_amplifies_nothing() -> None:
    with pytest.raises(ConfigError):
        SamplingTerms(by="manifest", rate=0.5)
    with pytest.raises(ConfigError):
        SamplingTerms(by="governor", rate=1.0)


@pytest.mark.parametrize("clip", [{"norm": 0.0}, {"norm": float("nan")}, {"norm": -1.0}])
def test_a_clip_norm_is_a_positive_number(clip: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FixedClip(**clip)


@pytest.mark.parametrize(
    "change", [{"quantile": 1.0}, {"quantile": 0.0}, {"learning_rate": 0.0}, {"count_noise": 0.0}, {"initial": -1.0}]
)
def test_an_adaptive_clip_has_noise_of_its_own_and_a_quantile(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(ADAPTIVE, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "FedMedian"},
        {"strategy": "Krum"},
        {"strategy": "FedTrimmedAvg"},
        {"strategy": "GeometricMedian"},
        {"clear": ("loss",)},
        {"norm_bound": 0.5},
        {"sites": 100_000},
    ],
)
def test_the_rest_of_a_contract_must_fit(change: dict[str, Any]) -> None:
    terms().require(**WHOLE)
    with pytest.raises(ConfigError):
        terms().require(**{**WHOLE, **change})


def test_terms_survive_json_with_either_clip() -> None:
    for clip in (FixedClip(norm=1.0), ADAPTIVE):
        said = terms(clip=clip)
        assert from_json(PrivacyTerms, to_json(said)) == said


def test_noise_is_counted_in_units_of_what_one_identity_can_do() -> None:
    assert terms().multiplier == pytest.approx(2.0)
    assert terms(adjacency="replace-one").multiplier == pytest.approx(1.0)
    # The sum's precision is 1/4, the count's 1/(2 * 1)^2: together 1/2.
    assert terms(clip=ADAPTIVE).multiplier == pytest.approx(2**0.5)


def test_a_run_begins_with_nothing_spent() -> None:
    assert PrivacyState.start(terms(clip=ADAPTIVE)) == PrivacyState(releases=0, epsilon=0.0, clip=0.5, next_clip=0.5)
