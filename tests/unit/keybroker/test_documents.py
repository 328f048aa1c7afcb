"""Large manifests are written once for all owners of a home, and are still each owner's own."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confed import canonical
from confed.errors import NotApprovedError
from confed.keybroker import documents
from confed.keybroker.documents import approved_manifest, keep_document
from confed.keybroker.lineage import members_apart
from confed.manifest import Manifest

DOCUMENT = b"x" * 70_000
DIGEST = canonical.digest(DOCUMENT)


@pytest.fixture
def owners(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_known", documents._known.__class__())
    monkeypatch.setattr(Manifest, "decode", classmethod(lambda _, data: data))
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
    return tmp_path / "north", tmp_path / "south"


def test_a_large_manifest_lies_once_on_the_disk(owners):
    for owner in owners:
        assert keep_document(owner, DOCUMENT, digest=DIGEST) == b""
    first, second = (owner / "manifests" / DIGEST for owner in owners)
    assert first.read_bytes() == DOCUMENT
    assert first.samefile(second)


def test_approving_again_changes_nothing(owners):
    for _ in range(2):
        keep_document(owners[0], DOCUMENT, digest=DIGEST)
    assert approved_manifest(owners[0], DIGEST, bytes) == DOCUMENT


def test_a_small_manifest_stays_in_the_store(owners):
    assert keep_document(owners[0], b"small", digest="d") == b"small"
    assert not (owners[0] / "manifests").exists()
    assert approved_manifest(owners[0], canonical.digest(b"small"), lambda: b"small") == b"small"


def test_an_owner_s_folder_is_whole_by_itself(owners, tmp_path):
    keep_document(owners[0], DOCUMENT, digest=DIGEST)
    shutil.copytree(owners[0], tmp_path / "elsewhere" / "north")
    shutil.rmtree(tmp_path / ".manifests")
    assert approved_manifest(tmp_path / "elsewhere" / "north", DIGEST, bytes) == DOCUMENT


def test_where_nothing_can_be_linked_it_is_copied(owners, monkeypatch):
    def refuse(*_):
        raise OSError(18, "another file system")

    monkeypatch.setattr(documents.os, "link", refuse)
    keep_document(owners[0], DOCUMENT, digest=DIGEST)
    assert approved_manifest(owners[0], DIGEST, bytes) == DOCUMENT


@pytest.mark.parametrize("found", [b"", b"another", None])
def test_another_document_than_the_approved_one_is_refused(owners, found):
    keep_document(owners[0], DOCUMENT, digest=DIGEST)
    file = owners[0] / "manifests" / DIGEST
    file.unlink()
    if found is not None:
        file.write_bytes(found)
    with pytest.raises(NotApprovedError):
        approved_manifest(owners[0], DIGEST, bytes)


def test_brokers_of_one_process_share_the_decoded_manifest(owners):
    keep_document(owners[0], DOCUMENT, digest=DIGEST)
    first = approved_manifest(owners[0], DIGEST, bytes)
    assert approved_manifest(owners[1], DIGEST, bytes) is first


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)))
def test_cohorts_differ_by_what_is_in_one_of_them(one, other):
    def noted(cohort):
        return sum(1 << (47 - at) for at in cohort).to_bytes(6, "big")

    assert members_apart(noted(one), noted(other)) == len(one ^ other)


def test_cohorts_noted_in_another_way_count_as_the_smallest_difference():
    assert members_apart(b"\0" * 32, b"\0") == 1
