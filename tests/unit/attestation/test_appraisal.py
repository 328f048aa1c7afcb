import dataclasses
import subprocess
import sys

import pytest
from attestation_world import CLAIMS, DAY, HOUR, MANIFEST, MEASUREMENT, NOW, POLICY, attest, issue, verify

from confed.attestation.appraisal import appraise, claims_digest
from confed.errors import (
    ConfigurationError,
    DebugError,
    EmptyAllowListError,
    MeasurementError,
    PolicyMissingError,
    ProfileNotAllowedError,
    SharedInstanceError,
    SimulatedInProductionError,
    StaleEvidenceError,
)
from confed.manifest import PRODUCTION, SIMULATION, TeePolicy

ZERO = "0" * 64
HARDWARE = dataclasses.replace(CLAIMS, evidence_class="tdx", hardware_rooted=True, environment="")


def policy_with(**changes) -> TeePolicy:
    """A policy made around its own checks, as a careless program might."""
    policy = object.__new__(TeePolicy)
    for field in dataclasses.fields(TeePolicy):
        object.__setattr__(policy, field.name, changes.get(field.name, getattr(POLICY, field.name)))
    return policy


def check(claims=CLAIMS, **changes) -> None:
    arguments = {"policy": POLICY, "environment": SIMULATION, "manifest_digest": MANIFEST, "now_ms": NOW, **changes}
    appraise(claims, **arguments)


def claims(**changes):
    return dataclasses.replace(CLAIMS, **changes)


REFUSALS = {
    "a TEE launched for debugging": (verify(attest(instance=issue(debug=True))), {}, DebugError),
    "a simulated TEE in production": (CLAIMS, {"environment": PRODUCTION}, SimulatedInProductionError),
    "a simulated TEE that was launched for production": (
        verify(attest(instance=issue(environment=PRODUCTION))), {"environment": PRODUCTION}, SimulatedInProductionError,
    ),
    "a simulated TEE in an environment that nobody knows": (CLAIMS, {"environment": "test"}, SimulatedInProductionError),
    "a class of its own without hardware in production": (
        claims(evidence_class="vtpm"), {"environment": PRODUCTION}, SimulatedInProductionError,
    ),
    "a simulated class that calls itself hardware": (
        claims(hardware_rooted=True), {"environment": PRODUCTION}, SimulatedInProductionError,
    ),
    "a TEE launched for another environment": (
        verify(attest(instance=issue(environment=PRODUCTION))), {}, ConfigurationError,
    ),
    "several identities in one TEE in production": (
        dataclasses.replace(HARDWARE, shared=True), {"environment": PRODUCTION}, SharedInstanceError,
    ),
    "hardware that no policy of its kind appraises": (HARDWARE, {"environment": PRODUCTION}, PolicyMissingError),
    "the same in simulation": (HARDWARE, {}, PolicyMissingError),
    "hardware that says nothing a policy could appraise": (
        HARDWARE, {"policy": policy_with(appraisal={CLAIMS.profile: {}})}, PolicyMissingError,
    ),
    "another profile": (CLAIMS, {"policy": policy_with(profiles=("tdx/4",))}, ProfileNotAllowedError),
    "another manifest": (CLAIMS, {"manifest_digest": "7" * 64}, ConfigurationError),
    "another measured configuration": (
        verify(attest(instance=issue(configuration="7" * 64))), {}, ConfigurationError,
    ),
    "a configuration of zeros, even if asked for": (
        claims(configuration=ZERO), {"manifest_digest": ZERO}, ConfigurationError,
    ),
    "no configuration, even if asked for": (claims(configuration=""), {"manifest_digest": ""}, ConfigurationError),
    "other code": (verify(attest(instance=issue(measurement="7" * 64))), {}, MeasurementError),
    "a measurement of zeros": (claims(measurement=ZERO), {}, MeasurementError),
    "zeros as a golden value": (
        claims(measurement=ZERO), {"policy": policy_with(measurements=(MEASUREMENT, ZERO))}, EmptyAllowListError,
    ),
    "a policy without measurements": (CLAIMS, {"policy": policy_with(measurements=())}, EmptyAllowListError),
    "a policy without profiles": (CLAIMS, {"policy": policy_with(profiles=())}, EmptyAllowListError),
    "evidence older than the policy allows": (CLAIMS, {"now_ms": NOW + HOUR + 1}, StaleEvidenceError),
    "evidence older than a day, whatever the policy allows": (
        CLAIMS, {"now_ms": NOW + DAY + 1, "policy": policy_with(max_age_s=10**9)}, StaleEvidenceError,
    ),
    "evidence from the future": (CLAIMS, {"now_ms": NOW - 30_001}, StaleEvidenceError),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "changes", "error"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_key_is_refused_to(claims, changes, error):
    with pytest.raises(error) as caught:
        check(claims, **changes)
    assert type(caught.value) is error


ACCEPTED = {
    "what the policy names": (CLAIMS, {}),
    "evidence at the end of its age": (CLAIMS, {"now_ms": NOW + HOUR}),
    "a clock half a minute ahead": (CLAIMS, {"now_ms": NOW - 30_000}),
    "several identities in one TEE in simulation": (verify(attest(instance=issue(shared=True))), {}),
    "one of several measurements": (CLAIMS, {"policy": policy_with(measurements=("8" * 64, MEASUREMENT))}),
}


@pytest.mark.parametrize(("claims", "changes"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepted_is(claims, changes):
    check(claims, **changes)


APPRAISES_AND_NAMES_WHAT_IT_IMPORTED = """
import sys
from confed.attestation import appraisal, verifier
from confed.attestation.policy import registry
verifier.default_registry()._verifiers["simulated/1"].load()
assert len(list(registry.RULES)) == 10
print(*sorted(name.rpartition(".")[2] for name in sys.modules if name.startswith(("confed.attestation.tee.", "confed.attestation.policy."))))
"""


def test_who_appraises_simulated_evidence_alone_imports_no_vendor_s_verifier_or_policy():
    command = [sys.executable, "-c", APPRAISES_AND_NAMES_WHAT_IT_IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["document", "registry", "simulated", "simulated_certificate"]


def test_the_digest_of_claims_depends_on_every_claim():
    others = {
        "profile": "tdx/4", "evidence_class": "tdx", "hardware_rooted": True, "measurement": ZERO, "configuration": ZERO,
        "environment": "", "debug": True, "shared": True, "layers": (), "details": {"tcb": 1}, "devices": (1,), "evidence_digest": ZERO,
        "issued_at": 1,
        "binding": dataclasses.replace(CLAIMS.binding, nonce=b"m" * 32),
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(CLAIMS)}
    digests = {claims_digest(claims(**{name: value})) for name, value in others.items()}
    assert len(digests | {claims_digest(CLAIMS)}) == len(others) + 1
