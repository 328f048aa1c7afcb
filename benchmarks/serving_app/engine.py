"""A model without weights, for load: it says what it was asked, word by word, and pauses for each as a model would."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from confed.inference.engine import GenerationOptions, Piece


class Words:
    """The served model; setting ``pause-s``: seconds a word."""

    def __init__(self, _arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> None:
        self._pause_s = float(settings["pause-s"])

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        return messages[-1]["content"]

    def generate(self, prompt: str, options: GenerationOptions) -> Iterator[Piece]:
        count = options.max_tokens or 16
        for number in range(count):
            time.sleep(self._pause_s)
            last = number + 1 == count
            yield Piece(
                text=f"{prompt}/{number} ", finish="length" if last else None, prompt_tokens=1, tokens=number + 1
            )
