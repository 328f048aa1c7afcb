"""What a run has spent of its privacy budget, by dp-accounting; and whether one more release fits.

Every release of a run is the same mechanism, so what is spent follows from their number alone: the enclave, every
broker and ``confed verify`` come to the same epsilon from the same records. An attempt counts as a release as soon as
it is possible, whether or not anything left the enclave: the third attempt at a round costs three.

Amplification is counted only where the enclave itself samples, in secret (``SamplingTerms``).

Source: Mironov, "Renyi Differential Privacy" (2017); Mironov, Talwar, Zhang, "Renyi Differential Privacy of the
Sampled Gaussian Mechanism" (2019); composition and conversion to epsilon are dp-accounting's ``RdpAccountant``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from confed.errors import DeploymentError, LineageError, PrivacyBudgetError
from confed.privacy.floor import Release
from confed.privacy.terms import BY_ENCLAVE, FixedClip, PrivacyState, PrivacyTerms

_SAME = 1e-6
"""Relative difference of two epsilons that are the same: machines differ in the last bits of logarithms."""


def epsilon(terms: PrivacyTerms, releases: int) -> float:
    """Return the epsilon at ``terms.delta`` of a number of releases; 0 for none.

    Raises:
        DeploymentError: dp-accounting is not installed.
    """
    if releases == 0:
        return 0.0
    rate = terms.sampling.rate if terms.sampling.by == BY_ENCLAVE else 1.0
    return composed({Release(multiplier=terms.multiplier, rate=rate): releases}, delta=terms.delta)


def composed(releases: Mapping[Release, int], *, delta: float) -> float:
    """Return the epsilon at ``delta`` of releases that may differ, each so many times; 0 for none.

    Raises:
        DeploymentError: dp-accounting is not installed.
    """
    ordered = sorted((one.multiplier, one.rate, count) for one, count in releases.items() if count)
    return _composed(tuple(ordered), delta) if ordered else 0.0


def after(terms: PrivacyTerms, base: PrivacyState, *, attempt: int, next_clip: float) -> PrivacyState:
    """Return the state after this attempt's release, which the budget has room for.

    Raises:
        PrivacyBudgetError: it has none.
    """
    releases = require_room(terms, base, attempt=attempt)
    return PrivacyState(releases=releases, epsilon=epsilon(terms, releases), clip=base.next_clip, next_clip=next_clip)


def require_room(terms: PrivacyTerms, base: PrivacyState, *, attempt: int) -> int:
    """Return how many releases there are with this attempt at the round after ``base``.

    Raises:
        PrivacyBudgetError: they spend more than the budget.
    """
    releases = base.releases + attempt + 1
    needed = epsilon(terms, releases)
    if not needed <= terms.epsilon_budget:
        raise PrivacyBudgetError(
            "privacy epsilon",
            expected=f"at most {terms.epsilon_budget:g} at delta {terms.delta:g}",
            got=f"{needed:.6g} with one more release, {base.epsilon:.6g} so far",
        )
    return releases


def verify_state(terms: PrivacyTerms, state: PrivacyState, *, norm_bound: float) -> None:
    """Check a state by itself: its epsilon is that of its releases, within the budget, its clip norms possible.

    Raises:
        LineageError: another epsilon than the releases spend, or an impossible clip norm.
        PrivacyBudgetError: above the budget.
    """
    expected = epsilon(terms, state.releases)
    if not math.isclose(expected, state.epsilon, rel_tol=_SAME):
        raise LineageError("privacy epsilon", expected=f"{expected:.9g}", got=f"{state.epsilon:.9g}")
    if not expected <= terms.epsilon_budget:
        raise PrivacyBudgetError("privacy epsilon", expected=f"at most {terms.epsilon_budget:g}", got=state.epsilon)
    for clip in (state.clip, state.next_clip):
        possible = clip == terms.first_clip if isinstance(terms.clip, FixedClip) else 0 < clip <= norm_bound
        if not possible:
            raise LineageError("privacy clip norm", expected="one that the manifest allows", got=clip)


def verify_next(base: PrivacyState, state: PrivacyState, *, attempt: int) -> None:
    """Check that a state follows from the one before it: nothing that was spent is forgotten.

    Raises:
        LineageError: another number of releases, or another clip norm than the round before left.
    """
    expected = base.releases + attempt + 1
    if state.releases != expected:
        raise LineageError("privacy releases", expected=expected, got=state.releases)
    if state.clip != base.next_clip:
        raise LineageError("privacy clip norm", expected=base.next_clip, got=state.clip)


@lru_cache(maxsize=4096)
def _composed(releases: tuple[tuple[float, float, int], ...], delta: float) -> float:
    library = _library()
    accountant = library.rdp.RdpAccountant()
    for multiplier, rate, count in releases:
        event = library.GaussianDpEvent(multiplier)
        if rate < 1:
            event = library.PoissonSampledDpEvent(rate, event)
        accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def _library() -> Any:
    try:
        import dp_accounting  # noqa: PLC0415 (an extra, and slow: only where a manifest has privacy)
    except ImportError as error:
        raise DeploymentError("dp-accounting", expected="installed (confed[privacy])", got="not") from error
    # It warns of every order of Renyi that it leaves out; leaving one out only makes epsilon larger.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return dp_accounting
