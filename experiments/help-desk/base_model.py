"""Model owner's side: a small Llama that has read an office's plain sentences, in the Hub's layout.

A real owner has such a directory already. This one is made here, without any download: a byte-level tokenizer with a
few merges, random weights, and some seconds of ordinary training, so that an adapter has something to adapt.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from texts import office
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from confed.model.hub import read_directory

_END = "<end>"
_VOCABULARY = 384
_CONTEXT = 128
_LINES = 400
_BATCH = 16


def tokenizer(lines: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose merges are those of some lines."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=_END, pad_token=_END)


def base_model(*, seed: int, steps: int, lines: list[str] | None = None) -> dict[str, np.ndarray]:
    """Return the model's tensors and documents, as ``confed model seal DIR`` would read them from a directory.

    ``lines`` are what it reads; without them it reads an office's plain sentences.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    lines = lines or office(count=_LINES, seed=seed)
    words = tokenizer(lines)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    _read(model, [[*words.encode(line), words.eos_token_id] for line in lines], steps=steps, padding=words.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:  # the owner's own machine, and nothing secret: it is made of a seed
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        return {name: np.array(array) for name, array in read_directory(Path(folder)).items()}


def _read(model: Any, lines: list[list[int]], *, steps: int, padding: int) -> None:
    """Train on plain text, as everybody does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        chosen = [lines[(step * _BATCH + at) % len(lines)] for at in range(_BATCH)]
        width = max(len(line) for line in chosen)
        tokens = torch.tensor([line + [padding] * (width - len(line)) for line in chosen])
        targets = torch.tensor([line + [-100] * (width - len(line)) for line in chosen])
        optimizer.zero_grad()
        model(input_ids=tokens, attention_mask=(targets != -100).long(), labels=targets).loss.backward()
        optimizer.step()


def of_settings(settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the base model that an experiment file asks for."""
    return base_model(seed=int(settings["model-seed"]), steps=int(settings["base-steps"]))
