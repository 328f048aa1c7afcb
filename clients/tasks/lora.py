"""A low-rank adapter on a language model in memory, through PEFT: put on from a version, taken off for an update.

The factors are PEFT's own, beside matrices that stay as they were opened. What training changes is copied; whatever
else lies in the TEE's memory once, as the container was opened (``confed.client.frozen`` checks it afterwards).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch

from clients.opened import tensor_of
from confed.adapter import STACK, AdapterTerms, factor_name, module_of, stack_name
from confed.errors import AdapterError, LanguageModelError
from confed.model.adapter import Adapted, adapter_of, frozen_factors
from confed.model.weights import layout_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arrays = Mapping[str, np.ndarray]

_ONE = "default"


def adapted_modules(arrays: Arrays, terms: AdapterTerms) -> tuple[Adapted, ...]:
    """Return the modules of an opened version that have factors, checked against the base.

    Raises:
        AdapterError: none, or an adapter that does not fit the base.
    """
    factors = tuple(name for name in arrays if module_of(name) is not None)
    if not factors:
        raise AdapterError("adapter", expected="factors in the sealed model", got="none")
    return adapter_of(layout_of(arrays), terms, trained=factors)


def put_on(
    model: PreTrainedModel, arrays: Arrays, terms: AdapterTerms, *, rank: int, modules: tuple[Adapted, ...]
) -> peft.PeftModel:
    """Return the model with its adapter, whose factors are copies of the version's first ``rank`` components.

    Stacked factors of earlier rounds are added to copies of their matrices: what training is beside, in this TEE alone.

    Raises:
        LanguageModelError: a target that is no linear layer.
    """
    for each in modules:
        found = model.get_submodule(each.module)
        if not isinstance(found, torch.nn.Linear):
            expected, got = "a linear layer", type(found).__name__
            raise LanguageModelError(f"adapter target {each.module[:80]}", expected=expected, got=got)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=terms.scaling * rank,  # pyright: ignore[reportArgumentType] (it divides it by r)
        lora_dropout=terms.dropout,
        target_modules=[each.module for each in modules],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    tuned: Any = peft.get_peft_model(model, config)
    frozen = frozen_factors(terms)
    for each in modules:
        layer = tuned.base_model.model.get_submodule(each.module)
        layer.scaling[_ONE] = terms.scaling
        first, last = (tensor_of(arrays[factor_name(each.module, factor)]) for factor in ("A", "B"))
        for factor, parameter, values in (
            ("A", layer.lora_A[_ONE].weight, first[:rank]),
            ("B", layer.lora_B[_ONE].weight, last[:, :rank]),
        ):
            parameter.data = values.clone().contiguous()
            parameter.requires_grad_(factor not in frozen)
        if terms.method == STACK:
            _merge(layer.base_layer, each.module, arrays, terms)
    return tuned


def take_off(tuned: peft.PeftModel, terms: AdapterTerms, *, modules: tuple[Adapted, ...]) -> dict[str, np.ndarray]:
    """Return the factors that travel, padded with zeros to the run's rank.

    Raises:
        Nothing.
    """
    found: dict[str, np.ndarray] = {}
    frozen = frozen_factors(terms)
    inner: Any = tuned.base_model
    for each in modules:
        layer = inner.model.get_submodule(each.module)
        for factor, values in (("A", layer.lora_A[_ONE].weight), ("B", layer.lora_B[_ONE].weight)):
            if factor in frozen:
                continue
            numbers = values.detach().to("cpu", torch.float32).numpy()
            shape = each.names(terms)[factor_name(each.module, factor)]
            padded = np.zeros(shape, np.float32)
            padded[: numbers.shape[0], : numbers.shape[1]] = numbers
            found[factor_name(each.module, factor)] = padded
    return found


def _merge(layer: torch.nn.Linear, module: str, arrays: Arrays, terms: AdapterTerms) -> None:
    first, last = (tensor_of(arrays[stack_name(module, factor)]) for factor in ("A", "B"))
    if not bool(last.any()):
        return
    added = layer.weight.detach().float() + terms.scaling * (last @ first)
    layer.weight = torch.nn.Parameter(added.to(layer.weight.dtype), requires_grad=False)
