"""Any network of torch over the Open Inference Protocol, with no code of one's own beyond its class.

Settings:

- ``network``: its class, or a function that makes it, as ``module:attribute`` of the measured image; arguments that it
  takes are the settings ``argument-NAME``.
- ``inputs``: the arguments of its ``forward``, in order: ``pixels: float32[-1, 64]; mask: uint8[-1]`` (-1: any length).
- ``outputs``: what ``forward`` returns, in order (or by name, where it returns a mapping), written alike.
- ``batch`` (default 1): rows that go through the network together where several requests come at the same time. Then
  the first axis of everything is -1 and counts rows, and a row's last bits may depend on its neighbours.

The sealed tensors must be the network's own state, each of its name, type and shape.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.engines.joining import Joined
from clients.opened import tensor_of
from confed.errors import ConfigError, ShapeError
from confed.inference.tensors import NAMES

Array = NDArray[Any]
Shapes = dict[str, tuple[str, tuple[int, ...]]]
_TENSOR = re.compile(r"\s*(?P<name>[\w.-]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<shape>[-\d,\s]*)\]\s*\Z")
_ARGUMENT = "argument-"


class TorchModule:
    """The served model.

    Raises:
        ConfigError: settings that name no network, or no tensors.
        ShapeError: sealed tensors that are not the network's.
    """

    def __init__(self, arrays: Mapping[str, Array], settings: Mapping[str, Any]) -> None:
        self._inputs, self._outputs = _tensors(settings, "inputs"), _tensors(settings, "outputs")
        self._network = _network(settings)
        _load(self._network, arrays)
        self._network.eval()
        rows = settings.get("batch", 1)
        if type(rows) is not int or rows < 1:
            raise ConfigError("settings.batch", expected="a number of rows", got=str(rows)[:20])
        if rows > 1:
            _require_rows(self._inputs, self._outputs)
        self._run = self._forward if rows == 1 else Joined(self._forward, most_rows=rows)

    def inputs(self) -> Shapes:
        """Return what the network takes."""
        return dict(self._inputs)

    def outputs(self) -> Shapes:
        """Return what it gives."""
        return dict(self._outputs)

    def predict(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs.

        Raises:
            ShapeError: the network gives something else than the settings say.
        """
        found = self._run([np.require(tensors[name], requirements=["C", "A", "W"]) for name in self._inputs])
        return dict(zip(self._outputs, found, strict=True))

    def _forward(self, arrays: Sequence[Array]) -> list[Array]:
        with torch.inference_mode():
            made = self._network(*(torch.from_numpy(array) for array in arrays))
        values = [made] if isinstance(made, torch.Tensor) else made
        if isinstance(values, Mapping):
            values = [values.get(name) for name in self._outputs]  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(values, list | tuple) or len(values) != len(self._outputs):  # pyright: ignore[reportUnknownArgumentType]
            raise ShapeError("outputs", expected=", ".join(self._outputs), got=type(made).__name__)
        return [
            _checked(name, terms, value) for (name, terms), value in zip(self._outputs.items(), values, strict=True)
        ]


def _checked(name: str, terms: tuple[str, tuple[int, ...]], value: Any) -> Array:
    dtype, shape = terms
    array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    fits = array.ndim == len(shape) and all(
        wanted in (-1, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    if array.dtype.name != dtype or not fits:
        expected, got = f"{dtype}{list(shape)}", f"{array.dtype.name}{list(array.shape)}"
        raise ShapeError(f"output {name}", expected=expected, got=got)
    return array


def _network(settings: Mapping[str, Any]) -> torch.nn.Module:
    told = settings.get("network")
    module, _, attribute = told.partition(":") if isinstance(told, str) else ("", "", "")
    try:
        factory = getattr(importlib.import_module(module), attribute, None) if module and attribute else None
    except ModuleNotFoundError as error:
        raise ConfigError("settings.network", expected=f"{told} in this image", got=f"no {error.name}") from error
    if not callable(factory):
        raise ConfigError("settings.network", expected="module:attribute of this image", got=str(told)[:80])
    arguments = {name[len(_ARGUMENT) :]: value for name, value in settings.items() if name.startswith(_ARGUMENT)}
    try:
        network = factory(**{name.replace("-", "_"): value for name, value in arguments.items()})
    except TypeError as error:
        raise ConfigError("settings.argument-…", expected=f"what {told} takes", got=str(error)[:200]) from error
    if not isinstance(network, torch.nn.Module):
        raise ConfigError("settings.network", expected="a torch.nn.Module", got=type(network).__name__)
    return network


def _load(network: torch.nn.Module, arrays: Mapping[str, Array]) -> None:
    """Make the opened tensors the network's own, in place, each checked by name, type and shape."""
    tensors, state = {name: tensor_of(array) for name, array in arrays.items()}, network.state_dict()
    for name in sorted(set(tensors) ^ set(state)):
        raise ShapeError(f"tensor {name[:80]}", expected="in network and sealed model", got="in one of them")
    for name, mine in state.items():
        expected, got = (f"{tensor.dtype}{list(tensor.shape)}" for tensor in (mine, tensors[name]))
        if expected != got:
            raise ShapeError(f"tensor {name[:80]}", expected=expected, got=got)
    network.load_state_dict(tensors, assign=True)
    network.requires_grad_(requires_grad=False)


def _tensors(settings: Mapping[str, Any], key: str) -> Shapes:
    told, found = settings.get(key), dict[str, tuple[str, tuple[int, ...]]]()
    for part in told.split(";") if isinstance(told, str) else ():
        matched = _TENSOR.match(part)
        lengths = [] if matched is None else [text.strip() for text in matched["shape"].split(",")]
        whole = all(re.fullmatch(r"-1|\d+", text) for text in lengths)
        if matched is None or matched["dtype"] not in NAMES or not whole or matched["name"] in found:
            raise ConfigError(f"settings.{key}", expected="name: float32[-1, 64]; …", got=part.strip()[:80])
        found[matched["name"]] = (matched["dtype"], tuple(int(text) for text in lengths))
    if not found:
        raise ConfigError(f"settings.{key}", expected="name: float32[-1, 64]; …", got=str(told)[:80])
    return found


def _require_rows(*groups: Shapes) -> None:
    for shapes in groups:
        for name, (_, shape) in shapes.items():
            if shape[0] != -1:
                raise ConfigError("settings.batch", expected=f"{name} with a first axis of -1", got=list(shape))
