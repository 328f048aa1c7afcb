"""QLoRA: the frozen base's linear layers in 4 bits, on CUDA, by bitsandbytes; the adapter beside them stays as it is.

The opened weights are quantized on the device; nothing of them is written anywhere. Written without such a device at
hand: no test of this release has run it.

Source: Dettmers et al., "QLoRA" (2023), section 3: 4-bit NormalFloat, double quantization.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

_OUTPUT = "lm_head"


def quantized(model: Any, *, device: torch.device) -> Any:
    """Return the model on a CUDA device, its linear layers (but the output's) in 4 bits.

    Raises:
        ImportError: bitsandbytes is not there; ``language.require_quantization`` says so before.
    """
    library: Any = importlib.import_module("bitsandbytes")
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, torch.nn.Linear) or name.endswith(_OUTPUT):
            continue
        made = library.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,  # pyright: ignore[reportUnnecessaryComparison] (it is None without one)
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
        )
        made.weight = library.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
        )
        made.bias = layer.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    return model.to(device)
