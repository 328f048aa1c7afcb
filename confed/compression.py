"""How updates are compressed: a choice of the manifest, the same for every site and round.

What is compressed is the difference from the base. ``bf16`` rounds it to the nearest bfloat16 (2 bytes a number).
``int8`` rounds it up or down by chance, so that the mean is right, to whole multiples of a 127th of the largest of
each 1024 numbers (1 byte a number). ``top-k`` sends a fraction of the numbers, those that are largest (8 bytes each).

With ``feedback`` a site adds what rounding and choosing left out of one update to its next one.

Sources: Alistarh et al., "QSGD" (2017): stochastic rounding. Stich et al., "Sparsified SGD with Memory" (2018) and
Karimireddy et al., "Error Feedback Fixes SignSGD" (2019): top-k, error feedback.
"""

from __future__ import annotations

from dataclasses import dataclass

from confed.errors import ConfigError

BF16, INT8, TOP_K = "bf16", "int8", "top-k"
NONE = "none"
"""What an update's header says where the manifest has no compression."""
LARGEST_FRACTION = 0.5
"""Above this, indices and values are larger than all numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionTerms:
    """One way to compress. No field is optional.

    Attributes:
        name: ``bf16``, ``int8`` or ``top-k``.
        fraction: of numbers that ``top-k`` sends, above 0 and at most 0.5; ``None`` for the others.
        feedback: whether a site carries over what one update left out.
    """

    name: str
    fraction: float | None
    feedback: bool

    def __post_init__(self) -> None:
        if self.name not in (BF16, INT8, TOP_K):
            raise ConfigError("compression.name", expected=f"{BF16}, {INT8} or {TOP_K}", got=self.name)
        if self.name == TOP_K:
            if self.fraction is None or not 0 < self.fraction <= LARGEST_FRACTION:
                expected = f"above 0 and at most {LARGEST_FRACTION}"
                raise ConfigError("compression.fraction", expected=expected, got=self.fraction)
        elif self.fraction is not None:
            raise ConfigError("compression.fraction", expected=f"none for {self.name}", got=self.fraction)

    def require(self, *, strategy: str) -> None:
        """Check the terms against the rest of a contract.

        Raises:
            ConfigError: feedback where an update may count in a later version than its round's: a site could not tell
                whether what it carried over arrived.
        """
        if self.feedback and strategy == "FedBuff":
            raise ConfigError("compression.feedback", expected="false for FedBuff", got=True)


def name_of(terms: CompressionTerms | None) -> str:
    """Return what an update's header says of its compression."""
    return NONE if terms is None else terms.name
