"""How low-rank adapters of several sites become one: each method's loss on the help desk's task, side by side.

    python -m benchmarks.adapters [--sites 4] [--rounds 4] [--seed 7] [--json]

Every method trains the same small model on the same sites' tickets, from the same start, with the same seeds; what
differs is how the factors are combined. confed's methods go through the enclave's own rules, on opened updates. Means
of A and B apart, which confed refuses for more than one site, are computed here for comparison, outside of its road.
The loss is over what all sites kept for evaluation, weighted by examples; training in one place on everybody's tickets
is what a federation cannot do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aggregator.combine.adapter import AdapterRule
from aggregator.combine.fold import WeightedMean, combine
from aggregator.combine.partial import part_of, whole_of
from aggregator.combine.passes import Contribution
from aggregator.combine.weights import Weights
from clients.tasks.causal_lm import Tuning, evaluate, open_model, train
from clients.tasks.instructions import sequences, unpack_texts
from confed.adapter import FFA, PRODUCT, SINGLE, STACK, AdapterTerms
from confed.client.current import SiteAdapter
from confed.model.adapter import adapter_of, with_adapter
from confed.model.trained import Trained
from confed.model.weights import layout_of, pack, unpack

Arrays = dict[str, np.ndarray]

TASK = Path(__file__).resolve().parents[1] / "experiments" / "help-desk"
RANK = 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SETTINGS = {"epochs": 3, "learning_rate": 0.005, "batch_size": 16}
LONGEST = 128


class _Plain:
    """An opened update in memory, as one chunk."""

    chunk_count = 1

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def chunk_span(self, index: int) -> tuple[int, int]:
        del index
        return 0, len(self._packed)

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        del index
        buffer[:] = self._packed


def terms_of(method: str, ranks: Mapping[str, int] | None = None) -> AdapterTerms:
    """Return an adapter's terms."""
    return AdapterTerms(method=method, rank=RANK, alpha=16.0, dropout=0.0, targets=TARGETS, ranks=ranks)


def next_version(
    model: Arrays, updates: Mapping[str, tuple[Arrays, int]], terms: AdapterTerms, trained: Sequence[str], number: int
) -> Arrays:
    """Return what the enclave makes of updates: site -> (tensors, examples)."""
    weights = Weights.of(model, layout_of(model))
    what = Trained.of(weights.layout, names=tuple(trained), tied={})
    base = part_of(weights, what)
    rule: Any = WeightedMean()
    if terms.recombines:
        modules = adapter_of(weights.layout, terms, trained=tuple(trained))
        rule = AdapterRule(terms, modules, first_component=(number - 1) * len(updates) * terms.rank)
    entries = [
        Contribution(site=site, chunks=_Plain(_packed(arrays, what)), weight=float(count), norm=_norm(arrays, model))
        for site, (arrays, count) in updates.items()
    ]
    combined = combine(entries, base=base, least=1, norm_bound=1e6, rule=rule)
    version = whole_of(combined.mean.restored(), weights, what)
    if terms.recombines:
        rule.place(version)
    return version.arrays()


def run(base: Arrays, shards: Mapping[str, Any], terms: AdapterTerms, *, rounds: int, seed: int) -> dict[str, Any]:
    """Return a method's losses after each round, and how long it took."""
    model, trained = with_adapter(base, terms, rounds=rounds, updates=len(shards), seed=seed)
    started, losses = time.perf_counter(), list[float]()
    for number in range(1, rounds + 1):
        updates: dict[str, tuple[Arrays, int]] = {}
        for at, (site, shard) in enumerate(shards.items()):
            torch.manual_seed(seed * 1000 + number * 10 + at)
            tuning = _tuning(model, terms, terms.rank_of(site))
            examples = _examples(tuning, shard, part="train")
            train(tuning, examples, **SETTINGS)
            updates[site] = tuning.update(), len(examples)
        model = next_version(model, updates, terms, trained, number)
        losses.append(loss_of(model, terms, shards))
    return {"losses": losses, "seconds": time.perf_counter() - started}


def loss_of(model: Arrays, terms: AdapterTerms, shards: Mapping[str, Any]) -> float:
    """Return a version's mean loss over all sites' held-out examples."""
    tuning = _tuning(model, terms, terms.rank)
    found = [
        (evaluate(tuning, examples, batch_size=16), len(examples))
        for examples in (_examples(tuning, shard, part="test") for shard in shards.values())
    ]
    return float(np.average([loss for loss, _ in found], weights=[count for _, count in found]))


def in_one_place(base: Arrays, shards: Mapping[str, Any], *, rounds: int, seed: int) -> dict[str, Any]:
    """Return the losses of one adapter trained on everybody's tickets."""
    terms = terms_of(SINGLE)
    model, _ = with_adapter(base, terms, rounds=rounds, updates=1, seed=seed)
    started, losses = time.perf_counter(), list[float]()
    for number in range(1, rounds + 1):
        torch.manual_seed(seed * 1000 + number)
        tuning = _tuning(model, terms, terms.rank)
        train(tuning, [e for shard in shards.values() for e in _examples(tuning, shard, part="train")], **SETTINGS)
        model = {**model, **tuning.update()}
        losses.append(loss_of(model, terms, shards))
    return {"losses": losses, "seconds": time.perf_counter() - started}


def measure(*, sites: int, rounds: int, seed: int, base_steps: int, examples: int) -> dict[str, Any]:
    """Return every method's figures."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(TASK))
    base: Arrays = importlib.import_module("base_model").base_model(seed=seed, steps=base_steps)
    names = [f"site-{number:02d}" for number in range(1, sites + 1)]
    shards = importlib.import_module("data").shards(names, seed, {"examples": examples})
    ranks = {name: RANK if at % 2 else RANK // 4 for at, name in enumerate(names)}
    ways: dict[str, AdapterTerms] = {
        "A and B apart (confed refuses it)": terms_of(SINGLE),
        "ffa": terms_of(FFA),
        "product": terms_of(PRODUCT),
        f"product, ranks {RANK // 4} and {RANK}": terms_of(PRODUCT, ranks),
        "stack": terms_of(STACK),
    }
    start, _ = with_adapter(base, terms_of(SINGLE), rounds=1, updates=1, seed=seed)
    found: dict[str, Any] = {"untuned": loss_of(start, terms_of(SINGLE), shards)}
    found["methods"] = {name: run(base, shards, terms, rounds=rounds, seed=seed) for name, terms in ways.items()}
    found["methods"]["in one place"] = in_one_place(base, shards, rounds=rounds, seed=seed)
    return found


def _tuning(model: Arrays, terms: AdapterTerms, rank: int) -> Tuning:
    opened = unpack(bytearray(b"".join(pack(model))))
    return open_model(opened, SiteAdapter(terms=terms, rank=rank), device="cpu")


def _examples(tuning: Tuning, shard: Any, *, part: str) -> list[tuple[list[int], int]]:
    return sequences(unpack_texts(shard, part=part), tuning.tokenizer, config=tuning.config, longest=LONGEST)


def _packed(arrays: Arrays, what: Trained) -> bytes:
    return b"".join(pack({tensor.name: arrays[tensor.name] for tensor in what.part.tensors}, like=what.part))


def _norm(arrays: Arrays, model: Arrays) -> float:
    return float(np.sqrt(sum(((array - model[name]).astype(np.float64) ** 2).sum() for name, array in arrays.items())))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--base-steps", type=int, default=150, help="of the base model's own training")
    parser.add_argument("--examples", type=int, default=120, help="of each site")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    told = vars(parser.parse_args())
    as_json = told.pop("json")
    found = measure(**told)
    if as_json:
        print(json.dumps({**told, **found}))
        return
    print(f"{told['sites']} sites, rank {RANK}; loss of the untuned model {found['untuned']:.3f}")
    for name, row in found["methods"].items():
        print(f"{name:34s}" + "  ".join(f"{loss:.3f}" for loss in row["losses"]) + f"   {row['seconds']:.1f} s")


if __name__ == "__main__":
    main()
