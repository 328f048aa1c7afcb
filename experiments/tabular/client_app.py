"""Logistic regression on a hospital's prepared table: trained on the readers' vote, tested on what is confirmed."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed.client
from confed.data.arrays import columns_of, features_of, labels_of

FEATURES = ("mean_radius", "mean_texture", "mean_smoothness", "mean_concavity", "worst_area", "worst_symmetry")
CLASSES = 2

app = ClientApp(mods=[confed.client.confidential])


@app.train()
def train(message: Message, context: Context) -> Message:
    table = confed.client.site_table(context)
    columns = columns_of(table.filter(pc.invert(table["label_doubted"])))
    features, labels = features_of(columns, FEATURES), labels_of(columns, "label", classes=CLASSES)
    weights, bias = _model(message)
    loss = 0.0
    for _ in range(int(context.run_config["local-epochs"])):
        shares = _softmax(features @ weights + bias)
        loss = _loss(shares, labels)
        error = (shares - np.eye(CLASSES, dtype=np.float32)[labels]) / len(labels)
        rate = np.float32(context.run_config["learning-rate"])
        weights, bias = weights - rate * (features.T @ error), bias - rate * error.sum(axis=0)
    arrays = ArrayRecord({"weights": Array(weights), "bias": Array(bias)})
    metrics = MetricRecord({"loss": loss, "num-examples": len(labels)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    table = confed.client.site_table(context)
    known = table.filter(pc.is_valid(table["confirmed"]))
    labels = pc.equal(known["confirmed"], "malignant").to_numpy().astype(np.int64)
    weights, bias = _model(message)
    shares = _softmax(features_of(columns_of(known), FEATURES) @ weights + bias)
    accuracy = float((shares.argmax(axis=1) == labels).mean())
    metrics = MetricRecord({"loss": _loss(shares, labels), "accuracy": accuracy, "num-examples": len(labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def _model(message: Message) -> tuple[np.ndarray, np.ndarray]:
    arrays = message.content.array_records["arrays"]
    return arrays["weights"].numpy(), arrays["bias"].numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _loss(shares: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(shares[np.arange(len(labels)), labels] + 1e-9).mean())
