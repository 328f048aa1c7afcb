"""Confidential training in one TEE: a plain training loop, a segment of it every round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client
from clients.tasks import digits

if TYPE_CHECKING:
    from collections.abc import Callable


def make_app(app: ClientApp, data: Callable[[Context], digits.Shard]) -> ClientApp:
    """Give a ClientApp its train and evaluate functions on what ``data`` returns."""

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        network, shard = digits.network_of(message), data(context)
        loss = digits.train(
            network,
            shard,
            epochs=int(context.run_config["epochs"]),
            learning_rate=float(context.run_config["learning-rate"]),
            batch_size=int(context.run_config["batch-size"]),
        )
        metrics = MetricRecord({"loss": loss, "num-examples": len(shard["train_labels"])})
        return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        shard = data(context)
        loss, accuracy = digits.evaluate(digits.network_of(message), shard)
        metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(shard["test_labels"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


client_app = make_app(ClientApp(mods=[confed.client.confidential]), confed.client.site_data)
