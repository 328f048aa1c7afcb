"""Instructions and their answers: as what a data owner sealed, and as sequences that a model is tuned on.

A sequence is the prompt, the answer and the end-of-sequence token; only the answer and that token count in the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import confed.client
from confed.client.settings import Settings
from confed.errors import EmptyDatasetError, LanguageModelError
from confed.model.hub import require_context

if TYPE_CHECKING:
    from flwr.app import Context

Arrays = Mapping[str, np.ndarray]
Pair = tuple[str, str]

IGNORED = -100
"""The target of a place that does not count: transformers' own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences padded to the longest: token numbers, which of them are real, and what counts (else ``IGNORED``).

    Each has shape (sequences, tokens), int64.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor


def pack_texts(pairs: Sequence[Pair], *, part: str) -> dict[str, np.ndarray]:
    """Return prompts and answers as arrays: ``PART_bytes`` (uint8), and where each text ends (``PART_ends``, int64).

    Raises:
        EmptyDatasetError: no pair.
    """
    if not pairs:
        raise EmptyDatasetError(f"{part} examples", expected="at least one", got="none")
    texts = [text.encode() for pair in pairs for text in pair]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return {f"{part}_bytes": np.frombuffer(b"".join(texts), dtype=np.uint8), f"{part}_ends": ends}


def site_pairs(context: Context, part: str) -> list[Pair]:
    """Return the prompts and answers of this site's sealed data for a part, ``train`` or ``test``.

    They are what ``pack_texts`` made; or two columns of a table, which the settings ``prompt-column`` (``prompt``) and
    ``answer-column`` (``answer``) name, of which every ``test-every``-th row is kept for evaluation.

    Raises:
        SettingError: no ``test-every``, or one of the three that does not fit.
        ColumnError: a column that is not there, is not text, or has missing values.
        EmptyDatasetError: no row in this part.
        LanguageModelError: arrays that ``pack_texts`` has not made.
    """
    if not confed.client.site_has_table(context):
        return unpack_texts(confed.client.site_data(context), part=part)
    from confed.data.texts import pairs_of  # noqa: PLC0415 (the extra ``data``)

    terms = TableTerms.of(Settings(context.run_config))
    return pairs_of(
        confed.client.site_table(context),
        prompt=terms.prompt,
        answer=terms.answer,
        part=part,
        test_every=terms.test_every,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableTerms:
    """Which columns of a table are prompts and answers, and which rows are kept for evaluation."""

    prompt: str
    answer: str
    test_every: int

    @classmethod
    def of(cls, settings: Settings) -> TableTerms:
        """Return what an experiment's settings name.

        Raises:
            SettingError: one that is missing, or does not fit.
        """
        return cls(
            prompt=settings.text("prompt-column", default="prompt"),
            answer=settings.text("answer-column", default="answer"),
            test_every=settings.whole("test-every", least=2),
        )


def unpack_texts(arrays: Arrays, *, part: str) -> list[Pair]:
    """Return the prompts and answers of a site's opened dataset.

    Raises:
        LanguageModelError: arrays that ``pack_texts`` has not made.
    """
    try:
        data, ends = arrays[f"{part}_bytes"].tobytes(), [0, *arrays[f"{part}_ends"].tolist()]
        if ends[-1] != len(data) or sorted(ends) != ends or len(ends) % 2 == 0:
            raise ValueError(part)
        texts = [data[start:end].decode() for start, end in itertools.pairwise(ends)]
    except (KeyError, ValueError) as error:
        raise LanguageModelError(f"dataset {part}", expected="packed prompts and answers", got="others") from error
    return list(zip(texts[::2], texts[1::2], strict=True))


def sequences(
    pairs: Sequence[Pair], tokenizer: Any, *, config: Mapping[str, Any], longest: int
) -> list[tuple[list[int], int]]:
    """Return the token numbers of each pair, by a transformers tokenizer, and how many of them are the prompt's.

    Raises:
        SequenceLengthError: a sequence beyond ``longest`` or the model's context: nothing is cut off in silence.
        LanguageModelError: a tokenizer without an end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise LanguageModelError("tokenizer_config.json", expected="an eos_token", got="none")
    start: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    found: list[tuple[list[int], int]] = []
    for at, (prompt, answer) in enumerate(pairs):
        first = [*start, *_encoded(tokenizer, prompt)]
        tokens = [*first, *_encoded(tokenizer, answer), tokenizer.eos_token_id]
        require_context(len(tokens), config=config, longest=longest, what=f"example {at}")
        found.append((tokens, len(first)))
    return found


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def batch_of(chosen: Sequence[tuple[list[int], int]], *, padding: int) -> Batch:
    """Return sequences as one batch."""
    width = max((len(tokens) for tokens, _ in chosen), default=1)
    tokens = torch.full((len(chosen), width), padding, dtype=torch.int64)
    targets = torch.full((len(chosen), width), IGNORED, dtype=torch.int64)
    mask = torch.zeros((len(chosen), width), dtype=torch.int64)
    for row, (numbers, prompt) in enumerate(chosen):
        tokens[row, : len(numbers)] = torch.tensor(numbers)
        mask[row, : len(numbers)] = 1
        targets[row, prompt : len(numbers)] = torch.tensor(numbers[prompt:])
    return Batch(tokens=tokens, mask=mask, targets=targets)


def batches(all_of: Sequence[tuple[list[int], int]], *, size: int, padding: int, shuffled: bool) -> Iterator[Batch]:
    """Yield all sequences once, in an order of torch's generator where ``shuffled``."""
    order = torch.randperm(len(all_of)) if shuffled else torch.arange(len(all_of))
    for part in order.split(size):
        yield batch_of([all_of[int(at)] for at in part], padding=padding)
