"""Opened arrays as tensors of torch."""

from __future__ import annotations

import numpy as np
import torch


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Return an opened array as a tensor that shares its memory (a copy where that must not be written to)."""
    array = array if array.flags.writeable else array.copy()
    if (array.dtype.metadata or {}).get("safetensors") == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
