"""What is kept on disk, for how long it serves, and what a provider does when a vendor does not answer."""

import dataclasses
import json
import logging
import os
import stat
import threading

import pytest
from endorsement_world import (
    CHAIN,
    COLLATERAL,
    CRL,
    DAY,
    DAY_MS,
    NOW,
    NOW_MS,
    RIM,
    STATUS,
    VCEK,
    amd_answer,
    amd_chain,
    collateral,
    crl,
    rim,
    status,
    vcek,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical
from confed.attestation.certificates import load_certificates
from confed.attestation.endorsement_cache import EndorsementCache
from confed.attestation.endorsement_provider import LIFETIMES, CachedProvider, gathered
from confed.attestation.endorsements import AmdChain, AmdCrl, AmdVcek, Endorsement, need_digest
from confed.attestation.endorsing.plausibility import examined
from confed.errors import EndorsementFetchError, EvidenceSizeError, StorageError

HOUR_MS = 3_600_000
ANSWERS = {
    VCEK: vcek(VCEK),
    CHAIN: amd_chain(CHAIN),
    CRL: crl("ARK-Milan", ends=NOW + 300 * DAY),
    COLLATERAL: json.dumps(collateral(COLLATERAL)).encode(),
    RIM: rim(RIM),
    STATUS: status(STATUS, ends=NOW + 30 * DAY),
}


def endorsed(need, *, at=NOW_MS):
    return examined(need, ANSWERS[need], fetched_at=at)


class Vendor:
    """Answers what a test lets it, and counts how often it was asked."""

    NEEDS = (AmdVcek, AmdChain, AmdCrl, type(COLLATERAL), type(RIM), type(STATUS))

    def __init__(self):
        self.asked = []
        self.down = False
        self.gate = None
        self.started = threading.Event()

    def fetch(self, need, *, now_ms):
        self.asked.append(need)
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        if self.down:
            raise EndorsementFetchError("vendor.example", expected="an answer", got="none in time")
        return endorsed(need, at=now_ms)


@pytest.fixture
def vendor():
    return Vendor()


@pytest.fixture
def cache(tmp_path):
    return EndorsementCache(tmp_path / "endorsements")


@pytest.fixture
def provider(cache, vendor):
    return CachedProvider(cache, [vendor])


def file_of(cache, need):
    return cache._directory / f"{need_digest(need)}.json"


# The directory


@pytest.mark.parametrize("need", ANSWERS, ids=lambda need: need.KIND)
def test_what_is_kept_is_what_was_put_in_by_its_need(cache, need):
    assert cache.get(need) is None
    cache.put(endorsed(need))
    assert cache.get(need) == endorsed(need)
    assert [path.name for path in cache._directory.iterdir()] == [f"{need_digest(need)}.json"]


def test_only_its_owner_reads_the_directory(cache):
    cache.put(endorsed(CRL))
    assert stat.S_IMODE(cache._directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(cache, CRL).stat().st_mode) == 0o600


def test_needs_that_differ_in_anything_are_kept_apart():
    others = [VCEK, dataclasses.replace(VCEK, snp=25), dataclasses.replace(VCEK, hwid="01" * 64), CHAIN, CRL]
    others += [dataclasses.replace(CHAIN, key="vlek"), dataclasses.replace(CRL, product="Genoa"), COLLATERAL]
    assert len({need_digest(need) for need in others}) == len(others)


CORRUPT = {
    "nothing": lambda _: b"",
    "half of it": lambda data: data[: len(data) // 2],
    "one byte more": lambda data: data + b" ",
    "another spelling": lambda data: json.dumps(json.loads(data)).encode(),
    "something else": lambda _: b"\x00\xff",
    "a list": lambda _: b"[]",
    "another format": lambda data: data.replace(b"confed-endorsement/1", b"confed-endorsement/2"),
    "no digest": lambda data: canonical.encode({k: v for k, v in json.loads(data).items() if k != "digest"}),
    "other bytes": lambda data: edited(data, lambda entry: entry.update(bytes="AAAA")),
    "an entry without bytes": lambda data: edited(data, lambda entry: entry.update(bytes="")),
    "another need": lambda data: edited(data, lambda entry: entry["need"].update(product="Genoa")),
    "a need that is none": lambda data: edited(data, lambda entry: entry["need"].update(product="../../etc")),
    "another kind": lambda data: edited(data, lambda entry: entry.update(kind="amd-chain")),
    "a kind that is none": lambda data: edited(data, lambda entry: entry.update(kind=["amd-crl"])),
    "a time that is none": lambda data: edited(data, lambda entry: entry.update(expires="soon")),
    "a field more": lambda data: edited(data, lambda entry: entry.update(trusted=True)),
}


def edited(data, change):
    value = json.loads(data)
    change(value["entry"])
    return canonical.encode(value)


@pytest.mark.parametrize("sentence", CORRUPT)
def test_what_is_corrupt_is_left_out_with_a_log_line_and_fetched_again(provider, cache, vendor, caplog, sentence):
    provider.obtain(CRL, now_ms=NOW_MS)
    path = file_of(cache, CRL)
    path.write_bytes(CORRUPT[sentence](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert provider.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)
    assert vendor.asked == [CRL, CRL]
    assert "corrupt" in caplog.text
    assert path.name in caplog.text
    assert provider.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)
    assert vendor.asked == [CRL, CRL]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_file_with_any_byte_changed_is_never_read_as_something_else(data, tmp_path_factory):
    cache = EndorsementCache(tmp_path_factory.getbasetemp() / "flipped")
    cache.put(endorsed(STATUS))
    path = file_of(cache, STATUS)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    found = cache.get(STATUS)
    assert found is None or (found.need, found.data) == (STATUS, ANSWERS[STATUS])


def test_an_entry_that_cannot_be_read_is_fetched_again(provider, cache, vendor, caplog):
    file_of(cache, CRL).mkdir()
    assert cache.get(CRL) is None
    assert "cannot be read" in caplog.text
    assert provider.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)
    assert "is not kept" in caplog.text


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        EndorsementCache(tmp_path / "file" / "endorsements")


def test_what_was_written_first_goes_first_when_there_is_no_room(tmp_path):
    needs = [CRL, STATUS, RIM, VCEK]
    cache = EndorsementCache(tmp_path / "few", limit_entries=3)
    for at, need in enumerate(needs):
        cache.put(endorsed(need))
        os.utime(file_of(cache, need), ns=(at, at))
    assert [cache.get(need) is not None for need in needs] == [False, True, True, True]
    cache.put(endorsed(STATUS))
    assert [cache.get(need) is not None for need in needs] == [False, True, True, True]


LIMIT = 9_000


def test_the_directory_holds_no_more_bytes_than_its_bound(tmp_path):
    cache = EndorsementCache(tmp_path / "small", limit_bytes=LIMIT)
    for at, need in enumerate(ANSWERS):
        cache.put(endorsed(need))
        os.utime(file_of(cache, need), ns=(at, at))
        assert sum(path.stat().st_size for path in cache._directory.iterdir()) <= LIMIT
    assert cache.get(STATUS) == endorsed(STATUS)


def test_what_is_larger_than_the_whole_directory_may_be_is_not_kept(tmp_path):
    cache = EndorsementCache(tmp_path / "tiny", limit_bytes=3_000)
    cache.put(endorsed(CRL))
    with pytest.raises(StorageError):
        cache.put(endorsed(COLLATERAL))
    assert cache.get(CRL) == endorsed(CRL)


def test_drafts_of_a_process_that_was_killed_go_like_old_entries(tmp_path):
    cache = EndorsementCache(tmp_path / "drafts", limit_entries=2)
    draft = cache._directory / ".killed.draft"
    draft.write_bytes(b"half")
    os.utime(draft, ns=(0, 0))
    cache.put(endorsed(CRL))
    assert draft.exists()
    cache.put(endorsed(STATUS))
    assert not draft.exists()


def test_files_of_others_are_left_alone(tmp_path):
    cache = EndorsementCache(tmp_path / "shared", limit_entries=1)
    (cache._directory / "README").write_text("ours")
    cache.put(endorsed(CRL))
    cache.put(endorsed(STATUS))
    assert (cache._directory / "README").exists()


def test_a_draft_that_cannot_be_written_leaves_what_was_kept(cache, monkeypatch):
    cache.put(endorsed(CRL))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        cache.put(endorsed(CRL, at=NOW_MS + 5))
    assert cache.get(CRL) == endorsed(CRL)
    assert len(list(cache._directory.iterdir())) == 1


# How long it serves


def test_a_vendor_is_asked_once(provider, vendor):
    for _ in range(3):
        assert provider.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)
    assert vendor.asked == [CRL]


def test_another_process_finds_what_was_kept(provider, vendor, tmp_path):
    provider.obtain(CRL, now_ms=NOW_MS)
    again = CachedProvider(EndorsementCache(tmp_path / "endorsements"), [])
    assert again.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)


@pytest.mark.parametrize("need", ANSWERS, ids=lambda need: need.KIND)
def test_an_answer_is_refreshed_after_its_time_and_not_before(provider, vendor, need):
    refresh = min(LIFETIMES[type(need)].refresh_s * 1000, endorsed(need).expires_at - NOW_MS)
    provider.obtain(need, now_ms=NOW_MS)
    provider.obtain(need, now_ms=NOW_MS + refresh)
    assert len(vendor.asked) == 1
    assert provider.obtain(need, now_ms=NOW_MS + refresh + 1).fetched_at == NOW_MS + refresh + 1
    assert len(vendor.asked) == 2


@pytest.mark.parametrize("need", ANSWERS, ids=lambda need: need.KIND)
def test_a_vendor_that_is_down_is_outlived_for_a_while_and_no_longer(provider, vendor, caplog, need):
    lifetime = LIFETIMES[type(need)]
    keep = min(lifetime.keep_s * 1000, endorsed(need).expires_at - NOW_MS)
    provider.obtain(need, now_ms=NOW_MS)
    vendor.down = True
    assert provider.obtain(need, now_ms=NOW_MS + keep) == endorsed(need)
    if keep > lifetime.refresh_s * 1000:
        assert "serves on" in caplog.text
    with pytest.raises(EndorsementFetchError):
        provider.obtain(need, now_ms=NOW_MS + keep + 1)


def test_a_vendor_that_is_down_is_left_alone_for_a_minute(provider, vendor):
    late = NOW_MS + 2 * DAY_MS
    provider.obtain(CRL, now_ms=NOW_MS)
    vendor.down = True
    for now_ms in (late, late, late + 59_999):
        assert provider.obtain(CRL, now_ms=now_ms) == endorsed(CRL)
    assert len(vendor.asked) == 2
    provider.obtain(CRL, now_ms=late + 60_000)
    assert len(vendor.asked) == 3
    provider.obtain(CRL, now_ms=late - 1)
    assert len(vendor.asked) == 4
    vendor.down = False
    assert provider.obtain(CRL, now_ms=late + 180_000).fetched_at == late + 180_000
    assert provider.obtain(CRL, now_ms=late + 180_001).fetched_at == late + 180_000
    assert len(vendor.asked) == 5


def test_a_vendor_that_failed_a_moment_ago_does_not_make_old_answers_serve(provider, vendor):
    keep = LIFETIMES[type(CRL)].keep_s * 1000
    provider.obtain(CRL, now_ms=NOW_MS)
    vendor.down = True
    provider.obtain(CRL, now_ms=NOW_MS + keep)
    with pytest.raises(EndorsementFetchError):
        provider.obtain(CRL, now_ms=NOW_MS + keep + 1)


def test_what_its_issuer_no_longer_vouches_for_is_fetched_again_however_young(cache, vendor):
    short = examined(STATUS, status(STATUS, ends=NOW + DAY / 24), fetched_at=NOW_MS)
    cache.put(short)
    provider = CachedProvider(cache, [vendor])
    assert provider.obtain(STATUS, now_ms=NOW_MS + HOUR_MS) == short
    vendor.down = True
    with pytest.raises(EndorsementFetchError):
        provider.obtain(STATUS, now_ms=NOW_MS + HOUR_MS + 1)


def test_what_was_fetched_in_the_future_does_not_serve(provider, vendor):
    provider.obtain(CRL, now_ms=NOW_MS + DAY_MS)
    assert provider.obtain(CRL, now_ms=NOW_MS).fetched_at == NOW_MS
    vendor.down = True
    with pytest.raises(EndorsementFetchError):
        provider.obtain(CRL, now_ms=NOW_MS - 1)


def test_what_could_not_be_had_is_asked_for_again(provider, vendor):
    vendor.down = True
    for _ in range(2):
        with pytest.raises(EndorsementFetchError):
            provider.obtain(CRL, now_ms=NOW_MS)
    vendor.down = False
    assert provider.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)
    assert len(vendor.asked) == 3


def test_a_need_that_no_source_knows_fails_closed(cache):
    with pytest.raises(EndorsementFetchError, match="source"):
        CachedProvider(cache, []).obtain(CRL, now_ms=NOW_MS)


def test_the_first_source_that_knows_a_kind_is_asked(cache, vendor):
    second = Vendor()
    CachedProvider(cache, [vendor, second]).obtain(CRL, now_ms=NOW_MS)
    assert (vendor.asked, second.asked) == ([CRL], [])


def test_every_kind_of_need_has_a_lifetime():
    assert {type(need) for need in ANSWERS} == set(LIFETIMES)
    assert all(0 < lifetime.refresh_s <= lifetime.keep_s for lifetime in LIFETIMES.values())


def test_threads_with_one_need_cost_one_fetch(provider, vendor):
    vendor.gate = threading.Event()
    found = []
    threads = [threading.Thread(target=lambda: found.append(provider.obtain(CRL, now_ms=NOW_MS))) for _ in range(6)]
    for thread in threads:
        thread.start()
    vendor.gate.set()
    for thread in threads:
        thread.join(10)
    assert found == [endorsed(CRL)] * 6
    assert vendor.asked == [CRL]


def test_what_is_kept_is_given_while_another_need_is_waited_for(provider, vendor):
    provider.obtain(CRL, now_ms=NOW_MS)
    provider._locks = (threading.Lock(),) * len(provider._locks)
    vendor.gate = threading.Event()
    vendor.started.clear()
    waiting = threading.Thread(target=lambda: provider.obtain(STATUS, now_ms=NOW_MS))
    waiting.start()
    assert vendor.started.wait(10)
    assert provider.obtain(CRL, now_ms=NOW_MS) == endorsed(CRL)
    vendor.gate.set()
    waiting.join(10)
    assert vendor.asked == [CRL, STATUS]


def test_readers_see_a_whole_entry_while_it_is_written(cache):
    ended, wrong = threading.Event(), []

    def read():
        while not ended.is_set():
            found = cache.get(CRL)
            if found not in (endorsed(CRL), endorsed(CRL, at=NOW_MS + 1)):
                wrong.append(found)

    cache.put(endorsed(CRL))
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for at in range(30):
        cache.put(endorsed(CRL, at=NOW_MS + at % 2))
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# All or nothing


def test_a_need_is_met_once_and_in_order():
    met = []

    def obtain(need):
        met.append(need)
        return endorsed(need)

    assert gathered([CRL, VCEK, CRL], obtain) == (endorsed(CRL), endorsed(VCEK))
    assert met == [CRL, VCEK]


def test_more_needs_than_evidence_may_have_are_refused():
    many = [AmdVcek(**{**dataclasses.asdict(VCEK), "hwid": f"{number:0128x}"}) for number in range(1, 140)]
    asked = []

    def obtain(need):
        asked.append(need)
        return Endorsement(need=need, data=b"x", fetched_at=0, expires_at=1)

    with pytest.raises(EvidenceSizeError):
        gathered(many, obtain)
    assert len(asked) == 128


def test_a_chain_is_given_certificate_by_certificate():
    chain = amd_answer(CHAIN)
    parts = examined(CHAIN, chain, fetched_at=NOW_MS).parts
    assert parts == tuple(certificate.der for certificate in load_certificates(chain, what="chain"))
    assert len(parts) == 2
    assert endorsed(CRL).parts == (ANSWERS[CRL],)
