"""The fold over real containers of several chunks: what is wrong in the last of them, and how much memory it takes."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from aggregator_world import norm_of, weights_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from test_fold import Arrays, same_bits

from aggregator.combine.fold import Combined, Rule, WeightedMean, combine
from aggregator.combine.passes import Contribution
from aggregator.combine.robust import Median
from confed.journey import Kind
from confed.model.weights import pack
from confed.sealing.container import CHUNK_BYTES, Container, Draft, OpenContainer, seal_to_file
from confed.sealing.header import TAG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

KEY = bytes(range(32))
ELEMENTS = 4 * CHUNK_BYTES // 4 + 1000
"""Five chunks, the last a short one."""
RULES: dict[str, Rule] = {"the mean": WeightedMean(), "the median": Median()}


def large(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).normal(size=ELEMENTS).astype(np.float32)}


BASE = large(100)


@pytest.fixture
def cohort(tmp_path: Path) -> list[Contribution]:
    signing_key = Ed25519PrivateKey.generate()
    entries: list[Contribution] = []
    for number in range(5):
        path, update = tmp_path / f"{number}.sealed", large(number)
        seal_to_file(
            pack(update),
            Draft(kind=Kind.UPDATE, container_id=f"update-{number}"),
            data_key=KEY,
            signing_key=signing_key,
            path=path,
        )
        chunks = Container.map(path).unlock(KEY)
        assert chunks.chunk_count == 5
        norm = norm_of(update, BASE)
        entries.append(Contribution(site=f"site-{number}", chunks=chunks, weight=number + 1.0, norm=norm))
    return entries


def folded(entries: Sequence[Contribution], rule: Rule, *, threads: int) -> Combined:
    return combine(entries, base=weights_of(BASE), least=2, norm_bound=1e9, rule=rule, threads=threads)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def cut(path: Path, offset: int) -> None:
    path.write_bytes(path.read_bytes()[:offset])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("change", "offset", "code"),
    [
        (flip, -1, "tampered"),
        (flip, -TAG_BYTES - 1, "tampered"),
        (flip, -TAG_BYTES - CHUNK_BYTES // 2, "tampered"),
        (cut, -1, "truncated"),
    ],
    ids=["the last tag", "the last value", "the chunk before", "the file's end"],
)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_sender_that_turns_out_bad_in_its_last_chunk_is_excluded_and_the_fold_starts_over(
    rule: Rule,
    change: Callable[[Path, int], None],
    offset: int,
    code: str,
    threads: int,
    cohort: list[Contribution],
    tmp_path: Path,
) -> None:
    change(tmp_path / "2.sealed", offset)  # after it was accepted: its header and size were checked, and are as before
    found = folded(cohort, rule, threads=threads)
    assert {site: error.code for site, error in found.excluded.items()} == {"site-2": code}
    others = [entry for entry in cohort if entry.site != "site-2"]
    assert found.sites == tuple(entry.site for entry in others)
    assert same_bits(found.mean.arrays(), folded(others, rule, threads=1).mean.arrays())


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_part_of_a_chunk_is_opened_with_its_tag_checked(
    rule: Rule, cohort: list[Contribution], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is changed while the fold is under way: what was read before counts for nothing."""
    read, seen = OpenContainer.read_chunk_into, list[int]()
    monkeypatch.setattr("aggregator.combine.blocks.WORKER_BYTES", CHUNK_BYTES)

    def changing(self: OpenContainer, index: int, buffer: memoryview) -> None:
        read(self, index, buffer)
        if self is cohort[2].chunks and index == 0:
            seen.append(index)
            if len(seen) == 1:
                flip(tmp_path / "2.sealed", -CHUNK_BYTES * 3)

    monkeypatch.setattr(OpenContainer, "read_chunk_into", changing)
    found = folded(cohort, rule, threads=1)
    assert {site: error.code for site, error in found.excluded.items()} == {"site-2": "tampered"}
    if isinstance(rule, Median):
        assert len(seen) > 1


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("clients", [2, 70])
def test_memory_is_the_result_and_64_mib_however_many_updates_there_are(
    rule: Rule, clients: int, cohort: list[Contribution]
) -> None:
    entries = [dataclasses.replace(cohort[0], site=f"site-{number:03}") for number in range(clients)]
    tracemalloc.start()
    try:
        found = folded(entries, rule, threads=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found.sites) == clients
    assert peak <= found.mean.layout.total_bytes + 64 * 1024**2
