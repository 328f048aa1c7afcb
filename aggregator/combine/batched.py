"""A cohort that is folded batch by batch: a sum goes on from one to the next, and becomes a model at the end.

The sum is in float64 and takes every update in identity order, so how the cohort was cut changes no bit of it. Between
batches it lies on disk, sealed (``spilled``); a batch is one pass that reads the old sum and writes a new one, block by
block. Memory holds the base and a few chunks, and at the end the result. A sender whom the pass finds wrong is
excluded by name, the new sum is thrown away, and that batch starts over from the old one.

Without privacy the sum is of weight times value, divided by all weights in the end: Flower's mean within rounding of
the model's type. With it the sum is of clipped differences, noised once when all are in it (``private``).

Source: DESIGN §6; ``confed.aggregation``.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.passes import Updates, WrongSenders
from aggregator.combine.spilled import LostSumError, SpilledSum
from aggregator.combine.tensor_types import number_type
from aggregator.combine.weights import Weights
from confed.errors import ShortCohortError, StorageError
from confed.privacy.noise import GaussianNoise

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from aggregator.combine.blocks import Scratch, Segment
    from aggregator.combine.passes import Contribution
    from aggregator.combine.private import PrivateMean
    from aggregator.combine.spilled import Place
    from confed.errors import ConfedError

Array = NDArray[Any]
Wide = NDArray[np.float64]


class Summation(Protocol):
    """What is added up, and what becomes of the sum."""

    @property
    def of_differences(self) -> bool:
        """True where differences from the base are added up, not the values themselves."""
        ...

    def factors(self, contributions: Sequence[Contribution]) -> list[float]:
        """Return what each update is multiplied with; asked again where a batch starts over."""
        ...

    def added(self) -> None:
        """Take those for whom ``factors`` was asked last as added."""
        ...

    def complete(self) -> None:
        """Take everybody as added, before anything is finished."""
        ...

    def finish(self, total: Wide, reference: Array, noise: GaussianNoise) -> None:
        """Turn a block of the sum into the result's numbers, in place; ``reference`` are the base's there."""
        ...


class WeightedSum:
    """The mean by declared weights."""

    of_differences = False

    def __init__(self) -> None:
        self._weights: list[float] = []
        self._asked: list[float] = []

    def factors(self, contributions: Sequence[Contribution]) -> list[float]:
        """Return the declared weights."""
        self._asked = [entry.weight for entry in contributions]
        return self._asked

    def added(self) -> None:
        """Count the weights."""
        self._weights += self._asked

    def complete(self) -> None:
        """Do nothing more."""

    def finish(self, total: Wide, reference: Array, noise: GaussianNoise) -> None:
        """Divide by all weights."""
        del reference, noise
        total /= sum(self._weights)


class PrivateSum:
    """The private mean: clipped differences, noised once when all are in the sum."""

    of_differences = True

    def __init__(self, rule: PrivateMean) -> None:
        self._rule = rule
        self._norms: list[float] = []
        self._asked: list[float] = []

    def factors(self, contributions: Sequence[Contribution]) -> list[float]:
        """Return clipping factors; 0 for those whom the enclave's coin leaves out."""
        factors, self._asked = self._rule.drawn(contributions)
        return factors

    def added(self) -> None:
        """Count those who were taken."""
        self._norms += self._asked

    def complete(self) -> None:
        """Work out the next clip norm."""
        self._rule.count(self._norms)

    def finish(self, total: Wide, reference: Array, noise: GaussianNoise) -> None:
        """Noise the sum, divide it, and add it to the base."""
        noise.add_to(total, sigma=self._rule.sigma)
        total /= self._rule.terms.denominator
        total += reference


class BatchedFold:
    """The fold of one round over its batches; one thread uses it at a time.

    Guarantees: the same contributions give the same bits, however they were cut into batches, whatever ``threads`` is
    and whoever else was excluded (but for the noise of a private sum); no excluded sender's value is in the result.

    Args:
        base: what of the version they started from is trained.
        folder: where the sum lies between batches.
        summation: what is added up.
        norm_bound: largest L2 norm of a difference from the base.
    """

    def __init__(self, base: Weights, *, folder: Path, summation: Summation, norm_bound: float, threads: int) -> None:
        self._base = base
        self._folder = folder
        self._summation = summation
        self._norm_bound = norm_bound
        self._threads = threads
        self._sum: SpilledSum | None = None
        self._count = 0

    def add(self, contributions: Sequence[Contribution], *, excluded: dict[str, ConfedError]) -> None:
        """Add a batch, in the order of names, without those who are not what they declare; ``excluded`` names them.

        Batches come in the order in which the cohort was cut.

        Raises:
            StorageError: the disk fails, or does not give back what was put there.
        """
        kept = sorted(contributions, key=lambda entry: entry.site)
        while kept:
            try:
                self._replace(self._added(kept))
            except WrongSenders as found:
                excluded.update(found.failed)
                kept = [entry for entry in kept if entry.site not in excluded]
                continue
            self._summation.added()
            self._count += len(kept)
            return

    def finish(self, *, least: int) -> Weights:
        """Return the result as numbers; the sum is gone then.

        Raises:
            ShortCohortError: fewer than ``least`` were added.
            StorageError: as ``add``.
        """
        if self._sum is None or self._count < least:
            raise ShortCohortError("cohort", expected=f"at least {max(least, 1)}", got=self._count)
        self._summation.complete()
        room = {dtype: np.empty(flat.size, dtype=number_type(dtype).mean) for dtype, flat in self._base.flats.items()}
        blocks = self._sum.blocks
        bounds = [len(blocks) * part // self._threads for part in range(self._threads + 1)]
        with ThreadPoolExecutor(max_workers=self._threads) as pool, _blaming_the_disk():
            tasks = [
                pool.submit(self._finish, self._sum, blocks[first:last], room)
                for first, last in itertools.pairwise(bounds)
            ]
            for task in tasks:
                task.result()
        self.close()
        return Weights(layout=self._base.layout, flats=room)

    def close(self) -> None:
        """Throw the sum away."""
        self._replace(None)

    def _replace(self, following: SpilledSum | None) -> None:
        if self._sum is not None:
            self._sum.close()
        self._sum = following

    def _added(self, kept: Sequence[Contribution]) -> SpilledSum:
        following = SpilledSum(self._folder)
        try:
            factors = self._summation.factors(kept)
            updates = Updates(kept, base=self._base, norm_bound=self._norm_bound, threads=self._threads)
            with _blaming_the_disk():
                updates.run(
                    lambda: _Adding(self._sum, following, factors, of_differences=self._summation.of_differences)
                )
        except BaseException:
            following.close()
            raise
        return following

    def _finish(self, total: SpilledSum, blocks: Sequence[tuple[Place, int]], room: dict[str, Array]) -> None:
        cipher, noise = total.cipher(), GaussianNoise()
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with the version
            for (dtype, first), count in blocks:
                values = total.read(cipher, (dtype, first))
                part = slice(first, first + count)
                self._summation.finish(values, number_type(dtype).numbers(self._base.flats[dtype][part]), noise)
                room[dtype][part] = values


@contextmanager
def _blaming_the_disk() -> Generator[None]:
    """Turn a sum that is lost into an error of the disk, so that no sender is named for it."""
    try:
        yield
    except LostSumError as error:
        raise StorageError("sum of batches", expected="what was written", got="something else") from error


class _Adding:
    """Adds one worker's chunks of a batch to the sum before it."""

    holds = False

    def __init__(
        self, before: SpilledSum | None, following: SpilledSum, factors: Sequence[float], *, of_differences: bool
    ) -> None:
        self._before, self._following = before, following
        self._reading = None if before is None else before.cipher()
        self._writing = following.cipher()
        self._factors = factors
        self._of_differences = of_differences
        self._totals: dict[Place, Wide] = {}

    def take(self, segment: Segment, rows: Sequence[Array], *, first: int, scratch: Scratch) -> None:
        """Take a segment of one update: they come in their order, all of a chunk before the next chunk."""
        (numbers,) = rows
        place = (segment.dtype, segment.part.start)
        if first == 0:
            self._totals[place] = self._begun(place, numbers.size)
        total = self._totals[place]
        product = scratch.take(total.dtype, numbers.size)
        if self._of_differences:
            np.subtract(numbers, segment.reference, out=product, dtype=np.float64, casting="unsafe")
            product *= self._factors[first]
        else:
            np.multiply(numbers, self._factors[first], out=product, dtype=np.float64, casting="unsafe")
        total += product
        if first == len(self._factors) - 1:
            self._following.write(self._writing, place, self._totals.pop(place))

    def _begun(self, place: Place, size: int) -> Wide:
        if self._before is None or self._reading is None:
            return np.zeros(size, dtype=np.float64)
        return self._before.read(self._reading, place)
