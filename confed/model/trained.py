"""Which tensors of a model travel in an update, and how they and the base become the next version.

1. The manifest names every tensor that is trained. Only these travel, once each, in the model's order.
2. A tensor that the model names twice (tied weights) travels under one name; the others follow it: they must be equal
   when an update is made, and are copies of it in the next version.
3. Everything else is in the next version bit for bit as in the base: frozen tensors, and all that is not floating
   (counters, flags, indices), which has no mean that means anything and no norm that could be bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.errors import ConfigError, ShapeError
from confed.model.bfloat16 import narrowed, widened
from confed.model.weights import FLOATING, NUMPY_DTYPES, Layout, TensorEntry

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What travels of a model.

    Attributes:
        whole: the model's layout.
        part: that of an update: the trained tensors alone.
        tied: for each name that follows another, that other.
    """

    whole: Layout
    part: Layout
    tied: Mapping[str, str]

    @classmethod
    def of(cls, whole: Layout, *, names: Sequence[str], tied: Mapping[str, str]) -> Trained:
        """Return what a manifest's names mean in a model.

        Raises:
            ShapeError: a name that the model does not have, a trained tensor that is not floating, or tied ones that
                differ in type or shape.
        """
        tensors = {tensor.name: tensor for tensor in whole.tensors}
        for name in (*names, *tied, *tied.values()):
            if name not in tensors:
                raise ShapeError(f"tensor {name[:60]}", expected="one of the model's", got="none of this name")
        for name in names:
            if tensors[name].dtype not in FLOATING:
                expected = "a floating type, since it is trained"
                raise ShapeError(f"tensor {name[:60]}", expected=expected, got=tensors[name].dtype)
        for name, source in tied.items():
            if _kind(tensors[name]) != _kind(tensors[source]):
                raise ShapeError(
                    f"tensor {name[:60]}", expected=f"like {source[:60]}, which it is tied to", got="other"
                )
        return cls(whole=whole, part=whole.part(frozenset(names)), tied=tied)

    @property
    def followers(self) -> dict[str, str]:
        """The tied names whose other travels: the next version has copies there."""
        names = {tensor.name for tensor in self.part.tensors}
        return {name: source for name, source in self.tied.items() if source in names}

    def taken(self, arrays: Arrays) -> dict[str, Array]:
        """Return what travels of what an app gives back: all tensors of the model, or the trained ones alone.

        bfloat16 comes as float32, as an app knows it, or as bfloat16. Of all tensors, those that are not trained stay
        where they are.

        Raises:
            ShapeError: a tensor too many or too few, of another type or shape, or tied ones that are not equal.
        """
        part = [tensor.name for tensor in self.part.tensors]
        known = {tensor.name for tensor in self.whole.tensors} if len(arrays) > len(part) else set(part)
        for name in arrays:
            if name not in known:
                raise ShapeError(f"tensor {name[:60]}", expected="one of those that are trained", got="another")
        for name in known:
            if name not in arrays:
                raise ShapeError(f"tensor {name[:60]}", expected="in what the app gives back", got="nothing")
        found = {tensor.name: _stored(tensor, arrays[tensor.name]) for tensor in self.part.tensors}
        for name, source in self.followers.items():
            if name in arrays and arrays[name].tobytes() != arrays[source].tobytes():
                raise ShapeError(
                    f"tensor {name[:60]}", expected=f"equal to {source[:60]}, which it is tied to", got="other"
                )
        return found

    def whole_of(self, taken: Arrays, given: Arrays, base: Arrays) -> dict[str, Array]:
        """Return the next version where one client makes it, in the model's order; nothing is copied.

        What travels is taken, tied names follow it, and frozen tensors are the base's. What is not floating is as the
        app gives it back, if it does: counters of one client need no mean.

        Raises:
            ShapeError: a tensor that is not floating, of another type or shape.
        """
        followers = self.followers
        found: dict[str, Array] = {}
        for tensor in self.whole.tensors:
            source = followers.get(tensor.name, tensor.name)
            if source in taken:
                found[tensor.name] = taken[source]
            elif tensor.dtype not in FLOATING and tensor.name in given:
                found[tensor.name] = _stored(tensor, given[tensor.name])
            else:
                found[tensor.name] = base[tensor.name]
        return found

    def require_tied(self, arrays: Arrays) -> None:
        """Check that a model's tied tensors are equal.

        Raises:
            ShapeError: two that are not.
        """
        for name, source in self.tied.items():
            if arrays[name].tobytes() != arrays[source].tobytes():
                raise ShapeError(
                    f"tensor {name[:60]}", expected=f"equal to {source[:60]}, which it is tied to", got="other"
                )


def names_of(
    layout: Layout, *, patterns: Sequence[str], groups: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names that are trained and the tied ones, from what an experiment file says.

    Args:
        layout: the model's.
        patterns: as shells know them (``head.*``); a tensor that is not floating is never trained.
        groups: names of one and the same tensor; the first one travels if any of them is trained.

    Raises:
        ConfigError: a pattern without a floating tensor, or a group that is none.
    """
    tied: dict[str, str] = {}
    names = {tensor.name for tensor in layout.tensors}
    for group in groups:
        if (
            len(group) < 2
            or len(set(group)) != len(group)
            or not names.issuperset(group)
            or {*tied, *tied.values()} & set(group)
        ):
            raise ConfigError(
                "model.tied", expected="two or more names of the model, each in one group", got=list(group)
            )
        tied |= dict.fromkeys(group[1:], group[0])
    floating = [tensor.name for tensor in layout.tensors if tensor.dtype in FLOATING]
    wanted: set[str] = set()
    for pattern in patterns:
        matched = {name for name in floating if fnmatchcase(name, pattern)}
        if not matched:
            raise ConfigError("model.trained", expected="patterns that a floating tensor has", got=pattern)
        wanted |= {tied.get(name, name) for name in matched}
    return tuple(name for name in floating if name in wanted), tied


def _kind(tensor: TensorEntry) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype, tensor.shape


def _stored(tensor: TensorEntry, array: Array) -> Array:
    """Return an app's array as it is stored, checked against what it must be."""
    dtype = NUMPY_DTYPES[tensor.dtype]
    as_numbers = tensor.dtype == "BF16" and array.dtype == np.float32
    if array.shape != tensor.shape or (array.dtype != dtype and not as_numbers):
        expected, got = f"{tensor.dtype} {list(tensor.shape)}", f"{array.dtype} {list(array.shape)}"
        raise ShapeError(f"tensor {tensor.name[:60]}", expected=expected, got=got)
    # Not ascontiguousarray: it gives an array without dimensions one.
    return narrowed(array) if as_numbers else np.asarray(array, order="C")


def as_numbers(tensor: TensorEntry, array: Array) -> Array:
    """Return a stored tensor as numbers that NumPy and an app can work with."""
    return widened(array) if tensor.dtype == "BF16" else array
