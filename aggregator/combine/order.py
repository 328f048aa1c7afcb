"""Order statistics over columns: all rows sorted at once by a sorting network of whole-row minima and maxima.

A network compares rows in an order that does not depend on the values, so each comparison is one vectorised minimum
and one maximum over a block of columns in cache: for ten rows several times faster than sorting each column.

Source: Batcher, "Sorting networks and their applications" (1968), odd-even merge sort; Knuth, TAOCP 3, algorithm
5.2.2M, which serves any number of rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[Any]


@lru_cache(maxsize=64)
def network(count: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs of rows (lower, higher) to compare, in order, that sort ``count`` rows."""
    pairs: list[tuple[int, int]] = []
    size = 1
    while size < count:
        apart = size
        while apart >= 1:
            pairs += [
                (low, low + apart)
                for block in range(apart % size, count - apart, 2 * apart)
                for low in range(block, min(block + apart, count - apart))
                if low // (2 * size) == (low + apart) // (2 * size)
            ]
            apart //= 2
        size *= 2
    return tuple(pairs)


@lru_cache(maxsize=64)
def selection(count: int, first: int, end: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return the comparisons that put ranks ``first`` to ``end`` of ``count`` rows in their places.

    That is the network without what no wanted rank depends on: (lower row, higher row, whether the smaller values are
    needed, whether the larger ones are).
    """
    wanted, kept = set(range(first, end)), list[tuple[int, int, bool, bool]]()
    for low, high in reversed(network(count)):
        if low in wanted or high in wanted:
            kept.append((low, high, low in wanted, high in wanted))
            wanted |= {low, high}
    return tuple(reversed(kept))


def ordered_rows(rows: Sequence[Array], first: int, end: int) -> list[Array]:
    """Return ranks ``first`` to ``end`` of each column of ``rows``, which have equal length and no NaN.

    The rows' memory is used for it: afterwards their values are lost.
    """
    places, spare = list(rows), np.empty_like(rows[0])
    for low, high, smaller, larger in selection(len(places), first, end):
        one, other = places[low], places[high]
        if smaller:
            np.minimum(one, other, out=spare)
            places[low] = spare
        if larger:
            np.maximum(one, other, out=other)
        if smaller:
            spare = one
    return places[first:end]


def middle(rows: Sequence[Array]) -> Array:
    """Return each column's mean, in NumPy's type of a mean; float16 is summed in float32, as ``numpy.mean`` does."""
    if len(rows) == 1:
        return rows[0]
    kind = rows[0].dtype
    wide = np.dtype(np.float32) if kind == np.float16 else kind if kind.kind == "f" else np.dtype(np.float64)
    total = np.add(rows[0], rows[1], dtype=wide)
    for row in rows[2:]:
        total += row
    total /= len(rows)
    return total


def nearest_mean(ordered: Sequence[Array], kept: int) -> Array:
    """Return each column's mean of the ``kept`` numbers nearest to its median; of a tie, the lower.

    In a sorted column they lie side by side: of all windows, the one whose farther end is nearest.
    """
    count = len(ordered)
    median = middle(ordered[(count - 1) // 2 : count // 2 + 1])
    windows = range(count - kept + 1)
    farthest = np.stack([np.maximum(median - ordered[start], ordered[start + kept - 1] - median) for start in windows])
    means = np.stack([middle(ordered[start : start + kept]) for start in windows])
    return np.take_along_axis(means, np.argmin(farthest, axis=0)[None], axis=0)[0]
