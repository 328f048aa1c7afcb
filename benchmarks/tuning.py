"""A step of tuning in a client beside plain transformers and PEFT: the same model, batches and optimizer, in one run.

    python -m benchmarks.tuning [--hidden 256] [--layers 4] [--steps 60] [--full] [--json]

Plain: a directory loaded by ``from_pretrained``, PEFT's ``get_peft_model``, an ordinary loop. confed: the same
directory as the tensors of a sealed model, opened from memory (``clients.tasks.causal_lm``), the ClientApp's own step.
Steps of both take turns in one process, with one thread of torch, as in a client TEE; each step is compared with
the one beside it, by the wall and in processor time, and the median of these ratios is told with the interval
that it lies in (``benchmarks.paired``).
``open`` is the time from opened bytes to a model that can train, and what ``from_pretrained`` takes from a file in the
cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.paired import Paired, in_turns, ratio
from clients.tasks.causal_lm import open_model, step
from clients.tasks.instructions import Batch
from confed.adapter import SINGLE, AdapterTerms
from confed.client.current import SiteAdapter
from confed.model.adapter import with_adapter
from confed.model.hub import read_directory
from confed.model.weights import pack, unpack

VOCABULARY = 2048
TARGETS = ("q_proj", "v_proj")


def directory(folder: Path, *, hidden: int, layers: int) -> Path:
    """Write a Llama with random weights, and a tokenizer of bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {letter: at for at, letter in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)  # noqa: S106
    return folder


def batch_of(sequences: int, tokens: int) -> Batch:
    """Return a batch of random tokens, all of which count."""
    numbers = torch.randint(1, VOCABULARY, (sequences, tokens))
    return Batch(tokens=numbers, mask=torch.ones_like(numbers), targets=numbers.clone())


def plain_model(folder: Path, *, full: bool) -> Any:
    """Return what everybody makes of a directory."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if full:
        return model.train()
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).train()


def plain_step(model: Any, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    """Take one step as everybody does."""
    optimizer.zero_grad(set_to_none=True)
    model(input_ids=batch.tokens, attention_mask=batch.mask, labels=batch.targets, use_cache=False).loss.backward()
    optimizer.step()


def measure(*, hidden: int, layers: int, steps: int, sequences: int, tokens: int, full: bool) -> dict[str, Any]:
    """Return seconds of a step, and from bytes to a model, each beside plain; ratios as ``Paired`` in JSON."""
    torch.set_num_threads(1)
    terms = AdapterTerms(method=SINGLE, rank=8, alpha=16.0, dropout=0.0, targets=TARGETS, ranks=None)
    with tempfile.TemporaryDirectory() as name:
        folder = directory(Path(name), hidden=hidden, layers=layers)
        arrays = {key: array.copy() for key, array in read_directory(folder).items()}
        plain_model(folder, full=full)  # whatever is made once
        started = time.perf_counter()
        plain = plain_model(folder, full=full)
        plain_open = time.perf_counter() - started
    if not full:
        arrays, _ = with_adapter(arrays, terms, rounds=1, updates=1, seed=1)
    opened = unpack(bytearray(b"".join(pack(arrays))))
    started = time.perf_counter()
    tuning = open_model(opened, None if full else SiteAdapter(terms=terms, rank=8), device="cpu")
    confed_open = time.perf_counter() - started
    tuning.model.train()
    own = torch.optim.AdamW(tuning.trained, lr=1e-3, weight_decay=0.0)
    theirs = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    batch = batch_of(sequences, tokens)
    ways: tuple[Callable[[], Any], ...] = (
        lambda: step(tuning, batch, own),
        lambda: plain_step(plain, batch, theirs),
    )
    own_s, plain_s = in_turns(ways, turns=steps, warm=3)
    walls, busy = ([[taken[at] for taken in way] for way in (own_s, plain_s)] for at in (0, 1))
    return {
        "parameters": float(sum(p.numel() for p in plain.parameters())),
        "step_s": statistics.median(walls[0]),
        "plain_step_s": statistics.median(walls[1]),
        "processor_s": statistics.median(busy[0]),
        "plain_processor_s": statistics.median(busy[1]),
        "step_ratio": ratio(*walls).json(),
        "processor_ratio": ratio(*busy).json(),
        "open_s": confed_open,
        "plain_open_s": plain_open,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--full", action="store_true", help="train every tensor, not an adapter")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    told = vars(parser.parse_args())
    as_json = told.pop("json")
    found = measure(**told)
    if as_json:
        print(json.dumps({**told, **found}))
        return
    print(f"{found['parameters'] / 1e6:.1f} million parameters, {'all trained' if told['full'] else 'LoRA of rank 8'}")
    print(f"a step     {found['step_s'] * 1e3:7.1f} ms, plain {found['plain_step_s'] * 1e3:7.1f} ms: "
          f"{Paired(**found['step_ratio']).told()} x by the wall,\n"
          f"           {Paired(**found['processor_ratio']).told()} x in processor time (aim 1.02)")  # fmt: skip
    print(f"to a model {found['open_s'] * 1e3:7.1f} ms, plain {found['plain_open_s'] * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
