"""Updates opened whole, for rules that need every one of them at once; with the checks of every pass (``passes``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.weights import Weights
from confed.errors import SizeError

if TYPE_CHECKING:
    from aggregator.combine.blocks import Scratch, Segment
    from aggregator.combine.passes import Updates


class OpenedUpdates:
    """Opens every update whole and hands them to a function that makes one model of them.

    Args:
        memory_bytes: most that they take together.
        make: gets the updates and their opened arrays; returns flat arrays of numbers.
    """

    least = 1

    def __init__(self, memory_bytes: int, make: Callable[[Updates, Opened], dict[str, NDArray[Any]]]) -> None:
        self._memory_bytes = memory_bytes
        self._make = make

    def combine(self, updates: Updates) -> dict[str, NDArray[Any]]:
        """Return what the function makes of the updates.

        Raises:
            SizeError: they would take more memory than is permitted; nothing was opened.
            WrongSenders: a pass found somebody wrong.
            ConfedError: as the function.
        """
        size = len(updates.contributions) * updates.base.layout.total_bytes
        if size > self._memory_bytes:
            raise SizeError("opened updates in bytes", expected=f"at most {self._memory_bytes}", got=size)
        opened = Opened(updates)
        updates.run(lambda: opened)
        return self._make(updates, opened)


class Opened:
    """Keeps what a pass opens: for each update the flat arrays of its values, in the model's types."""

    holds = False

    def __init__(self, updates: Updates) -> None:
        self._base = updates.base
        self._flats = [
            {dtype: np.empty(flat.size, _type_of(updates, dtype)) for dtype, flat in updates.base.flats.items()}
            for _ in updates.contributions
        ]

    def take(self, segment: Segment, rows: Sequence[NDArray[Any]], *, first: int, scratch: Scratch) -> None:
        """Keep a segment of some updates."""
        del scratch
        for at, numbers in enumerate(rows, first):
            self._flats[at][segment.dtype][segment.part] = numbers

    def take_out(self, at: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of one update, which is not kept here any more."""
        flats, self._flats[at] = self._flats[at], {}
        return Weights(layout=self._base.layout, flats=flats).arrays()


def _type_of(updates: Updates, dtype: str) -> np.dtype[Any]:
    """Return the type in which a class sees a tensor: bfloat16, which NumPy does not have, as float32."""
    kind = updates.kinds[dtype]
    return kind.mean if kind.brain else kind.stored
