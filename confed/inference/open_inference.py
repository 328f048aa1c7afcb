"""The Open Inference Protocol, version 2, over tensors: metadata, readiness, infer.

Tensors travel as JSON, or as raw little-endian bytes after the JSON (the binary tensor data extension), as a megabyte
should. Inputs are checked against what the model says it takes, before it sees them.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and
extension_binary_tensor_data.md of the KServe protocol extensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from confed.inference.engine import Answer, Described, InvalidRequestError, Predictor, json_answer
from confed.inference.messages import AnswerHead, Request
from confed.inference.tensors import LENGTH_HEADER, NAMES, TYPES, Array, aligned, little_endian

_MOST_TENSORS = 64


def routes(model: Predictor, *, name: str) -> dict[tuple[str, str], Callable[[Request], Answer]]:
    """Return the handlers of one model by method and path."""
    base = f"/v2/models/{name}"
    return {
        ("GET", "/v2"): lambda _request: json_answer(
            {"name": "confed", "version": "1", "extensions": ["binary_tensor_data"]}
        ),
        ("GET", "/v2/health/live"): lambda _request: json_answer({"live": True}),
        ("GET", "/v2/health/ready"): lambda _request: json_answer({"ready": True}),
        ("GET", base): lambda _request: json_answer(_metadata(model, name)),
        ("GET", f"{base}/ready"): lambda _request: json_answer({"name": name, "ready": True}),
        ("POST", f"{base}/infer"): lambda request: _infer(model, name, request),
    }


def error_answer(status: int, reason: str) -> Answer:
    """Return an error in the protocol's form."""
    return json_answer({"error": reason}, status=status)


def _metadata(model: Predictor, name: str) -> dict[str, Any]:
    outputs = model.outputs() if isinstance(model, Described) else {}
    told = {"name": name, "versions": ["1"], "platform": "confed"}
    return {**told, "inputs": _described(model.inputs()), "outputs": _described(outputs)}


def _described(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[dict[str, Any]]:
    return [{"name": key, "datatype": NAMES[dtype], "shape": list(shape)} for key, (dtype, shape) in shapes.items()]


def _infer(model: Predictor, name: str, request: Request) -> Answer:
    value, raw = _parts(request)
    _refuse_output(value)
    tensors = _tensors(model, value, raw)
    outputs = model.predict(tensors)
    wanted = _wanted(value, outputs)
    binary = {key for key in wanted if _binary(value, key)}
    return _answer(name, value, {key: outputs[key] for key in wanted}, binary)


def _parts(request: Request) -> tuple[dict[str, Any], memoryview]:
    body = memoryview(request.body)
    given = request.head.header(LENGTH_HEADER)
    if given and not (given.isdecimal() and int(given) <= len(body)):
        raise InvalidRequestError(400, f"{LENGTH_HEADER}: a length within the body")
    size = int(given) if given else len(body)
    try:
        value = json.loads(bytes(body[:size]))
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(400, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidRequestError(400, "the body is not a JSON object")
    return value, body[size:]  # pyright: ignore[reportUnknownVariableType]


def _refuse_output(value: Mapping[str, Any]) -> None:
    """Refuse a caller who asks where answers go: parameters that are not known are passed over otherwise."""
    parameters = value.get("parameters")
    for place in (value, parameters if isinstance(parameters, dict) else {}):  # pyright: ignore[reportUnknownVariableType]
        for name in ("output", "recipients", "confed-output", "confed-recipients"):
            if name in place:
                raise InvalidRequestError(403, f"{name}: where answers go is the policy of the model's owner")


def _tensors(model: Predictor, value: dict[str, Any], raw: memoryview) -> dict[str, Array]:
    given, expected = value.get("inputs"), model.inputs()
    if not isinstance(given, list) or not 1 <= len(given) <= _MOST_TENSORS:  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidRequestError(400, f"inputs: a list of 1 to {_MOST_TENSORS} tensors")
    tensors: dict[str, Array] = {}
    at = 0
    for entry in given:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or entry["name"] in tensors:
            raise InvalidRequestError(400, "inputs: tensors with names, each once")
        tensor, at = _tensor(entry, expected, raw, at)  # pyright: ignore[reportUnknownArgumentType]
        tensors[entry["name"]] = tensor
    if set(tensors) != set(expected) or at != len(raw):
        raise InvalidRequestError(400, f"inputs: exactly {', '.join(sorted(expected))}, and no bytes besides")
    return tensors


def _tensor(
    entry: Mapping[str, Any], expected: Mapping[str, tuple[str, tuple[int, ...]]], raw: memoryview, at: int
) -> tuple[Array, int]:
    name, shape = entry["name"], entry.get("shape")
    known = expected.get(name)
    if known is None:
        raise InvalidRequestError(400, f"input {name[:64]}: the model has no such input")
    dtype, lengths = known
    if TYPES.get(str(entry.get("datatype"))) != dtype:
        raise InvalidRequestError(400, f"input {name}: datatype {NAMES[dtype]} is expected")
    if not isinstance(shape, list) or not _fits(shape, lengths):  # pyright: ignore[reportUnknownArgumentType]
        raise InvalidRequestError(400, f"input {name}: shape {list(lengths)} is expected (-1: any)")
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None  # pyright: ignore[reportUnknownVariableType]
    count = math.prod(shape)  # pyright: ignore[reportUnknownArgumentType]
    if size is None:
        return _from_json(name, entry.get("data"), np.dtype(dtype), shape, count), at  # pyright: ignore[reportUnknownArgumentType]
    if size != count * np.dtype(dtype).itemsize or at + size > len(raw):
        raise InvalidRequestError(400, f"input {name}: binary_data_size fits neither its shape nor the body")
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(raw[at : at + size], dtype=little).reshape(shape), at + size  # pyright: ignore[reportUnknownArgumentType]


def _fits(shape: list[Any], lengths: tuple[int, ...]) -> bool:
    if len(shape) != len(lengths) or any(type(length) is not int or length < 0 for length in shape):
        return False
    return all(wanted in (-1, length) for length, wanted in zip(shape, lengths, strict=True))


def _from_json(name: str, data: Any, dtype: np.dtype[Any], shape: list[int], count: int) -> Array:
    if not isinstance(data, list):
        raise InvalidRequestError(400, f"input {name}: data as a list, or binary_data_size")
    try:
        found = np.array(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequestError(400, f"input {name}: data in rows of equal length") from error
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if found.size != count or (count and found.dtype.kind not in kinds):
        raise InvalidRequestError(400, f"input {name}: {count} values of its datatype are expected")
    with np.errstate(over="ignore"):
        cast = found.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast, found):
        raise InvalidRequestError(400, f"input {name}: values within its datatype are expected")
    return cast.reshape(shape)


def _wanted(value: Mapping[str, Any], outputs: Mapping[str, Array]) -> list[str]:
    listed = value.get("outputs")
    if listed is None:
        return list(outputs)
    names: list[str] = []
    for entry in listed if isinstance(listed, list) else ():  # pyright: ignore[reportUnknownVariableType]
        name = entry.get("name") if isinstance(entry, dict) else None  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(name, str) or name not in outputs or name in names:
            raise InvalidRequestError(400, f"outputs: some of {', '.join(outputs)}, each once")
        names.append(name)
    if not names:
        raise InvalidRequestError(400, "outputs: at least one")
    return names


def _binary(value: Mapping[str, Any], name: str) -> bool:
    """Whether an output is asked for as raw bytes: it by itself, or all of them."""
    for entry in value.get("outputs") or ():
        parameters = entry.get("parameters")
        if entry.get("name") == name and isinstance(parameters, dict) and "binary_data" in parameters:
            return parameters["binary_data"] is True
    parameters = value.get("parameters")
    return isinstance(parameters, dict) and parameters.get("binary_data_output") is True  # pyright: ignore[reportUnknownMemberType]


def _answer(name: str, value: Mapping[str, Any], outputs: Mapping[str, Array], binary: set[str]) -> Answer:
    entries: list[dict[str, Any]] = []
    pieces: list[memoryview] = []
    for key, array in outputs.items():
        entry: dict[str, Any] = {"name": key, "datatype": NAMES[array.dtype.name], "shape": list(array.shape)}
        if key in binary:
            pieces.append(little_endian(array))
            entry["parameters"] = {"binary_data_size": pieces[-1].nbytes}
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    told = {"model_name": name, "outputs": entries}
    if isinstance(value.get("id"), str):
        told["id"] = value["id"]
    if not binary:
        return json_answer(told)
    front = aligned(json.dumps(told, separators=(",", ":")).encode())
    headers = (("content-type", "application/octet-stream"), (LENGTH_HEADER, str(len(front))))
    return Answer(head=AnswerHead(status=200, headers=headers), body=(front, *pieces))
