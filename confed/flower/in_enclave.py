"""What strategies share that Flower does not have: they name their terms, and the enclave has their arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from confed.errors import RefusedError


class InEnclave(FedAvg):
    """Flower's FedAvg in all but the aggregation, which happens in the aggregator enclave alone. Abstract."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Refuse: nothing is aggregated outside the enclave.

        Raises:
            RefusedError: always.
        """
        del server_round, replies
        name = type(self).__name__
        raise RefusedError(name, expected=f"ConfidentialStrategy({name}(...))", got="it alone")
