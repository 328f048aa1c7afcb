"""The weighted mean of sealed updates, folded chunk by chunk across all of them.

One pass reads chunk 0 of every update in identity order, then chunk 1, and so on; so the result does not depend on
the order of arrival, and memory holds the base, the mean and one chunk a thread, however many updates there are.
The arithmetic is that of Flower's ``aggregate_arrayrecords``: ``mean += x * (w / W)`` in each tensor's own floating
type, so the result is Flower's to the bit. Whole numbers and truth values are averaged too, in float64 as there, and
rounded to their own type (see ``tensor_types``). The norm is over floating tensors, as clients declare it: counters
that only count are not in it, so what a sender does to whole numbers is NOT bounded.

What a sender declared is verified while folding. Until the last chunk the mean is provisional: a tag that does not
match, a value that is not finite, another layout or a false norm voids it, and the pass goes on only to find every
other sender that is wrong; then the fold starts over without them, if the cohort rule still holds.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017),
algorithm 1; DESIGN §6.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.tensor_types import number_type
from confed.errors import CohortError, ConfedError, EncodingError, NormError, NotFiniteError, ShapeError
from confed.model.weights import NUMPY_DTYPES, Layout, header_size, layout_of, parse_layout, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Array = NDArray[Any]

NORM_RELATIVE_TOLERANCE = 1e-3
"""How far a declared norm may be from the true one: senders may sum in float32."""
NORM_ABSOLUTE_TOLERANCE = 1e-6

_LARGEST_ELEMENT = 8
_LOST_IN_FLOAT32 = 1e-20
"""Below this, squares of single differences vanish in float32."""


class Chunks(Protocol):
    """An opened update, chunk by chunk; ``confed.sealing.container.OpenContainer`` is one."""

    @property
    def chunk_count(self) -> int:
        """How many chunks there are."""
        ...

    def chunk_span(self, index: int) -> tuple[int, int]:
        """Return where the chunk's plaintext begins and ends."""
        ...

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        """Decrypt one authenticated chunk into ``buffer``; raise a ``SealError`` otherwise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One sender's opened update and what it declared: its weight, and its norm where there are weights to fold."""

    site: str
    chunks: Chunks
    weight: float
    norm: float


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
        groups: dict[str, list[Array]] = {}
        for tensor in layout.data_order:
            groups.setdefault(tensor.dtype, []).append(arrays[tensor.name].reshape(-1))
        return cls(
            layout=layout,
            flats={dtype: parts[0] if len(parts) == 1 else np.concatenate(parts) for dtype, parts in groups.items()},
        )

    @classmethod
    def parse(cls, packed: bytearray) -> Weights:
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


def spans(layout: Layout) -> dict[str, tuple[int, int]]:
    """Return where the tensors of each type lie in the packed file: types lie together, one after the other."""
    found: dict[str, tuple[int, int]] = {}
    for tensor in layout.data_order:
        start, _ = found.get(tensor.dtype, (tensor.start, 0))
        found[tensor.dtype] = (start, tensor.end)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The mean, who is in it (in identity order), and why the others are not."""

    mean: Weights
    sites: tuple[str, ...]
    excluded: Mapping[str, ConfedError]


def factors(weights: Sequence[float]) -> list[float]:
    """Return each weight's share, computed as Flower does.

    Source: flwr 1.41, ``serverapp/strategy/strategy_utils.py``, ``aggregate_arrayrecords``.
    """
    total = sum(weights)
    return [weight / total for weight in weights]


def combine(
    contributions: Sequence[Contribution],
    *,
    base: Weights,
    least: int,
    norm_bound: float,
    excluded: dict[str, ConfedError] | None = None,
    threads: int = 1,
) -> Combined:
    """Return the weighted mean of the contributions that are what they declare.

    Guarantees: the same contributions give the same bits, whatever ``threads`` is and whoever else was excluded;
    no excluded sender's value is in the mean; at least ``least`` are.

    Args:
        contributions: at most one a site; they are folded in the order of the sites' names.
        base: the version that they started from.
        least: how many must remain.
        norm_bound: largest L2 norm of a difference from the base.
        excluded: filled with why each excluded sender is, also when too few remain.
        threads: how many fold, each a range of chunks.

    Raises:
        CohortError: fewer than ``least`` remain.
    """
    kept = sorted(contributions, key=lambda contribution: contribution.site)
    excluded = {} if excluded is None else excluded
    while True:
        if len(kept) < max(least, 1):
            raise CohortError("cohort", expected=f"at least {least}", got=f"{len(kept)} ({_reasons(excluded)})")
        one_pass = _Pass(kept, base, norm_bound)
        failed = one_pass.run(threads)
        if not failed:
            mean = Weights(layout=base.layout, flats=one_pass.mean)
            return Combined(mean=mean, sites=tuple(entry.site for entry in kept), excluded=excluded)
        excluded.update(failed)
        kept = [entry for entry in kept if entry.site not in excluded]


def _reasons(excluded: Mapping[str, ConfedError]) -> str:
    return ", ".join(f"{site}: {error.code}" for site, error in sorted(excluded.items())) or "none excluded"


class _Pass:
    """One pass over all contributions; its mean counts only if nobody failed."""

    def __init__(self, contributions: Sequence[Contribution], base: Weights, norm_bound: float) -> None:
        self.contributions = contributions
        self.first = contributions[0]
        self.base = base
        self.header = base.layout.header
        self.spans = spans(base.layout)
        self.kinds = {dtype: number_type(dtype) for dtype in base.flats}
        self.factors = factors([entry.weight for entry in contributions])
        self.mean = {dtype: np.empty(flat.size, dtype=self.kinds[dtype].mean) for dtype, flat in base.flats.items()}
        self._norm_bound = norm_bound

    def run(self, threads: int) -> dict[str, ConfedError]:
        """Fold everything; return the first fault of every sender that has one."""
        failed = self._check_sizes()
        sound = [entry for entry in self.contributions if entry.site not in failed]
        if not sound:
            return failed
        ranges = _ranges(sound[0].chunks.chunk_count, threads)
        workers = [_Worker(self, sound, void=bool(failed)) for _ in ranges]
        if len(ranges) == 1:
            workers[0].fold(*ranges[0])
        else:
            with ThreadPoolExecutor(max_workers=len(ranges)) as pool:
                for task in [pool.submit(worker.fold, *span) for worker, span in zip(workers, ranges, strict=True)]:
                    task.result()
        for worker in workers:  # in chunk order: a sender is named by its first fault, whatever thread met it
            for site, error in worker.failed.items():
                failed.setdefault(site, error)
        for entry in sound:
            if entry.site not in failed:
                try:
                    self._check_norm(entry, math.fsum(worker.squares[entry.site] for worker in workers))
                except NormError as error:
                    failed[entry.site] = error
        return failed

    def _check_sizes(self) -> dict[str, ConfedError]:
        """Every update has the model's size, in chunks at the same places that cut no element."""
        failed: dict[str, ConfedError] = {}
        expected = (self.base.layout.total_bytes, self.first.chunks.chunk_span(0)[1])
        for entry in self.contributions:
            last = entry.chunks.chunk_span(entry.chunks.chunk_count - 1)[1]
            got = (last, entry.chunks.chunk_span(0)[1])
            if (
                last != self.base.layout.total_bytes
                or (got != expected and entry is not self.first)
                or (entry.chunks.chunk_count > 1 and got[1] % _LARGEST_ELEMENT)
            ):
                failed[entry.site] = ShapeError(f"{entry.site} size", expected=expected, got=got)
        return failed

    def _check_norm(self, entry: Contribution, square: float) -> None:
        norm = math.sqrt(square)
        tolerance = NORM_RELATIVE_TOLERANCE * max(norm, entry.norm) + NORM_ABSOLUTE_TOLERANCE
        if not abs(norm - entry.norm) <= tolerance:
            raise NormError(f"{entry.site} norm", expected="the declared one", got="another")
        if not norm <= self._norm_bound * (1 + NORM_RELATIVE_TOLERANCE):
            raise NormError(f"{entry.site} norm", expected=f"at most {self._norm_bound}", got="more")


class _Worker:
    """Folds one range of chunks; ``failed`` has the first fault in it of every sender that has one."""

    def __init__(self, one_pass: _Pass, sound: Sequence[Contribution], *, void: bool) -> None:
        self._pass = one_pass
        self._sound = sound
        self._void = void
        self._factors = {
            entry.site: factor for entry, factor in zip(one_pass.contributions, one_pass.factors, strict=True)
        }
        self.failed: dict[str, ConfedError] = {}
        self.squares = {entry.site: 0.0 for entry in sound}

    def fold(self, first: int, last: int) -> None:
        """Fold chunks ``first`` to ``last``, each across all senders before the next."""
        layout, chunks = self._pass.base.layout, self._sound[0].chunks
        largest = max(chunks.chunk_span(index)[1] - chunks.chunk_span(index)[0] for index in range(first, last))
        buffer = np.zeros(largest, dtype=np.uint8)
        scratch = _Scratch(largest)
        for index in range(first, last):
            start, end = chunks.chunk_span(index)
            runs = list(layout.runs(start, end))
            for entry in self._sound:
                if entry.site in self.failed:
                    continue
                try:
                    plaintext = buffer[: end - start]
                    entry.chunks.read_chunk_into(index, memoryview(plaintext.data))
                    self._check_header(entry, start, plaintext)
                    for dtype, low, high in runs:
                        self._fold_run(entry, dtype, low, high, plaintext[low - start : high - start], scratch)
                except ConfedError as error:
                    self.failed[entry.site] = error
                    self._void = True  # what was added is not taken back: the fold starts over

    def _check_header(self, entry: Contribution, start: int, plaintext: Array) -> None:
        part = self._pass.header[start : start + plaintext.size]
        if part and plaintext[: len(part)].tobytes() != part:
            raise ShapeError(f"{entry.site} layout", expected="the model's safetensors header", got="another")

    def _fold_run(
        self, entry: Contribution, dtype: str, low: int, high: int, plaintext: Array, scratch: _Scratch
    ) -> None:
        """Add ``values * factor`` to the mean, and the squares of their differences from the base to the norm."""
        kind, origin = self._pass.kinds[dtype], self._pass.spans[dtype][0]
        size = kind.stored.itemsize
        part = slice((low - origin) // size, (high - origin) // size)
        numbers = kind.numbers(plaintext.view(kind.stored))
        if kind.floating:
            square = scratch.square_of_difference(numbers, kind.numbers(self._pass.base.flats[dtype][part]))
            if not math.isfinite(square):
                # Finite values have squares that are not only in float64.
                if not np.isfinite(numbers).all():
                    raise NotFiniteError(f"{entry.site} {dtype}", expected="finite values", got="NaN or infinity")
                raise NormError(f"{entry.site} {dtype}", expected="a finite norm", got="infinity")
            self.squares[entry.site] += square
        if self._void:
            return
        mean, factor = self._pass.mean[dtype][part], self._factors[entry.site]
        if entry is self._pass.first:  # as Flower begins: 0.0 + x would turn -0.0 into 0.0
            np.multiply(numbers, factor, out=mean)
        else:
            product = scratch.take(mean.dtype, mean.size)
            np.multiply(numbers, factor, out=product)
            mean += product


class _Scratch:
    """Memory of one worker for a segment's products and differences, used again for each."""

    def __init__(self, chunk_bytes: int) -> None:
        # The worst case is one byte in, one float64 out.
        self._memory = np.empty(8 * chunk_bytes, dtype=np.uint8)

    def take(self, dtype: np.dtype[Any], count: int) -> Array:
        return self._memory[: count * dtype.itemsize].view(dtype)

    def square_of_difference(self, numbers: Array, reference: Array) -> float:
        """Return the sum of squares of ``numbers - reference``, in float64 wherever float32 would lose it."""
        if numbers.dtype == np.float32:
            with np.errstate(over="ignore", invalid="ignore"):
                difference = np.subtract(numbers, reference, out=self.take(numbers.dtype, numbers.size))
                # Sums of at most one chunk in float32 (BLAS adds in blocks) are within 1e-4, far inside the
                # tolerance; what overflows or vanishes there is summed again in float64.
                square = float(np.dot(difference, difference))
            if math.isfinite(square) and square > _LOST_IN_FLOAT32:
                return square
        with np.errstate(over="ignore", invalid="ignore"):
            out = self.take(np.dtype(np.float64), numbers.size)
            wide = np.subtract(numbers, reference, out=out, dtype=np.float64, casting="unsafe")
            return float(np.dot(wide, wide))


def _ranges(count: int, threads: int) -> list[tuple[int, int]]:
    """Split ``count`` chunks into at most ``threads`` ranges of nearly the same length."""
    parts = max(1, min(threads, count))
    bounds = [count * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))
