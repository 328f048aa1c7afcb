"""From a prompt to tokens, each request by itself: the model reads the prompt, then goes on token by token."""

from __future__ import annotations

import inspect
import os
from collections.abc import Generator
from typing import Any, Protocol

import torch
import transformers

from clients.engines.prefixes import Prefixes
from confed.errors import LanguageModelError
from confed.inference.engine import GenerationOptions


class Decoder(Protocol):
    """What draws tokens for requests; safe for several threads."""

    def tokens(self, ids: list[int], options: GenerationOptions, *, most: int) -> Generator[int, None, None]:
        """Yield at most so many tokens that follow ``ids``, the model's own end (if it comes) as the last one.

        Whoever closes the iterator ends the request.
        """
        ...


class Draw:
    """Draws the tokens of one request: the likeliest at temperature 0, else from the nucleus of probability ``top_p``.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), section 3.1.
    """

    def __init__(self, options: GenerationOptions) -> None:
        # The library's own generator starts alike in every process.
        seed = int.from_bytes(os.urandom(8), "big") if options.seed is None else options.seed
        self._generator = torch.Generator().manual_seed(seed % 2**63)
        self._options = options

    @property
    def likeliest(self) -> bool:
        """Whether it always takes the likeliest."""
        return self._options.temperature == 0

    def token(self, logits: torch.Tensor) -> int:
        """Return the next token of logits (one row)."""
        if self.likeliest:
            return int(logits.argmax())
        chances, order = torch.softmax(logits.float() / self._options.temperature, dim=-1).sort(descending=True)
        chances[(chances.cumsum(-1) - chances) > self._options.top_p] = 0
        return int(order[torch.multinomial(chances, 1, generator=self._generator)])


class PromptReader:
    """Reads prompts, those parts excepted that the same tenant's cache has."""

    def __init__(self, model: Any, prefixes: Prefixes | None) -> None:
        self._model = model
        self._prefixes = prefixes
        # Only the last token's logits are wanted, where the model can leave the others out.
        able = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if able else {})

    @property
    def keeps(self) -> bool:
        """Whether anything is kept from one request for another."""
        return self._prefixes is not None

    def begin(self, ids: list[int], salt: str | None) -> Reading:
        """Begin to read a prompt, where the tenant's cache ends."""
        cache = None if self._prefixes is None or salt is None else self._prefixes.cache_for(salt, ids)
        return Reading(self._model, ids, cache=cache, options=self._options)

    def read(self, ids: list[int], salt: str | None) -> tuple[torch.Tensor, Any]:
        """Return the logits (one row) after a prompt that is read whole, and the model's keys and values of it."""
        reading = self.begin(ids, salt)
        logits = reading.read(len(ids))
        assert logits is not None  # noqa: S101 (there is no more than all of it)
        return logits, reading.cache

    def keep(self, ids: list[int], salt: str | None, cache: Any) -> None:
        """Keep the keys and values of a request's tokens for the next one of its tenant."""
        if self._prefixes is not None and salt is not None:
            self._prefixes.keep(salt, ids, cache)


class Reading:
    """One prompt that is read piece by piece.

    A piece attends to everything before it as in the whole, so its numbers are those of the whole but for their last
    bits: products of fewer rows may round otherwise.

    Args:
        model: that reads.
        ids: the prompt.
        cache: the model's keys and values of its beginning, if there are any.
        options: of each call of the model.

    Source: Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve" (OSDI 2024),
    section 4.1 (chunked prefills).
    """

    def __init__(self, model: Any, ids: list[int], *, cache: Any, options: dict[str, Any]) -> None:
        self._model = model
        self._ids = ids
        self.cache = cache
        """The model's keys and values of what has been read."""
        self.count = 0 if cache is None else int(cache.get_seq_length())
        """Tokens that have been read."""
        self._options = options

    def read(self, most: int) -> torch.Tensor | None:
        """Read at most so many further tokens; return the logits (one row) after the prompt, once it has been read."""
        piece = self._ids[self.count : self.count + most]
        with torch.inference_mode():
            out = self._model(input_ids=torch.tensor([piece]), past_key_values=self.cache, **self._options)
        self.cache = out.past_key_values
        self.count += len(piece)
        return out.logits[0, -1] if self.count == len(self._ids) else None


class Alone:
    """Each request by itself, on its own thread: its numbers are those of the model for it alone, to the last bit."""

    def __init__(self, model: Any, *, reader: PromptReader, ends: frozenset[int]) -> None:
        self._model = model
        self._reader = reader
        self._ends = ends

    def tokens(self, ids: list[int], options: GenerationOptions, *, most: int) -> Generator[int, None, None]:
        """Yield the tokens that follow (see ``Decoder``)."""
        draw, found, cache = Draw(options), list(ids), None
        try:
            for _ in range(most):
                if cache is None:
                    logits, cache = self._reader.read(ids, options.cache_salt)
                else:
                    logits, cache = self._next(found[-1], cache)
                found.append(draw.token(logits))
                yield found[-1]
                if found[-1] in self._ends:
                    return
        finally:
            if cache is not None:
                self._reader.keep(found[: cache.get_seq_length()], options.cache_salt, cache)

    def _next(self, token: int, cache: Any) -> tuple[torch.Tensor, Any]:
        with torch.inference_mode():
            out = self._model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        return out.logits[0, -1], out.past_key_values


def require_plain_cache(model: Any, *, setting: str) -> None:
    """Check that a model keeps keys and values of all tokens in every layer, which batches and prefixes need.

    Raises:
        LanguageModelError: a model with a window, a state or another cache of its own.
    """
    layers = transformers.DynamicCache(config=model.config).layers
    takes = "position_ids" in inspect.signature(model.forward).parameters
    if not takes or any(type(layer) is not transformers.cache_utils.DynamicLayer for layer in layers):
        expected = "a model that attends to all tokens in every layer"
        raise LanguageModelError(f"settings.{setting}", expected=expected, got=str(model.config.model_type)[:40])
