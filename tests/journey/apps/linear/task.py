"""The ordinary app again, in NumPy alone: what is not about torch need not wait for it. It knows nothing of confed."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict


def start():
    generator = np.random.default_rng(11)
    return record(generator.normal(size=(6, 1)).astype(np.float32), np.zeros(1, dtype=np.float32))


def record(weight, bias):
    return ArrayRecord({"weight": Array(weight), "bias": Array(bias)})


def load_partition(partition):
    generator = np.random.default_rng(100 + partition)
    inputs = generator.normal(size=(40 + 10 * partition, 6)).astype(np.float32)
    targets = (inputs.sum(axis=1, keepdims=True) > 0).astype(np.float32) * 2 - 1
    return inputs, targets


def train_fn(message, context):
    weight, bias = (message.content["arrays"][name].numpy().copy() for name in ("weight", "bias"))
    inputs, targets = load_partition(int(context.node_config["partition-id"]))
    rate = np.float32(message.content["config"]["lr"])
    for _ in range(int(context.run_config["local-steps"])):
        batch = np.random.permutation(len(targets))[:16]  # noqa: NPY002 (apps use the global generator)
        error = inputs[batch] @ weight + bias - targets[batch]
        weight -= rate * 2 * inputs[batch].T @ error / len(batch)
        bias -= rate * 2 * error.mean(axis=0)
    metrics = MetricRecord({"train_loss": float((error**2).mean()), "num-examples": len(targets)})
    return Message(RecordDict({"arrays": record(weight, bias), "metrics": metrics}), reply_to=message)


def evaluate_fn(message, context):
    weight, bias = (message.content["arrays"][name].numpy() for name in ("weight", "bias"))
    inputs, targets = load_partition(int(context.node_config["partition-id"]))
    outputs = inputs @ weight + bias
    metrics = MetricRecord(
        {
            "eval_loss": float(((outputs - targets) ** 2).mean()),
            "eval_acc": float((np.sign(outputs) == targets).mean()),
            "num-examples": len(targets),
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
