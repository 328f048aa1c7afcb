"""The model that a run starts from, as its ServerApp hands it over and its experiment file explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.adapter import AdapterTerms
from confed.errors import ConfigError, ShapeError
from confed.experiment.learning_tables import ModelTable
from confed.model.adapter import with_adapter
from confed.model.bfloat16 import narrowed
from confed.model.trained import Trained, names_of
from confed.model.weights import Layout, layout_of

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingModel:
    """Version 0: its tensors as they are sealed, and what of them is trained and tied."""

    arrays: Mapping[str, Array]
    layout: Layout
    trained: tuple[str, ...]
    tied: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """An adapter to begin with: its terms, the run's rounds and updates a round, and the seed of its draw."""

    terms: AdapterTerms
    rounds: int
    updates: int
    seed: int


def starting_model(
    table: ModelTable, arrays: Mapping[str, Array], *, adapter: AdapterPlan | None = None
) -> StartingModel:
    """Return the model of a ServerApp's arrays, with an adapter where one is planned.

    Raises:
        ConfigError: no tensor, a pattern that nothing has, tied tensors that are not equal, or an adapter for modules
            that are not there.
    """
    if not arrays:
        raise ConfigError("initial_arrays", expected="at least one tensor", got="none")
    stored = dict(arrays)
    for pattern in table.bfloat16:
        matched = [name for name, array in arrays.items() if fnmatchcase(name, pattern) and array.dtype == np.float32]
        if not matched:
            raise ConfigError("model.bfloat16", expected="patterns that a float32 tensor has", got=pattern)
        stored |= {name: _narrowed(name, arrays[name]) for name in matched}
    patterns: Sequence[str] = table.trained
    if adapter is not None:
        stored, patterns = with_adapter(
            stored, adapter.terms, rounds=adapter.rounds, updates=adapter.updates, seed=adapter.seed
        )
    layout = layout_of(stored)
    trained, tied = names_of(layout, patterns=patterns, groups=table.tied)
    try:
        Trained.of(layout, names=trained, tied=tied).require_tied(stored)
    except ShapeError as error:
        raise ConfigError("model.tied", expected="tensors that are equal at the start", got=error.field) from error
    return StartingModel(arrays=stored, layout=layout, trained=trained, tied=tied)


def _narrowed(name: str, array: Array) -> Array:
    if not np.isfinite(array).all():
        raise ConfigError(f"initial_arrays {name}", expected="finite values", got="NaN or infinity")
    return narrowed(array)
