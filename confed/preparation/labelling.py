"""Labels from several imperfect sources, as data: labelling functions, how they are put together, what is doubted.

A labelling function votes for one class of a row, or abstains::

    { name = "first rater", column = "rater_a", when = null, label = null }             # the class that stands there
    { name = "large", column = null, when = { column = "radius", operator = ">", value = 20.0 }, label = "malignant" }
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from confed.errors import ConfigError
from confed.preparation.steps import Predicate

DAWID_SKENE, MAJORITY = "dawid-skene", "majority"
DROP, MARK = "drop", "mark"

_MOST_CLASSES = 10_000
_MOST_FUNCTIONS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LabellingFunction:
    """One source of labels. No field is optional.

    Attributes:
        name: for people, and in errors.
        column: where its vote stands (missing: it abstains); ``None`` for one that votes by a rule.
        when, label: the rule and the class that it then votes for; both ``None`` for a column.
    """

    name: str
    column: str | None
    when: Predicate | None
    label: str | None

    def __post_init__(self) -> None:
        rule = (self.when is not None, self.label is not None)
        fits = rule == (False, False) if self.column is not None else rule == (True, True)
        _require(fits, f"labels.functions.{self.name}", "a column, or when and label", "neither or both")

    @property
    def reads(self) -> str:
        """The column that it looks at."""
        return self.column if self.column is not None else cast("Predicate", self.when).column


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorTerms:
    """How labels that are probably wrong are found: confident learning on cross-validated predictions.

    Attributes:
        features: number columns that a logistic regression predicts the label from.
        folds: of the cross-validation, from 2 to 20; each class needs as many rows.
        seed: of the folds.
        action: ``drop`` (leave such rows out) or ``mark`` (a column ``<label>_doubted``).

    Source: Northcutt, Jiang, Chuang, "Confident Learning" (2021); the library cleanlab.
    """

    features: tuple[str, ...]
    folds: int
    seed: int
    action: str

    def __post_init__(self) -> None:
        _require(bool(self.features), "labels.errors.features", "at least one", "none")
        _require(2 <= self.folds <= 20, "labels.errors.folds", "from 2 to 20", self.folds)
        _require(0 <= self.seed < 2**32, "labels.errors.seed", "from 0 to 2^32 - 1", self.seed)
        _require(self.action in (DROP, MARK), "labels.errors.action", f"{DROP} or {MARK}", self.action)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTerms:
    """How a table's label column is made. No field is optional.

    A row for which every function abstains is left out. The label is the class's place among ``classes`` (int64), and
    ``<column>_confidence`` (float32) the probability that the vote gives it.

    Attributes:
        column: the column that is written.
        classes: at least two.
        functions: at least one.
        vote: ``dawid-skene`` (each function's error rates are estimated with the labels) or ``majority`` (of those
            that do not abstain; of several with as many votes, the first class).
        iterations: most steps of the estimation, from 1 to 10000.
        errors: how doubtful labels are found; ``None`` for not at all.
    """

    column: str
    classes: tuple[str, ...]
    functions: tuple[LabellingFunction, ...]
    vote: str
    iterations: int
    errors: ErrorTerms | None

    def __post_init__(self) -> None:
        _require(bool(self.column), "labels.column", "a name", "nothing")
        distinct = 2 <= len(self.classes) == len(set(self.classes))
        _require(distinct and len(self.classes) <= _MOST_CLASSES, "labels.classes", "at least two, each once", "others")
        names = [function.name for function in self.functions]
        _require(1 <= len(names) <= _MOST_FUNCTIONS, "labels.functions", "at least one", len(names))
        _require(len(set(names)) == len(names), "labels.functions", "each name once", "one twice")
        _require(self.vote in (DAWID_SKENE, MAJORITY), "labels.vote", f"{DAWID_SKENE} or {MAJORITY}", self.vote)
        _require(1 <= self.iterations <= 10_000, "labels.iterations", "from 1 to 10000", self.iterations)
        for function in self.functions:
            known = function.label is None or function.label in self.classes
            _require(known, f"labels.functions.{function.name}.label", "one of labels.classes", function.label)

    @property
    def reads(self) -> frozenset[str]:
        """The columns that it looks at."""
        features = () if self.errors is None else self.errors.features
        return frozenset((*(function.reads for function in self.functions), *features))

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that it writes."""
        doubted = (f"{self.column}_doubted",) if self.errors is not None and self.errors.action == MARK else ()
        return (self.column, f"{self.column}_confidence", *doubted)


def filled(value: Any) -> Any:
    """Return a labels table as somebody wrote it with what was not said written out."""
    if not isinstance(value, dict):
        return value
    table = {"vote": DAWID_SKENE, "iterations": 100, "errors": None, **cast("dict[str, Any]", value)}
    functions = table.get("functions")
    if isinstance(functions, list):
        unsaid = {field.name: None for field in fields(LabellingFunction) if field.name != "name"}
        entries = cast("list[Any]", functions)
        table["functions"] = [
            {**unsaid, **cast("dict[str, Any]", entry)} if isinstance(entry, dict) else entry for entry in entries
        ]
    return table


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ConfigError(field, expected=expected, got=got)
