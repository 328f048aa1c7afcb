"""What both sides do in the benchmark of a round: no training, the model comes back changed a little."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

LARGEST_TENSOR = 1 << 22
FEWEST_TENSORS = 8


def model(parameters: int) -> ArrayRecord:
    """Return a model of that many float32 parameters in tensors of at most 16 MiB, no two parts of it alike."""
    size = max(1, min(LARGEST_TENSOR, -(-parameters // FEWEST_TENSORS)))
    starts = range(0, parameters, size)
    return ArrayRecord(
        {f"layer-{at}": Array(_tensor(start, min(size, parameters - start))) for at, start in enumerate(starts)}
    )


def train(message: Message, _: Context) -> Message:
    """Add a little to every parameter, one tensor after the other."""
    [arrays] = message.content.array_records.values()
    changed = ArrayRecord({name: Array(_changed(array.numpy())) for name, array in arrays.items()})
    content = RecordDict({"arrays": changed, "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)


def _tensor(start: int, size: int) -> np.ndarray:
    return np.arange(start, start + size, dtype=np.float32) * np.float32(1e-9)


def _changed(tensor: np.ndarray) -> np.ndarray:
    tensor += np.float32(1e-6)
    return tensor
