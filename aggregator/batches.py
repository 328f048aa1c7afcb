"""What the enclave holds of a round whose cohort comes in batches: the sum so far, and what its senders declared."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aggregator.combine.batched import BatchedFold, PrivateSum, Summation, WeightedSum
from aggregator.combine.partial import part_of
from confed import canonical
from confed.errors import ConfedError
from confed.keybroker.folded import FoldedBatch, topic_of
from confed.statement import sign

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aggregator.combine.passes import Contribution
    from aggregator.combine.private import PrivateMean
    from aggregator.combine.successor import Base
    from aggregator.combine.weights import Weights
    from aggregator.enclave import Enclave, Letters
    from aggregator.round import Step
    from confed.manifest import Manifest
    from confed.model.update import Declaration

_LOG = logging.getLogger("confed.aggregator")


class Batches:
    """One round's batches; ends with the round.

    Args:
        base: what the round starts from, open.
        private: how it is folded, where the manifest has privacy.
        folder: the enclave's own.
    """

    def __init__(
        self, manifest: Manifest, base: Base, *, private: PrivateMean | None, folder: Path, threads: int
    ) -> None:
        self._base = base
        self._part = part_of(base.weights, base.trained)
        self._least = manifest.cohort.least
        self.private = private
        summation: Summation = WeightedSum() if private is None else PrivateSum(private)
        bound = manifest.update.norm_bound
        self._fold = BatchedFold(self._part, folder=folder, summation=summation, norm_bound=bound, threads=threads)
        self.declared: dict[str, Declaration] = {}
        """What those declared who are in the sum, by site."""
        self.failed: dict[str, ConfedError] = {}
        """Why others who were accepted are not in it."""
        self._objects: set[str] = set()

    def note(self, digest: str) -> None:
        """Remember an object of which something counts: it may go once its batch is in the sum."""
        self._objects.add(digest)

    def add(self, contributions: Sequence[Contribution], declared: Mapping[str, Declaration]) -> None:
        """Add a batch to the sum.

        Raises:
            StorageError: the disk fails.
        """
        self._fold.add(self._base.read(contributions, self._part), excluded=self.failed)
        self.declared |= {site: said for site, said in declared.items() if site not in self.failed}

    def finish(self) -> tuple[Weights, Weights]:
        """Return what of the base is trained, and what was made of all updates, as numbers.

        Raises:
            ShortCohortError: too few were added.
            StorageError: the disk fails.
        """
        return self._part, self._fold.finish(least=self._least)

    def tell(self, number: int, step: Step, *, enclave: Enclave, letters: Letters) -> None:
        """Say, signed, that a batch's ciphertext is needed no more; a courier that does not hear it keeps it."""
        said = FoldedBatch(
            run=step.run,
            manifest=step.manifest,
            round=step.round,
            attempt=step.attempt,
            batch=number,
            instance=step.instance,
            updates=tuple(sorted(self._objects)),
        )
        self._objects = set()
        try:
            letter = canonical.encode(sign(said, enclave.signing_key).to_json())
            letters.post(topic_of(step.run, round_number=step.round, attempt=step.attempt), letter)
        except ConfedError as error:
            _LOG.warning("the courier was not told that batch %d is folded: %s", number, error.code)

    def close(self) -> None:
        """Throw the sum away."""
        self._fold.close()
