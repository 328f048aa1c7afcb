"""A lease: for how long an inference TEE may serve without its model owner's broker; signed by that broker.

It goes with a release, to the instance that attested for it, and names the signed request that it answers: so neither
another instance, nor another manifest, nor the same instance at another time has any use for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from confed.errors import LeaseError
from confed.keybroker.statements import ReleaseRequest
from confed.statement import Signed, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The model owner's broker says: this instance may serve this model from then to then (Unix milliseconds).

    ``request`` is the digest of the signed ``ReleaseRequest`` that it answers, ``evidence`` that of the evidence.
    """

    TYPE: ClassVar[str] = "confed/v1/lease"
    broker: bytes
    manifest: str
    run: str
    model: str
    instance: str
    signing_public: bytes
    evidence: str
    request: str
    issued_at: int
    expires_at: int


def verify_lease(signed: Signed, *, asked: ReleaseRequest, request: Signed) -> Lease:
    """Return the lease that answers a request.

    Args:
        signed: as it came.
        asked: what was asked.
        request: the same, as it was signed.

    Raises:
        SignatureError, EncodingError: not signed by the broker that was asked, or something else.
        LeaseError: for another instance, manifest, model or request.
    """
    lease = verify(signed, Lease, signer=asked.broker)
    expected = {
        "broker": asked.broker,
        "manifest": asked.manifest,
        "run": asked.run,
        "model": asked.base,
        "instance": asked.instance,
        "signing_public": request.signer,
        "request": request.digest,
    }
    for name, value in expected.items():
        if getattr(lease, name) != value:
            raise LeaseError(f"lease {name}", expected="the one that asked for it", got="another")
    if lease.issued_at >= lease.expires_at:
        raise LeaseError("lease time", expected="an end after its beginning", got="another")
    return lease
