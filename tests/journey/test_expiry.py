"""What a run needs no more is removed from the courier, by a commit that holds and by nothing else."""

import shutil
from pathlib import Path

import pytest

from confed.errors import MissingObjectError
from confed.governor.courier import Courier
from confed.governor.expiry import Expiry, Terms
from confed.journey import Kind, Purpose
from confed.sealing.container import Container
from confed.wire.addresses import evidence_topics


def kinds_in(courier):
    """Return (kind, round or version) of every object, sorted."""
    found = []
    for path in (Path(courier.objects._objects)).glob("*/*"):
        header = Container.map(path).header
        about = header.detail["round"] if header.kind in (Kind.UPDATE, Kind.METRICS) else header.version
        found.append((str(header.kind), about))
    return sorted(found)


@pytest.fixture
def walked(make_road):
    """Two rounds with their evaluations, and one more update that came too late."""
    road = make_road()
    aggregator = road.aggregator()
    aggregator.open(1)
    late = road.seal(road.hold("west"))
    for number in (1, 2):
        road.round(number, sites=("east", "north", "south"), aggregator=aggregator)
        aggregator.open(number, purpose="evaluate")
        road.send(aggregator, ("east", "north"), number, purpose=Purpose.EVALUATE)
        aggregator.close_round()
    road.late = late
    return road


def cleaned(road, place, **terms):
    """Return a courier on a copy of the road's directory, with the rule, once it has caught up."""
    copy = place / f"copy-{len(list(place.iterdir()))}"
    shutil.copytree(road.folder / "courier", copy)
    courier = Courier(copy, durable=False, expiry=Terms(manifest=road.manifest, **terms))
    courier.expiry.settle()
    return courier


def test_updates_of_rounds_that_are_over_go_and_versions_stay(walked, place):
    road = walked
    before = kinds_in(road.courier)
    assert before.count(("update", 1)) == 4
    assert before.count(("metrics", 2)) == 2
    courier = cleaned(road, place)
    datasets = [("dataset", 0)] * 4
    assert kinds_in(courier) == sorted([*datasets, ("model", 0), ("model", 1), ("model", 2)])
    assert courier.used_bytes < road.courier.used_bytes
    with pytest.raises(MissingObjectError):
        courier.path(road.late)
    run = road.manifest.run
    for topic in (f"{run}/train/2/0/east", f"{run}/evaluate/2/0/east"):
        assert Courier.collect(road.courier, topic)
        assert courier.collect(topic) == []
    for topic in (f"{run}/commit/train/1", f"{run}/commit/evaluate/2", f"{run}/aggregator/east"):
        assert courier.collect(topic) == Courier.collect(road.courier, topic) != []
    evidence = [[Courier.collect(each, topic) for topic in evidence_topics(run)] for each in (courier, road.courier)]
    assert evidence[0] == evidence[1]
    assert any(evidence[0])
    # After a restart the count is that of what is left.
    assert Courier(courier.objects._objects.parent, durable=False).used_bytes == courier.used_bytes


def test_old_versions_go_where_the_operator_says_so_and_never_the_start_or_the_newest(walked, place):
    courier = cleaned(walked, place, keep_versions=1)
    assert [entry for entry in kinds_in(courier) if entry[0] == "model"] == [("model", 0), ("model", 2)]
    assert courier.path(walked.candidate(2).digest)


def test_what_is_of_the_round_that_goes_on_stays(make_road, place):
    road = make_road()
    road.round(1)
    road.aggregators[0].open(2)
    kept = road.seal(road.hold("east", 2))
    courier = cleaned(road, place)
    assert [entry for entry in kinds_in(courier) if entry[0] == "update"] == [("update", 2)]
    assert courier.path(kept)
    assert courier.collect(f"{road.manifest.run}/train/2/0/east")


@pytest.mark.parametrize("lie", ["another's", "changed", "of another round"])
def test_a_letter_that_is_no_commit_record_that_holds_removes_nothing(lie, walked, place):
    body = walked.record_body(2)
    letters = walked.courier.letters._directory
    shutil.rmtree(letters)
    letters.mkdir()
    walked.courier.letters._topics.clear()
    topic = f"{walked.manifest.run}/commit/train/{3 if lie == 'of another round' else 2}"
    bodies = {"another's": b"{}", "changed": body.replace(b'"signature":"', b'"signature":"AA', 1)}
    walked.courier.post(topic, bodies.get(lie, body))
    before = kinds_in(walked.courier)
    assert kinds_in(cleaned(walked, place)) == before


def test_a_commit_that_is_posted_removes_at_once_what_it_ends(make_road):
    road = make_road()
    courier = road.courier
    courier.expiry = Expiry(Terms(manifest=road.manifest), courier.objects, courier.letters)
    aggregator = road.aggregator()
    road.round(1, aggregator=aggregator)
    courier.expiry.settle()
    assert [entry for entry in kinds_in(courier) if entry[0] == "update"] == []
    # And the run goes on.
    road.round(2, aggregator=aggregator)
    courier.expiry.settle()
    assert [entry for entry in kinds_in(courier) if entry[0] == "model"] == [("model", 0), ("model", 1), ("model", 2)]
