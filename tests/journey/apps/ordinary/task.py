"""An ordinary small Flower app's own part: a linear model on data that it makes itself. It knows nothing of confed."""

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict


def make_model():
    torch.manual_seed(11)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def load_partition(partition):
    generator = np.random.default_rng(100 + partition)
    inputs = generator.normal(size=(40 + 10 * partition, 6)).astype(np.float32)
    targets = (inputs.sum(axis=1, keepdims=True) > 0).astype(np.float32) * 2 - 1
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def train_fn(message, context):
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    inputs, targets = load_partition(int(context.node_config["partition-id"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=float(message.content["config"]["lr"]))
    for _ in range(int(context.run_config["local-steps"])):
        batch = torch.randperm(len(targets))[:16]
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs[batch]), targets[batch])
        loss.backward()
        optimizer.step()
    metrics = MetricRecord({"train_loss": float(loss.detach()), "num-examples": len(targets)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


def evaluate_fn(message, context):
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    inputs, targets = load_partition(int(context.node_config["partition-id"]))
    with torch.no_grad():
        outputs = model(inputs)
    metrics = MetricRecord(
        {
            "eval_loss": float(torch.nn.functional.mse_loss(outputs, targets)),
            "eval_acc": float((outputs.sign() == targets).float().mean()),
            "num-examples": len(targets),
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
