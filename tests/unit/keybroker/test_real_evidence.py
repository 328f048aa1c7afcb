"""A broker and evidence of a real kind: SEV-SNP reports under a root that the test makes, appraised by a ready policy.

The release goes the same road as with the simulated TEE; here is what a broker adds for real evidence: the policy of the
kind, endorsements of its own provider, and what it notes of them.
"""

import base64
import dataclasses
import datetime
import sys
from pathlib import Path

import pytest
from broker_world import MODEL_OWNER, SITES, START_MS, Enclave, World

from confed import canonical
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.policy import document, ready
from confed.errors import (
    AliasCheckError,
    BindingMismatchError,
    ChallengeError,
    ConfigurationError,
    DebugError,
    DeviceCountError,
    EndorsementFetchError,
    EndorsementMismatchError,
    EvidenceSignatureError,
    GuestPolicyError,
    MeasurementError,
    PolicyExpiredError,
    PolicyMissingError,
    ProductError,
    RevocationStatusError,
    SimulatedInProductionError,
    TrustAnchorError,
    UnknownProfileError,
)
from confed.journey import Role
from confed.keybroker.broker import Broker
from confed.keybroker.statements import LedgerEntry
from confed.manifest import TrustTerms
from confed.statement import unverified

sys.path.insert(0, str(Path(__file__).parents[1] / "attestation"))
import sev_snp_world as amd

PROFILE = "sev-snp/1"
HERE = datetime.datetime.fromtimestamp(START_MS / 1000, datetime.UTC)
DATES = {"start": HERE - 30 * amd.DAY, "end": HERE + 30 * amd.DAY}
ROOTS = tuple(amd.root(product, **DATES) for product in ("Milan", "Genoa"))
CERTIFICATES = (amd.vek(**DATES), amd.authority(**DATES))
MILAN = (amd.vek("Milan", **DATES), amd.authority("Milan", **DATES))
CRL = amd.crl(**DATES)
POLICY = document.load(ready.ready_policy("sev-snp-2025"))
SITE = SITES[0]


def with_snp(manifest, **changes):
    """Return the manifest with SEV-SNP as the clients' TEE."""
    policy = {
        "profiles": (PROFILE,),
        "measurements": (amd.MEASUREMENT.hex(),),
        "appraisal": {PROFILE: POLICY.to_table()},
    }
    return dataclasses.replace(
        manifest,
        client_tee=dataclasses.replace(manifest.client_tee, **{**policy, **changes}),
        trust=TrustTerms(anchors={**manifest.trust.anchors, PROFILE: ROOTS}),
    )


class SnpAttester:
    """Makes reports as an SNP guest would; fields of the report can be changed before they are signed."""

    profile = PROFILE

    def __init__(self, *, product="Genoa", endorsements=(*CERTIFICATES, CRL), flip=False, **fields):
        self.product, self.endorsements, self.flip, self.fields = product, tuple(endorsements), flip, fields

    def attest(self, binding):
        fields = {"report_data": binding.report_data(), "host_data": bytes.fromhex(binding.manifest), **self.fields}
        report = amd.report(self.product, **fields)
        if self.flip:
            report = amd.overwritten(report, "guest_svn", 9)
        return Envelope(profile=PROFILE, evidence=report, binding=binding.encoded, endorsements=self.endorsements)


def snp_client(world, **changes):
    enclave = Enclave(world, Role.CLIENT)
    enclave._attester = SnpAttester(**changes)
    return enclave


class Provider:
    """A provider that knows what it was given, or fails."""

    def __init__(self, *endorsements, failure=None):
        self.endorsements, self.failure, self.asked = endorsements, failure, 0

    def endorsements_for(self, envelope, *, now_ms):
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.endorsements


def provided(world, name, provider):
    home = world.homes[name]
    world.brokers[name] = Broker.of(home, clock=lambda: world.now, endorsements=provider)


def ledger(world, name):
    return [unverified(signed, LedgerEntry) for signed in world.brokers[name].records()]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "home", change=with_snp)
    yield made
    made.close()


def test_keys_go_to_a_genuine_and_acceptable_snp_guest(world):
    client = snp_client(world)
    for name in (MODEL_OWNER, SITE):
        assert world.unwrap(client, name, world.release(client, name))


REFUSED = {
    "a guest that can be debugged": ({"policy": amd.defaults()["policy"] | amd.DEBUG}, DebugError),
    "a guest policy with an unknown bit": ({"policy": amd.defaults()["policy"] | 1 << 60}, GuestPolicyError),
    "a platform without the alias check": ({"platform_info": 0b101}, AliasCheckError),
    "code that the manifest does not name": ({"measurement": b"\x01" * 48}, MeasurementError),
    "a guest that was started for another manifest": ({"host_data": b"\x01" * 32}, ConfigurationError),
    "a report for another binding": ({"report_data": b"\x01" * 64}, BindingMismatchError),
    "a report that was changed": ({"flip": True}, EvidenceSignatureError),
    "a Milan, which the policy does not name": (
        {"product": "Milan", "endorsements": (*MILAN, amd.crl("Milan", **DATES))},
        ProductError,
    ),
    "another product's chain": ({"endorsements": (*MILAN, CRL)}, EndorsementMismatchError),
    "an unknown revocation status": ({"endorsements": CERTIFICATES}, RevocationStatusError),
}


@pytest.mark.parametrize(("changes", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_no_key_goes_to(world, changes, error):
    client = snp_client(world, **changes)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the class is compared below)
        world.release(client, SITE)
    assert type(caught.value) is error
    assert ledger(world, SITE)[-1].event == "refused"


def test_evidence_for_one_broker_is_worthless_to_another(world):
    client = snp_client(world)
    nonce = world.nonce(SITE)
    with pytest.raises(BindingMismatchError):
        world.release(client, SITE, nonce=nonce, binding={"audience": canonical.digest(world.public(MODEL_OWNER))})


def test_the_nonce_is_burnt_whatever_the_verdict(world):
    nonce = world.nonce(SITE)
    with pytest.raises(DebugError):
        world.release(snp_client(world, policy=amd.defaults()["policy"] | amd.DEBUG), SITE, nonce=nonce)
    with pytest.raises(ChallengeError):
        world.release(snp_client(world), SITE, nonce=nonce)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"appraisal": {}}, PolicyMissingError),
        ({"devices": ("nvidia-gpu/1",)}, DeviceCountError),
        (
            {"appraisal": {PROFILE: {**POLICY.to_table(), "issued": "2026-11-21", "expires": "2026-12-31"}}},
            PolicyExpiredError,
        ),
    ],
    ids=["no appraisal policy", "a GPU that the manifest demands", "a policy past its date"],
)
def test_a_manifest_that_does_not_fit_the_evidence_releases_nothing(tmp_path, changes, error):
    world = World(tmp_path / "home", change=lambda manifest: with_snp(manifest, **changes))
    with pytest.raises(error):
        world.release(snp_client(world), SITE)
    world.close()


def test_a_profile_that_the_manifest_does_not_name_is_refused_even_if_genuine(world):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the code is compared below)
        world.release(Enclave(world, Role.CLIENT), SITE)
    assert caught.value.code == "profile-not-allowed"


def test_a_profile_that_nobody_registered_is_refused(world):
    client = snp_client(world)
    client._attester.profile = "unheard-of/1"
    original = client._attester.attest
    client._attester.attest = lambda binding: dataclasses.replace(original(binding), profile="unheard-of/1")
    with pytest.raises(UnknownProfileError):
        world.release(client, SITE)


def test_device_evidence_without_anchors_for_it_is_refused(world):
    client = snp_client(world)
    inner = client._attester

    def attest(binding):
        attached = Envelope(profile=PROFILE, evidence=b"", binding=binding.encoded, device_evidence=(b"{}",))
        inner.fields["report_data"] = binding.report_data(attached.device_digest)
        return dataclasses.replace(inner.attest(binding), device_evidence=(b"{}",))

    client._attester = type("Composite", (), {"profile": PROFILE, "attest": staticmethod(attest)})()
    with pytest.raises(TrustAnchorError, match="nvidia-gpu/1"):
        world.release(client, SITE)


def test_what_the_provider_gave_is_noted_once_and_named_by_the_release(world):
    provided(world, SITE, Provider(*CERTIFICATES, CRL))
    world.release(snp_client(world, endorsements=()), SITE)
    world.release(snp_client(world, endorsements=()), SITE, round_number=1, attempt=1)
    entries = ledger(world, SITE)
    noted = [entry.body for entry in entries if entry.event == "endorsed"]
    assert [base64.b64decode(body["endorsement"]) for body in noted] == [*CERTIFICATES, CRL]
    released = [entry.body for entry in entries if entry.event == "released"]
    assert [body["endorsements"] for body in released] == [[body["digest"] for body in noted]] * 2


def test_a_provider_that_fails_refuses_the_release_and_burns_the_nonce(world):
    failure = EndorsementFetchError("kdsintf.amd.com", expected="an answer", got="none in time")
    provided(world, SITE, Provider(failure=failure))
    nonce = world.nonce(SITE)
    with pytest.raises(EndorsementFetchError):
        world.release(snp_client(world), SITE, nonce=nonce)
    assert ledger(world, SITE)[-1].body["code"] == "endorsement-fetch"
    provided(world, SITE, None)
    with pytest.raises(ChallengeError):
        world.release(snp_client(world), SITE, nonce=nonce)


def test_a_provider_is_not_asked_where_no_evidence_comes(world):
    provider = Provider(*CERTIFICATES, CRL)
    provided(world, SITE, provider)
    client = snp_client(world)
    world.release(client, SITE)
    world.release(client, SITE, evidence=False, attempt=1)
    assert provider.asked == 1


def test_a_provider_is_not_asked_by_whoever_has_no_nonce_of_this_broker(world):
    provider = Provider(*CERTIFICATES, CRL)
    provided(world, SITE, provider)
    nonce = world.nonce(SITE)
    world.release(snp_client(world), SITE, nonce=nonce)
    for stale in (nonce, b"x" * 32, world.nonce(MODEL_OWNER)):
        with pytest.raises(ChallengeError):
            world.release(snp_client(world), SITE, nonce=stale)
    assert provider.asked == 1


def test_evidence_bound_to_no_binding_that_parses_is_refused(world):
    client = snp_client(world)
    client._attester.attest = lambda binding: Envelope(profile=PROFILE, evidence=b"", binding=b"{}")
    with pytest.raises(Exception) as caught:  # noqa: PT011 (the code is compared below)
        world.release(client, SITE)
    assert caught.value.code == "evidence-format"


def test_simulated_evidence_is_refused_in_a_production_registry_before_it_is_parsed():
    from confed.attestation.verifier import ExpectedBinding, default_registry  # noqa: PLC0415

    expected = ExpectedBinding(nonce=b"n" * 32, audience="aa" * 32, manifest="bb" * 32, role=Role.CLIENT, run="r")
    binding = Binding(
        profile="simulated/1", nonce=b"n" * 32, audience="aa" * 32, manifest="bb" * 32, role=Role.CLIENT, run="r",
        hpke_public=bytes(1216), signing_public=bytes(32), issued_at=1,
    )  # fmt: skip
    for profile in ("simulated/1", "tpm/1", "gcp-tpm/1"):
        envelope = Envelope(
            profile=profile, evidence=b"nothing", binding=dataclasses.replace(binding, profile=profile).encoded
        )
        with pytest.raises(SimulatedInProductionError):
            default_registry().for_environment("production").verify(
                envelope.encode(), expected=expected, now_ms=1, anchors={profile: (b"x",)}
            )
