"""A pass over sealed updates: chunk 0 of all of them, then chunk 1, and so on, everything checked on the way.

What a sender declared is verified by every pass: sizes, the layout's header, finite values, the declared norm and the
bound on it. A tag that does not match, a value that is not finite, another layout or a false norm voids the pass,
which then goes on only to find every other sender that is wrong. The norm is over all that travels.

What is made of the opened chunks is a ``Work``'s affair. One that takes each update for itself needs one chunk of
memory a thread; one that needs the same chunk of every update at once needs a chunk for each update and thread, and
as few threads then work as keep that below ``HELD_BYTES``.

Source: DESIGN §6.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.tensor_types import NumberType, number_type
from aggregator.combine.weights import Weights, spans
from confed.errors import ConfedError, NormError, NotFiniteError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confed.model.weights import Layout

Array = NDArray[Any]

NORM_RELATIVE_TOLERANCE = 1e-3
"""How far a declared norm may be from the true one: senders may sum in float32."""
NORM_ABSOLUTE_TOLERANCE = 1e-6
HELD_BYTES = 256 * 1024**2
"""How much opened memory all threads together hold at most, beyond the one thread that always works."""

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
class Segment:
    """Elements of one type that lie together: ``part`` is where they are in the flat array of that type."""

    dtype: str
    kind: NumberType
    part: slice


class Scratch:
    """Memory of one worker for a segment's products and differences, used again for each."""

    def __init__(self, chunk_bytes: int) -> None:
        # The worst case is one byte in, one float64 out.
        self._memory = np.empty(8 * chunk_bytes, dtype=np.uint8)

    def take(self, dtype: np.dtype[Any], count: int) -> Array:
        """Return room for ``count`` elements; what was there before is overwritten."""
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


class Work(Protocol):
    """What one worker makes of its chunks; it counts only if the pass found nobody wrong."""

    @property
    def holds(self) -> bool:
        """True where it needs the same segment of every update at once."""
        ...

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        """Take a segment of the updates from position ``first`` on: of one, or of all where it ``holds`` them."""
        ...


AnyWork = TypeVar("AnyWork", bound=Work)


class WrongSenders(Exception):  # noqa: N818 (no refusal: the fold starts over without them)
    """Ends a pass in which senders were found wrong; ``failed`` has the first fault of each."""

    def __init__(self, failed: Mapping[str, ConfedError]) -> None:
        super().__init__(", ".join(sorted(failed)))
        self.failed = failed


class Updates:
    """Opened updates in a fixed order, and what they must keep.

    Guarantees: the order is that of the contributions given, whatever ``threads`` is.

    Args:
        contributions: at least one; at most one a site.
        base: the version that they started from.
        norm_bound: largest L2 norm of a difference from the base.
        threads: how many open and work at a time.
    """

    def __init__(
        self, contributions: Sequence[Contribution], *, base: Weights, norm_bound: float, threads: int
    ) -> None:
        self.contributions = contributions
        self.base = base
        self.header = base.layout.header
        self.spans = spans(base.layout)
        self.kinds = {dtype: number_type(dtype) for dtype in base.flats}
        self._norm_bound = norm_bound
        self._threads = threads

    def chosen(self, positions: Sequence[int]) -> Updates:
        """Return some of the updates, in the order of ``positions``."""
        return Updates(
            [self.contributions[at] for at in positions],
            base=self.base,
            norm_bound=self._norm_bound,
            threads=self._threads,
        )

    def room(self) -> dict[str, Array]:
        """Return flat arrays for a result, in the types that numbers are averaged in; not initialised."""
        return {dtype: np.empty(flat.size, dtype=self.kinds[dtype].mean) for dtype, flat in self.base.flats.items()}

    def run(self, make: Callable[[], AnyWork], *, parts: int | None = None) -> list[AnyWork]:
        """Pass over everything once and return the works, in the order of their chunks.

        Args:
            make: makes the work of one range of chunks.
            parts: how many ranges, whatever the number of threads; as many as threads where none is given.

        Raises:
            WrongSenders: every sender that is not what it declared.
        """
        failed = self._check_sizes()
        sound = [entry for entry in self.contributions if entry.site not in failed]
        workers: list[_Worker[AnyWork]] = []
        if sound:
            chunks = sound[0].chunks
            ranges = _ranges(chunks.chunk_count, parts or self._threads)
            workers = [_Worker(self, sound, make(), span, void=bool(failed)) for span in ranges]
            _run_all(workers, threads=self._threads)
        for worker in workers:  # in chunk order: a sender is named by its first fault, whatever thread met it
            for site, error in worker.failed.items():
                failed.setdefault(site, error)
        for entry in sound:
            if entry.site not in failed:
                try:
                    self._check_norm(entry, math.fsum(worker.squares[entry.site] for worker in workers))
                except NormError as error:
                    failed[entry.site] = error
        if failed:
            raise WrongSenders(failed)
        return [worker.work for worker in workers]

    def _check_sizes(self) -> dict[str, ConfedError]:
        """Every update has the model's size, in chunks at the same places that cut no element."""
        failed: dict[str, ConfedError] = {}
        first = self.contributions[0]
        expected = (self.base.layout.total_bytes, first.chunks.chunk_span(0)[1])
        for entry in self.contributions:
            last = entry.chunks.chunk_span(entry.chunks.chunk_count - 1)[1]
            got = (last, entry.chunks.chunk_span(0)[1])
            if (
                last != self.base.layout.total_bytes
                or (got != expected and entry is not first)
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


class _Worker(Generic[AnyWork]):
    """Passes over one range of chunks; ``failed`` has the first fault in it of every sender that has one."""

    def __init__(
        self, updates: Updates, sound: Sequence[Contribution], work: AnyWork, span: tuple[int, int], *, void: bool
    ) -> None:
        self._updates = updates
        self._sound = sound
        self._span = span
        self._void = void
        self.work = work
        self.failed: dict[str, ConfedError] = {}
        self.squares = {entry.site: 0.0 for entry in sound}

    @property
    def held_bytes(self) -> int:
        """How much opened memory it has while it runs."""
        return self._largest * (len(self._sound) if self.work.holds else 1)

    @property
    def _largest(self) -> int:
        spans_of = [self._sound[0].chunks.chunk_span(index) for index in range(*self._span)]
        return max(end - start for start, end in spans_of)

    def run(self) -> None:
        """Open, check and hand on each chunk across all senders before the next."""
        largest = self._largest
        buffers = [np.zeros(largest, dtype=np.uint8) for _ in range(self.held_bytes // largest)]
        scratch = Scratch(largest)
        for index in range(*self._span):
            start, end = self._sound[0].chunks.chunk_span(index)
            segments = [(self._segment(*run), run[1] - start, run[2] - start) for run in self._layout.runs(start, end)]
            rows: list[list[Array]] = [[] for _ in segments]
            for at, entry in enumerate(self._sound):
                if entry.site in self.failed:
                    continue
                plaintext = buffers[at % len(buffers)][: end - start]
                try:
                    self._open(entry, index, start, plaintext)
                    for (segment, low, high), held in zip(segments, rows, strict=True):
                        numbers = self._checked(entry, segment, plaintext[low:high], scratch)
                        if self.work.holds:
                            held.append(numbers)
                        elif not self._void:
                            self.work.take(segment, [numbers], first=at, scratch=scratch)
                except ConfedError as error:
                    self.failed[entry.site] = error
                    self._void = True  # what was taken is not given back: the fold starts over
            if self.work.holds and not self._void:
                for (segment, _, _), held in zip(segments, rows, strict=True):
                    self.work.take(segment, held, first=0, scratch=scratch)

    @property
    def _layout(self) -> Layout:
        return self._updates.base.layout

    def _segment(self, dtype: str, low: int, high: int) -> Segment:
        kind, origin = self._updates.kinds[dtype], self._updates.spans[dtype][0]
        size = kind.stored.itemsize
        return Segment(dtype=dtype, kind=kind, part=slice((low - origin) // size, (high - origin) // size))

    def _open(self, entry: Contribution, index: int, start: int, plaintext: Array) -> None:
        entry.chunks.read_chunk_into(index, memoryview(plaintext.data))
        part = self._updates.header[start : start + plaintext.size]
        if part and plaintext[: len(part)].tobytes() != part:
            raise ShapeError(f"{entry.site} layout", expected="the model's safetensors header", got="another")

    def _checked(self, entry: Contribution, segment: Segment, plaintext: Array, scratch: Scratch) -> Array:
        """Return a segment as numbers; the squares of their differences from the base go to the sender's norm."""
        kind = segment.kind
        numbers = kind.numbers(plaintext.view(kind.stored))
        reference = kind.numbers(self._updates.base.flats[segment.dtype][segment.part])
        square = scratch.square_of_difference(numbers, reference)
        if not math.isfinite(square):
            # Finite values have squares that are not only in float64.
            if not np.isfinite(numbers).all():
                raise NotFiniteError(f"{entry.site} {segment.dtype}", expected="finite values", got="NaN or infinity")
            raise NormError(f"{entry.site} {segment.dtype}", expected="a finite norm", got="infinity")
        self.squares[entry.site] += square
        return numbers


def _run_all(workers: Sequence[_Worker[Any]], *, threads: int) -> None:
    """Run every worker, as many at a time as threads and memory permit."""
    at_once = min(threads, len(workers), max(1, HELD_BYTES // max(worker.held_bytes for worker in workers)))
    if at_once == 1:
        for worker in workers:
            worker.run()
        return
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        for task in [pool.submit(worker.run) for worker in workers]:
            task.result()


def _ranges(count: int, parts: int) -> list[tuple[int, int]]:
    """Split ``count`` chunks into at most ``parts`` ranges of nearly the same length."""
    parts = max(1, min(parts, count))
    bounds = [count * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))
