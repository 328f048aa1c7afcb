"""Engines of ``benchmarks.inference``: they cost nothing themselves, so that what is measured is the way to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from confed.inference.engine import GenerationOptions, Piece

WORD = " word"


class Instant:
    """Says as many words as it is asked for at once, and gives tensors back: as they are, and their sum."""

    def __init__(self, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        self._arrays = dict(arrays)
        self._prompt_tokens = int(settings.get("prompt-tokens", 1))

    def inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"x": ("float32", (-1,))}

    def predict(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"same": tensors["x"], "sum": tensors["x"].sum(keepdims=True)}

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        return messages[-1]["content"]

    def generate(self, prompt: str, options: GenerationOptions) -> Iterator[Piece]:
        most = options.max_tokens or 1
        for count in range(1, most + 1):
            finish = "length" if count == most else None
            yield Piece(text=WORD, finish=finish, prompt_tokens=len(prompt), tokens=count)
