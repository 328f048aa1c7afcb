"""What ten thousand sites need: rooms that hold them, and nothing that each of them looks through all others for."""

from __future__ import annotations

import hashlib
import resource
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.inbox import Inbox
from confed.cli.broker import _permit_open_files
from confed.governor.courier import Courier, Limits
from confed.journey import Purpose
from confed.keybroker.client import BrokerClient
from confed.keybroker.lineage import lineage_of, parsed, verified
from confed.keybroker.statements import Countersignature
from confed.manifest import Site
from confed.statement import Signed, sign
from confed.wire.addresses import EVIDENCE_TOPICS, LETTERS_PER_TOPIC, check_topic, evidence_topic, evidence_topics
from tests.unit.test_manifest import make, party, reference

if TYPE_CHECKING:
    from pathlib import Path

SITES = 10_000
ENVELOPE_BYTES = 8_000
FIELDS: dict[str, Any] = {
    **{name: bytes(32) for name in ("broker", "identity")},
    **dict.fromkeys(("candidate", "base", "digest"), "0" * 64),
    "round": 1,
    "attempt": 0,
    "purpose": Purpose.TRAIN,
    "time": 1,
}
"""Of a countersignature, but for its run."""


def test_evidence_of_every_site_and_of_the_aggregator_has_room() -> None:
    topics = Counter(evidence_topic("run-1", number.to_bytes(4, "big")) for number in range(2 * SITES + 2))
    assert sorted(topics) == evidence_topics("run-1")
    assert len(topics) == EVIDENCE_TOPICS
    fullest = max(topics.values())
    assert 10 * fullest < LETTERS_PER_TOPIC, "ten times attested anew"
    assert 10 * fullest * ENVELOPE_BYTES < Limits().topic_bytes
    check_topic(max(topics))


def test_a_courier_has_topics_for_each_site_s_aggregator_and_tickets() -> None:
    # A site's aggregator, its tickets to train and to evaluate, and those of an attempt that is repeated.
    assert Limits().topics > 10 * SITES


def test_evidence_comes_back_from_where_it_was_posted(tmp_path: Path) -> None:
    courier = Courier(tmp_path, durable=False)
    sent = {hashlib.sha256(bytes([number])).digest() for number in range(50)}
    for envelope in sent:
        courier.post(evidence_topic("run-1", envelope), envelope)
    assert {body for topic in evidence_topics("run-1") for body in courier.collect(topic)} == sent


def test_a_call_to_many_brokers_has_time_for_each() -> None:
    client = BrokerClient.__new__(BrokerClient)
    client._timeout_s = 60.0
    given: list[float] = []

    def method(batch: object, *, timeout: float) -> Any:
        given.append(timeout)
        return SimpleNamespace(items=[None] * int(batch))  # pyright: ignore[reportArgumentType]

    for count in (1, SITES):
        client._items(method, count, count)
    assert given[0] < 61
    assert given[1] >= 500


def test_a_broker_process_may_open_as_many_files_as_the_system_permits() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        _permit_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_results_of_a_bundle_count_as_memory_and_the_rest_goes_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(size_bytes=1000)
    for name in ("parse", "map"):
        monkeypatch.setattr(f"aggregator.inbox.Container.{name}", lambda _: fake)
    store: Any = None
    inbox = Inbox(store, folder=tmp_path, memory_bytes=2500)
    for site in range(4):
        inbox.keep(str(site), inbox.enclosed(bytes(1000), plaintext_bytes=1000))
    assert len(list(tmp_path.iterdir())) == 2
    inbox.clear()
    assert not list(tmp_path.iterdir())


def test_the_tickets_of_a_large_cohort_do_not_push_out_the_candidate_that_names_them() -> None:
    key = Ed25519PrivateKey.generate()

    def statement(run: str) -> Signed:
        return sign(Countersignature(run=run, **FIELDS), key)

    def known() -> tuple[object, object]:
        return parsed(large, Countersignature), verified(large, Countersignature, large.signer)

    large = statement("x" * 100_000)
    before = known()
    for number in range(SITES):
        small = statement(str(number))
        parsed(small, Countersignature)
        verified(small, Countersignature, small.signer)
    assert all(again is first for again, first in zip(known(), before, strict=True))


@pytest.fixture(scope="module")
def crowd() -> Any:
    sites = tuple(Site(owner=party(f"site-{n:05d}"), dataset=reference(f"data-{n}")) for n in range(SITES))
    manifest = make(sites=sites)
    return lineage_of(replace(manifest, cohort=replace(manifest.cohort, fraction_train=1.0)))


def test_ten_thousand_brokers_find_their_owner_in_a_cohort_at_once(crowd: Any) -> None:
    cohort = crowd.drawn(Purpose.TRAIN, 1)
    candidate: Any = SimpleNamespace(cohort=cohort)
    started = time.thread_time()
    for at, identity in enumerate(cohort):
        assert crowd.places(candidate)[identity] == at
        assert crowd.is_drawn(identity, Purpose.TRAIN, 1)
    assert time.thread_time() - started < 0.2, "a scan each takes twice that and more"
    assert not crowd.is_drawn(bytes(32), Purpose.TRAIN, 1)
