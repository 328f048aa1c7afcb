"""A real attestation result of another verifier's: the same vector and tiers, but nothing that confed would rely on."""

import json

import pytest
from folder import needs_vectors, read

from confed.attestation.ear import verify
from confed.attestation.trustworthiness import Tier, Vector
from confed.errors import EncodingError
from confed.manifest import Unchecked

pytestmark = needs_vectors

EXAMPLE = "ear/trustee/example.token.json"


def test_its_status_is_the_tier_of_its_vector():
    part = json.loads(read(EXAMPLE))["submods"]["cpu0"]
    vector = Vector.from_json(part["ear.trustworthiness-vector"])
    assert vector.to_json() == part["ear.trustworthiness-vector"]
    assert vector.tier == Tier(part["ear.status"]) == Tier.CONTRAINDICATED


def test_a_result_without_a_signature_is_no_token():
    with pytest.raises(EncodingError):
        verify(
            read(EXAMPLE).decode()[:32_000],
            keys={},
            audience="broker",
            nonce=Unchecked(unchecked="it has none"),
            now_ms=0,
        )
