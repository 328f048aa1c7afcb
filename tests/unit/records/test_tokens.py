"""Tokens of a run's evidence: signed by the broker that was shown it, of its time, and honest about simulation."""

import json

import pytest
from records_world import RecordedRun

from confed.attestation import ear
from confed.attestation.trustworthiness import Tier
from confed.errors import AppraisalError, SignatureError, StaleEvidenceError
from confed.keybroker.identity import OwnerHome
from confed.manifest import Unchecked
from confed.records.run_directory import RunDirectory
from confed.records.tokens import tokens
from confed.statement import public_bytes

ANY = Unchecked(unchecked="tokens of old evidence are read for what they say")


@pytest.fixture
def north(run: RecordedRun) -> OwnerHome:
    return run.homes["north"]


def read(token, key, **changes):
    public = public_bytes(key)
    issued = json.loads(ear._from_base64url("payload", token.split(".")[1]))["iat"]
    arguments = {
        "keys": {ear.key_id(public): public},
        "audience": "office",
        "nonce": ANY,
        "now_ms": issued * 1000 + 999,
    }
    return ear.verify(token, **{**arguments, **changes})


def test_every_evidence_for_a_broker_gives_a_token_that_its_key_signed(
    directory: RunDirectory, north: OwnerHome
) -> None:
    made = dict(tokens(directory, broker_key=north.broker_key, audience="office"))
    assert made
    assert set(made) < set(directory.evidence())
    for digest, token in made.items():
        claims = read(token, north.broker_key)
        assert claims.confed_subject.manifest == directory.manifest().digest
        assert claims.submods["cpu"].ear_verifier_claims.evidence == digest


def test_a_simulated_tee_is_a_warning_and_never_affirming(directory: RunDirectory, north: OwnerHome) -> None:
    _, token = next(tokens(directory, broker_key=north.broker_key, audience="office"))
    claims = read(token, north.broker_key)
    assert claims.ear_status is Tier.WARNING
    with pytest.raises(AppraisalError):
        claims.require_affirming()


def test_a_token_is_of_the_time_of_its_evidence(directory: RunDirectory, north: OwnerHome) -> None:
    _, token = next(tokens(directory, broker_key=north.broker_key, audience="office"))
    later = read(token, north.broker_key).exp * 1000 + 60_000
    with pytest.raises(StaleEvidenceError):
        read(token, north.broker_key, now_ms=later)


def test_a_token_of_another_broker_is_not_trusted(directory: RunDirectory, run: RecordedRun, north: OwnerHome) -> None:
    other = next(home for name, home in run.homes.items() if name != "north")
    _, token = next(tokens(directory, broker_key=north.broker_key, audience="office"))
    with pytest.raises(SignatureError):
        read(token, other.broker_key)
