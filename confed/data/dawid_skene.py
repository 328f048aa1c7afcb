"""One label from several imperfect ones: each source's error rates and the labels are estimated together.

Source: Dawid, Skene, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm", Journal of the
    Royal Statistical Society C 28 (1979), equations 2.3 to 2.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ABSTAINS = -1
_TOLERANCE = 1e-7
"""The estimation has settled when no probability moves more."""

_NEVER = 1e-200


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What was estimated.

    Attributes:
        probabilities: of each row's class, shape (rows, classes); rows sum to 1.
        errors: of each source, how often it votes ``k`` where the class is ``j``, shape (sources, classes, classes).
        shares: of each class among rows, shape (classes,).
    """

    probabilities: NDArray[np.float64]
    errors: NDArray[np.float64]
    shares: NDArray[np.float64]


def counts_of(votes: NDArray[np.int64], *, classes: int) -> NDArray[np.float64]:
    """Return votes, shape (rows, sources), of class numbers or ``ABSTAINS``, as counts (rows, sources, classes)."""
    return (votes[:, :, None] == np.arange(classes)).astype(np.float64)


def estimate(seen: NDArray[np.float64], *, iterations: int) -> Estimate:
    """Return the estimate of votes: how often each source voted for each class, shape (rows, sources, classes).

    Each row has a vote. The first guess is each row's share of votes (equation 3.1). What was never seen has next to
    no probability (``_NEVER``; none in the source), so that a row which nothing explains has a class all the same.
    """
    probabilities = majority(seen)
    errors, shares = _maximise(seen, probabilities)
    for _ in range(iterations):
        expected = _expect(seen, errors, shares)
        moved = float(np.abs(expected - probabilities).max(initial=0.0))
        probabilities = expected
        errors, shares = _maximise(seen, probabilities)
        if moved <= _TOLERANCE:
            break
    return Estimate(probabilities=probabilities, errors=errors, shares=shares)


def majority(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's share of votes for each class, shape (rows, classes); each row has a vote."""
    counts = seen.sum(axis=1)
    return counts / counts.sum(axis=1, keepdims=True)


def _maximise(
    seen: NDArray[np.float64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Equations 2.3 and 2.4: error rates and class shares of known probabilities."""
    rows, sources, classes = seen.shape
    counts = (probabilities.T @ seen.reshape(rows, -1)).reshape(classes, sources, classes).transpose(1, 0, 2)
    totals = counts.sum(axis=2, keepdims=True)
    errors = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    return errors, probabilities.mean(axis=0)


def _expect(seen: NDArray[np.float64], errors: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equation 2.5: probabilities of known error rates, in logarithms so that many sources do not underflow."""
    rows, _, classes = seen.shape
    logs, prior = np.log(np.maximum(errors, _NEVER)), np.log(np.maximum(shares, _NEVER))
    terms = seen.reshape(rows, -1) @ logs.transpose(0, 2, 1).reshape(-1, classes) + prior  # (rows, classes)
    weights = np.exp(terms - terms.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
