"""What a strategy keeps on itself between rounds, as tensors: numbers, text, arrays, and tables and lists of them.

Everything else (a generator, an open file, a function made at run time) is refused by its name, at the latest when
the round ends, and nothing is committed then: a strategy that lost a part of its state would be another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from confed import canonical
from confed.errors import EncodingError, ShapeError, StrategyError

Tensors = Mapping[str, NDArray[Any]]

STRUCTURE = "structure"
_KINDS = "fiub"
_PLAIN = (type(None), bool, int, float, str)
_DEEPEST = 32


def kept(strategy: object, fresh: object) -> dict[str, NDArray[Any]]:
    """Return the attributes of ``strategy`` but the plain values and functions that ``fresh`` has too.

    Args:
        strategy: after a round.
        fresh: an instance with the same parameters that did nothing yet.

    Raises:
        StrategyError: an attribute, named, that cannot be kept.
    """
    tensors: list[NDArray[Any]] = []
    nodes: list[Any] = []
    missing = object()
    for name, value in sorted(vars(strategy).items()):
        same = value is vars(fresh).get(name, missing)
        if not (same and (callable(value) or type(value) in _PLAIN)):
            nodes.append([name, _node(value, f"strategy.{name}", tensors, 0)])
    try:
        structure = canonical.encode(nodes)
    except EncodingError as error:
        raise StrategyError("strategy state", expected="numbers that are finite and not huge", got="others") from error
    named = {f"t{at}": tensor for at, tensor in enumerate(tensors)}
    return {STRUCTURE: np.frombuffer(structure, dtype=np.uint8), **named}


def restore(strategy: object, state: Tensors) -> None:
    """Put what ``kept`` returned back onto a fresh instance; an empty state leaves it as it is.

    Raises:
        ShapeError: not such a state.
    """
    if not state:
        return
    try:
        for name, node in canonical.decode(state[STRUCTURE].tobytes()):
            setattr(strategy, name, _value(node, state))
    except (AttributeError, KeyError, ValueError, TypeError, EncodingError) as error:
        raise ShapeError("strategy state", expected="what a strategy kept", got="something else") from error


def _node(value: Any, at: str, tensors: list[NDArray[Any]], depth: int) -> Any:  # noqa: PLR0911 (one a kind)
    if depth > _DEEPEST:
        raise StrategyError(at, expected=f"at most {_DEEPEST} levels", got="more")
    if value is None or type(value) in (bool, str, int):
        return {"value": value}
    if type(value) is float:
        return {"float": value.hex()}
    if isinstance(value, np.ndarray):
        return {"array": _tensor(value, at, tensors)}
    if isinstance(value, np.generic):
        return {"number": _tensor(np.asarray(value), at, tensors)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_node(item, at, tensors, depth + 1) for item in value]}
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {"dict": _items(value.items(), at, tensors, depth)}
    if isinstance(value, ArrayRecord):
        arrays = ((name, array.numpy()) for name, array in value.items())
        return {"arrays": _items(arrays, at, tensors, depth)}
    raise StrategyError(at, expected="numbers, text, arrays, or lists and tables of them", got=type(value).__name__)


def _items(items: Iterable[tuple[str | int, Any]], at: str, tensors: list[NDArray[Any]], depth: int) -> list[Any]:
    return [[key, _node(item, at, tensors, depth + 1)] for key, item in items]


def _tensor(array: NDArray[Any], at: str, tensors: list[NDArray[Any]]) -> int:
    if array.dtype.kind not in _KINDS or array.dtype.itemsize > 8:
        raise StrategyError(at, expected="an array of numbers", got=str(array.dtype))
    tensors.append(np.asarray(array, order="C").astype(array.dtype.newbyteorder("<"), copy=True))
    return len(tensors) - 1


def _value(node: Any, state: Tensors) -> Any:
    ((kind, inner),) = node.items()
    if kind == "value":
        return inner
    if kind == "float":
        return float.fromhex(inner)
    if kind == "array":
        return state[f"t{inner}"].copy()
    if kind == "number":
        return state[f"t{inner}"][()]
    if kind in ("list", "tuple"):
        items = [_value(item, state) for item in inner]
        return items if kind == "list" else tuple(items)
    table = {key: _value(item, state) for key, item in inner}
    return table if kind == "dict" else ArrayRecord({name: Array(array) for name, array in table.items()})
