"""Tensors on the requester's side of the Open Inference Protocol, as raw bytes after the JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed.errors import AnswerError, EncodingError
from confed.inference.messages import AnswerHead, Headers

Array = NDArray[Any]
_ACKNOWLEDGED = 202
_ALIGNMENT = 16
LENGTH_HEADER = "inference-header-content-length"
TYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""NumPy's types by the protocol's names."""
NAMES = {dtype: name for name, dtype in TYPES.items()}
"""The protocol's names by NumPy's types."""


def little_endian(array: Array) -> memoryview:
    """Return an array's values as little-endian bytes in C order."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8).data)


def aligned(front: bytes) -> bytes:
    """Return the JSON before raw bytes with spaces at its end, so that the first tensor can be used where it is."""
    return front + b" " * (-len(front) % _ALIGNMENT)


def write_tensors(tensors: Mapping[str, Array]) -> tuple[bytes, Headers]:
    """Return the body and headers of a request with these tensors, which asks for raw bytes back.

    Raises:
        EncodingError: a type that the protocol has no name for.
    """
    pieces: list[memoryview] = []
    inputs: list[dict[str, Any]] = []
    for name, array in tensors.items():
        if array.dtype.name not in NAMES:
            raise EncodingError(f"tensor {name}", expected=", ".join(NAMES), got=array.dtype.name)
        pieces.append(little_endian(array))
        size = {"binary_data_size": pieces[-1].nbytes}
        inputs.append(
            {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name], "parameters": size}
        )
    front = aligned(json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode())
    headers = (("content-type", "application/octet-stream"), (LENGTH_HEADER, str(len(front))))
    return b"".join([front, *pieces]), headers


def require_answer(head: AnswerHead) -> None:
    """Check that an answer came, and not an acknowledgement of one that went elsewhere.

    Raises:
        AnswerError: it did.
    """
    if head.status == _ACKNOWLEDGED:
        raise AnswerError("output", expected="answers to who asked", got="an acknowledgement, by the owner's policy")


def read_tensors(head: AnswerHead, body: bytes | bytearray) -> dict[str, Array]:
    """Return the tensors of an answer; in a ``bytearray`` they stay where they are.

    Raises:
        AnswerError: the model refused the request.
        EncodingError: an answer that is none of the protocol.
    """
    told = dict(head.headers)
    size = int(told[LENGTH_HEADER]) if told.get(LENGTH_HEADER, "").isdecimal() else len(body)
    try:
        value = json.loads(body[:size])
        if head.status != 200:
            raise AnswerError(str(value["error"])[:500], expected="status 200", got=head.status)
        return _tensors(value["outputs"], memoryview(body)[size:])
    except (ValueError, KeyError, TypeError) as error:
        raise EncodingError("answer", expected="tensors", got="something else") from error


def _tensors(outputs: Any, raw: memoryview) -> dict[str, Array]:
    found: dict[str, Array] = {}
    at = 0
    for entry in outputs:
        dtype, shape = np.dtype(TYPES[entry["datatype"]]), entry["shape"]
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[entry["name"]] = np.array(entry["data"], dtype=dtype).reshape(shape)
            continue
        little = np.frombuffer(raw[at : at + size], dtype=dtype.newbyteorder("<")).reshape(shape)
        fits = little.flags.writeable and little.flags.aligned
        found[entry["name"]] = little.astype(dtype, copy=not fits)
        at += size
    return found
