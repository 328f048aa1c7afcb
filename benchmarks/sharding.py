"""A plan for more than one aggregator enclave, played through: shards by tensor range beside a tree of sub-cohorts.

    python -m benchmarks.sharding [--clients 20] [--parameters 2000000] [--json]

The updates are real sealed containers and every enclave's work is the real fold; only what would travel between
enclaves is played here. One enclave after the other works on one thread, and ``slowest_s`` is the longest of them:
what a round would take if each had a machine. ``memory_mb`` is the base and the result that one enclave keeps,
``inbound_mb`` what it fetches.

Shards: each client seals one container for each shard, to that shard's own key; its declaration has the norms of all
its parts. Every shard checks its own part's norm and that all of them together keep the bound. A sender that any shard
finds wrong is excluded by all: they name whom they exclude until nobody is new, and fold again.

Tree: leaves fold sub-cohorts fixed by the manifest, the root adds their sums.

What is shown to hold: shards give one enclave's result to the bit, for the mean and the median; a sender bad in one
shard is in none; shards that folded different cohorts give no result; and what a tree's grouping changes in the mean.
The plan and how the rules of cohorts hold there stand in DECISIONS.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.combine.fold import Rule, WeightedMean, combine
from aggregator.combine.passes import Contribution
from aggregator.combine.robust import Median
from aggregator.combine.weights import Weights
from confed.errors import CohortError, ConfedError, NormError
from confed.journey import Kind
from confed.model.weights import layout_of, pack
from confed.sealing.container import Container, Draft, seal_to_file

_KEY = bytes(range(32))
_LEAST = 3
_NORM_BOUND = 1e6
_SHARDS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One client's sealed part for one shard, and the norms of all its parts that its declaration has."""

    site: str
    path: Path
    weight: float
    norms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One enclave: its number, its range of the base, and the parts that reached it."""

    number: int
    base: Weights
    parts: dict[str, Part]

    def fold(self, rule: Rule, excluded: frozenset[str]) -> tuple[np.ndarray, dict[str, ConfedError], tuple[str, ...]]:
        """Return the result of its range, whom it excludes, and whom it folded."""
        wrong: dict[str, ConfedError] = {}
        sound: list[Contribution] = []
        for part in self.parts.values():
            if part.site in excluded:
                continue
            if math.hypot(*part.norms) > _NORM_BOUND:
                wrong[part.site] = NormError(f"{part.site} norm", expected=f"at most {_NORM_BOUND}", got="more")
                continue
            chunks = Container.map(part.path).unlock(_KEY)
            norm = part.norms[self.number]
            sound.append(Contribution(site=part.site, chunks=chunks, weight=part.weight, norm=norm))
        found = combine(sound, base=self.base, least=_LEAST, norm_bound=_NORM_BOUND, rule=rule, excluded=wrong)
        return found.mean.flats["F32"], wrong, found.sites


def agreed(shards: list[Shard], rule: Rule) -> tuple[list[np.ndarray], tuple[str, ...], list[float]]:
    """Return all shards' results over one cohort, that cohort, and each shard's seconds.

    1. Everybody drawn whose part did not reach every shard is excluded before anything is folded.
    2. Each shard folds and names whom it excludes; all fold again without them, until nobody is new.
    3. Results count only if every shard folded the same cohort: what brokers read off the candidate.
    """
    drawn = frozenset().union(*(shard.parts for shard in shards))
    excluded = frozenset(site for site in drawn if any(site not in shard.parts for shard in shards))
    seconds = [0.0] * len(shards)
    while True:
        found: list[tuple[np.ndarray, dict[str, ConfedError], tuple[str, ...]]] = []
        for shard in shards:
            started = time.perf_counter()
            found.append(shard.fold(rule, excluded))
            seconds[shard.number] += time.perf_counter() - started
        new = frozenset().union(*(wrong for _, wrong, _ in found))
        if not new:
            require_one_cohort([sites for _, _, sites in found])
            return [flat for flat, _, _ in found], found[0][2], seconds
        excluded |= new


def require_one_cohort(cohorts: list[tuple[str, ...]]) -> None:
    """Refuse results of different cohorts: the difference of two ranges' cohorts would tell of single sites."""
    if len(set(cohorts)) != 1:
        raise CohortError("shards' cohorts", expected="one", got=len(set(cohorts)))


def require_apart(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    """Refuse a repeated round whose cohort is neither the same nor differs by ``_LEAST``: the rule of one enclave."""
    apart = len(set(first) ^ set(second))
    if 0 < apart < _LEAST:
        raise CohortError("repeated round", expected=f"the same cohort, or {_LEAST} apart", got=apart)


def bounds(size: int, count: int) -> list[tuple[int, int]]:
    """Return ranges of elements: fixed by the manifest's layout and the number of shards alone."""
    return [(size * part // count, size * (part + 1) // count) for part in range(count)]


def vector(parameters: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(parameters, dtype=np.float32)


def sharded(folder: Path, count: int, *, clients: int, parameters: int) -> list[Shard]:
    """Seal every client's parts for ``count`` enclaves."""
    base, key = vector(parameters, 0), Ed25519PrivateKey.generate()
    spans = bounds(parameters, count)
    parts: list[dict[str, Part]] = [{} for _ in spans]
    for client in range(clients):
        update, site = vector(parameters, client + 1), f"site-{client:03}"
        norms = tuple(
            float(np.linalg.norm((update[low:high] - base[low:high]).astype(np.float64))) for low, high in spans
        )
        for number, (low, high) in enumerate(spans):
            path = folder / f"{count}-{number}-{client}.sealed"
            draft = Draft(kind=Kind.UPDATE, container_id=path.name)
            seal_to_file(pack({"x": update[low:high]}), draft, data_key=_KEY, signing_key=key, path=path)
            parts[number][site] = Part(site=site, path=path, weight=client + 1.0, norms=norms)
    return [
        Shard(number=number, base=_weights(base[low:high]), parts=parts[number])
        for number, (low, high) in enumerate(spans)
    ]


def tree(shard: Shard, groups: int) -> tuple[np.ndarray, float]:
    """Return the mean by a tree over one whole-model enclave's updates, and the seconds of its longest path."""
    sites = sorted(shard.parts)
    leaves: list[tuple[np.ndarray, float]] = []
    slowest = 0.0
    for low, high in bounds(len(sites), groups):
        own = {site: shard.parts[site] for site in sites[low:high]}
        started = time.perf_counter()
        flat, _, folded = Shard(number=0, base=shard.base, parts=own).fold(WeightedMean(), frozenset())
        slowest = max(slowest, time.perf_counter() - started)
        leaves.append((flat, sum(own[site].weight for site in folded)))
    started = time.perf_counter()
    total = sum(weight for _, weight in leaves)
    mean = np.zeros_like(leaves[0][0])
    for flat, weight in leaves:
        mean += flat * (weight / total)
    return mean, slowest + time.perf_counter() - started


def measure(*, clients: int, parameters: int) -> list[dict[str, Any]]:
    """Play every arrangement and return its figures."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="confed-sharding-") as name:
        whole = sharded(Path(name), 1, clients=clients, parameters=parameters)
        expected = {kind: agreed(whole, rule)[0][0] for kind, rule in _RULES.items()}
        for count in _SHARDS:
            shards = whole if count == 1 else sharded(Path(name), count, clients=clients, parameters=parameters)
            for kind, rule in _RULES.items():
                flats, _, seconds = agreed(shards, rule)
                row = _row(f"{count} shards, {kind}", seconds, shards, parameters, clients)
                rows.append(row | _compared(np.concatenate(flats), expected[kind], same=True))
            rows[-1] |= wrong_turns(shards) if count > 1 else {}
        for groups in (2, 4):
            mean, seconds = tree(whole[0], groups)
            row = _row(f"tree of {groups}, mean", [seconds], whole, parameters, clients / groups)
            rows.append(row | _compared(mean, expected["mean"], same=False))
    return rows


_RULES: dict[str, Rule] = {"mean": WeightedMean(), "median": Median()}


def wrong_turns(shards: list[Shard]) -> dict[str, str]:
    """Return what becomes of a sender bad in one shard, of one kept from a shard, and of differing cohorts."""
    honest = agreed(shards, WeightedMean())[1]
    victim = shards[-1].parts[honest[1]]
    data = bytearray(victim.path.read_bytes())
    data[-1] ^= 1
    victim.path.write_bytes(data)
    without = agreed(shards, WeightedMean())[1]
    data[-1] ^= 1
    victim.path.write_bytes(data)
    held = {site: part for site, part in shards[0].parts.items() if site != victim.site}
    kept = agreed([Shard(number=0, base=shards[0].base, parts=held), *shards[1:]], WeightedMean())[1]
    return {
        "bad_in_one": _told(set(honest) - set(without) == {victim.site}, "excluded in all"),
        "kept_from_one": _told(kept == without, "excluded in all"),
        "two_cohorts": _refusal(lambda: require_one_cohort([honest, *[without] * (len(shards) - 1)])),
        "round_again": _refusal(lambda: require_apart(honest, without)),
    }


def _compared(found: np.ndarray, expected: np.ndarray, *, same: bool) -> dict[str, float]:
    if same:
        _told(found.tobytes() == expected.tobytes(), "the bits of one enclave")
    return {"difference": float(np.abs(found - expected).max())}


def _told(holds: bool, what: str) -> str:  # noqa: FBT001 (a check's outcome)
    if not holds:
        raise SystemExit(f"does not hold: {what}")
    return what


def _refusal(check: Any) -> str:
    try:
        check()
    except CohortError as error:
        return error.code
    raise SystemExit("was not refused")


def _row(name: str, seconds: list[float], shards: list[Shard], parameters: int, clients: float) -> dict[str, Any]:
    return {
        "arrangement": name,
        "slowest_s": round(max(seconds), 3),
        "memory_mb": round(2 * parameters * 4 / len(shards) / 1e6, 1),
        "inbound_mb": round(clients * parameters * 4 / len(shards) / 1e6, 1),
    }


def _weights(flat: np.ndarray) -> Weights:
    arrays = {"x": flat}
    return Weights.of(arrays, layout_of(arrays))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--parameters", type=int, default=2_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.clients < 4 * _LEAST:
        raise SystemExit(f"--clients: a leaf of the tree needs {_LEAST}: at least {4 * _LEAST}")
    rows = measure(clients=arguments.clients, parameters=arguments.parameters)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
