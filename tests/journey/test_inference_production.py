"""Inference in production: SEV-SNP evidence under a root of the test's, and a requester with endorsements of its own."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from inference_road import Deployment, Linear, Served

from confed.attestation.endorsement_provider import BundleProvider, gathered
from confed.attestation.endorsements import AmdChain, AmdCrl, AmdVcek, Endorsement, Need, encode_bundle
from confed.attestation.endorsing.needs import needs_of
from confed.attestation.endorsing.plausibility import examined
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.policy import document, ready
from confed.attestation.tee.sev_snp_endorsements import pinned_roots
from confed.errors import (
    AttestationError,
    BindingMismatchError,
    ConfedError,
    EndorsementFetchError,
    MissingEndorsementError,
    RevokedError,
    SimulatedInProductionError,
)
from confed.inference.replica import Replica
from confed.inference.requester import Proof
from confed.manifest import PRODUCTION, Manifest, TrustTerms
from confed.sealing.container import Container

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "attestation"))
sys.path.insert(0, str(Path(__file__).parents[1] / "vectors"))
import sev_snp_world as amd
from folder import needs_vectors, read, sets_of

PROFILE = "sev-snp/1"
X = np.arange(8, dtype=np.float32).reshape(2, 4)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DATES = {"start": NOW - 30 * amd.DAY, "end": NOW + 30 * amd.DAY}
ROOT, AUTHORITY, VEK = amd.root("Genoa", **DATES), amd.authority(**DATES), amd.vek(**DATES)
CRL = amd.crl(start=NOW - amd.DAY, end=NOW + amd.DAY)
REVOKED = amd.crl(start=NOW - amd.DAY, end=NOW + amd.DAY, revoked=(11,))
POLICY = document.load(ready.ready_policy("sev-snp-2025"))


def with_snp(manifest: Manifest) -> Manifest:
    policy = dataclasses.replace(
        manifest.client_tee,
        profiles=(PROFILE,),
        measurements=(amd.MEASUREMENT.hex(),),
        appraisal={PROFILE: POLICY.to_table()},
    )
    anchors = {**manifest.trust.anchors, PROFILE: (ROOT,)}
    return dataclasses.replace(manifest, client_tee=policy, aggregator_tee=policy, trust=TrustTerms(anchors=anchors))


@dataclass
class SnpGuest:
    """Makes reports as an SNP guest would. A cloud's host gives endorsements along, or gives none."""

    profile: str = PROFILE
    along: tuple[bytes, ...] = (VEK, AUTHORITY, CRL)
    report: bytes | None = None

    def attest(self, binding: Binding) -> Envelope:
        made = amd.report(report_data=binding.report_data(), host_data=bytes.fromhex(binding.manifest))
        return Envelope(profile=PROFILE, evidence=self.report or made, binding=binding.encoded, endorsements=self.along)


def bundle(crl: bytes = CRL) -> BundleProvider:
    """What `confed evidence endorse` fetched for this guest."""
    pems = [x509.load_der_x509_certificate(entry).public_bytes(Encoding.PEM) for entry in (AUTHORITY, ROOT)]
    data: dict[type[Need], bytes] = {AmdVcek: VEK, AmdChain: b"".join(pems), AmdCrl: crl}
    made = Envelope(profile=PROFILE, evidence=amd.report(), binding=b"")

    def obtain(need: Need) -> Endorsement:
        return examined(need, data[type(need)], fetched_at=int(NOW.timestamp() * 1000))

    return BundleProvider(encode_bundle(gathered(needs_of(made), obtain)))


@pytest.fixture(scope="module")
def deployment(quick_disk: Path) -> Iterator[Deployment]:
    folder = quick_disk / "production"
    folder.mkdir()
    with Deployment(folder=folder, environment=PRODUCTION, change=with_snp) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def guest() -> SnpGuest:
    return SnpGuest()


@pytest.fixture(scope="module")
def served(deployment: Deployment, guest: SnpGuest) -> Iterator[Served]:
    replica = Replica(manifest=deployment.manifest, attester=guest, broker=deployment.client_of_broker)
    with deployment.served(replica=replica) as served:
        guest.along = ()  # from here on requesters fetch for themselves
        yield served


def test_a_requester_verifies_real_evidence_with_endorsements_of_its_own(
    deployment: Deployment, served: Served
) -> None:
    with deployment.client(served.url, endorsements=bundle()) as client:
        assert client.predict({"x": X})["y"].tobytes() == Linear(deployment.arrays, {}).predict({"x": X})["y"].tobytes()
        reply = client.request("GET", "/v2")
        reply.read()
    assert reply.proof is not None
    proof = Proof.from_json(reply.proof.to_json())
    assert proof.verify(policy=deployment.policy, endorsements=bundle())[0] == reply.receipt
    with pytest.raises(AttestationError):
        proof.verify(policy=deployment.policy)


class Down:
    """A provider that cannot reach its vendor."""

    def endorsements_for(self, _envelope: Envelope, *, now_ms: int) -> tuple[bytes, ...]:
        raise EndorsementFetchError("kdsintf.amd.com", expected="an answer", got=str(now_ms)[:0] or "none")


PROVIDERS: dict[str, tuple[Any, type[ConfedError]]] = {
    "none": (None, AttestationError),
    "a bundle for something else": (BundleProvider(encode_bundle(())), MissingEndorsementError),
    "a vendor that is down": (Down(), EndorsementFetchError),
    "a list that revokes the chip's authority": (bundle(REVOKED), RevokedError),
}


@pytest.mark.parametrize(("provider", "error"), PROVIDERS.values(), ids=PROVIDERS)
def test_without_the_endorsements_that_it_needs_nothing_is_sent(
    deployment: Deployment, served: Served, provider: Any, error: type[ConfedError]
) -> None:
    runs = served.engine.runs
    with deployment.client(served.url, endorsements=provider) as client, pytest.raises(error):
        client.predict({"x": X})
    assert served.engine.runs == runs


def test_a_simulated_tee_gets_nothing_in_production(deployment: Deployment, served: Served) -> None:
    """Its host serves it under the same manifest, at another address; neither broker nor requester takes it."""
    simulated = deployment.replica()
    with pytest.raises(SimulatedInProductionError):
        simulated.open_model(Container.parse(deployment.sealed))
    simulated._evidence = "00" * 32
    simulated._clock.advance(served.replica.now())
    engine = Linear(deployment.arrays, {})
    simulated.open_model = lambda _container: deployment.arrays  # type: ignore[method-assign]
    with deployment.served(replica=simulated, engine=lambda *_: engine) as impostor:
        for provider in (None, bundle()):
            client = deployment.client(impostor.url, endorsements=provider)
            with client, pytest.raises(SimulatedInProductionError):
                client.predict({"x": X})
    assert engine.runs == 0


@dataclass
class Recorded:
    """A provider of what a real chip's vendor published."""

    parts: tuple[bytes, ...]

    def endorsements_for(self, _envelope: Envelope, *, now_ms: int) -> tuple[bytes, ...]:
        assert now_ms > 0
        return self.parts


@needs_vectors
def test_a_recorded_report_of_a_real_chip_is_genuine_and_for_nobodys_nonce(
    deployment: Deployment, served: Served, guest: SnpGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = sets_of("snp")["snp/ms-milan"]
    monkeypatch.setattr(guest, "report", read(entry["report"]))
    roots = tuple(root.der for root in pinned_roots())
    policy = dataclasses.replace(deployment.policy, trust=TrustTerms(anchors={PROFILE: roots}))
    provider = Recorded((read(entry["vek"]), read(entry["roots"])))
    # With its chip's certificates it is what it says, under AMD's own root: only then does what it is for count.
    for endorsements, error in ((None, MissingEndorsementError), (provider, BindingMismatchError)):
        client = deployment.client(served.url, policy=policy, endorsements=endorsements)
        with client, pytest.raises(error):
            client.predict({"x": X})
