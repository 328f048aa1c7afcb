"""Class numbers against the classes that a model has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.errors import ClassCountError


def require_classes(labels: NDArray[Any], *, classes: int, what: str) -> None:
    """Check that every class number is one of a model's: from 0, below ``classes``.

    Raises:
        ClassCountError: a class that the model does not have; which one is not told.
    """
    numbers = np.asarray(labels)
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= classes):
        raise ClassCountError(what, expected=f"at most {classes} classes", got="more")
