"""How long a running answer stands still while a long prompt arrives: the prompt read whole, and read in pieces.

    python -m benchmarks.long_prompt [--prompt N] [--chunk N ...] [--repeat N] [--json]

The engine alone, in this process, with one thread for the model: a small random Llama, of whose answers four run. A
prompt of N tokens comes, and the largest time between two tokens of any running answer is taken, beside the median
time between them and the time to the new answer's first token. Whole and in pieces take turns; a figure is the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clients.engines.generation import TextGeneration
from confed.inference.engine import GenerationOptions, Piece
from confed.model.hub import read_directory

_RUNNING = 4
_WORDS = 512


def engine(folder: Path, *, prompt: int, chunk: int) -> TextGeneration:
    """Return the engine with a random model that never ends by itself."""
    if not (folder / "config.json").exists():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=_WORDS, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=2 * prompt, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        known = {f"w{number}": number for number in range(_WORDS)}
        words = Tokenizer(models.WordLevel(known, unk_token="w0"))  # noqa: S106 (a word)
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)  # noqa: S106
    return TextGeneration(read_directory(folder), {"batch": _RUNNING + 1, "prefill-chunk": chunk})


def said(made: TextGeneration, words: Iterable[int], *, most: int) -> Generator[Piece]:
    """Yield what follows these words, piece by piece."""
    options = GenerationOptions(
        max_tokens=most, temperature=0, top_p=1.0, seed=None, stop=(), special_tokens=True, cache_salt=None
    )
    yield from made.generate(" ".join(f"w{number % _WORDS}" for number in words), options)


def measure(made: TextGeneration, *, prompt: int) -> dict[str, float]:
    """Return the largest and the median time between tokens of running answers, and the first token's of the new."""
    times: list[list[float]] = [[] for _ in range(_RUNNING)]
    began, ended = threading.Barrier(_RUNNING + 1), threading.Event()

    def run(number: int) -> None:
        with closing(said(made, [number, 7, 8], most=prompt)) as pieces:
            for _ in pieces:
                times[number].append(time.perf_counter())
                if len(times[number]) == 8:
                    began.wait()
                if ended.is_set():
                    return

    threads = [threading.Thread(target=run, args=(number,)) for number in range(_RUNNING)]
    for thread in threads:
        thread.start()
    began.wait()
    asked = time.perf_counter()
    with closing(said(made, range(prompt), most=2)) as pieces:
        next(pieces)
        first = time.perf_counter() - asked
        next(pieces)
    ended.set()
    for thread in threads:
        thread.join()
    gaps = [after - before for each in times for before, after in pairwise(each) if after > asked]
    return {
        "largest_gap_ms": max(gaps) * 1e3,
        "median_gap_ms": statistics.median(gaps) * 1e3,
        "first_token_ms": first * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the long prompt")
    parser.add_argument("--chunk", type=int, nargs="+", default=[128], help="tokens of a piece")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="confed-prompt-") as place:
        ways = {"whole": told.prompt} | {f"pieces of {chunk}": chunk for chunk in told.chunk}
        engines = {name: engine(Path(place), prompt=told.prompt, chunk=chunk) for name, chunk in ways.items()}
        taken = [
            {name: measure(made, prompt=told.prompt) for name, made in engines.items()} for _ in range(told.repeat)
        ]
    found = {
        name: {what: round(statistics.median(turn[name][what] for turn in taken), 1) for what in taken[0][name]}
        for name in ways
    }
    if told.json:
        print(json.dumps(found))
        return
    print(f"{'':16}{'largest gap':>12}{'median gap':>12}{'first token':>13}   (ms; prompt of {told.prompt} tokens)")
    for name, values in found.items():
        print(f"{name:16}{values['largest_gap_ms']:12}{values['median_gap_ms']:12}{values['first_token_ms']:13}")


if __name__ == "__main__":
    main()
