"""Terms of central privacy for tests."""

from __future__ import annotations

import math
from typing import Any

from confed.privacy.terms import FixedClip, PrivacyTerms, SamplingTerms


def terms(**changes: Any) -> PrivacyTerms:
    values: dict[str, Any] = {
        "mechanism": "gaussian",
        "adjacency": "zero-out",
        "clip": FixedClip(norm=1.0),
        "noise_multiplier": 2.0,
        "weighting": "uniform",
        "denominator": 4.0,
        "sampling": SamplingTerms(by="manifest", rate=1.0),
        "delta": 1e-5,
        "epsilon_budget": 10.0,
    }
    return PrivacyTerms(**{**values, **changes})


def exact_epsilon(multiplier: float, delta: float) -> float:
    """The least epsilon of one Gaussian release, by bisection of its exact delta.

    Source: Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (2018), theorem 8.
    """

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def exact_delta(epsilon: float) -> float:
        a, b = 1 / (2 * multiplier), epsilon * multiplier
        return normal(a - b) - math.exp(epsilon) * normal(-a - b)

    low, high = 0.0, 1000.0 if multiplier > 0.1 else 100_000.0
    high = min(high, 700.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(middle) > delta else (low, middle)
    return high
