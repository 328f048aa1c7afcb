"""From a base and its cohort's updates to the next version: fold, server optimizer, types, and what is not trained.

1. The trained part of the base is what the updates are held against; nothing else is combined.
2. Compressed updates are read as those that they stand for: what follows does not know of compression.
3. The strategy's rule is folded over the updates, and its optimizer applied, in numbers at least as wide as float32;
   where the manifest says how adapters become one, that rule takes its place.
4. The result is rounded once, to each tensor's own type, and must be finite there.
5. Tensors that are not trained come from the base, bit for bit; tied ones are copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aggregator.combine.adapter import rule_of
from aggregator.combine.flower_strategy import Given
from aggregator.combine.fold import combine
from aggregator.combine.partial import part_of, whole_of
from aggregator.combine.tensor_types import NumberType, number_type
from aggregator.combine.weights import Weights
from aggregator.round import UpdateSize
from confed.errors import NotFiniteError
from confed.memory import room_for
from confed.model.compressed import CompressedForm, Decoded
from confed.model.trained import Trained

if TYPE_CHECKING:
    from aggregator.combine.choose import ServerStrategy
    from aggregator.combine.passes import Contribution
    from aggregator.combine.private import PrivateMean
    from confed.errors import ConfedError
    from confed.manifest import Manifest

Arrays = Mapping[str, NDArray[Any]]

_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The version that a round starts from, open: its weights, what of them is trained, and the strategy's state."""

    weights: Weights = field(repr=False)
    trained: Trained
    form: CompressedForm | None
    state: Arrays = field(repr=False)

    @classmethod
    def of(cls, weights: Weights, state: Arrays, *, manifest: Manifest) -> Base:
        """Return a base as a manifest sees it.

        Raises:
            ShapeError: it lacks a tensor that the manifest names, or has it in a type that is not trained.
        AdapterError: an adapter that does not fit it.
        """
        terms = manifest.model
        trained = Trained.of(weights.layout, names=terms.trained, tied=terms.tied)
        rule_of(manifest, weights.layout, round_number=1)  # an adapter fits its base, or there is no round
        form = None if manifest.compression is None else CompressedForm.of(trained.part, manifest.compression)
        return cls(weights=weights, trained=trained, form=form, state=state)

    @property
    def update_size(self) -> UpdateSize:
        """How long updates of it are."""
        if self.form is None:
            return UpdateSize(plaintext_bytes=self.trained.part.total_bytes)
        return UpdateSize(plaintext_bytes=self.form.total_bytes, chunk_bytes=self.form.chunk_bytes)

    def read(self, contributions: Sequence[Contribution], part: Weights) -> Sequence[Contribution]:
        """Return contributions as the updates that they stand for; ``part`` is what of the base is trained.

        One that comes late stands for a difference from the base that it started from.
        """
        if self.form is None:
            return contributions
        form = self.form
        return [
            replace(entry, chunks=Decoded(entry.chunks, form, (entry.base or part).flats)) for entry in contributions
        ]


def successor(  # noqa: PLR0913 (what a round consists of)
    base: Base,
    contributions: Sequence[Contribution],
    *,
    manifest: Manifest,
    optimizer: ServerStrategy,
    round_number: int,
    metrics: Mapping[str, Mapping[str, float]],
    private: PrivateMean | None,
    excluded: dict[str, ConfedError],
    threads: int,
    room: Callable[[int], memoryview] = room_for,
) -> tuple[Weights, Arrays]:
    """Return the next version and the strategy's next state; fill ``excluded`` with who is not in it, and why.

    ``room`` lends memory for the result.

    ``metrics`` are what senders declared, by site name. ``private`` takes the place of the strategy's own rule, which
    is the mean; what the strategy does to it after that is post-processing.

    Raises:
        CohortError: too few updates are what they declare.
        NotFiniteError: the strategy's result is not finite, or not in the model's own types.
    """
    part = part_of(base.weights, base.trained)
    adapted = rule_of(manifest, base.weights.layout, round_number=round_number)
    given = Given(round_number=round_number, state=base.state, metrics=metrics)
    combined = combine(
        base.read(contributions, part),
        base=part,
        least=manifest.cohort.least,
        norm_bound=manifest.update.norm_bound,
        rule=private or adapted or optimizer.rule_for(given),
        excluded=excluded,
        threads=threads,
        room=room,
    )
    version, state = advance(base, part, combined.mean, optimizer=optimizer, round_number=round_number)
    if adapted is not None:
        adapted.place(version)
    return version, state


def advance(
    base: Base, part: Weights, combined: Weights, *, optimizer: ServerStrategy, round_number: int
) -> tuple[Weights, Arrays]:
    """Return the next version and the strategy's next state, of what the strategy's rule made of the updates.

    Raises:
        NotFiniteError: as ``successor``.
    """
    mean = combined.arrays()
    applied = optimizer.apply(
        round_number=round_number,
        base=part.numbers().arrays() if optimizer.optimizes else {},
        mean=mean,
        state=base.state,
    )
    numbers = combined if applied.arrays is mean else Weights.of(applied.arrays, part.layout)
    rounded = numbers.restored()
    for dtype, flat in rounded.flats.items():
        if not _all_finite(flat, number_type(dtype)):
            raise NotFiniteError(f"next version {dtype}", expected="finite values", got="NaN or infinity")
    return whole_of(rounded, base.weights, base.trained), applied.state


def _all_finite(flat: NDArray[Any], kind: NumberType) -> bool:
    """Tell whether every stored value is finite, a block in the processor's cache."""
    starts = range(0, flat.size, _BLOCK)
    return all(bool(np.isfinite(kind.numbers(flat[start : start + _BLOCK])).all()) for start in starts)
