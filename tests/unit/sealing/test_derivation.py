"""Every derived key is bound to each of the words it is derived from."""

from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from confed.errors import SizeError
from confed.sealing import derivation

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
STEP = {"run": "r", "version": 1, "attempt": 0}


def test_keys_for_different_words_differ() -> None:
    keys = [
        derivation.container_key(KEY, container_id="a"),
        derivation.container_key(KEY, container_id="b"),
        derivation.container_key(OTHER, container_id="a"),
        derivation.version_key(KEY, **STEP),
        derivation.version_key(OTHER, **STEP),
        derivation.version_key(KEY, **{**STEP, "run": "s"}),
        derivation.version_key(KEY, **{**STEP, "version": 2}),
        derivation.version_key(KEY, **{**STEP, "attempt": 1}),
        derivation.state_key(KEY, **STEP),
        derivation.chunk_key(KEY, salt=KEY, header_digest="00" * 32),
        derivation.chunk_key(KEY, salt=OTHER, header_digest="00" * 32),
        derivation.chunk_key(KEY, salt=KEY, header_digest="01" * 32),
        derivation.declaration_key(KEY, salt=KEY),
        derivation.declaration_key(KEY, salt=OTHER),
        derivation.key_commitment(KEY, salt=KEY),
        derivation.key_commitment(KEY, salt=OTHER),
        derivation.key_commitment(OTHER, salt=KEY),
    ]
    assert all(left != right for left, right in itertools.combinations(keys, 2))
    assert {len(key) for key in keys} == {32}


def test_a_version_key_is_hkdf_over_canonical_json() -> None:
    info = b'["confed/v1/version-key","r",1,0]'
    expected = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(KEY)
    assert derivation.version_key(KEY, run="r", version=1, attempt=0) == expected


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(SizeError):
        derivation.version_key(bytes(size), run="r", version=1, attempt=0)


def test_data_keys_and_salts_are_fresh() -> None:
    assert len({derivation.new_data_key() for _ in range(8)} | {derivation.new_salt() for _ in range(8)}) == 16
