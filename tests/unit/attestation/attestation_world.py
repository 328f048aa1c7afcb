"""A small world to attest in: a root, an instance, a broker's expectation; every part can be replaced by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.attestation.evidence import Binding, Envelope
from confed.attestation.tee.simulated import PROFILE, SimulatedAttester, SimulatedInstance, SimulatedPlatform
from confed.attestation.tee.simulated_certificate import LIFETIME_S, Launch, issue_instance
from confed.attestation.verifier import Claims, ExpectedBinding, default_registry
from confed.journey import Role
from confed.manifest import TeePolicy

NOW = 1_800_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
MEASUREMENT = "1a" * 32
MANIFEST = "2b" * 32
ROOT = SimulatedPlatform.create(NOW)
OTHER_ROOT = SimulatedPlatform.create(NOW)
LAUNCH = Launch(measurement=MEASUREMENT, configuration=MANIFEST, environment="simulation", shared=False, debug=False)
BINDING = Binding(
    profile=PROFILE,
    nonce=b"n" * 32,
    audience="3c" * 32,
    manifest=MANIFEST,
    role=Role.CLIENT,
    run="digits-1",
    hpke_public=b"h" * 1216,
    signing_public=b"s" * 32,
    issued_at=NOW,
)
EXPECTED = ExpectedBinding(
    nonce=BINDING.nonce, audience=BINDING.audience, manifest=MANIFEST, role=Role.CLIENT, run=BINDING.run
)
POLICY = TeePolicy(
    profiles=(PROFILE,),
    measurements=(MEASUREMENT,),
    devices=(),
    appraisal={},
    max_age_s=3600,
    reattest_rounds=10,
    reattest_s=3600,
)
LAYERS = ("no-core", "landlock-7")


def issue(platform: SimulatedPlatform = ROOT, *, lifetime_s: int = LIFETIME_S, now_ms: int = NOW, **changes: Any):
    """Return an instance that ``platform`` certified for anything, also what ``launch`` would not."""
    key = Ed25519PrivateKey.generate()
    certificate = issue_instance(
        dataclasses.replace(LAUNCH, **changes),
        key=key.public_key(),
        root=platform._certificate,
        root_key=platform._key,
        now_ms=now_ms,
        lifetime_s=lifetime_s,
    )
    return SimulatedInstance(key=key, certificate=certificate)


# One whose certificate's signature ends in a zero bit, which a lax parser might take for padding.
INSTANCE = next(instance for instance in iter(issue, None) if instance.certificate[-1] % 2 == 0)


def attest(binding: Binding = BINDING, instance: SimulatedInstance = INSTANCE) -> Envelope:
    return SimulatedAttester(instance, layers=LAYERS).attest(binding)


def verify(
    envelope: Envelope | bytes,
    *,
    expected: ExpectedBinding = EXPECTED,
    now_ms: int = NOW,
    anchors: dict[str, tuple[bytes, ...]] | None = None,
) -> Claims:
    return default_registry().verify(
        envelope.encode() if isinstance(envelope, Envelope) else envelope,
        endorsements=(),
        expected=expected,
        now_ms=now_ms,
        anchors={PROFILE: (ROOT.anchor,)} if anchors is None else anchors,
    )


CLAIMS = verify(attest())
