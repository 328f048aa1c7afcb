"""The privacy budget as records show it: what a version has spent, and whether one more attempt fits.

What is spent is a function of the commit records alone, so the enclave, every broker, every client and
``confed verify`` hold the same account: a new enclave instance, a second one or one with old state changes nothing.

1. A training round's candidate says what is spent, exactly where the manifest has privacy; nothing else does.
2. That is the number of attempts that were possible up to it, their epsilon, and clip norms that the manifest allows.
3. It follows from its base's: nothing is forgotten between two versions.
4. No key, ticket, countersignature or commit is for an attempt that the budget has no room for.
"""

from __future__ import annotations

from confed.errors import LineageError
from confed.journey import Purpose
from confed.keybroker.statements import Candidate
from confed.manifest import Manifest
from confed.privacy.accounting import require_room, verify_next, verify_state
from confed.privacy.terms import PrivacyState


def base_state(manifest: Manifest, candidate: Candidate | None) -> PrivacyState | None:
    """Return what was spent when a version was made: by the start (no candidate) nothing; ``None`` without privacy."""
    if candidate is not None:
        return candidate.privacy
    return None if manifest.privacy is None else PrivacyState.start(manifest.privacy)


def verify_spent(manifest: Manifest, candidate: Candidate) -> None:
    """Check a candidate's account by itself (rules 1 and 2).

    Raises:
        LineageError: it is missing, not needed, or not what its releases spend.
        PrivacyBudgetError: above the budget.
    """
    terms, state = manifest.privacy, candidate.privacy
    if terms is None or candidate.purpose is not Purpose.TRAIN:
        if state is not None:
            raise LineageError("candidate privacy", expected="none", got="some")
        return
    if state is None:
        raise LineageError("candidate privacy", expected="what is spent", got="none")
    least, most = candidate.round + candidate.attempt, candidate.round * manifest.max_attempts
    if not least <= state.releases <= most:
        raise LineageError("privacy releases", expected=f"from {least} to {most}", got=state.releases)
    verify_state(terms, state, norm_bound=manifest.update.norm_bound)


def verify_follows(base: PrivacyState | None, candidate: Candidate) -> None:
    """Check that a trained candidate's account follows from its base's (rule 3).

    Raises:
        LineageError: releases are forgotten, or the clip norm is another.
    """
    if base is not None and candidate.privacy is not None:
        verify_next(base, candidate.privacy, attempt=candidate.attempt)


def require_budget(manifest: Manifest, base: PrivacyState | None, *, purpose: Purpose, attempt: int) -> None:
    """Refuse an attempt to train on a base after which nothing is left for it (rule 4).

    Raises:
        PrivacyBudgetError: its release would spend more than the budget.
    """
    if manifest.privacy is not None and base is not None and purpose is not Purpose.EVALUATE:
        require_room(manifest.privacy, base, attempt=attempt)
