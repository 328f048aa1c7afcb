"""Trains nothing: every number grows by the site's own amount."""

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client

app = ClientApp(mods=[confed.client.confidential])


@app.train()
def train(message, context):
    numbers = message.content["arrays"]["numbers"].numpy()
    numbers += 1e-4 * (1 + int(context.node_config["partition-id"]))
    content = RecordDict(
        {"arrays": ArrayRecord({"numbers": Array(numbers)}), "metrics": MetricRecord({"num-examples": 10})}
    )
    return type(message)(content=content, reply_to=message)
