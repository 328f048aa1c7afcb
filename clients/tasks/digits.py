"""Handwritten digits: a small network on 8 x 8 images, trained where the images are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client
from confed.client.settings import Scalar, Settings
from confed.model.classes import require_classes

if TYPE_CHECKING:
    from collections.abc import Callable

Shard = Mapping[str, np.ndarray]

CLASSES = 10


class Network(torch.nn.Module):
    """64 pixels -> 128 hidden units -> 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(64, 128)
        self.output = torch.nn.Linear(128, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape (examples, 10), of pixels in 0..1, shape (examples, 64)."""
        return self.output(torch.relu(self.hidden(pixels)))


def tensors_of(shard: Shard, *, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels and labels of a shard's half, ``train`` or ``test``.

    Raises:
        ClassCountError: a label that the network has no class for.
    """
    labels = shard[f"{part}_labels"]
    require_classes(labels, classes=CLASSES, what=f"{part}_labels")
    return torch.from_numpy(shard[f"{part}_pixels"]), torch.from_numpy(labels)


def train(network: Network, shard: Shard, *, epochs: int, learning_rate: float, batch_size: int) -> float:
    """Train on a shard's training half and return the mean loss of the last epoch."""
    pixels, labels = tensors_of(shard, part="train")
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    network.train()
    mean = 0.0
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(pixels[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        mean = total / len(labels)
    return mean


def evaluate(network: Network, shard: Shard) -> tuple[float, float]:
    """Return loss and accuracy on a shard's test half."""
    pixels, labels = tensors_of(shard, part="test")
    network.eval()
    with torch.no_grad():
        logits = network(pixels)
        loss = float(torch.nn.functional.cross_entropy(logits, labels))
        accuracy = float((logits.argmax(1) == labels).float().mean())
    return loss, accuracy


def _terms(settings: Mapping[str, Scalar]) -> dict[str, Any]:
    read = Settings(settings)
    return {
        "epochs": read.whole("local-epochs", least=1),
        "learning_rate": read.number("learning-rate", above=0),
        "batch_size": read.whole("batch-size", least=1),
    }


def require_settings(settings: Mapping[str, Scalar]) -> None:
    """Check an experiment's settings before anything is sealed.

    Raises:
        SettingError: one that is missing, or has a value that this loop does not take.
    """
    _terms(settings)


def make_app(app: ClientApp, data: Callable[[Context], Shard]) -> ClientApp:
    """Give a ClientApp its train and evaluate functions on the shard that ``data`` returns."""

    @app.train()
    def _train(message: Message, context: Context) -> Message:
        network, shard = network_of(message), data(context)
        loss = train(network, shard, **_terms(context.run_config))
        metrics = MetricRecord({"loss": loss, "num-examples": len(shard["train_labels"])})
        return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        shard = data(context)
        loss, accuracy = evaluate(network_of(message), shard)
        metrics = MetricRecord({"loss": loss, "accuracy": accuracy, "num-examples": len(shard["test_labels"])})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def network_of(message: Message) -> Network:
    """Return the network with the weights in a message."""
    network = Network()
    network.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    return network


client_app = make_app(ClientApp(mods=[confed.client.confidential]), confed.client.site_data)
