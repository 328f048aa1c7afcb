"""That training an adapter left its base alone: checked in the TEE, before anything is sealed.

What an app is given of a base is the memory that it was opened into. No update can carry a changed base anywhere (only
what is trained travels), but an adapter that was trained beside another base than the manifest's would not be what it
says it is, and the next step in this TEE would start from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np

from confed.client.step import Arrays
from confed.errors import AdapterError


def frozen_digest(arrays: Arrays, *, trained: Collection[str]) -> str:
    """Return the SHA-256 of every tensor that is not trained, in the model's order.

    Raises:
        Nothing.
    """
    digest = hashlib.sha256()
    for name, array in arrays.items():
        if name not in trained and array.size:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def require_frozen(arrays: Arrays, *, trained: Collection[str], digest: str) -> None:
    """Check that no tensor of the base changed while an app ran.

    Raises:
        AdapterError: one did.
    """
    if frozen_digest(arrays, trained=trained) != digest:
        raise AdapterError("base tensors", expected="as they were opened", got="changed by the app")


def require_base(given: Arrays, arrays: Arrays, *, trained: Collection[str]) -> None:
    """Check that what an app gives back beside the adapter is the base, bit for bit.

    Raises:
        AdapterError: names the first tensor that differs.
    """
    for name, array in given.items():
        base = arrays.get(name)
        if name not in trained and base is not None and array.tobytes() != base.tobytes():
            raise AdapterError(f"tensor {name[:80]}", expected="the base's: only the adapter is trained", got="another")
