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


def estimate(votes: NDArray[np.int64], *, classes: int, iterations: int) -> Estimate:
    """Return the estimate of votes, shape (rows, sources): class numbers, or ``ABSTAINS``; each row has a vote.

    The first guess is each row's share of votes. What was never seen has probability 0, as in the source; a row whose
    votes nothing explains keeps the class shares.
    """
    seen = votes[:, :, None] == np.arange(classes)  # (rows, sources, classes)
    counts = seen.sum(axis=1).astype(np.float64)
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    errors, shares = _maximise(seen, probabilities)
    for _ in range(iterations):
        expected = _expect(seen, errors, shares)
        moved = float(np.abs(expected - probabilities).max(initial=0.0))
        probabilities = expected
        errors, shares = _maximise(seen, probabilities)
        if moved <= _TOLERANCE:
            break
    return Estimate(probabilities=probabilities, errors=errors, shares=shares)


def majority(votes: NDArray[np.int64], *, classes: int) -> NDArray[np.float64]:
    """Return each row's share of votes for each class, shape (rows, classes); each row has a vote."""
    counts = (votes[:, :, None] == np.arange(classes)).sum(axis=1).astype(np.float64)
    return counts / counts.sum(axis=1, keepdims=True)


def _maximise(
    seen: NDArray[np.bool_], probabilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Equations 2.3 and 2.4: error rates and class shares of known probabilities."""
    counts = np.einsum("ij,ikl->kjl", probabilities, seen.astype(np.float64))
    totals = counts.sum(axis=2, keepdims=True)
    errors = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    return errors, probabilities.mean(axis=0)


def _expect(seen: NDArray[np.bool_], errors: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equation 2.5: probabilities of known error rates, in logarithms so that many sources do not underflow."""
    with np.errstate(divide="ignore"):
        logs, prior = np.log(errors), np.log(shares)
    terms = np.where(seen[:, :, None, :], logs[None], 0.0).sum(axis=(1, 3)) + prior  # (rows, classes)
    best = terms.max(axis=1, keepdims=True)
    lost = ~np.isfinite(best[:, 0])
    best[lost] = 0.0
    weights = np.exp(terms - best)
    weights[lost] = shares
    return weights / weights.sum(axis=1, keepdims=True)
