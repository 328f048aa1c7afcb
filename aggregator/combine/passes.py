"""A pass over sealed updates: chunk 0 of all of them, then chunk 1, and so on, everything checked on the way.

What a sender declared is verified by every pass: sizes, the layout's header, finite values, the declared norm and the
bound on it. A tag that does not match, a value that is not finite, another layout or a false norm voids the pass,
which then goes on only to find every other sender that is wrong. The norm is over all that travels.

What is made of the opened chunks is a ``Work``'s affair, which gets them block by block (``blocks``). As few threads
work as keep what all of them hold below ``HELD_BYTES``.

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

from aggregator.combine.blocks import Chunks, Model, Opening, Scratch, Segment, held_bytes
from aggregator.combine.weights import Weights
from confed.errors import ConfedError, NormError, NotFiniteError, ShapeError
from confed.memory import room_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Array = NDArray[Any]

NORM_RELATIVE_TOLERANCE = 1e-3
"""How far a declared norm may be from the true one: senders may sum in float32."""
NORM_ABSOLUTE_TOLERANCE = 1e-6
HELD_BYTES = 44 * 1024**2
"""How much opened memory all threads together hold at most, beyond the one thread that always works."""

_LARGEST_ELEMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One sender's opened update and what it declared: its weight, and its norm where there are weights to fold.

    ``base`` is the version that it started from, where that is not the round's; ``staleness`` says how many were made
    since.
    """

    site: str
    chunks: Chunks
    weight: float
    norm: float
    base: Weights | None = None
    staleness: int = 0


class Work(Protocol):
    """What one worker makes of its blocks; it counts only if the pass found nobody wrong."""

    @property
    def holds(self) -> bool:
        """True where it needs the same block of every update at once."""
        ...

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        """Take a block of the updates from position ``first`` on: of one, or of all where it ``holds`` them.

        The rows are the work's to change.
        """
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
        room: lends memory for a result.
    """

    def __init__(
        self,
        contributions: Sequence[Contribution],
        *,
        base: Weights,
        norm_bound: float,
        threads: int,
        room: Callable[[int], memoryview] = room_for,
    ) -> None:
        self.contributions = contributions
        self.base = base
        self.model = Model(base)
        self.kinds = self.model.kinds
        self._norm_bound = norm_bound
        self._threads = threads
        self._room = room

    def chosen(self, positions: Sequence[int]) -> Updates:
        """Return some of the updates, in the order of ``positions``."""
        return Updates(
            [self.contributions[at] for at in positions],
            base=self.base,
            norm_bound=self._norm_bound,
            threads=self._threads,
            room=self._room,
        )

    def room(self) -> dict[str, Array]:
        """Return flat arrays for a result, in the types that numbers are averaged in; not initialised."""
        found: dict[str, Array] = {}
        for dtype, flat in self.base.flats.items():
            mean = self.kinds[dtype].mean
            found[dtype] = np.frombuffer(self._room(flat.size * mean.itemsize), dtype=mean)
        return found

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
        total = self.base.layout.total_bytes
        expected = (total, first.chunks.chunk_span(0)[1])
        for entry in self.contributions:
            last = entry.chunks.chunk_span(entry.chunks.chunk_count - 1)[1]
            got = (last, entry.chunks.chunk_span(0)[1])
            if (
                last != total
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
        self._model = updates.model
        self._sound = sound
        self._span = span
        self._void = void
        self.work = work
        self.failed: dict[str, ConfedError] = {}
        self.squares = {entry.site: 0.0 for entry in sound}

    @property
    def held_bytes(self) -> int:
        """How much opened memory it has while it runs."""
        return held_bytes(self._largest, rows=self._rows)

    @property
    def _largest(self) -> int:
        spans_of = [self._sound[0].chunks.chunk_span(index) for index in range(*self._span)]
        return max(end - start for start, end in spans_of)

    @property
    def _rows(self) -> int:
        return len(self._sound) if self.work.holds else 0

    def run(self) -> None:
        """Open, check and hand on each chunk across all senders before the next, or each part of it."""
        opening, scratch = Opening(chunk_bytes=self._largest, rows=self._rows), Scratch()
        # What overflows or is no number is found by its square and refused.
        with np.errstate(over="ignore", invalid="ignore"):
            for index in range(*self._span):
                start, end = self._sound[0].chunks.chunk_span(index)
                for low in range(start, end, opening.part_bytes):
                    self._take_part(index, low, min(low + opening.part_bytes, end), opening, scratch)

    def _take_part(self, index: int, low: int, high: int, opening: Opening, scratch: Scratch) -> None:
        """Open one chunk of every sender, check what lies from ``low`` to ``high``, and hand it on."""
        segments = list(self._model.segments(low, high))
        rows: list[list[Array]] = [[] for _ in segments]
        for at, entry in enumerate(self._sound):
            if entry.site in self.failed:
                continue
            try:
                plaintext = opening.open(entry.chunks, index, row=at, low=low, high=high)
                self._check_header(entry, low, plaintext)
                for segment, held in zip(segments, rows, strict=True):
                    numbers = self._checked(entry, segment, plaintext[segment.place], scratch)
                    if self.work.holds:
                        held.append(numbers)
                    elif not self._void:
                        self.work.take(segment, (numbers,), first=at, scratch=scratch)
            except ConfedError as error:
                self.failed[entry.site] = error
                self._void = True  # what was taken is not given back: the fold starts over
        if self.work.holds and not self._void:
            for segment, held in zip(segments, rows, strict=True):
                self.work.take(segment, held, first=0, scratch=scratch)

    def _check_header(self, entry: Contribution, low: int, plaintext: Array) -> None:
        part = self._model.header[low : low + plaintext.size]
        if part and plaintext[: len(part)].tobytes() != part:
            raise ShapeError(f"{entry.site} layout", expected="the model's safetensors header", got="another")

    def _checked(self, entry: Contribution, segment: Segment, plaintext: Array, scratch: Scratch) -> Array:
        """Return a segment as numbers; the squares of their differences from the base go to the sender's norm."""
        kind = segment.kind
        numbers = kind.numbers(plaintext.view(kind.stored))
        reference = segment.reference
        if entry.base is not None:
            reference = kind.numbers(entry.base.flats[segment.dtype][segment.part])
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
