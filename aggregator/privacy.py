"""The enclave's side of central privacy: which rule folds a round, and what is spent once it is released.

The account is not the enclave's own: it follows from the newest commit record, attempt by attempt, and every broker
holds the same. An instance that is new, or old, can therefore not begin again with a full budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregator.combine.private import PrivateMean
from confed.errors import RoundError
from confed.journey import Purpose
from confed.keybroker.spending import base_state
from confed.privacy.accounting import after, require_room

if TYPE_CHECKING:
    from confed.keybroker.statements import Candidate
    from confed.manifest import Manifest
    from confed.privacy.terms import PrivacyState


class Account:
    """What a run has spent, and what its next release costs; does nothing where the manifest has no privacy."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._terms = manifest.privacy
        self._state = base_state(manifest, None)

    def begin_at(self, candidate: Candidate) -> None:
        """Take up the account of a committed version."""
        if candidate.purpose is Purpose.TRAIN:
            self._state = base_state(self._manifest, candidate)

    def require_room(self, *, attempt: int) -> None:
        """Refuse an attempt that the budget has no room for, before anything is asked of anybody.

        Raises:
            PrivacyBudgetError: as it says.
        """
        if self._terms is not None and self._state is not None:
            require_room(self._terms, self._state, attempt=attempt)

    def rule(self) -> PrivateMean | None:
        """Return how this round's updates are folded; ``None``: by the strategy's own rule."""
        if self._terms is None or self._state is None:
            return None
        manifest = self._manifest
        taken = manifest.cohort.taken(len(manifest.sites), purpose=Purpose.TRAIN)
        return PrivateMean(
            terms=self._terms,
            clip=self._state.next_clip,
            expected=taken * self._terms.sampling.rate,
            norm_bound=manifest.update.norm_bound,
            weight_cap=manifest.update.weight_cap,
        )

    def after(self, rule: PrivateMean | None, *, attempt: int) -> PrivacyState | None:
        """Return the account with this attempt's release, to be said before it is released.

        Raises:
            PrivacyBudgetError: the budget has no room for it.
            RoundError: the updates were not folded privately.
        """
        if self._terms is None or self._state is None:
            return None
        if rule is None or rule.next_clip <= 0:
            raise RoundError("rule", expected="the private mean", got="another")
        return after(self._terms, self._state, attempt=attempt, next_clip=rule.next_clip)
