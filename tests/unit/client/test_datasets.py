"""What a TEE does with a dataset that it cannot use, beside the roads in tests/journey/test_tables.py."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.client import datasets
from confed.client.datasets import Datasets
from confed.errors import ColumnError, ConfedError, ContractError, MissingPackageError, SessionError

KEY = bytes(32)


class Bag:
    """Whatever has these attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


REFERENCE = Bag(digest="00" * 32, container_id="d", key_id="k")
SITE: Any = Bag(owner=Bag(name="east", identity=bytes(32)), dataset=REFERENCE)
MANIFEST: Any = Bag(preparation=Bag(descriptions={"east": "11" * 32}, statistics=None), run="run-1", digest="22" * 32)


class Courier:
    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.posted: list[str] = []

    def get(self, digest: str) -> memoryview:
        self.fetched.append(digest)
        return memoryview(b"")

    def post(self, topic: str, body: bytes) -> None:
        del body
        self.posted.append(topic)


@pytest.mark.parametrize(("error", "posts"), [(ContractError("x"), 1), (ColumnError("x"), 0)])
def test_a_refused_dataset_is_refused_again_without_being_fetched_and_told_once(monkeypatch, error, posts):
    courier: Any = Courier()
    held = Datasets(MANIFEST, courier=courier, signing_key=Ed25519PrivateKey.generate())

    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "prepared_table", refuse)
    seconds = {"fetch": 0.0, "open": 0.0}
    for _ in range(2):
        with pytest.raises(type(error)):
            held.open(SITE, KEY, seconds)
    assert len(courier.fetched) == 2  # the container and its description, once
    assert courier.posted == ["run-1/findings/east"] * posts
    assert not held.has(SITE)
    for read in (held.arrays, held.table, held.checked):
        with pytest.raises(SessionError):
            read(SITE)


def test_an_image_without_the_extra_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "confed.data.dataset", None)
    with pytest.raises(MissingPackageError, match=r"confed\[data\]") as refused:
        datasets.prepared_table(memoryview(b""), memoryview(b""), KEY, site=SITE, terms=MANIFEST.preparation)
    assert isinstance(refused.value, ConfedError)
    assert refused.value.code == "missing-package"
