"""``GeometricMedian``: the strategy of RFA, which Flower does not have, in the form of Flower's strategies.

A ServerApp names it and its parameters; the arithmetic is the aggregator enclave's alone.

Source: Pillutla et al., "Robust Aggregation for Federated Learning" (2022), https://arxiv.org/abs/1912.13445
"""

from __future__ import annotations

import math
from typing import Any

from confed.flower.in_enclave import InEnclave

MOST_ITERATIONS = 10_000


class GeometricMedian(InEnclave):
    """The point whose weighted sum of distances to all updates is least, by the smoothed Weiszfeld algorithm.

    Args:
        smoothing: distances (L2, over all tensors) below it count as it; above 0.
        tolerance: the iteration ends when the sum changes by no more than this part of it; at least 0.
        max_iterations: it ends then in any case; from 1 to 10000.
        fedavg: those of Flower's FedAvg, by name.

    Raises:
        ValueError: a value outside these ranges.
    """

    def __init__(
        self, *, smoothing: float = 1e-6, tolerance: float = 1e-9, max_iterations: int = 100, **fedavg: Any
    ) -> None:
        super().__init__(**fedavg)
        if not 0 < smoothing < math.inf:
            raise ValueError("smoothing: expected above 0 and finite")
        if not 0 <= tolerance < 1:
            raise ValueError("tolerance: expected at least 0 and below 1")
        if not 1 <= max_iterations <= MOST_ITERATIONS or int(max_iterations) != max_iterations:
            raise ValueError(f"max_iterations: expected a whole number from 1 to {MOST_ITERATIONS}")
        self.smoothing = smoothing
        self.tolerance = tolerance
        self.max_iterations = max_iterations
