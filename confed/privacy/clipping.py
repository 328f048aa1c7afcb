"""Clipping: how much of an update counts, and how the clip norm follows the updates' norms."""

from __future__ import annotations

import math

from confed.privacy.terms import AdaptiveClip, FixedClip

_RELATIVE_MARGIN, _ABSOLUTE_MARGIN = 2e-3, 2e-6
_SMALLEST = 1e-9


def factor(norm: float, clip: float) -> float:
    """Return ``min(1, clip / norm)`` of an update's L2 difference from its base, for a norm that was declared.

    Guarantees: a difference that is scaled by it has a norm of at most ``clip``, also where the declared norm is short
    of the true one by what the pass over the update lets through (one in a thousand, and 1e-6).
    """
    largest = norm * (1 + _RELATIVE_MARGIN) + _ABSOLUTE_MARGIN
    return min(1.0, clip / largest)


def next_clip(
    terms: FixedClip | AdaptiveClip, clip: float, *, noised_within: float, expected: float, norm_bound: float
) -> float:
    """Return the next round's clip norm.

    Args:
        terms: the manifest's.
        clip: this round's.
        noised_within: the noised sum, over the updates, of one half where a norm is within ``clip`` and minus one half
            where it is not.
        expected: how many updates a round has, as the manifest fixes it.
        norm_bound: what it never exceeds.

    Source: Andrew et al. (2021), algorithm 1.
    """
    if isinstance(terms, FixedClip):
        return clip
    share = noised_within / expected + 0.5
    moved = clip * math.exp(-terms.learning_rate * (share - terms.quantile))
    return min(max(moved, _SMALLEST), norm_bound)
