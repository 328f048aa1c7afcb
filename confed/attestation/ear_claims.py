"""What an EAR token says, as records: the one form in which confed writes and reads it.

The draft lets a receiver pass over claims that it does not know. These are confed's own tokens, read by confed: a claim
more or less is refused, as everywhere else.

Source: draft-ietf-rats-ear-04, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confed.attestation.trustworthiness import Tier, Vector, worst
from confed.errors import AppraisalError, EncodingError

# Source: draft-ietf-rats-ear-04, section 3.
PROFILE = "tag:ietf.org,2026:rats/ear#04"
FLOORS = "confed-floors/1"
"""The policy that is applied to everything, first: the floors in code."""

SIMULATED = "simulated"
"""The evidence class of what can never be affirming."""

_PARTS_LIMIT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierId:
    """The software that appraised: who made it, and which build it is."""

    developer: str
    build: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whom a token speaks of: the enclave instance (its keys' digest) and what it was attested for."""

    instance: str
    manifest: str
    role: str
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraised:
    """What the verifier found of one part.

    Attributes:
        profile, evidence_class, hardware_rooted: what kind of evidence it is (see ``Claims``).
        evidence: SHA-256 of the whole envelope.
        code: stable code of the refusal; empty if it was accepted.
    """

    profile: str
    evidence_class: str
    hardware_rooted: bool
    evidence: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EarAppraisal:
    """The result for one part, under the draft's names.

    Raises:
        EncodingError: a status better than its vector, or better than what was refused, simulated or held against no
            owner's policy can have.
    """

    ear_status: Tier
    ear_trustworthiness_vector: Mapping[str, int]
    ear_appraisal_policy_ids: tuple[str, ...]
    ear_verifier_claims: Appraised

    def __post_init__(self) -> None:
        if not self.ear_appraisal_policy_ids:
            raise EncodingError("token ear_appraisal_policy_ids", expected="at least one", got="none")
        _require_at_most("token ear_status", self.ear_status, Vector.from_json(self.ear_trustworthiness_vector).tier)
        found = self.ear_verifier_claims
        if found.code:
            _require_at_most("token ear_status of what was refused", self.ear_status, Tier.CONTRAINDICATED)
        if found.evidence_class == SIMULATED or not found.hardware_rooted:
            _require_at_most("token ear_status of a simulated TEE", self.ear_status, Tier.WARNING)
        if self.ear_appraisal_policy_ids == (FLOORS,):
            _require_at_most("token ear_status without a policy", self.ear_status, Tier.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarClaims:
    """What a token says, under the draft's names.

    Attributes:
        iat, exp: from when and until when, Unix seconds.
        aud: for whom.
        eat_nonce: the nonce that the evidence was made under, in base64url.
        ear_status: the worst of the parts.
        confed_subject: whom it speaks of.
        submods: the parts: ``cpu``, and devices by the name of their profile.

    Raises:
        EncodingError: another profile, no part or too many, or a status better than that of its parts.
    """

    eat_profile: str
    iat: int
    exp: int
    aud: str
    eat_nonce: str
    ear_verifier_id: VerifierId
    ear_status: Tier
    confed_subject: Subject
    submods: Mapping[str, EarAppraisal]

    def __post_init__(self) -> None:
        if self.eat_profile != PROFILE:
            raise EncodingError("token eat_profile", expected=PROFILE, got=self.eat_profile[:80])
        if not 1 <= len(self.submods) <= _PARTS_LIMIT:
            raise EncodingError("token submods", expected=f"from 1 to {_PARTS_LIMIT}", got=len(self.submods))
        _require_at_most("token ear_status", self.ear_status, worst(*(p.ear_status for p in self.submods.values())))

    def require_affirming(self) -> None:
        """Refuse whatever is not affirming in every part.

        Raises:
            AppraisalError: another status, with the codes of the parts that were refused.
        """
        if self.ear_status != Tier.AFFIRMING:
            codes = ", ".join(f"{name} {part.ear_verifier_claims.code}" for name, part in self.submods.items())
            raise AppraisalError("ear_status", expected=str(Tier.AFFIRMING), got=f"{self.ear_status} ({codes})")


def _require_at_most(field: str, status: Tier, limit: Tier) -> None:
    if worst(status, limit) != status:
        raise EncodingError(field, expected=f"at most {limit}", got=status)
