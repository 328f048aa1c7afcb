"""A Hugging Face causal language model in memory: from an opened container, never from a file or a hub.

1. The configuration and the tokenizer are documents of the sealed model (``confed.model.hub``).
2. The model is made of its configuration with empty weights; no number is drawn for them.
3. Its parameters become the opened tensors themselves: views of the memory that the container was opened into, where
   they are frozen. Whoever trains a tensor works on a copy.

Code that comes with a model (``auto_map``, ``trust_remote_code``) is never run: the architecture is one that this
image's transformers has.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# Read when the library is imported: it shall never look for a hub.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch

from clients.opened import tensor_of
from confed.client.settings import refuse
from confed.errors import LanguageModelError, MissingFileError
from confed.model.hub import CONFIG, TOKENIZER, TOKENIZER_CONFIG, settings_of, text_of, weights_of

try:
    import accelerate
    import huggingface_hub.constants
    import tokenizers
    import transformers
except ImportError as error:
    raise MissingFileError(
        "transformers, peft, accelerate", expected="pip install confed[tuning]", got=f"no {error.name}"
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Arrays = Mapping[str, np.ndarray]

NONE, NF4 = "none", "nf4"
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

huggingface_hub.constants.HF_HUB_OFFLINE = True  # also where something imported it before this module
transformers.logging.set_verbosity_error()  # what it would warn of may name what is sealed
transformers.logging.disable_progress_bar()


def config_of(arrays: Arrays) -> transformers.PreTrainedConfig:
    """Return the configuration of an opened model.

    Raises:
        LanguageModelError: none, one that asks for code, is quantized, or names an architecture that is not here.
    """
    settings = settings_of(arrays, CONFIG)
    kind = settings.pop("model_type", None)
    if "quantization_config" in settings:
        raise LanguageModelError("model config.json", expected="weights in a floating type", got="quantized ones")
    if kind not in transformers.CONFIG_MAPPING:
        raise LanguageModelError("model_type", expected="one that transformers has", got=str(kind)[:40])
    return transformers.AutoConfig.for_model(kind, **settings)


def model_of(arrays: Arrays) -> PreTrainedModel:
    """Return the causal language model of an opened container; its parameters are the opened tensors, frozen.

    Raises:
        LanguageModelError: a configuration that is none, no causal model, or tensors that are not this model's.
    """
    config = config_of(arrays)
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LanguageModelError("model_type", expected="a causal language model", got=config.model_type)
    with accelerate.init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config)
    # A buffer that the container has (none of today's) is loaded as well; what is computed is computed.
    tensors = {name: tensor_of(array) for name, array in weights_of(arrays).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in tensors.items():
        if expected.get(name) != tuple(tensor.shape):
            wanted = f"of shape {list(expected[name])}" if name in expected else "one of the model's"
            raise LanguageModelError(f"tensor {name[:80]}", expected=wanted, got=list(tensor.shape))
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise LanguageModelError(f"tensor {name[:80]}", expected="in the sealed model", got="none")
        parameter.requires_grad_(requires_grad=False)
    return model.eval()


def tokenizer_of(arrays: Arrays) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an opened container.

    Raises:
        LanguageModelError: there is none, or it is none that the tokenizers library reads.
    """
    try:
        made = tokenizers.Tokenizer.from_str(text_of(arrays, TOKENIZER))
    except LanguageModelError:
        raise
    except Exception as error:
        raise LanguageModelError(f"model {TOKENIZER}", expected="a tokenizer", got="something else") from error
    special: dict[str, Any] = {}
    if f"hub/{TOKENIZER_CONFIG}" in arrays:
        settings = settings_of(arrays, TOKENIZER_CONFIG)
        for name in _SPECIAL:
            value = settings.get(name)
            token = value.get("content") if isinstance(value, dict) else value
            if isinstance(token, str):
                special[name] = token
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def require_quantization(asked: str, *, device: torch.device) -> None:
    """Check that the base can be quantized as asked for: 4 bits (QLoRA) are made by bitsandbytes, on CUDA alone.

    Raises:
        SettingError: another word, or no such device or library here.

    Source: Dettmers et al., "QLoRA" (2023), section 3 (NF4).
    """
    if asked not in (NONE, NF4):
        refuse("quantize", expected=f"{NONE} or {NF4}", got=asked[:20])
    if asked == NF4 and device.type != "cuda":
        refuse("quantize", expected=f"a CUDA device for {NF4} (QLoRA)", got=device.type)
    if asked == NF4 and importlib.util.find_spec("bitsandbytes") is None:
        refuse("quantize", expected=f"bitsandbytes for {NF4} (QLoRA)", got="not installed")
