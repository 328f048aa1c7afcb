"""Epsilon is dp-accounting's, near the exact one, and never forgotten between two rounds."""

from __future__ import annotations

import dataclasses

import dp_accounting
import pytest
from dp_accounting import rdp
from opacus.accountants import RDPAccountant
from privacy_world import exact_epsilon, terms

from confed.errors import LineageError, PrivacyBudgetError
from confed.privacy.accounting import after, epsilon, require_room, verify_next, verify_state
from confed.privacy.terms import AdaptiveClip, PrivacyState, SamplingTerms

ADAPTIVE = AdaptiveClip(initial=1.0, quantile=0.5, learning_rate=0.2, count_noise=3.0)


@pytest.mark.parametrize(("multiplier", "releases", "delta"), [(1.0, 1, 1e-5), (5.0, 15, 1e-5), (0.7, 40, 1e-3)])
def test_epsilon_is_what_dp_accounting_says_of_the_same_mechanism(
    multiplier: float, releases: int, delta: float
) -> None:
    accountant = rdp.RdpAccountant()
    for _ in range(releases):
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    found = epsilon(terms(noise_multiplier=multiplier, delta=delta), releases)
    assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-9)


@pytest.mark.parametrize(("multiplier", "releases", "delta"), [(1.0, 1, 1e-5), (5.0, 15, 1e-5), (20.0, 100, 1e-6)])
def test_epsilon_is_never_below_the_exact_one_and_close_to_it(multiplier: float, releases: int, delta: float) -> None:
    # T Gaussian releases from the same updates are one with noise smaller by the root of T.
    exact = exact_epsilon(multiplier / releases**0.5, delta)
    assert exact <= epsilon(terms(noise_multiplier=multiplier, delta=delta), releases) <= 1.15 * exact


def test_a_known_value() -> None:
    # Balle and Wang's exact epsilon of one release with noise 1 at delta 1e-5, known to three places: 4.377.
    assert exact_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=1e-3)


def test_the_noised_count_of_an_adaptive_clip_is_charged() -> None:
    fixed, adaptive = terms(), terms(clip=ADAPTIVE)
    assert epsilon(adaptive, 10) > epsilon(fixed, 10)
    accountant = rdp.RdpAccountant()
    for _ in range(10):
        accountant.compose(dp_accounting.GaussianDpEvent(2.0))
        accountant.compose(dp_accounting.GaussianDpEvent(6.0))
    assert epsilon(adaptive, 10) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


def test_only_the_enclave_s_own_sampling_amplifies() -> None:
    public = terms(noise_multiplier=1.0)
    secret = terms(noise_multiplier=1.0, sampling=SamplingTerms(by="enclave", rate=0.1))
    assert epsilon(secret, 100) < epsilon(public, 100) / 5
    other = RDPAccountant()
    for _ in range(100):
        other.step(noise_multiplier=1.0, sample_rate=0.1)
    # Opacus implements the same theorem by itself, over other orders.
    assert epsilon(secret, 100) == pytest.approx(other.get_epsilon(delta=1e-5), rel=0.02)


def test_replace_one_costs_more() -> None:
    assert epsilon(terms(adjacency="replace-one"), 3) == pytest.approx(epsilon(terms(noise_multiplier=1.0), 3))


def test_the_release_that_would_exceed_the_budget_is_refused_before_it() -> None:
    said = terms(epsilon_budget=6.0)
    state = PrivacyState.start(said)
    while epsilon(said, state.releases + 1) <= 6.0:
        state = after(said, state, attempt=0, next_clip=1.0)
        verify_state(said, state, norm_bound=10.0)
    assert 0 < state.epsilon <= 6.0
    with pytest.raises(PrivacyBudgetError):
        after(said, state, attempt=0, next_clip=1.0)


def test_an_attempt_costs_also_what_was_possible_before_it() -> None:
    said = terms()
    start = PrivacyState.start(said)
    third = after(said, start, attempt=2, next_clip=1.0)
    assert third.releases == 3
    assert third.epsilon == epsilon(said, 3)
    with pytest.raises(PrivacyBudgetError):
        require_room(dataclasses.replace(said, epsilon_budget=epsilon(said, 2)), start, attempt=2)


STATE = PrivacyState(releases=4, epsilon=0.0, clip=1.0, next_clip=1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.1},
        {"epsilon": float("nan")},
        {"releases": 3},
        {"clip": 2.0},
        {"next_clip": 0.5},
        {"next_clip": float("nan")},
    ],
)
def test_a_tampered_state_is_seen(change: dict[str, float]) -> None:
    said = terms()
    honest = dataclasses.replace(STATE, epsilon=epsilon(said, 4))
    verify_state(said, honest, norm_bound=10.0)
    with pytest.raises(LineageError):
        verify_state(said, dataclasses.replace(honest, **change), norm_bound=10.0)


@pytest.mark.parametrize("clip", [11.0, 0.0, -1.0, float("nan")])
def test_an_adaptive_clip_norm_stays_below_the_bound(clip: float) -> None:
    said = terms(clip=ADAPTIVE)
    honest = PrivacyState(releases=1, epsilon=epsilon(said, 1), clip=1.0, next_clip=10.0)
    verify_state(said, honest, norm_bound=10.0)
    with pytest.raises(LineageError):
        verify_state(said, dataclasses.replace(honest, next_clip=clip), norm_bound=10.0)


@pytest.mark.parametrize(("releases", "clip", "attempt"), [(4, 1.0, 0), (6, 1.0, 0), (5, 1.0, 1), (5, 2.0, 0)])
def test_a_state_that_forgets_what_was_spent_does_not_follow(releases: int, clip: float, attempt: int) -> None:
    verify_next(STATE, dataclasses.replace(STATE, releases=5), attempt=0)
    with pytest.raises(LineageError):
        verify_next(STATE, dataclasses.replace(STATE, releases=releases, clip=clip), attempt=attempt)
