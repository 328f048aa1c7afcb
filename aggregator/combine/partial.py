"""A part of a model is combined, and the whole of the next version is made of it and the base."""

from __future__ import annotations

import numpy as np

from aggregator.combine.weights import Weights
from confed.model.trained import Trained


def part_of(base: Weights, trained: Trained) -> Weights:
    """Return the trained tensors of a model, as they lie in an update; copied only where others lie between them."""
    if trained.part == base.layout:
        return base
    arrays = base.arrays()
    found = Weights.of({tensor.name: arrays[tensor.name] for tensor in trained.part.tensors}, trained.part)
    whole = {dtype: flat for dtype, flat in base.flats.items() if dtype in found.flats}
    same = {
        dtype: flat if flat.size == found.flats[dtype].size else found.flats[dtype] for dtype, flat in whole.items()
    }
    return Weights(layout=trained.part, flats=same)


def whole_of(part: Weights, base: Weights, trained: Trained) -> Weights:
    """Return the next version: the new part, copies of it where tensors are tied to it, and the rest of the base.

    Guarantees: ``base`` is not changed; what is not trained has its bits; memory beyond both is that of the types of
    which only some tensors change.
    """
    if trained.part == base.layout:
        return part
    sources = {name: name for name in (tensor.name for tensor in trained.part.tensors)} | trained.followers
    changed = {tensor.dtype for tensor in base.layout.tensors if tensor.name in sources}
    flats = {dtype: flat.copy() if dtype in changed else flat for dtype, flat in base.flats.items()}
    for dtype, flat in part.flats.items():
        if flat.size == flats[dtype].size:
            flats[dtype] = flat
    result, given = Weights(layout=base.layout, flats=flats), part.arrays()
    arrays = result.arrays()
    for name, source in sources.items():
        if not np.shares_memory(arrays[name], given[source]):
            arrays[name][...] = given[source]
    return result
