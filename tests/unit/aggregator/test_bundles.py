"""Results that came as one object are refused one by one for what each would be refused for alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aggregator_world import Changes, World
from test_run import ARRIVALS, opened

from aggregator.arrivals import documents
from confed.errors import (
    CohortError,
    ConfedError,
    DuplicateUpdateError,
    EncodingError,
    MissingFileError,
    RoundError,
    SizeError,
    StaleUpdateError,
    TicketError,
)
from confed.model.bundle import FRONT_BYTES, MAGIC, MOST_RESULTS, Enclosed, bundle, results_offset, unbundle
from confed.statement import Signed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NO_LETTER = "with a letter that is none"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "enclave")


def enclosed(world: World, number: int, changes: Changes | None = None) -> Enclosed:
    """Return what site ``number`` would enclose: its container with the documents that it would have posted."""
    digest = world.send(number, world.trained(number, world.model), changes=changes)
    name = f"site-{number}"
    ((credential, ticket),) = documents(world.courier.collect(f"run-1/train/1/0/{name}")[-1:])
    return Enclosed(site=name, credential=credential, ticket=ticket, sealed=world.courier.objects[digest])


def test_results_in_one_object_count_as_if_each_had_come_alone(world: World) -> None:
    run = opened(world)
    digest = world.courier.put(bundle([enclosed(world, number) for number in range(4)]))
    assert run.submit_bundle(digest=digest) == {f"site-{number}": "" for number in range(4)}
    together = run.close_round(absent={})
    assert together.cohort_size == 4


@pytest.mark.parametrize(
    ("change", "error"),
    [row[1:] for row in ARRIVALS if row[0] != NO_LETTER],
    ids=[row[0] for row in ARRIVALS if row[0] != NO_LETTER],
)
def test_a_bad_result_is_refused_and_the_others_of_its_bundle_count(
    world: World, change: Callable[[World], Changes], error: type[ConfedError]
) -> None:
    run = opened(world)
    results = [enclosed(world, 0), enclosed(world, 1, change(world)), enclosed(world, 2)]
    codes = run.submit_bundle(digest=world.courier.put(bundle(results)))
    assert codes == {"site-0": "", "site-1": error.code, "site-2": ""}
    assert run.close_round(absent={}).excluded["site-1"] == error.code


def test_an_identity_counts_once_over_all_bundles(world: World) -> None:
    run = opened(world)
    digest = world.courier.put(bundle([enclosed(world, 0), enclosed(world, 1)]))
    run.submit_bundle(digest=digest)
    again = run.submit_bundle(digest=digest)
    assert set(again.values()) == {DuplicateUpdateError.code}
    assert run.close_round(absent={}).cohort_size == 2


@pytest.mark.parametrize(
    ("sentence", "change", "code"),
    [
        ("under another site's name", {"site": "site-2"}, StaleUpdateError.code),
        ("of a site that nobody knows", {"site": "site-9"}, CohortError.code),
        ("with another's documents", {"ticket": None}, TicketError.code),
        ("of nothing but zeros", {"sealed": bytes(200)}, None),
        ("that is too large", {"sealed": bytes(3 * 1024 * 1024)}, SizeError.code),
    ],
)
def test_what_the_list_says_is_not_believed(
    world: World, sentence: str, change: dict[str, object], code: str | None
) -> None:
    run = opened(world)
    good, other = enclosed(world, 1), enclosed(world, 3)
    fields = {name: getattr(good, name) for name in ("site", "credential", "ticket", "sealed")}
    if "ticket" in change:
        change = {"ticket": other.ticket}
    result = Enclosed(**{**fields, **change})
    (found,) = run.submit_bundle(digest=world.courier.put(bundle([result]))).values()
    assert found == code if code else found


def test_a_bundle_that_is_not_there_or_comes_too_early_is_refused(world: World) -> None:
    run = world.run()
    with pytest.raises(RoundError):
        run.submit_bundle(digest="0" * 64)
    run = opened(world)
    with pytest.raises(MissingFileError):
        run.submit_bundle(digest="0" * 64)


SIGNED = Signed(payload=b"{}", signer=b"s" * 32, signature=b"g" * 64)


def result(site: str, sealed: bytes = b"sealed") -> Enclosed:
    return Enclosed(site=site, credential=SIGNED, ticket=SIGNED, sealed=sealed)


def test_a_bundle_survives_the_way_there_and_back() -> None:
    results = [result("a"), result("b", b"x" * 1000)]
    assert unbundle(bundle(results)) == results


def test_where_the_first_result_lies_is_read_off_the_front() -> None:
    data = bundle([result("a", b"first"), result("b", b"second")])
    assert data[results_offset(data[:FRONT_BYTES]) :] == b"firstsecond"
    assert results_offset(b"another file of some length") == 0
    assert results_offset(MAGIC) == 0


@pytest.mark.parametrize(
    ("sentence", "data"),
    [
        ("nothing", b""),
        ("magic alone", MAGIC),
        ("another magic", b"confed-bundle/2\n" + bundle([result("a")])[len(MAGIC) :]),
        ("a byte too few", bundle([result("a")])[:-1]),
        ("a byte too many", bundle([result("a")]) + b"x"),
        ("a site twice", bundle([result("a"), result("a")])),
        ("a list that is an object", MAGIC + b"\0\0\0\2{}"),
        ("an entry that is none", MAGIC + b"\0\0\0\3[1]"),
        ("a size of zero", bundle([result("a", b"")])),
        ("a list that is longer than all", MAGIC + b"\xff\xff\xff\xff[]"),
    ],
)
def test_what_is_no_bundle_is_refused(sentence: str, data: bytes) -> None:
    if sentence == "a list that is longer than all":
        assert unbundle(MAGIC + b"\0\0\0\2[]") == []
        data += b"]"
    with pytest.raises(EncodingError):
        unbundle(data)


def test_more_than_a_bundle_may_hold_is_refused(world: World) -> None:
    many = [result(str(number)) for number in range(MOST_RESULTS + 1)]
    with pytest.raises(SizeError):
        bundle(many)
    with pytest.raises(SizeError):
        bundle([result("a", bytes(17 * 1024 * 1024))])
