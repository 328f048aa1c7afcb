"""Tokens of a run's evidence: signed by the broker that accepted it, of that time, and honest about simulation."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from records_world import Enclave, RecordedRun

from confed.attestation import ear
from confed.attestation.trustworthiness import Tier
from confed.errors import AppraisalError, LedgerError, ManifestMismatchError, SignatureError, StaleEvidenceError
from confed.journey import Role
from confed.keybroker.identity import OwnerHome
from confed.keybroker.statements import LedgerEntry
from confed.manifest import Unchecked
from confed.records.run_directory import RunDirectory
from confed.records.tokens import tokens
from confed.statement import public_bytes, sign, unverified

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


def entries(directory: RunDirectory) -> list[LedgerEntry]:
    return [unverified(signed, LedgerEntry) for signed in directory.ledger("north")]


def test_every_evidence_that_a_broker_released_keys_for_gives_a_token_that_its_key_signed(
    directory: RunDirectory, north: OwnerHome
) -> None:
    made = dict(tokens(directory, broker_key=north.broker_key, audience="office"))
    assert made
    assert set(made) == {entry.body["evidence"] for entry in entries(directory) if entry.event == "released"}
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


def test_a_token_is_of_the_time_of_its_release(directory: RunDirectory, north: OwnerHome) -> None:
    _, token = next(tokens(directory, broker_key=north.broker_key, audience="office"))
    released = next(entry for entry in entries(directory) if entry.event == "released")
    claims = read(token, north.broker_key)
    assert claims.iat == released.time // 1000
    later = claims.exp * 1000 + 60_000
    with pytest.raises(StaleEvidenceError):
        read(token, north.broker_key, now_ms=later)


def test_a_token_of_another_broker_is_not_trusted(directory: RunDirectory, run: RecordedRun, north: OwnerHome) -> None:
    other = next(home for name, home in run.homes.items() if name != "north")
    _, token = next(tokens(directory, broker_key=north.broker_key, audience="office"))
    with pytest.raises(SignatureError):
        read(token, other.broker_key)


def test_evidence_that_the_broker_was_never_shown_gets_no_token(
    directory: RunDirectory, run: RecordedRun, north: OwnerHome
) -> None:
    honest = list(tokens(directory, broker_key=north.broker_key, audience="office"))
    # Genuine, for this broker, of code that the manifest names; the nonce is the attacker's, and so is the time.
    enclave = Enclave(run, Role.CLIENT)
    directory.write_evidence(enclave.attest(north.party.broker, b"x" * 32))
    directory.write_evidence(b"not an envelope")
    assert [digest for digest, _ in tokens(directory, broker_key=north.broker_key, audience="office")] == [
        digest for digest, _ in honest
    ]


def test_a_ledger_that_another_key_wrote_gives_no_token(directory: RunDirectory, north: OwnerHome) -> None:
    key = Ed25519PrivateKey.generate()
    directory.write_ledger("north", [sign(entry, key) for entry in entries(directory)])
    with pytest.raises(LedgerError):
        list(tokens(directory, broker_key=north.broker_key, audience="office"))


def test_evidence_that_is_named_and_not_there_is_told(directory: RunDirectory, north: OwnerHome) -> None:
    digest, _ = next(tokens(directory, broker_key=north.broker_key, audience="office"))
    directory.evidence_file(digest).unlink()
    with pytest.raises(LedgerError, match="north"):
        list(tokens(directory, broker_key=north.broker_key, audience="office"))


def test_a_key_of_nobody_in_the_run_gives_no_token(directory: RunDirectory) -> None:
    with pytest.raises(ManifestMismatchError):
        list(tokens(directory, broker_key=Ed25519PrivateKey.generate(), audience="office"))
