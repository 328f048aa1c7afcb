"""What a training loop keeps, as bytes and back: nested dictionaries, lists and numbers, with tensors anywhere in them.

Tensors (torch's or NumPy's) go into one safetensors file, bit for bit; what holds them together is canonical JSON
beside them, in which every number says its type, so that a learning rate of 1.0 stays a float. No pickle; no class is
imported by what is read.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed import canonical
from confed.errors import EncodingError
from confed.model.weights import BFLOAT16, pack, unpack

_STRUCTURE = "structure"
_MOST_BYTES = 64 * 1024 * 1024
_DEEPEST = 64

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A state taken apart: its structure, and its tensors by number.

    ``tensors`` are the app's own memory until ``copied``.
    """

    structure: bytes = field(repr=False)
    tensors: Mapping[str, Array] = field(repr=False)

    @classmethod
    def of(cls, state: Any) -> Tree:
        """Take a state apart; tensors on an accelerator are copied to main memory, others are not copied.

        Raises:
            EncodingError: a value of a type that is not data, or too deep; named by its type, never by its content.
        """
        tensors: dict[str, Array] = {}
        structure = canonical.encode(_node(state, tensors, 0))
        if len(structure) > _MOST_BYTES:
            raise EncodingError("state", expected=f"at most {_MOST_BYTES} bytes beside its tensors", got="more")
        return cls(structure=structure, tensors=tensors)

    @property
    def parts(self) -> list[memoryview]:
        """A safetensors file of it, in parts that are not copied."""
        structure = np.frombuffer(self.structure, dtype=np.uint8)
        return pack({_STRUCTURE: structure, **self.tensors})

    def copied(self, room: dict[str, Array]) -> Tree:
        """Return it with tensors of its own, in the arrays of an earlier copy where they fit: that costs no new memory.

        ``room`` is filled with the arrays for the next one.
        """
        for name, array in self.tensors.items():
            kept = room.get(name)
            if kept is None or (kept.shape, kept.dtype) != (array.shape, array.dtype):
                room[name] = np.array(array)
            else:
                np.copyto(kept, array)
        return Tree(structure=self.structure, tensors={name: room[name] for name in self.tensors})

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Any:
        """Return the state of what ``parts`` wrote; its tensors are views of ``data`` and may be written if it may.

        Raises:
            EncodingError, ShapeError, SizeError: anything else.
        """
        tensors = unpack(data)
        structure = tensors.pop(_STRUCTURE, None)
        if structure is None or structure.dtype != np.uint8:
            raise EncodingError("state", expected="its structure", got="none")
        return _value(canonical.decode(structure.tobytes(), limit_bytes=_MOST_BYTES), tensors)


def _node(value: Any, tensors: dict[str, Array], depth: int) -> Any:
    if depth > _DEEPEST:
        raise EncodingError("state", expected=f"at most {_DEEPEST} deep", got="more")
    if value is None or isinstance(value, bool | str):
        return value
    array = _array(value)
    if array is not None:
        name = str(len(tensors))
        tensors[name] = array
        return {"numpy" if isinstance(value, np.ndarray | np.generic) else "torch": name}
    if isinstance(value, int):
        return {"int": str(int(value))}
    if isinstance(value, float):
        return {"float": float(value).hex()}
    if isinstance(value, Mapping):
        return {
            "map": [[_node(key, tensors, depth + 1), _node(entry, tensors, depth + 1)] for key, entry in value.items()]
        }
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_node(entry, tensors, depth + 1) for entry in value]}
    raise EncodingError("state", expected="tensors, numbers, text, lists and maps of them", got=type(value).__name__)


def _array(value: Any) -> Array | None:
    """Return the numbers of a tensor in main memory, or nothing of what is no tensor."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    found = value.detach().cpu().contiguous()
    if found.dtype is torch.bfloat16:
        return found.view(torch.uint16).numpy().view(BFLOAT16)
    return found.numpy()


def _value(node: Any, tensors: Mapping[str, Array]) -> Any:
    if node is None or isinstance(node, bool | str):
        return node
    if not isinstance(node, dict) or len(node) != 1:  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError("state", expected="one of its kinds of value", got=type(node).__name__)
    ((kind, content),) = node.items()
    readers = {"int": int, "float": float.fromhex}
    try:
        if kind in readers:
            return readers[kind](content)
        if kind == "map":
            return {_value(key, tensors): _value(entry, tensors) for key, entry in content}
        if kind in ("list", "tuple"):
            found = [_value(entry, tensors) for entry in content]
            return found if kind == "list" else tuple(found)
        if kind == "numpy":
            return tensors[content]
        if kind == "torch":
            return _torch(tensors[content])
    except (KeyError, TypeError, ValueError) as error:
        raise EncodingError(f"state {kind}", expected="a value of its kind", got="another") from error
    raise EncodingError("state", expected="one of its kinds of value", got=str(kind)[:20])


def _torch(array: Array) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        raise EncodingError("state", expected="torch imported by whoever kept its tensors", got="not imported")
    if (array.dtype.metadata or {}).get("safetensors") == "BF16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
