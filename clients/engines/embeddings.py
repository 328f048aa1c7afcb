"""Sentence embeddings with an encoder of transformers: mean of the last layer's tokens, to unit length.

Settings: ``max-tokens`` (a longer text is refused, never cut) and ``normalize``.

Source: Reimers and Gurevych, "Sentence-BERT" (2019), section 3 (mean pooling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from clients.opened import tensor_of
from clients.tasks.language import config_of, tokenizer_of
from confed.errors import LanguageModelError
from confed.inference.engine import InvalidRequestError
from confed.model.hub import weights_of

Arrays = Mapping[str, NDArray[Any]]
_LEAST_SUM = 1e-9


class SentenceEmbeddings:
    """The served model. Texts of one request go through the encoder one by one, so none changes another's bits."""

    def __init__(self, arrays: Arrays, settings: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer_of(arrays)
        self._model = _encoder(arrays)
        self._longest = int(settings.get("max-tokens", 256))
        self._normalize = bool(settings.get("normalize", True))

    def embed(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Return one row for each text, and how many tokens they were.

        Raises:
            InvalidRequestError: a text beyond the context.
        """
        encoded = [self._tokenizer(text, return_tensors="pt") for text in texts]
        counts = [int(entry["input_ids"].shape[1]) for entry in encoded]
        if max(counts) > self._longest:
            raise InvalidRequestError(400, f"input: a text of {max(counts)} tokens, beyond {self._longest}")
        with torch.inference_mode():
            rows = [self._row(entry) for entry in encoded]
        return torch.cat(rows).numpy(), sum(counts)

    def _row(self, encoded: Any) -> torch.Tensor:
        hidden = self._model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        row = (hidden * mask).sum(1) / mask.sum(1).clamp(min=_LEAST_SUM)
        return torch.nn.functional.normalize(row, p=2, dim=1) if self._normalize else row


def _encoder(arrays: Arrays) -> Any:
    config = config_of(arrays)
    with accelerate.init_empty_weights(include_buffers=False):
        model = transformers.AutoModel.from_config(config)
    tensors = {name: tensor_of(array) for name, array in weights_of(arrays).items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise LanguageModelError(f"tensor {name[:80]}", expected="in the sealed model", got="none")
    return model.eval()
