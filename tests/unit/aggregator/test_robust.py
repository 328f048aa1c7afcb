"""Each rule that needs every update gives what Flower's own class gives, and no wrong sender leaves a trace in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import norm_of, weights_of
from flwr.app import Array, ArrayRecord, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold import BASE, WRONG, Arrays, PlainChunks, contribution, model, packed, same_bits, wide

from aggregator.combine import blocks, passes
from aggregator.combine.flower_strategy import ServerOptimizer
from aggregator.combine.fold import Combined, Rule, combine
from aggregator.combine.order import middle, network, ordered_rows, selection
from aggregator.combine.passes import Contribution, Updates
from aggregator.combine.robust import GeometricMedian, Median, by_score, squared_distances
from confed.errors import CohortError, ConfedError, DuplicateUpdateError
from confed.manifest import StrategyTerms

if TYPE_CHECKING:
    from collections.abc import Callable

FLOATS = ("f4", "f8", "f2", "f4", "f4", "f8")
RULES: dict[str, StrategyTerms] = {
    "FedMedian": StrategyTerms(name="FedMedian", parameters={}),
    "FedTrimmedAvg": StrategyTerms(name="FedTrimmedAvg", parameters={"beta": 0.25}),
    "Krum": StrategyTerms(name="Krum", parameters={"num_malicious_nodes": 1}),
    "MultiKrum": StrategyTerms(name="MultiKrum", parameters={"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    "Bulyan": StrategyTerms(name="Bulyan", parameters={"num_malicious_nodes": 1}),
    "GeometricMedian": StrategyTerms(name="GeometricMedian", parameters={}),
}
FLOWERS = [name for name in RULES if name != "GeometricMedian"]


def rule_of(name: str, **parameters: Any) -> Rule:
    terms = RULES[name]
    return ServerOptimizer(dataclasses.replace(terms, parameters={**terms.parameters, **parameters})).rule


def flowers_own(name: str, updates: list[Arrays], weights: list[float], **parameters: Any) -> Arrays:
    """Return what Flower's class of this name makes of these updates."""
    strategy = getattr(flower, name)(**{**RULES[name].parameters, **parameters})
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({key: Array(wide(array).copy()) for key, array in arrays.items()}),
                    "metrics": MetricRecord({"num-examples": weight}),
                }
            ),
            metadata=Metadata(0, "", 0, 0, "", "", 0.0, 1.0, MessageType.TRAIN),
        )
        for arrays, weight in zip(updates, weights, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    return {key: array.numpy() for key, array in arrays.items()}


def cohort(updates: list[Arrays], weights: list[float], base: Arrays = BASE, **kwargs: Any) -> list[Contribution]:
    return [
        contribution(f"site-{at:03d}", arrays, base, weight=weight, **kwargs)
        for at, (arrays, weight) in enumerate(zip(updates, weights, strict=True))
    ]


def close(ours: Arrays, theirs: Arrays) -> None:
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        assert array.shape == theirs[name].shape
        eps = 1e-5 if array.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(array, theirs[name], rtol=eps, atol=eps, err_msg=name)


def apart(seed: int, dtypes: tuple[str, ...] = FLOATS) -> Arrays:
    """Return an update whose distance from the others is its own: no near ties, which Flower's float32 could turn."""
    return {
        name: np.asarray(array * (1 + (seed % 13) / 10)).astype(array.dtype)
        for name, array in model(seed, dtypes).items()
    }


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(FLOWERS),
    seeds=st.lists(st.integers(0, 500), min_size=7, max_size=12, unique=True),
    weights=st.lists(st.floats(0.5, 1e3), min_size=12, max_size=12),
    chunk_bytes=st.sampled_from([64, 128, 4096]),
    threads=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_the_result_is_flowers_own_whatever_the_order_of_arrival(
    name: str, seeds: list[int], weights: list[float], chunk_bytes: int, threads: int, order: Any
) -> None:
    base = model(5000, FLOATS)
    updates, shares = [apart(seed) for seed in seeds], weights[: len(seeds)]
    contributions = cohort(updates, shares, base, chunk_bytes=chunk_bytes)
    first = combine(contributions, base=weights_of(base), least=1, norm_bound=1e9, rule=rule_of(name))
    order.shuffle(contributions)
    again = combine(contributions, base=weights_of(base), least=1, norm_bound=1e9, rule=rule_of(name), threads=threads)
    assert same_bits(first.mean.arrays(), again.mean.arrays())
    close(again.mean.arrays(), flowers_own(name, updates, shares))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 16, 33])
@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg"])
def test_order_statistics_are_flowers_in_every_type_and_for_any_number(name: str, count: int) -> None:
    updates = [model(seed) for seed in range(count)]
    combined = combine(
        cohort(updates, [1.0] * count), base=weights_of(BASE), least=1, norm_bound=1e9, rule=rule_of(name)
    )
    close(combined.mean.arrays(), flowers_own(name, updates, [1.0] * count))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.2, 0.34, 0.49])
def test_the_trimmed_part_is_flowers(beta: float) -> None:
    updates = [model(seed) for seed in range(10)]
    rule = rule_of("FedTrimmedAvg", beta=beta)
    combined = combine(cohort(updates, [1.0] * 10), base=weights_of(BASE), least=1, norm_bound=1e9, rule=rule)
    close(combined.mean.arrays(), flowers_own("FedTrimmedAvg", updates, [1.0] * 10, beta=beta))


@pytest.mark.parametrize(("faulty", "select", "count"), [(0, 1, 3), (0, 3, 3), (1, 2, 5), (2, 4, 9), (3, 9, 20)])
def test_multikrums_parameters_are_flowers(faulty: int, select: int, count: int) -> None:
    base = model(5000, FLOATS)
    updates, weights = [apart(seed) for seed in range(count)], [float(at + 1) for at in range(count)]
    parameters = {"num_malicious_nodes": faulty, "num_nodes_to_select": select}
    combined = combine(
        cohort(updates, weights, base),
        base=weights_of(base),
        least=1,
        norm_bound=1e9,
        rule=rule_of("MultiKrum", **parameters),
    )
    close(combined.mean.arrays(), flowers_own("MultiKrum", updates, weights, **parameters))


@pytest.mark.parametrize(("faulty", "count"), [(0, 3), (0, 4), (1, 7), (1, 8), (2, 11), (3, 17)])
def test_bulyans_parameters_are_flowers(faulty: int, count: int) -> None:
    base = model(5000, FLOATS)
    updates = [apart(seed) for seed in range(count)]
    rule = rule_of("Bulyan", num_malicious_nodes=faulty)
    combined = combine(cohort(updates, [1.0] * count, base), base=weights_of(base), least=1, norm_bound=1e9, rule=rule)
    close(combined.mean.arrays(), flowers_own("Bulyan", updates, [1.0] * count, num_malicious_nodes=faulty))


def weiszfeld(points: np.ndarray, alphas: np.ndarray, rule: GeometricMedian) -> np.ndarray:
    """Pillutla et al. (2022), algorithm 2, as it is written: on the points themselves."""
    found, before = np.average(points, axis=0, weights=alphas), np.inf
    for _ in range(rule.max_iterations):
        distances = np.linalg.norm(points - found, axis=1)
        objective = float(alphas @ distances)
        if abs(before - objective) <= rule.tolerance * objective:
            break
        before = objective
        found = np.average(points, axis=0, weights=alphas / np.maximum(distances, rule.smoothing))
    return found


def geometric(points: np.ndarray, alphas: np.ndarray, rule: GeometricMedian, threads: int = 1) -> np.ndarray:
    base = {"x": np.zeros(points.shape[1], dtype=points.dtype)}
    contributions = cohort([{"x": point} for point in points], alphas.tolist(), base)
    combined = combine(contributions, base=weights_of(base), least=1, norm_bound=1e9, rule=rule, threads=threads)
    assert not combined.excluded
    return combined.mean.arrays()["x"]


@pytest.mark.parametrize("iterations", [1, 3, 100])
@pytest.mark.parametrize("outliers", [0, 3])
def test_the_geometric_median_is_weiszfelds(outliers: int, iterations: int) -> None:
    generator = np.random.default_rng(outliers)
    points = generator.normal(size=(9, 57))
    points[:outliers] += 1000.0
    alphas = generator.uniform(1, 9, size=9)
    rule = GeometricMedian(smoothing=1e-6, tolerance=1e-12, max_iterations=iterations)
    expected = weiszfeld(points, alphas, rule)
    np.testing.assert_allclose(geometric(points, alphas, rule), expected, rtol=1e-9, atol=1e-9)
    assert same_bits({"x": geometric(points, alphas, rule)}, {"x": geometric(points, alphas, rule, threads=3)})


def test_a_minority_far_away_does_not_move_the_geometric_median_far() -> None:
    points = np.random.default_rng(3).normal(size=(9, 30)).astype(np.float32)
    honest = points[4:].mean(axis=0)
    points[:4] += 1e4
    rule = GeometricMedian(smoothing=1e-6, tolerance=1e-9, max_iterations=1000)
    assert np.linalg.norm(points.mean(axis=0) - honest) > 1e4
    assert np.linalg.norm(geometric(points, np.ones(9), rule) - honest) < 50


def test_a_median_that_is_one_of_the_updates_divides_by_the_smoothing_and_not_by_zero() -> None:
    points = np.zeros((5, 4))
    points[4] = 3.0
    rule = GeometricMedian(smoothing=1e-6, tolerance=0.0, max_iterations=50)
    np.testing.assert_allclose(geometric(points, np.ones(5), rule), weiszfeld(points, np.ones(5), rule), atol=1e-9)
    assert geometric(np.ones((3, 2)), np.ones(3), rule).tolist() == [1.0, 1.0]


def attacked(count: int, wrong: int) -> list[Arrays]:
    """Return honest updates near each other, the first ``wrong`` far away in one and the same direction."""
    updates = [{"x": np.random.default_rng(at).normal(size=40).astype(np.float32)} for at in range(count)]
    for at in range(wrong):
        updates[at]["x"] += 100.0
    return updates


@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "GeometricMedian"])
def test_two_of_eleven_who_lie_do_not_turn_the_result(name: str) -> None:
    faulty = {"num_malicious_nodes": 2} if name in ("Krum", "MultiKrum", "Bulyan") else {}
    base = {"x": np.zeros(40, dtype=np.float32)}
    entries = cohort(attacked(11, 2), [1.0] * 11, base)

    def largest(rule: Rule | None) -> float:
        combined = combine(entries, base=weights_of(base), least=1, norm_bound=1e9, rule=rule)
        return float(np.abs(combined.mean.arrays()["x"]).max())

    assert largest(None) > 15
    assert largest(rule_of(name, **faulty)) < 10


def honest(number: int) -> Contribution:
    return contribution(f"site-{number}", model(10 + number), BASE, weight=1.0 + number)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("make", "error"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
@pytest.mark.parametrize("name", RULES)
def test_a_wrong_sender_is_excluded_by_name_and_leaves_no_trace(
    name: str, make: Callable[[], Contribution], error: type[ConfedError], threads: int
) -> None:
    def fold(*contributions: Contribution) -> Combined:
        return combine(
            contributions, base=weights_of(BASE), least=7, norm_bound=1e4, rule=rule_of(name), threads=threads
        )

    others = [honest(number) for number in (0, 2, 3, 4, 5, 6, 7)]
    with_wrong = fold(others[0], make(), *others[1:])
    assert {site: type(found) for site, found in with_wrong.excluded.items()} == {"site-1": error}
    assert with_wrong.sites == tuple(entry.site for entry in others)
    assert same_bits(with_wrong.mean.arrays(), fold(*others).mean.arrays())


@pytest.mark.parametrize("name", RULES)
def test_one_too_few_after_exclusion_is_no_result(name: str) -> None:
    wrong = {row[0]: row[1] for row in WRONG}["a bad last chunk"]()
    others = [honest(number) for number in (0, 2, 3, 4, 5, 6)]
    with pytest.raises(CohortError):
        combine([wrong, *others], base=weights_of(BASE), least=7, norm_bound=1e4, rule=rule_of(name))


@pytest.mark.parametrize("name", RULES)
def test_two_of_one_site_are_refused(name: str) -> None:
    others = [honest(number) for number in range(7)]
    with pytest.raises(DuplicateUpdateError):
        combine([*others, honest(3)], base=weights_of(BASE), least=1, norm_bound=1e4, rule=rule_of(name))


@pytest.mark.parametrize(
    ("name", "parameters", "least"),
    [
        ("Krum", {"num_malicious_nodes": 0}, 3),
        ("Krum", {"num_malicious_nodes": 2}, 7),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 6}, 6),
        ("Bulyan", {"num_malicious_nodes": 1}, 7),
    ],
)
def test_a_rule_is_not_folded_over_fewer_than_it_withstands_faults_with(
    name: str, parameters: dict[str, Any], least: int
) -> None:
    rule = rule_of(name, **parameters)
    entries = [honest(number) for number in range(least)]
    combine(entries, base=weights_of(BASE), least=1, norm_bound=1e4, rule=rule)
    with pytest.raises(CohortError):
        combine(entries[1:], base=weights_of(BASE), least=1, norm_bound=1e4, rule=rule)


@dataclasses.dataclass
class TurningChunks(PlainChunks):
    """An update that is sound when it is read first, and another when it is read again."""

    later: bytes = b""

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        super().read_chunk_into(index, buffer)
        if index == self.chunk_count - 1:
            self.plaintext = self.later


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("MultiKrum", {"num_malicious_nodes": 0, "num_nodes_to_select": 7}),
        ("Bulyan", {"num_malicious_nodes": 0}),
        ("GeometricMedian", {}),
    ],
)
def test_what_turns_wrong_between_two_passes_is_excluded_too(name: str, parameters: dict[str, Any]) -> None:
    arrays = model(11)
    wrong = {n: np.full_like(a, np.nan) if a.dtype == np.float32 else a for n, a in arrays.items()}
    chunks = TurningChunks(packed(arrays), later=packed(wrong))
    turning = Contribution(site="site-1", chunks=chunks, weight=2.0, norm=norm_of(arrays, BASE))
    others = [honest(number) for number in (0, 2, 3, 4, 5, 6, 7)]

    def fold(*contributions: Contribution) -> Combined:
        rule = rule_of(name, **parameters)
        return combine(contributions, base=weights_of(BASE), least=7, norm_bound=1e4, rule=rule)

    found = fold(turning, *others)
    assert {site: error.code for site, error in found.excluded.items()} == {"site-1": "not-finite"}
    assert same_bits(found.mean.arrays(), fold(*others).mean.arrays())


def test_equal_updates_are_nothing_apart_and_the_first_goes_first() -> None:
    updates = [model(1), model(2), model(2), model(2), model(1)]
    squares = squared_distances(Updates(cohort(updates, [1.0] * 5), base=weights_of(BASE), norm_bound=1e9, threads=1))
    assert squares[1, 2] == squares[0, 4] == 0.0
    assert (squares == squares.T).all()
    assert by_score(squares, faulty=1) == [1, 2, 3, 0, 4]
    assert by_score(np.zeros((100, 100)), faulty=1) == list(range(100))


def test_distances_are_the_same_bits_for_any_number_of_threads() -> None:
    base = {"x": np.zeros(4000, dtype=np.float32)}
    updates = [{"x": np.random.default_rng(at).normal(size=4000).astype(np.float32)} for at in range(4)]
    entries = cohort(updates, [1.0] * 4, base)
    found = [
        squared_distances(Updates(entries, base=weights_of(base), norm_bound=1e9, threads=threads)).tobytes()
        for threads in (1, 2, 3, 7)
    ]
    assert len(set(found)) == 1


def ordered(rows: np.ndarray, first: int, end: int) -> np.ndarray:
    return np.stack(ordered_rows(list(rows.copy()), first, end))


@pytest.mark.parametrize("count", [*range(1, 18), 100])
def test_a_network_sorts_any_number_of_rows(count: int) -> None:
    columns = np.random.default_rng(count).integers(0, 5, size=(count, 300))
    assert (ordered(columns, 0, count) == np.sort(columns, axis=0)).all()
    # Every 0/1 input sorted means every input is (Knuth, 5.3.4, theorem Z).
    if count <= 10:
        bits = ((np.arange(2**count)[None] >> np.arange(count)[:, None]) & 1).astype(np.uint8)
        assert (ordered(bits, 0, count) == np.sort(bits, axis=0)).all()
    assert all(low < high for low, high in network(count))


@pytest.mark.parametrize("count", [*range(1, 11), 33])
def test_a_selection_puts_the_wanted_ranks_in_their_places_with_fewer_comparisons(count: int) -> None:
    columns = np.random.default_rng(count).integers(0, 9, size=(count, 300))
    bits = ((np.arange(2**count)[None] >> np.arange(count)[:, None]) & 1).astype(np.uint8) if count <= 10 else columns
    for first in range(count):
        for end in range(first + 1, count + 1):
            for rows in (columns, bits):
                assert (ordered(rows, first, end) == np.sort(rows, axis=0)[first:end]).all()
    if count > 3:
        middling = selection(count, (count - 1) // 2, count // 2 + 1)
        work = [smaller + larger for _, _, smaller, larger in middling]
        assert sum(work) < 2 * len(network(count))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1"])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_mean_of_rows_is_numpys_to_the_bit(dtype: str, count: int) -> None:
    rows = (np.random.default_rng(count).random((count, 50)) * 9).astype(dtype)
    assert middle(list(rows)).astype(np.mean(rows, axis=0).dtype).tobytes() == np.mean(rows, axis=0).tobytes()


@dataclasses.dataclass
class CountingChunks(PlainChunks):
    """Plaintext in chunks; ``alive`` notes whose buffers were handed out."""

    alive: set[int] = dataclasses.field(default_factory=set)

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        super().read_chunk_into(index, buffer)
        self.alive.add(np.frombuffer(buffer, dtype=np.uint8).ctypes.data)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_chunk_of_each_update_and_thread_is_open_and_no_more(threads: int) -> None:
    updates = [model(seed) for seed in range(5)]
    alive: set[int] = set()
    entries = [
        dataclasses.replace(entry, chunks=CountingChunks(packed(arrays), alive=alive))
        for entry, arrays in zip(cohort(updates, [1.0] * 5), updates, strict=True)
    ]
    combine(entries, base=weights_of(BASE), least=1, norm_bound=1e9, rule=Median(), threads=threads)
    assert len(alive) <= 5 * threads


def test_fewer_threads_work_where_many_updates_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Pool(passes.ThreadPoolExecutor):
        def __init__(self, max_workers: int) -> None:
            started.append(max_workers)
            super().__init__(max_workers=max_workers)

    monkeypatch.setattr(passes, "ThreadPoolExecutor", Pool)
    entries = cohort([model(seed) for seed in range(5)], [1.0] * 5)
    for held_bytes in (5 * 64 * 2, 5 * 64):
        monkeypatch.setattr(passes, "HELD_BYTES", held_bytes)
        combine(entries, base=weights_of(BASE), least=1, norm_bound=1e9, rule=Median(), threads=4)
    assert started == [2]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("worker_bytes", [1, 9 * 128, 9 * 300])
def test_many_updates_are_held_in_parts_of_a_chunk_and_give_the_same(
    name: str, worker_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model(5000, FLOATS)
    entries = cohort([apart(seed) for seed in range(9)], [1.0] * 9, base, chunk_bytes=1024)

    def fold(threads: int) -> Combined:
        return combine(entries, base=weights_of(base), least=1, norm_bound=1e9, rule=rule_of(name), threads=threads)

    whole = fold(1).mean.arrays()
    monkeypatch.setattr(blocks, "WORKER_BYTES", worker_bytes)
    assert blocks.part_bytes(1024, rows=9) < 1024
    for threads in (1, 3):
        close(fold(threads).mean.arrays(), whole)
        assert same_bits(fold(threads).mean.arrays(), fold(1).mean.arrays())
    honest_sites = fold(1).sites
    wrong = dataclasses.replace(entries[4], norm=entries[4].norm * 1.01)
    entries[4] = wrong
    assert fold(2).sites == (*honest_sites[:4], *honest_sites[5:])


@pytest.mark.parametrize("rows", [0, 1, 2, 10, 20, 21, 22, 100, 1000])
@pytest.mark.parametrize("chunk_bytes", [64, 4096, 1024 * 1024, 4 * 1024 * 1024])
def test_a_worker_holds_no_more_than_it_may_however_many_updates_there_are(rows: int, chunk_bytes: int) -> None:
    held = blocks.held_bytes(chunk_bytes, rows=rows)
    assert held <= blocks.WORKER_BYTES + chunk_bytes
    assert blocks.part_bytes(chunk_bytes, rows=rows) % 8 == 0
    opening = blocks.Opening(chunk_bytes=chunk_bytes, rows=rows)
    arrays = [value for value in (opening._chunk, *opening._rows) if value is not None]
    assert sum(array.nbytes for array in arrays) == held
