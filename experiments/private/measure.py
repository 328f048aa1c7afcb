"""The model owner's side, after the run: accuracy of an opened model on digits that no site has.

``confed model open RUN_DIR/versions/0020.sealed --owner model-owner --out private.safetensors``, then
``python experiments/private/measure.py private.safetensors``.
"""

import sys
from pathlib import Path

import torch
from client_app import network
from data import public_test

from confed.model.weights import unpack


def accuracy(path: Path) -> float:
    """Return the share of public digits that a model names rightly."""
    model = network()
    arrays = unpack(bytearray(path.read_bytes()), aligned=False)
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    pixels, labels = (torch.from_numpy(array) for array in public_test())
    with torch.no_grad():
        return float((model(pixels).argmax(1) == labels).float().mean())


if __name__ == "__main__":
    print(f"accuracy {accuracy(Path(sys.argv[1])):.4f}")  # noqa: T201
