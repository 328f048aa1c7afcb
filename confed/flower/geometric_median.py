"""``GeometricMedian``: the strategy of RFA, which Flower does not have, in the form of Flower's strategies.

A ServerApp names it and its parameters; the arithmetic is the aggregator enclave's alone.

Source: Pillutla et al., "Robust Aggregation for Federated Learning" (2022), https://arxiv.org/abs/1912.13445
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from confed.errors import RefusedError

MOST_ITERATIONS = 10_000


class GeometricMedian(FedAvg):
    """The point whose weighted sum of distances to all updates is least, by the smoothed Weiszfeld algorithm.

    Args:
        smoothing: distances (L2, over all tensors) below it count as it; above 0.
        tolerance: the iteration ends when the sum changes by no more than this part of it; at least 0.
        max_iterations: it ends then in any case; from 1 to 10000.
        parameters: those of Flower's FedAvg, by name.

    Raises:
        ValueError: a value outside these ranges.
    """

    def __init__(  # noqa: PLR0913 (those of Flower's FedAvg, and three)
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: Any = None,
        evaluate_metrics_aggr_fn: Any = None,
        smoothing: float = 1e-6,
        tolerance: float = 1e-9,
        max_iterations: int = 100,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        if not 0 < smoothing < math.inf:
            raise ValueError("smoothing: expected above 0 and finite")
        if not 0 <= tolerance < 1:
            raise ValueError("tolerance: expected at least 0 and below 1")
        if not 1 <= max_iterations <= MOST_ITERATIONS or int(max_iterations) != max_iterations:
            raise ValueError(f"max_iterations: expected a whole number from 1 to {MOST_ITERATIONS}")
        self.smoothing = smoothing
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse: nothing is aggregated outside the enclave.

        Raises:
            RefusedError: always.
        """
        del server_round, replies
        raise RefusedError("GeometricMedian", expected="ConfidentialStrategy(GeometricMedian(...))", got="it alone")
