"""A cohort that the courier has no room for: it comes in batches, and what is folded makes room for the next."""

import dataclasses
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from road import Land, Road, crafted
from test_expiry import kinds_in

from confed import canonical
from confed.aggregation import AggregationTerms
from confed.errors import (
    BatchError,
    DuplicateUpdateError,
    MissingObjectError,
    QuotaError,
    StaleUpdateError,
    TicketError,
)
from confed.governor.courier import Limits
from confed.governor.expiry import Terms
from confed.keybroker.folded import FoldedBatch, FoldedBatches, topic_of
from confed.statement import Signed, sign, unverified

SITES = ("alpha", "bravo", "delta", "gamma", "kappa", "omega")
MODEL = {"weight": np.linspace(-0.5, 0.5, 50_000, dtype=np.float32)}
UPDATE_BYTES = 203_000
LETTERS_BYTES = 250_000
"""More than the evidence, credentials and tickets of a round take, and less than two updates."""


@pytest.fixture(scope="module")
def lands(quick_disk):
    """Six sites, in batches of two and all at once."""

    def land(batch):
        def change(manifest):
            update = dataclasses.replace(manifest.update, norm_bound=100.0)
            return dataclasses.replace(manifest, aggregation=AggregationTerms(batch=batch), update=update)

        return Land(folder=quick_disk / f"land-of-{batch}", sites=SITES, model=MODEL, change=change)

    return {batch: land(batch) for batch in (2, None)}


@pytest.fixture
def roads(lands, place):
    """Return roads whose courier has room for two updates beside the start, the next version and letters."""
    opened = []

    def road(batch=2, updates=2):
        land = lands[batch]
        held = sum(len(content) for content in land.files.values())
        limits = Limits(store_bytes=held + (updates + 1) * UPDATE_BYTES + LETTERS_BYTES)
        courier = {"limits": limits, "expiry": Terms(manifest=land.manifest)}
        opened.append(Road(land, place / f"road-{len(opened)}", courier=courier))
        return opened[-1]

    yield road
    for one in opened:
        one.__exit__()


def walk(road, aggregator, *, attempt=0, backwards=False, changes=None, batches=None):
    """Take a round's batches through, as the governor does, and close it."""
    cut = road.manifest.aggregation.cut(SITES)
    for number, batch in enumerate(cut):
        for site in reversed(batch) if backwards else batch:
            held = road.hold(site, attempt=attempt)
            sealed = (changes or {}).get(site)
            digest = road.seal(held) if sealed is None else road.courier.put(crafted(road, held, **sealed))
            aggregator.governor.submit(site=site, digest=digest)
        if number + 1 < len(cut):
            aggregator.governor.fold_batch(number)
            if batches is not None:
                batches.append(road.courier.used_bytes)
    return aggregator.close_round()


def test_without_batches_the_courier_has_no_room_for_the_cohort(roads):
    road = roads(batch=None)
    aggregator = road.aggregator()
    aggregator.open(1)
    with pytest.raises(QuotaError):
        road.send(aggregator, SITES)


def test_with_batches_it_has_and_the_result_is_the_mean_whoever_comes_first(roads):
    versions, held = [], []
    for backwards in (False, True):
        road = roads()
        aggregator = road.aggregator()
        aggregator.open(1)
        closed = walk(road, aggregator, backwards=backwards, batches=held)
        assert (closed.cohort_size, closed.excluded) == (len(SITES), {})
        versions.append(road.open_version(1)["weight"])
    assert max(held) - min(held) < UPDATE_BYTES, "each batch is gone before the next one comes"
    assert versions[0].tobytes() == versions[1].tobytes()
    np.testing.assert_allclose(versions[0], road.mean(SITES, MODEL)["weight"], rtol=1e-6, atol=1e-7)
    road.courier.expiry.settle()
    assert "update" not in [kind for kind, _ in kinds_in(road.courier)], "the last batch goes with the commit"


def test_a_bad_update_in_the_second_batch_leaves_the_first_alone(roads):
    road = roads()
    aggregator = road.aggregator()
    aggregator.open(1)
    closed = walk(road, aggregator, changes={"gamma": {"norm": 0.001}})
    assert closed.excluded == {"gamma": "norm"}
    others = [site for site in SITES if site != "gamma"]
    np.testing.assert_allclose(road.open_version(1)["weight"], road.mean(others, MODEL)["weight"], rtol=1e-6, atol=1e-7)
    assert len(road.candidate(1).cohort) == len(SITES) - 1


def test_a_site_of_the_first_batch_that_sends_again_counts_once(roads):
    road = roads(updates=4)
    aggregator = road.aggregator()
    aggregator.open(1)
    held = road.hold("alpha")
    digest = road.seal(held)
    aggregator.governor.submit(site="alpha", digest=digest)
    early = road.seal(road.hold("delta"))
    with pytest.raises(BatchError):
        aggregator.governor.submit(site="delta", digest=early)
    aggregator.governor.fold_batch(0)
    again = road.courier.put(crafted(road, held, weight=900.0))
    with pytest.raises(DuplicateUpdateError):
        aggregator.governor.submit(site="alpha", digest=again)
    with pytest.raises(TicketError):  # its broker knows, too
        road.hold("alpha")
    with pytest.raises(StaleUpdateError):  # nor under another's name
        aggregator.governor.submit(site="delta", digest=again)
    with pytest.raises(BatchError):
        aggregator.governor.submit(site="bravo", digest=road.seal(road.hold("bravo")))
    aggregator.governor.submit(site="delta", digest=early)
    road.send(aggregator, ("gamma",))
    closed = aggregator.close_round(absent=dict.fromkeys(("kappa", "omega"), "no-answer"))
    assert closed.excluded == {"bravo": "other-batch", "kappa": "no-answer", "omega": "no-answer"}
    counted = ("alpha", "delta", "gamma")
    np.testing.assert_allclose(
        road.open_version(1)["weight"], road.mean(counted, MODEL)["weight"], rtol=1e-6, atol=1e-7
    )


def test_an_attempt_that_dies_between_batches_counts_nowhere(roads):
    road = roads(updates=4)
    first = road.aggregator()
    first.open(1)
    kept = {site: road.seal(road.hold(site)) for site in ("alpha", "bravo")}
    for site, digest in kept.items():
        first.governor.submit(site=site, digest=digest)
    first.governor.fold_batch(0)
    first.stop()
    second = road.aggregator()
    second.open(1, attempt=1)
    with pytest.raises(MissingObjectError):
        second.governor.submit(site="alpha", digest=kept["alpha"])
    closed = walk(road, second, attempt=1)
    assert closed.cohort_size == len(SITES)
    np.testing.assert_allclose(road.open_version(1)["weight"], road.mean(SITES, MODEL)["weight"], rtol=1e-6, atol=1e-7)


def test_a_courier_that_deletes_early_costs_a_site_its_round_and_nobody_else(roads):
    road = roads()
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, ("alpha", "bravo"))
    aggregator.governor.fold_batch(0)
    digest = road.seal(road.hold("delta"))
    road.courier.remove(digest)
    with pytest.raises(MissingObjectError):
        aggregator.governor.submit(site="delta", digest=digest)
    road.send(aggregator, ("gamma",))
    aggregator.governor.fold_batch(1)
    road.send(aggregator, ("kappa", "omega"))
    closed = aggregator.close_round()
    assert closed.excluded == {"delta": "missing-object"}


def letters_of(road):
    return road.courier.collect(topic_of(road.manifest.run, round_number=1, attempt=0))


def test_only_a_credentialed_aggregators_word_removes_and_only_updates_of_its_round(roads):
    road = roads(updates=4)
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, ("alpha", "bravo"))
    digest = road.seal(road.hold("delta"))
    said = FoldedBatch(
        run=road.manifest.run,
        manifest=road.manifest.digest,
        round=1,
        attempt=0,
        batch=0,
        instance=aggregator.instance,
        updates=(digest, road.manifest.model.start.digest),
    )
    topic = topic_of(road.manifest.run, round_number=1, attempt=0)

    def tell(key, **changes):
        road.courier.post(topic, canonical.encode(sign(dataclasses.replace(said, **changes), key).to_json()))

    stranger = Ed25519PrivateKey.generate()
    own = aggregator.enclave.signing_key
    tell(stranger)
    tell(road.homes["alpha"].broker_key)
    tell(own, run="another")
    tell(own, round=2)
    tell(own, instance="0e" * 32)
    road.courier.post(topic, b"{}")
    assert road.courier.path(digest)
    tell(own)
    with pytest.raises(MissingObjectError):
        road.courier.path(digest)
    assert road.courier.path(road.manifest.model.start.digest)


def test_fewer_credentials_than_a_majority_are_nobodys_word(roads):
    road = roads()
    aggregator = road.aggregator()
    aggregator.open(1)
    road.send(aggregator, ("alpha", "bravo"))
    aggregator.governor.fold_batch(0)
    (body,) = letters_of(road)
    said = unverified(Signed.from_json(json.loads(body)), FoldedBatch)
    assert (said.batch, len(said.updates), said.instance) == (0, 2, aggregator.instance)
    for count, holds in ((3, False), (4, True)):
        some = {f"{road.manifest.run}/aggregator/{site}" for site in SITES[:count]}
        verifier = FoldedBatches(
            road.manifest, lambda topic, some=some: road.courier.collect(topic) if topic in some else []
        )
        if holds:
            assert verifier.verify(body) == said
        else:
            with pytest.raises(Exception, match="credentials"):
                verifier.verify(body)
