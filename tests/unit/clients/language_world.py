"""A tiny Llama in the Hub's layout, made here: a byte-level tokenizer, random weights, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from confed.adapter import AdapterTerms
from confed.inference.engine import GenerationOptions, Generator
from confed.model.adapter import with_adapter
from confed.model.hub import read_directory

torch.set_num_threads(1)  # for models this small, as in a client TEE

TARGETS = ("q_proj", "v_proj")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte, and one for the end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {letter: at for at, letter in enumerate(alphabet, 1)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def tiny_llama(*, tied: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype)


def hub_directory(folder: Path, **llama: Any) -> Path:
    """Write a tiny Llama and its tokenizer as their libraries do."""
    tiny_llama(**llama).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def terms(method: str = "ffa", **changes: Any) -> AdapterTerms:
    values: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": TARGETS, "ranks": None}
    return AdapterTerms(**{**values, "method": method, **changes})


def start(folder: Path, of: AdapterTerms, *, rounds: int = 2, updates: int = 2, **llama: Any) -> dict[str, np.ndarray]:
    """Return a sealed start's arrays: a tiny Llama's, with an adapter."""
    arrays = read_directory(hub_directory(folder, **llama))
    return with_adapter(arrays, of, rounds=rounds, updates=updates, seed=7)[0]


def asked(**changes: Any) -> GenerationOptions:
    values: dict[str, Any] = {
        "max_tokens": 20, "temperature": 0, "top_p": 1.0, "seed": None, "stop": (), "special_tokens": True,
        "cache_salt": None,
    }  # fmt: skip
    return GenerationOptions(**{**values, **changes})


def said(engine: Generator, prompt: str, **changes: Any) -> str:
    return "".join(piece.text for piece in engine.generate(prompt, asked(**changes)))


def changed_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
