"""One round as a client TEE sees it: the base that it opened, and what each of its sites was granted."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from confed.errors import ConfedError
from confed.journey import Purpose
from confed.keybroker.statements import AggregatorCredential
from confed.model.trained import Trained
from confed.statement import Signed

Arrays = Mapping[str, np.ndarray[Any, Any]]
Item = TypeVar("Item")
STAGES = ("attest", "release", "fetch", "open", "train", "seal", "send", "commit")


def no_seconds() -> dict[str, float]:
    """Return zero seconds for every stage."""
    return {stage: 0.0 for stage in STAGES}  # noqa: C420 (a dict of plain text keys, not of literals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Itself:
    """The client in an aggregator's place: where a run has none, it makes the version itself."""

    instance: str
    hpke_public: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MakerKeys:
    """The keys that the maker of a version seals it with, its state, and checkpoints on the way there.

    ``base_state`` opens the state that the base carries, where it carries one.
    """

    version: bytes = field(repr=False)
    state: bytes = field(repr=False)
    checkpoint: bytes = field(repr=False)
    base_state: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What one identity holds in one step: its credential, its ticket and the aggregator that it seals to."""

    credential: Signed
    ticket: Signed
    aggregator: AggregatorCredential | Itself


@dataclass(slots=True, kw_only=True)
class Step:
    """One prepared round, attempt and purpose; ``grants`` has, for each hosted site, its grants or why it has none.

    ``record`` is the base's commit record, empty for the start; ``keys`` are there where this client makes the version.
    ``seconds`` is what preparing took; who reports it first sets it back to zero. ``frozen`` is the digest of what an
    adapter is trained beside, taken when it was opened; empty without an adapter. ``trained`` is what travels of the
    base, once it is known.
    """

    round_number: int
    attempt: int
    purpose: Purpose
    base: str
    arrays: Arrays
    grants: Mapping[str, Grants | ConfedError]
    record: bytes = b""
    keys: MakerKeys | None = None
    seconds: dict[str, float] = field(default_factory=no_seconds)
    frozen: str = ""
    trained: Trained | None = None


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Generator[None]:
    """Add what the block takes to a stage."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] += time.perf_counter() - started


@contextmanager
def timed_apart(
    seconds: dict[str, float], stage: str, items: Iterable[Item], waiting: str
) -> Generator[Iterator[Item]]:
    """Add what the block takes to a stage, but what it waits for the next of ``items`` to the stage ``waiting``."""
    waited = 0.0

    def apart() -> Iterator[Item]:
        nonlocal waited
        iterator, started = iter(items), time.perf_counter()
        for item in iterator:
            waited += time.perf_counter() - started
            yield item
            started = time.perf_counter()
        waited += time.perf_counter() - started

    started = time.perf_counter()
    try:
        yield apart()
    finally:
        seconds[waiting] += waited
        seconds[stage] += time.perf_counter() - started - waited
