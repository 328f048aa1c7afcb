"""A linear model of handwritten digits: noise grows with the root of the number of weights, so there are few."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client

app = ClientApp(mods=[confed.client.confidential])


def network() -> torch.nn.Linear:
    """Return 64 pixels -> 10 classes, all zero."""
    made = torch.nn.Linear(64, 10)
    torch.nn.init.zeros_(made.weight)
    torch.nn.init.zeros_(made.bias)
    return made


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take a few steps on the whole shard."""
    model, shard = network(), confed.client.site_data(context)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    pixels, labels = torch.from_numpy(shard["pixels"]), torch.from_numpy(shard["labels"])
    optimizer = torch.optim.SGD(model.parameters(), lr=float(context.run_config["learning-rate"]))
    for _ in range(int(context.run_config["local-steps"])):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
