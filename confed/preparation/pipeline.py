"""A pipeline: cleaning steps in their order, then labels; a document that is hashed and agreed on.

Written as TOML::

    name = "tumours for training"
    [[steps]]
    step = "clip"
    column = "radius"
    least = 0.0
    most = 40.0
    [labels]
    column = "label"
    classes = ["benign", "malignant"]
    functions = [{ name = "first rater", column = "rater_a" }, { name = "second rater", column = "rater_b" }]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from confed import canonical, record
from confed.errors import ConfigError
from confed.preparation import labelling
from confed.preparation.contract import Contract
from confed.preparation.labelling import LabelTerms
from confed.preparation.steps import Step, columns_after, parse_step

_MOST_STEPS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What is done to a table that keeps its contract. No field is optional.

    Attributes:
        name: for people.
        steps: as ``confed.preparation.steps`` explains them; may be none.
        labels: made after the last step; ``None`` for none.
    """

    name: str
    steps: tuple[Mapping[str, Any], ...]
    labels: LabelTerms | None

    def __post_init__(self) -> None:
        if not self.name.strip() or len(self.name) > 200:
            raise ConfigError("pipeline.name", expected="1 to 200 characters", got=self.name[:60])
        if len(self.steps) > _MOST_STEPS:
            raise ConfigError("pipeline.steps", expected=f"at most {_MOST_STEPS}", got=len(self.steps))
        _ = self.parsed

    @property
    def parsed(self) -> tuple[Step, ...]:
        """The steps as records.

        Raises:
            ConfigError: one that is none.
        """
        return tuple(parse_step(step, at=f"pipeline.steps[{place}]") for place, step in enumerate(self.steps))

    @property
    def digest(self) -> str:
        """SHA-256 of the pipeline's canonical JSON in hexadecimal: its name in dataset manifests."""
        return canonical.digest(canonical.encode(record.to_json(self)))

    def require(self, contract: Contract) -> frozenset[str]:
        """Check that every column that is named is there when it is needed, and return those at the end.

        Raises:
            ConfigError: one that is not there, or one that is there already.
        """
        columns: set[str] = set(contract.columns)
        for place, step in enumerate(self.parsed):
            columns = columns_after(step, columns, at=f"pipeline.steps[{place}]")
        if self.labels is None:
            return frozenset(columns)
        for name in sorted(self.labels.reads - columns):
            raise ConfigError("pipeline.labels", expected="columns that are there after the steps", got=name)
        for name in self.labels.made:
            if name in columns:
                raise ConfigError("pipeline.labels.column", expected="a column that is not there yet", got=name)
        return frozenset(columns | set(self.labels.made))

    @classmethod
    def from_document(cls, value: Any) -> Pipeline:
        """Return the pipeline of a document that somebody wrote.

        Raises:
            ConfigError: a key that is unknown, missing, of the wrong type or contradictory.
        """
        if not isinstance(value, dict):
            raise ConfigError("pipeline", expected="a table", got=type(value).__name__)
        document = {"steps": [], "labels": None, **cast("dict[str, Any]", value)}
        document["labels"] = labelling.filled(document["labels"])
        return record.from_json(cls, document, at="pipeline", error=ConfigError)
