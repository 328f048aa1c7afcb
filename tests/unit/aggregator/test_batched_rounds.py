"""A cohort in batches: the same result however it is cut, judged once, and nothing of a batch counts twice."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World, norm_of
from test_private import TERMS

from confed.aggregation import AggregationTerms
from confed.compression import CompressionTerms
from confed.errors import (
    BatchError,
    DuplicateUpdateError,
    RoundError,
    ShortCohortError,
    StorageError,
)
from confed.keybroker.statements import Candidate, CommitRecord
from confed.manifest import MetricTerms, StrategyTerms
from confed.privacy.terms import AdaptiveClip, PrivacyState, SamplingTerms
from confed.statement import unverified

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from aggregator.run import Closed, Run

SITES = 5
LARGE = {"weight": np.linspace(-1.0, 1.0, 300_000, dtype=np.float32), "scale": np.array(0.5, dtype=np.float64)}
"""Two chunks."""


def make(tmp_path: Path, batch: int | None, **terms: Any) -> World:
    number = len(list(tmp_path.iterdir()))
    return World(tmp_path / f"world-{number}", sites=SITES, aggregation=AggregationTerms(batch=batch), **terms)


def begun(world: World, *, attempt: int = 0, threads: int = 1) -> Run:
    run = world.run(threads=threads)
    run.attest(first_round=1, attempt=attempt)
    run.open_round(round_number=1, attempt=attempt, purpose="train")
    return run


def submit(world: World, run: Run, number: int, *, attempt: int = 0, changes: Changes | None = None) -> None:
    digest = world.send(
        number, world.trained(number, world.model), attempt=attempt, changes=changes, metrics={"loss": float(number)}
    )
    run.submit(site=f"site-{number}", digest=digest)


def walk(
    world: World,
    run: Run,
    *,
    attempt: int = 0,
    changes: Mapping[int, Changes] | None = None,
    without: Iterable[int] = (),
    backwards: bool = False,
) -> Closed:
    """Send and fold every batch, and close."""
    batches = world.manifest.aggregation.cut(range(SITES))
    for at, batch in enumerate(batches):
        for number in reversed(batch) if backwards else batch:
            if number not in without:
                submit(world, run, number, attempt=attempt, changes=(changes or {}).get(number))
        if at + 1 < len(batches):
            run.fold_batch(batch=at)
    return run.close_round(absent={})


def candidate(closed: Closed) -> Candidate:
    return unverified(CommitRecord.from_bytes(closed.record).candidate, Candidate)


def version(world: World, closed: Closed) -> dict[str, np.ndarray]:
    said = candidate(closed)
    return world.open_version(said.digest, version=1, attempt=said.attempt)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(array.tobytes() == other[name].tobytes() for name, array in one.items())


@pytest.mark.parametrize("model", [None, LARGE], ids=["small", "two chunks"])
def test_the_result_does_not_depend_on_batches_arrival_or_threads(model: Any, tmp_path: Path) -> None:
    results = []
    for batch, threads, backwards in ((1, 1, False), (2, 2, True), (3, 1, True), (SITES, 2, False)):
        world = make(tmp_path, batch, model=model)
        closed = walk(world, begun(world, threads=threads), backwards=backwards)
        assert (closed.cohort_size, closed.metrics["loss"]) == (SITES, 2.6667)
        results.append(version(world, closed))
        assert not list(world.folder.iterdir()), "nothing lies about"
    assert all(same(results[0], other) for other in results[1:])
    plain = make(tmp_path, None, model=model)
    expected = version(plain, walk(plain, begun(plain)))
    for name, array in expected.items():
        np.testing.assert_allclose(results[0][name], array, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["FedProx", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_every_strategy_that_adds_up_gives_what_it_gives_at_once(name: str, tmp_path: Path) -> None:
    parameters = {"server_momentum": 0.9} if name == "FedAvgM" else {"proximal_mu": 0.1} if name == "FedProx" else {}
    strategy = StrategyTerms(name=name, parameters=parameters)
    found = []
    for batch in (2, None):
        world = make(tmp_path, batch, strategy=strategy)
        found.append(version(world, walk(world, begun(world))))
    for key, array in found[0].items():
        np.testing.assert_allclose(array, found[1][key], rtol=1e-5, atol=1e-6)


def test_compressed_updates_are_batched_like_others(tmp_path: Path) -> None:
    found = []
    for batch in (2, None):
        world = make(tmp_path, batch, compression=CompressionTerms(name="bf16", fraction=None, feedback=False))
        found.append(version(world, walk(world, begun(world))))
    for key, array in found[0].items():
        np.testing.assert_allclose(array, found[1][key], rtol=1e-6, atol=1e-7)


def flipped(sealed: bytes) -> bytes:
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        (Changes(declared={"norm": 1e-3}), "norm"),
        (Changes(sealed=flipped), "tampered"),
        (Changes(declared={"weight": 1e9}), "weight"),
    ],
    ids=["a false norm", "its last byte", "its weight"],
)
@pytest.mark.parametrize("bad", [0, 3, 4], ids=["first batch", "second batch", "last batch"])
def test_a_bad_sender_is_left_out_of_its_batch_bit_for_bit(
    changes: Changes, code: str, bad: int, tmp_path: Path
) -> None:
    world, without = make(tmp_path, 2), make(tmp_path, 2)
    closed = walk(world, begun(world), changes={bad: changes})
    assert closed.excluded == {f"site-{bad}": code}
    assert closed.cohort_size == SITES - 1 == len(candidate(closed).cohort)
    assert same(version(world, closed), version(without, walk(without, begun(without), without=[bad])))


def test_a_site_of_a_batch_that_is_over_counts_no_more_and_one_of_the_next_not_yet(tmp_path: Path) -> None:
    world = make(tmp_path, 2)
    run = begun(world)
    submit(world, run, 0)
    with pytest.raises(BatchError):
        submit(world, run, 2)
    run.fold_batch(batch=0)
    with pytest.raises(DuplicateUpdateError):
        submit(world, run, 0)
    with pytest.raises(BatchError):
        submit(world, run, 1)
    submit(world, run, 2)
    run.fold_batch(batch=1)
    submit(world, run, 4)
    closed = run.close_round(absent={"site-3": "no-answer"})
    assert closed.excluded == {"site-1": "other-batch", "site-3": "no-answer"}
    world = make(tmp_path, 2)
    assert same(version(run_world(run, world), closed), version(world, walk(world, begun(world), without=[1, 3])))


def run_world(run: Run, other: World) -> World:
    """Return a world that opens what ``run`` sealed: only its courier differs."""
    seen = World.__new__(World)
    seen.__dict__.update(other.__dict__)
    seen.courier = run._courier  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def test_what_an_attempt_folded_is_nothing_to_the_next(tmp_path: Path) -> None:
    world, honest = make(tmp_path, 2), make(tmp_path, 2)
    run = begun(world)
    submit(world, run, 0)
    submit(world, run, 1)
    run.fold_batch(batch=0)
    submit(world, run, 2)
    second = begun(world, attempt=1)  # a new instance: the first died between two batches
    for number in (0, 1):
        submit(world, second, number, attempt=1)
    second.fold_batch(batch=0)
    for number in (2, 3):
        submit(world, second, number, attempt=1)
    second.fold_batch(batch=1)
    submit(world, second, 4, attempt=1)
    closed = second.close_round(absent={})
    assert closed.cohort_size == SITES
    assert same(version(world, closed), version(honest, walk(honest, begun(honest))))


def test_the_same_instance_begins_another_attempt_with_an_empty_sum(tmp_path: Path) -> None:
    world, honest = make(tmp_path, 2), make(tmp_path, 2)
    run = begun(world)
    submit(world, run, 0)
    run.fold_batch(batch=0)
    run.open_round(round_number=1, attempt=1, purpose="train")
    closed = walk(world, run, attempt=1)
    assert same(version(world, closed), version(honest, walk(honest, begun(honest))))


def test_batches_come_in_their_order_and_the_last_ends_with_the_round(tmp_path: Path) -> None:
    world = make(tmp_path, 2)
    run = begun(world)
    submit(world, run, 0)
    for wrong in (1, 2, 7):
        with pytest.raises(RoundError):
            run.fold_batch(batch=wrong)
    run.fold_batch(batch=0)
    with pytest.raises(RoundError):
        run.fold_batch(batch=0)
    run.fold_batch(batch=1)
    with pytest.raises(RoundError):
        run.fold_batch(batch=2)
    submit(world, run, 4)
    assert run.close_round(absent={}).cohort_size == 2
    run.open_round(round_number=1, attempt=0, purpose="evaluate")
    with pytest.raises(RoundError):
        run.fold_batch(batch=0)
    plain = make(tmp_path, None)
    with pytest.raises(RoundError):
        begun(plain).fold_batch(batch=0)


def test_an_evaluation_knows_nothing_of_batches_that_came_to_nothing(tmp_path: Path) -> None:
    world = make(tmp_path, 2)
    run = begun(world)
    base = version(world, walk(world, run))
    digest = run.open_round(round_number=2, attempt=0, purpose="train").base
    step: dict[str, Any] = {"base": base, "base_digest": digest}
    sent = world.send(0, world.trained(0, base), round_number=2, metrics={"loss": 0.0}, **step)
    run.submit(site="site-0", digest=sent)
    run.fold_batch(batch=0)
    run.open_round(round_number=1, attempt=0, purpose="evaluate")
    for number in range(3):
        sent = world.send(number, None, metrics={"loss": 5.0}, **step)
        run.submit(site=f"site-{number}", digest=sent)
    assert run.close_round(absent={}).metrics == {"loss": 5.0}


def test_the_cohort_is_judged_once_over_all_batches(tmp_path: Path) -> None:
    world = make(tmp_path, 2, least=3)
    assert walk(world, begun(world), without=[0, 1]).cohort_size == 3, "a batch may be empty"
    world = make(tmp_path, 2, least=3)
    run = begun(world)
    with pytest.raises(ShortCohortError):
        walk(world, run, changes={0: Changes(declared={"norm": 1e-3})}, without=[3, 4])
    assert run.excluded == {"site-0": "norm", "site-3": "no-answer", "site-4": "no-answer"}
    world = make(tmp_path, 2, least=5)
    with pytest.raises(ShortCohortError):
        walk(world, begun(world), changes={4: Changes(declared={"norm": 1e-3})})


def kept_sum(run: Run) -> Any:
    """Return what lies on the disk of the round that is open."""
    batches: Any = run._batches
    return batches._fold._sum


@pytest.mark.parametrize("lie", ["a flipped bit", "cut short"])
def test_a_sum_that_the_disk_changed_voids_the_round_and_blames_nobody(lie: str, tmp_path: Path) -> None:
    world = make(tmp_path, 2)
    run = begun(world)
    submit(world, run, 0)
    run.fold_batch(batch=0)
    total = kept_sum(run)
    if lie == "cut short":
        os.ftruncate(total._file, 10)
    else:
        os.pwrite(total._file, bytes([os.pread(total._file, 1, 20)[0] ^ 1]), 20)
    submit(world, run, 2)
    with pytest.raises(StorageError):
        run.fold_batch(batch=1)
    with pytest.raises(RoundError):
        run.close_round(absent={})


def test_a_sum_put_back_from_an_earlier_batch_is_refused(tmp_path: Path) -> None:
    world = make(tmp_path, 1)
    run = begun(world)
    submit(world, run, 0)
    run.fold_batch(batch=0)
    total = kept_sum(run)
    earlier = os.pread(total._file, 1 << 20, 0)
    submit(world, run, 1)
    run.fold_batch(batch=1)
    os.pwrite(kept_sum(run)._file, earlier, 0)
    with pytest.raises(StorageError):
        run.close_round(absent={})


NOISE = 0.01


def private(tmp_path: Path, batch: int | None, **changes: Any) -> tuple[World, PrivacyState, dict[str, np.ndarray]]:
    terms = dataclasses.replace(TERMS, **{"epsilon_budget": 1e6, "noise_multiplier": NOISE, **changes})
    world = make(tmp_path, batch, privacy=terms, metrics=MetricTerms(clear=(), decimals=4))
    run = begun(world)
    closed = walk(world, run)
    state = candidate(closed).privacy
    assert state is not None
    return world, state, version(world, closed)


def test_a_private_sum_over_batches_is_clipped_and_noised_once(tmp_path: Path) -> None:
    world, state, found = private(tmp_path, 2)
    _, expected, _ = private(tmp_path, None)
    assert state == expected
    clip, base = TERMS.first_clip, world.traveling(world.model)
    total = {name: np.zeros_like(array, dtype=np.float64) for name, array in base.items()}
    for number in range(SITES):
        sent = world.traveling(world.trained(number, world.model))
        norm = norm_of(sent, base)
        for name, array in sent.items():
            total[name] += (array.astype(np.float64) - base[name]) * min(1.0, clip / norm)
    noise = np.concatenate(
        [(found[name] - base[name] - total[name] / TERMS.denominator).ravel() for name in ("weight", "bias")]
    )
    assert np.std(noise) == pytest.approx(NOISE * clip / TERMS.denominator, rel=0.5), "one noise, not one a batch"


def test_an_adaptive_clip_counts_every_batch(tmp_path: Path) -> None:
    clip = AdaptiveClip(initial=1.0, quantile=0.5, learning_rate=0.5, count_noise=1e-2)
    _, state, _ = private(tmp_path, 2, clip=clip)
    _, expected, _ = private(tmp_path, None, clip=clip)
    assert state.next_clip == pytest.approx(expected.next_clip, rel=1e-2) != 1.0


def test_secret_sampling_goes_with_batches(tmp_path: Path) -> None:
    _, state, _ = private(tmp_path, 2, sampling=SamplingTerms(by="enclave", rate=0.5), noise_multiplier=1.0)
    assert state.releases == 1
