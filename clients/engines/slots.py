"""Keys and values of several requests in one block of memory: a row each, from its first token on.

A row has a length of its own; the model is told by a mask which columns a row has, so rows need no common beginning and
nobody waits for anybody. A request that ends gives its row to the last one. What stands beyond a row's length is
finite, and its weight in attention is exactly zero.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.cache_utils import Cache, DynamicLayer

from confed.errors import LanguageModelError

_BLOCK = 128
"""Columns that are added at least, when a row grows beyond all that there are."""


class Slots:
    """The rows of one model.

    Args:
        model: whose cache is plain (``decoding.require_plain_cache``).
        most: rows.
    """

    def __init__(self, model: Any, *, most: int) -> None:
        self._most = most
        count = len(transformers.DynamicCache(config=model.config).layers)
        self._layers = [_Layer(self) for _ in range(count)]
        self._columns = 0
        self.lengths: list[int] = []
        """Tokens of each row in use."""
        self.cache = Cache(layers=list(self._layers))
        """What the model is given in place of its own cache."""
        self.rows = torch.arange(0)
        self.at = torch.arange(0)

    def add(self, cache: Any) -> None:
        """Take over what a model computed for one request's prompt, as the last row."""
        length = int(cache.get_seq_length())
        self._make_room(length + 1, cache)
        row = len(self.lengths)
        for mine, its in zip(self._layers, cache.layers, strict=True):
            mine.keys[row, :, :length] = its.keys[0]
            mine.values[row, :, :length] = its.values[0]
        self.lengths.append(length)

    def remove(self, row: int) -> None:
        """Give up a row; the last one takes its place, and its number."""
        last = len(self.lengths) - 1
        length = self.lengths[last]
        for layer in self._layers:
            layer.keys[row, :, :length] = layer.keys[last, :, :length]
            layer.values[row, :, :length] = layer.values[last, :, :length]
        self.lengths[row] = length
        self.lengths.pop()

    def of(self, row: int) -> Any:
        """Return a copy of one row, as a cache of its own."""
        cache = transformers.DynamicCache()
        length = self.lengths[row]
        for number, layer in enumerate(self._layers):
            cache.update(layer.keys[row : row + 1, :, :length], layer.values[row : row + 1, :, :length], number)
        return cache

    def step(self, model: Any, tokens: list[int]) -> torch.Tensor:
        """Let the model read one further token of each row, and return its logits, a row each."""
        self._make_room(max(self.lengths) + 1, None)
        self.rows, self.at = torch.arange(len(tokens)), torch.tensor(self.lengths)
        columns = torch.arange(self.longest)
        beyond = columns > self.at[:, None]
        mask = torch.zeros(beyond.shape, dtype=model.dtype).masked_fill_(beyond, torch.finfo(model.dtype).min)
        with torch.inference_mode():
            out = model(
                input_ids=torch.tensor(tokens)[:, None],
                attention_mask=mask[:, None, None, :],
                position_ids=self.at[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        self.lengths = [length + 1 for length in self.lengths]
        return out.logits[:, -1]

    @property
    def longest(self) -> int:
        """Columns of the longest row, with the token that is being read."""
        return max(self.lengths) + 1

    def _make_room(self, columns: int, like: Any) -> None:
        if columns <= self._columns:
            return
        self._columns = max(columns, self._columns * 2, _BLOCK)
        for number, layer in enumerate(self._layers):
            layer.grow(self._most, self._columns, like=None if like is None else like.layers[number])


class _Layer(DynamicLayer):
    """One layer: a token's keys and values go to where its row ends."""

    keys: Any
    values: Any

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def grow(self, rows: int, columns: int, *, like: Any) -> None:
        before = self.is_initialized
        old_keys, old_values = (self.keys, self.values) if before else (like.keys, like.values)
        found = []
        for old in (old_keys, old_values):
            # Zeros, not memory as it is: what is masked must be finite.
            new = torch.zeros((rows, old.shape[1], columns, old.shape[3]), dtype=old.dtype)
            if before:
                new[:, :, : old.shape[2]] = old
            found.append(new)
        self.keys, self.values = found
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        slots = self._slots
        self.keys[slots.rows, :, slots.at] = key_states[:, :, 0]
        self.values[slots.rows, :, slots.at] = value_states[:, :, 0]
        count, longest = len(slots.rows), slots.longest
        return self.keys[:count, :, :longest], self.values[:count, :, :longest]

    def get_seq_length(self) -> int:
        return self._slots.longest - 1 if self._slots.lengths else 0


def require_rows_apart(model: Any, reader: Any) -> None:
    """Check with a few tokens that rows of different lengths give what each gives by itself.

    Raises:
        LanguageModelError: they do not: the model takes masks or positions in another way.
    """
    prompts = [[number % model.config.vocab_size for number in range(1, length)] for length in (12, 4)]
    slots, alone = Slots(model, most=2), []
    for prompt in prompts:
        cache = reader.read(prompt, None)[1]
        slots.add(cache)
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([[1]]), past_key_values=cache, use_cache=True)
        alone.append(out.logits[0, -1])
    together = slots.step(model, [1, 1])
    expected = torch.stack(alone)
    bound = 0.1 if model.dtype.itemsize < 4 else 0.01
    if not bool((together - expected).abs().max() <= bound * expected.abs().max()):
        name = str(model.config.model_type)[:40]
        raise LanguageModelError("settings.batch", expected="a model that takes masks and positions", got=name)
