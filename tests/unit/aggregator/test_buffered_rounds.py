"""FedBuff through the enclave, held to a plain one that is written here; and what is too late, twice or of no version."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aggregator_world import Changes, World
from test_private import TERMS as PRIVATE
from test_run import candidate_of

from aggregator.run import Run
from confed.compression import CompressionTerms
from confed.errors import (
    CohortError,
    CompressionError,
    ConfedError,
    ConfigError,
    DuplicateUpdateError,
    RoundError,
    RoundFullError,
    ShortCohortError,
    SizeError,
    StaleUpdateError,
    TicketError,
)
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import CommitRecord
from confed.manifest import CohortTerms, MetricTerms, StrategyTerms
from confed.model.compressed import compress
from confed.model.weights import flats_of, unpack

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, np.ndarray]
FLOATS = ("weight", "bias", "scale")


def terms(*, size: int = 2, late: int = 2, rate: float = 1.0) -> StrategyTerms:
    parameters = {"buffer_size": size, "max_staleness": late, "server_learning_rate": rate}
    return StrategyTerms(name="FedBuff", parameters=parameters)


def world_of(tmp_path: Path, *, strategy: StrategyTerms | None = None, **more: Any) -> World:
    cohort = CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=0.0, extra=0)
    return World(tmp_path / "enclave", strategy=strategy or terms(), **{"cohort": cohort, **more})


class Course:
    """A run whose sites send what they trained on a version that they were given some rounds ago."""

    def __init__(self, world: World, *, threads: int = 1) -> None:
        self.world, self.run = world, world.run(threads=threads)
        self.run.attest(first_round=1, attempt=0)
        self.versions: list[Arrays] = [world.model]
        self.digests: list[str] = [world.manifest.model.start.digest]
        self.records: list[bytes] = []

    def open(self, number: int, attempt: int = 0) -> None:
        self.run.open_round(round_number=number, attempt=attempt, purpose="train")

    def send(self, site: int, started: int, *, changes: Changes | None = None, seed: int = 0) -> str:
        """Send what a site made of the base of round ``started``."""
        base = self.versions[started - 1]
        arrays = self.world.trained(site + 10 * seed, base)
        return self.world.send(
            site, arrays, base=base, base_digest=self.digests[started - 1], round_number=started, changes=changes
        )

    def submit(self, site: int, started: int, **more: Any) -> None:
        self.run.submit(site=f"site-{site}", digest=self.send(site, started, **more))

    def close(self, number: int) -> Any:
        closed = self.run.close_round(absent={})
        candidate = candidate_of(closed)
        self.records.append(closed.record)
        self.versions.append(self.world.open_version(candidate.digest, version=number))
        self.digests.append(candidate.digest)
        return closed

    def round(self, number: int, sent: list[tuple[int, int]]) -> Any:
        self.open(number)
        for site, started in sent:
            self.submit(site, started, seed=started)
        return self.close(number)


def plain(versions: list[Arrays], sent: list[tuple[int, int]], world: World, *, number: int, rate: float) -> Arrays:
    """FedBuff as its paper writes it, on float64 differences: server round ``number`` with these buffered updates."""
    total = {name: np.zeros_like(versions[0][name], dtype=np.float64) for name in FLOATS}
    for site, started in sent:
        base = versions[started - 1]
        update = world.trained(site + 10 * started, base)
        staleness = number - started
        for name in FLOATS:
            total[name] += (update[name].astype(np.float64) - base[name]) / math.sqrt(1 + staleness)
    return {name: versions[number - 1][name] + rate * total[name] / len(sent) for name in FLOATS}


ARRIVALS: list[list[tuple[int, int]]] = [
    [(0, 1), (1, 1)],
    [(2, 1), (0, 2)],
    [(3, 1), (1, 3)],
    [(2, 4), (0, 3)],
]


@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_version_is_that_of_plain_fedbuff(rate: float, threads: int, tmp_path: Path) -> None:
    world = world_of(tmp_path, strategy=terms(rate=rate))
    course = Course(world, threads=threads)
    for number, sent in enumerate(ARRIVALS, 1):
        assert course.round(number, sent).cohort_size == 2
        expected = plain(course.versions, sent, world, number=number, rate=rate)
        for name in FLOATS:
            assert course.versions[number][name].dtype == world.model[name].dtype
            np.testing.assert_allclose(course.versions[number][name], expected[name], rtol=2e-6, atol=2e-6)
        record = CommitRecord.from_bytes(course.records[-1])
        assert verify_commit_record(record, manifest=world.manifest, round_number=number).digest == course.digests[-1]


def test_the_order_of_arrival_in_a_buffer_does_not_matter(tmp_path: Path) -> None:
    results: list[bytes] = []
    for name, turn in (("a", 1), ("b", -1)):
        (tmp_path / name).mkdir()
        course = Course(world_of(tmp_path / name))
        for number, sent in enumerate(ARRIVALS, 1):
            course.round(number, sent[::turn])
        results.append(b"".join(course.versions[-1][name].tobytes() for name in FLOATS))
    assert results[0] == results[1]


def committed(tmp_path: Path, rounds: int, **more: Any) -> Course:
    course = Course(world_of(tmp_path, **more))
    for number in range(1, rounds + 1):
        course.round(number, [(0, number), (1, number)])
    course.open(rounds + 1)
    return course


OTHER = "a" * 64
REFUSED: list[tuple[str, int, Changes, tuple[type[ConfedError], ...]]] = [
    ("older than the limit", 1, Changes(), (StaleUpdateError, TicketError)),
    ("of a round that is not there yet", 5, Changes(), (StaleUpdateError, TicketError)),
    ("whose base was never committed", 2, Changes(detail={"base": OTHER}, header={"parents": (OTHER,)}), (StaleUpdateError,)),
    ("whose ticket is on another base", 2, Changes(ticket={"base": OTHER}), (TicketError,)),
    ("whose ticket is of the round that is open", 2, Changes(ticket={"round": 4}), (TicketError,)),
    ("whose credential is of the round that is open", 2, Changes(credential={"round": 4}), (ConfedError,)),
    ("of another attempt", 2, Changes(detail={"attempt": 1}), (StaleUpdateError, TicketError)),
    ("for another aggregator", 2, Changes(detail={"aggregator": OTHER}), (StaleUpdateError,)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("started", "changes", "errors"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_late_update_is_refused(
    started: int, changes: Changes, errors: tuple[type[ConfedError], ...], tmp_path: Path
) -> None:
    course = committed(tmp_path, 3)
    course.versions += [course.versions[-1]]
    course.digests += [OTHER]
    with pytest.raises(errors):
        course.submit(2, started, changes=changes)
    course.submit(2, 2)  # and this one, honest, is not
    course.submit(3, 4)
    assert course.run.close_round(absent={}).cohort_size == 2


def test_a_norm_is_held_against_the_updates_own_base(tmp_path: Path) -> None:
    course = committed(tmp_path, 2)
    base = course.versions[0]
    moved = {n: np.asarray(a + 1, dtype=a.dtype) if n in FLOATS else a for n, a in course.versions[2].items()}
    wrong = Changes(declared={"norm": math.sqrt(41.0)})  # what it would be from the newest version
    digest = course.world.send(2, moved, base=base, base_digest=course.digests[0], round_number=1, changes=wrong)
    course.run.submit(site="site-2", digest=digest)
    course.submit(3, 3)
    with pytest.raises(CohortError):
        course.run.close_round(absent={})
    assert course.run.excluded["site-2"] == "norm"


def test_an_identity_counts_once_a_buffer_and_a_ticket_once_ever(tmp_path: Path) -> None:
    course = committed(tmp_path, 1)
    ticket = Changes(ticket={"ticket_id": b"t" * 16})
    course.submit(2, 1, changes=ticket)
    with pytest.raises(DuplicateUpdateError):
        course.submit(2, 2)
    course.submit(0, 2)
    course.close(2)
    course.open(3)
    with pytest.raises(DuplicateUpdateError):
        course.submit(2, 1, changes=ticket)
    course.submit(2, 2)


def test_a_buffer_takes_no_more_than_its_size(tmp_path: Path) -> None:
    course = committed(tmp_path, 1)
    course.submit(0, 2)
    course.submit(1, 2)
    late = course.send(2, 1)
    with pytest.raises(RoundFullError):
        course.run.submit(site="site-2", digest=late)
    course.close(2)
    course.open(3)
    course.run.submit(site="site-2", digest=late)  # it counts in the next


def test_one_identity_is_no_buffer(tmp_path: Path) -> None:
    course = committed(tmp_path, 1)
    course.submit(0, 2)
    with pytest.raises(CohortError):
        course.run.close_round(absent={})


def test_what_was_sealed_to_an_enclave_that_died_counts_nowhere(tmp_path: Path) -> None:
    course = committed(tmp_path, 1)
    late = course.send(2, 1)
    fresh: Run = course.world.run()
    fresh.attest(first_round=2, attempt=1)
    fresh.open_round(round_number=2, attempt=1, purpose="train")
    with pytest.raises((StaleUpdateError, TicketError)):
        fresh.submit(site="site-2", digest=late)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"strategy": terms(size=1)}, "strategy.buffer_size"),
        ({"strategy": terms(size=5)}, "strategy.buffer_size"),
        ({"strategy": terms(late=101)}, "strategy.max_staleness"),
        ({"strategy": terms(late=0)}, "strategy.max_staleness"),
        ({"strategy": StrategyTerms(name="FedBuff", parameters={"buffer_size": 2})}, "strategy.max_staleness"),
        ({"cohort": CohortTerms(least=2, fraction_train=0.5, fraction_evaluate=0.0, extra=0)}, "cohort.fraction_train"),
        (
            {"cohort": CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=0.5, extra=0)},
            "cohort.fraction_evaluate",
        ),
        ({"compression": CompressionTerms(name="int8", fraction=None, feedback=True)}, "compression.feedback"),
        ({"privacy": PRIVATE, "metrics": MetricTerms(clear=(), decimals=4)}, "privacy.strategy"),
    ],
    ids=str,
)
def test_a_manifest_says_how_a_buffer_works_or_is_none(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        world_of(tmp_path, **changes)
    assert refused.value.field == field


WAYS = {
    "bf16": CompressionTerms(name="bf16", fraction=None, feedback=False),
    "int8": CompressionTerms(name="int8", fraction=None, feedback=False),
    "top-k": CompressionTerms(name="top-k", fraction=0.2, feedback=False),
}


def stood_for(world: World, site: int, update: Arrays, base: Arrays) -> Arrays:
    """What the compressed difference of an update from its own base makes of that base."""
    form = world.form
    assert form is not None
    flats = [flats_of(world.traveling(which), form.layout) for which in (update, base)]
    made = compress(form, *flats, carried=None, generator=np.random.default_rng(site))
    whole = bytearray(form.layout.total_bytes)
    for index, part in enumerate(made.parts):
        start, end = form.span(index)
        chunk = np.frombuffer(bytes(part), dtype=np.uint8)
        form.decoded_into(index, chunk, flats[1], np.frombuffer(memoryview(whole)[start:end], dtype=np.uint8))
    return unpack(whole)


@pytest.mark.parametrize("way", WAYS)
def test_a_compressed_update_stands_for_a_difference_from_its_own_base(way: str, tmp_path: Path) -> None:
    world = world_of(tmp_path, compression=WAYS[way])
    course = Course(world)
    for number, sent in enumerate(ARRIVALS, 1):
        assert course.round(number, sent).excluded.keys().isdisjoint({f"site-{site}" for site, _ in sent})
        for name in FLOATS:
            current = course.versions[number - 1][name].astype(np.float64)
            for site, started in sent:
                base = course.versions[started - 1]
                update = stood_for(world, site, world.trained(site + 10 * started, base), base)
                current += (update[name].astype(np.float64) - base[name]) / math.sqrt(1 + number - started) / len(sent)
            np.testing.assert_allclose(course.versions[number][name], current, rtol=1e-5, atol=1e-5, err_msg=name)


COMPRESSED: list[tuple[str, Changes, type[ConfedError]]] = [
    ("of another way", Changes(detail={"compression": "bf16"}), CompressionError),
    ("that says that it is not compressed", Changes(detail={"compression": "none"}), CompressionError),
    ("longer than its form", Changes(plaintext=lambda data: data + bytes(8)), SizeError),
    ("shorter than its form", Changes(plaintext=lambda data: data[:-1]), SizeError),
]


@pytest.mark.parametrize(("changes", "error"), [row[1:] for row in COMPRESSED], ids=[row[0] for row in COMPRESSED])
def test_a_late_compressed_update_is_refused(changes: Changes, error: type[ConfedError], tmp_path: Path) -> None:
    course = committed(tmp_path, 2, compression=WAYS["int8"])
    with pytest.raises(error):
        course.submit(2, 1, changes=changes)
    course.submit(2, 1)


def test_a_compressed_norm_is_held_against_the_updates_own_base(tmp_path: Path) -> None:
    course = committed(tmp_path, 2, compression=WAYS["bf16"])
    course.submit(2, 1, changes=Changes(declared={"norm": 0.01}))
    course.submit(3, 3)
    with pytest.raises(CohortError):
        course.run.close_round(absent={})
    assert course.run.excluded["site-2"] == "norm"


def evaluating(tmp_path: Path, **more: Any) -> Course:
    """A buffered run whose first version is made, and of which everybody who has time evaluates each."""
    cohort = CohortTerms(least=2, fraction_train=1.0, fraction_evaluate=1.0, extra=0)
    course = Course(world_of(tmp_path, **{"cohort": cohort, **more}))
    course.round(1, [(0, 1), (1, 1)])
    return course


def evaluate(course: Course, site: int, *, number: int = 1, attempt: int = 0, loss: float = 0.5) -> None:
    digest = course.world.send(
        site,
        None,
        base_digest=course.digests[number],
        round_number=number,
        attempt=attempt,
        metrics={"loss": loss},
        weight=10.0,
    )
    course.run.submit(site=f"site-{site}", digest=digest)


def test_those_who_have_time_evaluate_and_the_others_train_on(tmp_path: Path) -> None:
    course = evaluating(tmp_path)
    course.run.open_round(round_number=1, attempt=0, purpose="evaluate")
    evaluate(course, 0, loss=0.2)
    evaluate(course, 1, loss=0.4)
    with pytest.raises(RoundFullError):
        evaluate(course, 3)
    closed = course.run.close_round(absent={"site-2": "busy"})
    assert (closed.cohort_size, closed.metrics["loss"]) == (2, pytest.approx(0.3))
    assert course.round(2, [(2, 1), (3, 2)]).cohort_size == 2  # what site 2 trained meanwhile


def test_an_evaluation_counts_for_its_own_version_alone(tmp_path: Path) -> None:
    course = evaluating(tmp_path)
    course.round(2, [(0, 2), (1, 2)])
    course.run.open_round(round_number=2, attempt=0, purpose="evaluate")
    with pytest.raises((StaleUpdateError, TicketError)):
        evaluate(course, 0, number=1)
    with pytest.raises((StaleUpdateError, TicketError)):
        course.submit(2, 1)  # nor does a trained update
    evaluate(course, 0, number=2)
    with pytest.raises(DuplicateUpdateError):
        evaluate(course, 0, number=2)


def test_one_identity_evaluates_nothing(tmp_path: Path) -> None:
    course = evaluating(tmp_path)
    course.run.open_round(round_number=1, attempt=0, purpose="evaluate")
    evaluate(course, 0)
    with pytest.raises(ShortCohortError):
        course.run.close_round(absent={})


def test_a_version_is_evaluated_once(tmp_path: Path) -> None:
    course = evaluating(tmp_path)
    course.run.open_round(round_number=1, attempt=0, purpose="evaluate")
    evaluate(course, 0)
    evaluate(course, 1)
    course.run.close_round(absent={})
    with pytest.raises(RoundError):
        course.run.open_round(round_number=1, attempt=1, purpose="evaluate")
