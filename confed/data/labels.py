"""Labels of a frame: labelling functions vote, votes are put together, labels that are probably wrong are found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from confed.data.cleaning import holds
from confed.data.dawid_skene import ABSTAINS, counts_of, estimate, majority
from confed.errors import ColumnError, DatasetError, EmptyDatasetError
from confed.preparation.labelling import DAWID_SKENE, DROP, ErrorTerms, LabellingFunction, LabelTerms

Frame = pl.DataFrame


def label(frame: Frame, terms: LabelTerms) -> Frame:
    """Return a frame with its label columns, without rows that nothing votes for.

    Raises:
        ColumnError: a function that a column's type does not fit, or that votes for a class that is not named.
        EmptyDatasetError: no row is left.
    """
    votes = votes_of(frame, terms)
    voted = (votes != ABSTAINS).any(axis=1)
    if not voted.any():
        raise EmptyDatasetError("labels", expected="rows with a vote", got="none")
    frame, votes = frame.filter(pl.Series(voted)), votes[voted]
    seen = counts_of(votes, classes=len(terms.classes))
    if terms.vote == DAWID_SKENE:
        probabilities = estimate(seen, iterations=terms.iterations).probabilities
    else:
        probabilities = majority(seen)
    chosen = probabilities.argmax(axis=1).astype(np.int64)
    column, confidence = terms.made[:2]
    frame = frame.with_columns(
        pl.Series(column, chosen), pl.Series(confidence, probabilities.max(axis=1).astype(np.float32))
    )
    return frame if terms.errors is None else _without_errors(frame, chosen, terms, terms.errors)


def votes_of(frame: Frame, terms: LabelTerms) -> NDArray[np.int64]:
    """Return each function's vote for each row, shape (rows, functions): a class's place, or ``ABSTAINS``.

    Raises:
        ColumnError: as ``label``.
    """
    return np.stack([_votes(frame, function, terms.classes) for function in terms.functions], axis=1)


def _votes(frame: Frame, function: LabellingFunction, classes: Sequence[str]) -> NDArray[np.int64]:
    name = f"pipeline.labels.functions.{function.name}"
    if function.column is not None:
        return _column_votes(frame[function.column], classes, name)
    assert function.when is not None  # noqa: S101 (the record has checked it)
    assert function.label is not None  # noqa: S101
    place = classes.index(function.label)
    try:
        fires = frame.select(holds(function.when)).to_series().to_numpy()
        return np.where(fires, place, ABSTAINS).astype(np.int64)
    except (pl.exceptions.PolarsError, TypeError, ValueError):
        pass
    raise ColumnError(name, expected="a column of a type that its rule fits", got="another")


def _column_votes(column: pl.Series, classes: Sequence[str], name: str) -> NDArray[np.int64]:
    if column.dtype != pl.String:
        raise ColumnError(name, expected="a column of text", got=str(column.dtype))
    places = {known: place for place, known in enumerate(classes)}
    found = column.replace_strict(places, default=None, return_dtype=pl.Int64)
    unknown = found.null_count() - column.null_count()
    if unknown:
        raise ColumnError(name, expected=f"one of the {len(classes)} classes", got=f"{unknown} rows with others")
    return found.fill_null(ABSTAINS).to_numpy()


def _without_errors(frame: Frame, chosen: NDArray[np.int64], terms: LabelTerms, errors: ErrorTerms) -> Frame:
    doubted = doubtful(_features(frame, errors), chosen, errors)
    if errors.action == DROP:
        return frame.filter(pl.Series(~doubted))
    return frame.with_columns(pl.Series(terms.made[2], doubted))


def _features(frame: Frame, errors: ErrorTerms) -> NDArray[np.float64]:
    for name in errors.features:
        if not frame.schema[name].is_numeric():
            raise ColumnError(f"pipeline.labels.errors: column {name}", expected="numbers", got=str(frame.schema[name]))
    features = frame.select(pl.col(list(errors.features)).cast(pl.Float64)).to_numpy()
    missing = int((~np.isfinite(features)).sum())
    if missing:
        raise ColumnError("pipeline.labels.errors.features", expected="no missing values", got=missing)
    return features


def doubtful(features: NDArray[np.float64], chosen: NDArray[np.int64], errors: ErrorTerms) -> NDArray[np.bool_]:
    """Return which labels are probably wrong, by confident learning on predictions for rows not trained on.

    Raises:
        DatasetError: a class with fewer rows than there are folds.
    Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021).
    """
    # joblib would try for semaphores, which a confined process is not given, and warn.
    os.environ.setdefault("JOBLIB_MULTIPROCESSING", "0")
    from cleanlab.filter import find_label_issues  # noqa: PLC0415 (seconds to import, and seldom needed)
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    present, places = np.unique(chosen, return_inverse=True)
    if len(present) < 2:
        return np.zeros(len(chosen), dtype=np.bool_)
    if np.bincount(places).min() < errors.folds:
        raise DatasetError("pipeline.labels.errors", expected=f"{errors.folds} rows of each class", got="fewer")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(errors.folds, shuffle=True, random_state=errors.seed)
    predicted: Any = cross_val_predict(model, features, places, cv=folds, method="predict_proba")
    return np.asarray(find_label_issues(places, predicted, n_jobs=1), dtype=np.bool_)
