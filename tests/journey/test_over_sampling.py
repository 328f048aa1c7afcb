"""More sites are asked than a round takes: it closes with the first, and nobody else can be put in their place."""

import dataclasses

import pytest

from confed.errors import CohortError, DuplicateUpdateError, QuorumError, RoundFullError, UnreachableError
from confed.journey import Purpose
from confed.manifest import CohortTerms


def over_sampled(make_road, *, least, fraction):
    terms = CohortTerms(least=least, fraction_train=fraction, fraction_evaluate=fraction, extra=1)
    return make_road(change=lambda manifest: dataclasses.replace(manifest, cohort=terms))


@pytest.fixture
def road(make_road):
    """Four sites, of which a round takes two, and asks three."""
    return over_sampled(make_road, least=2, fraction=0.5)


def test_the_first_that_come_are_the_cohort_and_the_others_are_named(road):
    aggregator = road.aggregator()
    drawn = aggregator.open(1).cohort
    assert len(drawn) == 3
    digests = {site: road.seal(road.hold(site)) for site in drawn}
    first, second, late = drawn[2], drawn[0], drawn[1]
    for site in (first, second):
        aggregator.governor.submit(site=site, digest=digests[site])
    with pytest.raises(RoundFullError):
        aggregator.governor.submit(site=late, digest=digests[late])
    # What is there cannot be taken out again to make room.
    with pytest.raises(DuplicateUpdateError):
        aggregator.governor.submit(site=first, digest=digests[first])
    closed = aggregator.close_round(absent={late: "no-answer"})
    assert closed.cohort_size == 2
    assert closed.excluded == {late: "round-full"}
    cohort = road.candidate(1).cohort
    assert set(cohort) == {road.manifest.site_named(site).owner.identity for site in (first, second)}


def test_the_one_that_was_not_drawn_is_refused_as_ever(road):
    aggregator = road.aggregator()
    drawn = aggregator.open(1).cohort
    (other,) = set(road.land.sites) - set(drawn)
    with pytest.raises(CohortError):
        aggregator.governor.submit(site=other, digest="0e" * 32)


def test_a_repeated_attempt_with_one_other_of_the_drawn_is_refused(make_road):
    """The choice that over-sampling leaves to whoever delays messages cannot be made twice for one round."""
    road = over_sampled(make_road, least=3, fraction=0.75)
    aggregator = road.aggregator()
    drawn = aggregator.open(1).cohort
    assert len(drawn) == 4
    road.send(aggregator, drawn[:3])

    def dies(*_):
        raise UnreachableError("the model owner's broker")

    aggregator.enclave.committer.committed = dies  # After the countersignatures, before the commit.
    with pytest.raises(UnreachableError):
        aggregator.close_round()
    second = road.aggregator()
    second.open(1, attempt=1)
    road.send(second, drawn[1:], attempt=1)
    with pytest.raises(QuorumError):  # Of whoever countersigned the first, none countersigns this.
        second.close_round()


def test_evaluations_are_full_too(road):
    road.round(1, sites=road.aggregator().open(1).cohort[:2])
    aggregator = road.aggregators[0]
    drawn = aggregator.open(1, purpose="evaluate").cohort
    assert len(drawn) == 3
    road.send(aggregator, drawn[:2], purpose=Purpose.EVALUATE)
    with pytest.raises(RoundFullError):
        road.send(aggregator, drawn[2:], purpose=Purpose.EVALUATE)
    assert aggregator.close_round().cohort_size == 2
