"""The tensors of a low-rank adapter in a model: made for a start, found and checked in a version.

Source: Hu et al., "LoRA" (2021), section 4.1; the draw of A is PEFT's (uniform, bound ``1 / sqrt(in)``), B begins with
zeros: a start with an adapter computes what the base computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confed import canonical
from confed.adapter import FFA, PREFIX, STACK, AdapterTerms, factor_name, module_of, stack_name
from confed.errors import AdapterError, ConfigError
from confed.model.hub import FOLDER
from confed.model.weights import FLOATING, Layout, layout_of

Array = NDArray[Any]

ADAPTER_CONFIG = FOLDER + "adapter_config.json"
"""What PEFT reads beside an adapter's weights; it travels with them."""

_MATRIX = ".weight"
_TYPE = "F32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """One module with an adapter, and its matrix's shape: outputs, inputs."""

    module: str
    outputs: int
    inputs: int

    def names(self, terms: AdapterTerms) -> dict[str, tuple[int, int]]:
        """Return the names and shapes of its factors."""
        return {
            factor_name(self.module, "A"): (terms.rank, self.inputs),
            factor_name(self.module, "B"): (self.outputs, terms.rank),
        }

    def stacked(self, rank: int) -> dict[str, tuple[int, int]]:
        """Return the names and shapes of what is stacked, of this rank."""
        return {stack_name(self.module, "A"): (rank, self.inputs), stack_name(self.module, "B"): (self.outputs, rank)}


def modules_of(layout: Layout, terms: AdapterTerms) -> tuple[Adapted, ...]:
    """Return the matrices of a base that the terms target, in the model's order.

    Raises:
        ConfigError: a target that no matrix has.
    """
    found = [
        Adapted(module=tensor.name[: -len(_MATRIX)], outputs=tensor.shape[0], inputs=tensor.shape[1])
        for tensor in layout.tensors
        if tensor.name.endswith(_MATRIX)
        and len(tensor.shape) == 2
        and tensor.dtype in FLOATING
        and module_of(tensor.name) is None
        and terms.targets_module(tensor.name[: -len(_MATRIX)])
    ]
    for target in terms.targets:
        if not any(each.module == target or each.module.endswith(f".{target}") for each in found):
            expected = "modules of the model that have a matrix"
            raise ConfigError("adapter.targets", expected=expected, got=target)
    return tuple(found)


def with_adapter(
    arrays: Mapping[str, Array], terms: AdapterTerms, *, rounds: int, updates: int, seed: int
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return a start with its adapter, and the names that travel.

    Args:
        arrays: the base.
        terms: of the adapter.
        rounds: of the run.
        updates: that a round takes; with the rounds, the room of a stack.
        seed: of the draw of A.

    Raises:
        ConfigError: a target that the base does not have, an adapter that is there already, or a stack too large.
    """
    modules = modules_of(layout_of(arrays), terms)
    made: dict[str, Array] = {}
    for each in modules:
        names = each.names(terms)
        made |= {name: np.zeros(shape, np.float32) for name, shape in names.items()}
        first = factor_name(each.module, "A")
        bound = 1 / math.sqrt(each.inputs)
        drawn = np.random.default_rng(_seed(seed, each.module)).uniform(-bound, bound, names[first])
        made[first] = drawn.astype(np.float32)
        if terms.method == STACK:
            room = each.stacked(terms.stacked_rank(rounds=rounds, updates=updates))
            made |= {name: np.zeros(shape, np.float32) for name, shape in room.items()}
    made[ADAPTER_CONFIG] = _document(terms, [each.module for each in modules], rounds=rounds, updates=updates)
    for name in made:
        if name in arrays:
            raise ConfigError("adapter", expected="a base without one", got=name[:80])
    return {**arrays, **made}, terms.trained_names([each.module for each in modules])


def adapter_of(layout: Layout, terms: AdapterTerms, *, trained: tuple[str, ...]) -> tuple[Adapted, ...]:
    """Return the modules of a version whose factors travel, each checked against the base's matrix.

    Raises:
        AdapterError: an adapter that does not fit the base: a matrix or factor that is not there, or of another shape.
    """
    tensors = {tensor.name: tensor for tensor in layout.tensors}
    found: list[Adapted] = []
    for module in dict.fromkeys(module_of(name) or name for name in trained):
        matrix = tensors.get(module + _MATRIX)
        if matrix is None or len(matrix.shape) != 2:
            raise AdapterError(f"adapter of {module[:80]}", expected="a matrix of the base", got="none")
        each = Adapted(module=module, outputs=matrix.shape[0], inputs=matrix.shape[1])
        for name, shape in each.names(terms).items():
            factor = tensors.get(name)
            if factor is None or (factor.dtype, factor.shape) != (_TYPE, shape):
                got = "none" if factor is None else f"{factor.dtype} {list(factor.shape)}"
                raise AdapterError(f"tensor {name[:80]}", expected=f"{_TYPE} {list(shape)}, as the base needs", got=got)
        found.append(each)
    return tuple(found)


def require_own_rank(factors: Mapping[str, Array], modules: tuple[Adapted, ...], rank: int, *, site: str) -> None:
    """Check that a site's factors are zero beyond its own rank.

    Raises:
        AdapterError: one that is not.
    """
    for each in modules:
        first, last = (factors[factor_name(each.module, factor)] for factor in ("A", "B"))
        if first[rank:].any() or last[:, rank:].any():
            raise AdapterError(f"{site} adapter of {each.module[:60]}", expected=f"rank {rank}", got="more")


def frozen_factors(terms: AdapterTerms) -> tuple[str, ...]:
    """Return which factors a site must not train: ``("A",)`` with FFA."""
    return ("A",) if terms.method == FFA else ()


def exported(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return a version's adapter under the names that PEFT's files have: what is stacked, where there is a stack.

    Raises:
        Nothing.
    """
    found: dict[str, Array] = {}
    for name, array in arrays.items():
        module = module_of(name)
        if module is not None:
            factor = "A" if name == factor_name(module, "A") else "B"
            found[name] = arrays.get(stack_name(module, factor), array)
    return found


def is_adapters(name: str) -> bool:
    """Return whether a tensor is an adapter's, not the base's."""
    return name.startswith(PREFIX) or name == ADAPTER_CONFIG


def _document(terms: AdapterTerms, modules: list[str], *, rounds: int, updates: int) -> Array:
    """Return the configuration that PEFT reads beside an adapter's weights."""
    rank = terms.stacked_rank(rounds=rounds, updates=updates) if terms.method == STACK else terms.rank
    settings = {
        "base_model_name_or_path": "..",
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": terms.scaling * rank,
        "lora_dropout": terms.dropout,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }
    return np.frombuffer(json.dumps(settings, indent=2).encode(), dtype=np.uint8)


def _seed(seed: int, module: str) -> int:
    return int(canonical.digest(canonical.encode(["confed/v1/adapter", seed, module]))[:16], 16)
