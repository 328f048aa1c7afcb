"""``FedBuff``: asynchronous training with a buffer, which Flower does not have, in the form of Flower's strategies.

A ServerApp names it and its parameters; the arithmetic is the aggregator enclave's alone.

Source: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (2022), algorithm 1,
https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

import math
from typing import Any

from confed.flower.in_enclave import InEnclave

MOST_STALENESS = 100


class FedBuff(InEnclave):
    """A version is made as soon as ``buffer_size`` sites have sent an update, each from a recent version of its own.

    Args:
        buffer_size: how many sites' updates make a version; at least 1.
        max_staleness: how many versions may have been made since an update's own base; from 1 to 100.
        server_learning_rate: what the buffered mean is multiplied with; above 0.
        fraction_evaluate: 0, or 1: every version is evaluated by the first ``buffer_size`` sites that have time for it.
        fedavg: those of Flower's FedAvg, by name; every site takes part in every round.

    Raises:
        ValueError: a value outside these ranges.
    """

    def __init__(
        self,
        *,
        buffer_size: int,
        max_staleness: int,
        server_learning_rate: float = 1.0,
        fraction_evaluate: float = 0.0,
        min_evaluate_nodes: int = 0,
        **fedavg: Any,
    ) -> None:
        super().__init__(fraction_evaluate=fraction_evaluate, min_evaluate_nodes=min_evaluate_nodes, **fedavg)
        if buffer_size < 1:
            raise ValueError("buffer_size: expected at least 1")
        if not 1 <= max_staleness <= MOST_STALENESS:
            raise ValueError(f"max_staleness: expected from 1 to {MOST_STALENESS}")
        if not 0 < server_learning_rate < math.inf:
            raise ValueError("server_learning_rate: expected above 0 and finite")
        self.buffer_size = buffer_size
        self.max_staleness = max_staleness
        self.server_learning_rate = server_learning_rate
