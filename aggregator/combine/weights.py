"""A model as it is combined: one flat array for each tensor type, stored values or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.tensor_types import number_type
from confed.errors import EncodingError
from confed.model.weights import NUMPY_DTYPES, Layout, flats_of, header_size, layout_of, parse_layout, spans, unpack

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model as it lies in its packed file: one flat array for each tensor type, in the order of the data.

    ``flats`` hold stored values (a base) or numbers (a mean, see ``tensor_types``).
    """

    layout: Layout
    flats: Mapping[str, Array]

    @classmethod
    def of(cls, arrays: Mapping[str, Array], layout: Layout) -> Weights:
        """Return the weights of arrays that have this layout; copied only where they do not lie together already."""
        return cls(layout=layout, flats=flats_of(arrays, layout))

    @classmethod
    def parse(cls, packed: bytearray | memoryview) -> Weights:
        """Return the weights of a safetensors file; views of it where it has the one form that confed writes.

        Raises:
            EncodingError, ShapeError, SizeError: as ``model.weights.parse_layout``.
        """
        prefix = memoryview(packed)[: min(header_size(packed), len(packed))]
        layout = parse_layout(prefix, len(packed), aligned=False)
        try:
            layout.require_packed()
        except EncodingError:  # sealed from another program's file: once through our own form
            arrays = unpack(packed, aligned=False)
            return cls.of(arrays, layout_of(arrays))
        view = memoryview(packed)
        return cls(
            layout=layout,
            flats={
                dtype: np.frombuffer(view[start:end], dtype=NUMPY_DTYPES[dtype])
                for dtype, (start, end) in spans(layout).items()
            },
        )

    def arrays(self) -> dict[str, Array]:
        """Return the tensors in the model's own order, as views."""
        places = {dtype: start for dtype, (start, _) in spans(self.layout).items()}
        found: dict[str, Array] = {}
        for tensor in self.layout.tensors:
            size = NUMPY_DTYPES[tensor.dtype].itemsize
            first, last = (tensor.start - places[tensor.dtype]) // size, (tensor.end - places[tensor.dtype]) // size
            found[tensor.name] = self.flats[tensor.dtype][first:last].reshape(tensor.shape)
        return found

    def numbers(self) -> Weights:
        """Return stored values as numbers."""
        return Weights(
            layout=self.layout, flats={dtype: number_type(dtype).numbers(flat) for dtype, flat in self.flats.items()}
        )

    def restored(self) -> Weights:
        """Return numbers as stored values of the model's own types."""
        return Weights(
            layout=self.layout, flats={dtype: number_type(dtype).restored(flat) for dtype, flat in self.flats.items()}
        )
