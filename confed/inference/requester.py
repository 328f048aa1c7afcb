"""What a requester accepts, and how it finds out: the replica's evidence, appraised here and by nobody else.

1. The manifest is one whose digest the requester's policy names.
2. Evidence under the requester's own nonce is genuine by the policy's trust anchors, for this manifest, and acceptable
   by the policy's terms; a simulated TEE is refused in production, by a floor in code.
3. The epoch's key is signed by the key that the evidence vouches for.

Whatever does not hold is an error; there is no other way to send than sealed.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, ClassVar

from confed import canonical, record
from confed.attestation.appraisal import appraise
from confed.attestation.endorsements import EndorsementProvider
from confed.attestation.evidence import Envelope, from_base64, require_digest
from confed.attestation.verifier import ExpectedBinding, default_registry
from confed.errors import ConfigError, EncodingError, LineageError, ManifestMismatchError
from confed.inference.epochs import EpochKey, verify_epoch
from confed.inference.messages import Commitment
from confed.inference.receipts import Receipt, verify_receipt
from confed.inference.refusals import Refusal, verify_refusal
from confed.inference.replica import REQUESTER_AUDIENCE
from confed.journey import Role
from confed.manifest import Manifest, TeePolicy, TrustTerms
from confed.serving import OutputTerms, ServingTerms
from confed.statement import Signed

_FORMAT = "confed-requester-policy/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequesterPolicy:
    """What a requester accepts. No field is optional.

    Attributes:
        environment: ``production``, or ``simulation`` where a simulated TEE will do.
        manifests: digests of manifests that the requester has read.
        output: who may read the answers; a manifest that says otherwise is refused.
        tee: which evidence is acceptable.
        trust: trust anchors by evidence profile.
    """

    FORMAT: ClassVar[str] = _FORMAT
    format: str
    environment: str
    manifests: tuple[str, ...]
    output: OutputTerms
    tee: TeePolicy
    trust: TrustTerms

    def __post_init__(self) -> None:
        if self.format != _FORMAT:
            raise ConfigError("format", expected=_FORMAT, got=self.format[:80])
        if not self.manifests:
            raise ConfigError("manifests", expected="at least one digest", got="none")
        for digest in self.manifests:
            require_digest("manifests", digest)

    @classmethod
    def of(cls, manifest: Manifest) -> RequesterPolicy:
        """Return the policy of who has read a manifest and accepts what its owner does: this one, and no other.

        Raises:
            ManifestMismatchError: a manifest that serves nothing.
        """
        if manifest.serving is None:
            raise ManifestMismatchError("scenario", expected="inference", got=manifest.scenario)
        return cls(
            format=_FORMAT,
            environment=manifest.environment,
            manifests=(manifest.digest,),
            output=manifest.serving.output,
            tee=manifest.client_tee,
            trust=manifest.trust,
        )

    def encode(self) -> bytes:
        """Return the policy as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @classmethod
    def decode(cls, data: bytes) -> RequesterPolicy:
        """Return the policy of canonical JSON.

        Raises:
            EncodingError: not canonical JSON.
            ConfigError: a key that is unknown, missing or of the wrong type.
        """
        return record.from_json(cls, canonical.decode(data), error=ConfigError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What a replica showed, as it came: enough to verify it again, offline."""

    nonce: bytes
    envelope: bytes
    manifest: bytes

    def to_json(self) -> dict[str, str]:
        """Return it as a JSON value."""
        return {
            "envelope": base64.b64encode(self.envelope).decode(),
            "manifest": base64.b64encode(self.manifest).decode(),
            "nonce": self.nonce.hex(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Attestation:
        """Return the attestation of a JSON value.

        Raises:
            EncodingError, EvidenceFormatError: anything else.
        """
        if not isinstance(value, dict) or sorted(value) != ["envelope", "manifest", "nonce"]:  # pyright: ignore[reportUnknownArgumentType]
            raise EncodingError("attestation", expected="envelope, manifest, nonce", got="other keys")
        return cls(
            nonce=_hexadecimal("nonce", value["nonce"]),
            envelope=from_base64("envelope", value["envelope"]),
            manifest=from_base64("manifest", value["manifest"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReplica:
    """A replica whose evidence holds and is acceptable."""

    manifest: Manifest
    digest: str
    serving: ServingTerms
    instance: str
    signing_public: bytes
    verified_at: int
    attestation: Attestation = field(repr=False)

    def epoch(self, signed: Signed, *, now_ms: int) -> tuple[str, EpochKey]:
        """Return the name and key of an epoch of this replica (rule 3).

        Raises:
            SignatureError, EncodingError, EvidenceFormatError, StaleEpochError: see ``verify_epoch``.
        """
        key = verify_epoch(
            signed,
            manifest=self.digest,
            instance=self.instance,
            signing_public=self.signing_public,
            now_ms=now_ms,
        )
        return signed.digest, key

    def receipt(self, signed: Signed, *, epoch: str, request: str, answer: str) -> Receipt:
        """Return a receipt of this replica for one exchange, by the commitments of both directions.

        Raises:
            SignatureError, EncodingError: signed by another, or no receipt.
            LineageError: it is for something else.
        """
        expected = {
            "manifest": self.digest,
            "model": self.manifest.model.start.digest,
            "instance": self.instance,
            "epoch": epoch,
            "request": request,
            "answer": answer,
            "output": self.serving.output.digest,
        }
        return verify_receipt(signed, signing_public=self.signing_public, expected=expected)

    def refusal(self, signed: Signed, *, epoch: str, request: bytes) -> Refusal:
        """Return this replica's refusal of one request, by its epoch's name and its transcript.

        Raises:
            SignatureError, EncodingError: signed by another, or no refusal.
            LineageError: it is of another request.
        """
        expected = {"manifest": self.digest, "instance": self.instance, "epoch": epoch, "request": request.hex()}
        return verify_refusal(signed, signing_public=self.signing_public, expected=expected)


def verify_replica(
    attestation: Attestation,
    *,
    policy: RequesterPolicy,
    now_ms: int,
    endorsements: EndorsementProvider | None = None,
) -> VerifiedReplica:
    """Return the replica that evidence proves, if the policy accepts it (rules 1 and 2).

    Args:
        attestation: as it came, with the nonce that the requester drew.
        policy: the requester's own.
        now_ms: when, in Unix milliseconds.
        endorsements: the requester's own provider; without one, those that came along are all there are.

    Raises:
        ManifestMismatchError: a manifest that the policy does not name, or one that serves nothing.
        AttestationError, AppraisalError: evidence that is not genuine, or not acceptable.
        EndorsementFetchError: what is needed to verify it could not be fetched.
    """
    # 1.
    digest = canonical.digest(attestation.manifest)
    if digest not in policy.manifests:
        raise ManifestMismatchError("manifest", expected="one that the policy names", got=digest[:16])
    manifest = Manifest.decode(attestation.manifest)
    if manifest.serving is None or manifest.environment != policy.environment:
        raise ManifestMismatchError("manifest", expected=f"inference in {policy.environment}", got="another")
    if manifest.serving.output != policy.output:
        raise ManifestMismatchError("output", expected=policy.output.told, got=manifest.serving.output.told)
    # 2.
    found = ()
    if endorsements is not None:
        found = endorsements.endorsements_for(Envelope.decode(attestation.envelope), now_ms=now_ms)
    claims = (
        default_registry()
        .for_environment(policy.environment)
        .verify(
            attestation.envelope,
            endorsements=found,
            expected=ExpectedBinding(
                nonce=attestation.nonce,
                audience=REQUESTER_AUDIENCE,
                manifest=digest,
                role=Role.INFERENCE,
                run=manifest.run,
            ),
            now_ms=now_ms,
            anchors=policy.trust.anchors,
        )
    )
    appraise(claims, policy=policy.tee, environment=policy.environment, manifest_digest=digest, now_ms=now_ms)
    return VerifiedReplica(
        manifest=manifest,
        digest=digest,
        serving=manifest.serving,
        instance=claims.binding.instance,
        signing_public=claims.binding.signing_public,
        verified_at=now_ms,
        attestation=attestation,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """An answer's receipt, with all that it takes to check it later and elsewhere: ``confed infer verify-receipt``.

    ``salt`` opens the commitments, with the two heads: who gets it can check a text against the receipt, and guess
    short ones.
    """

    receipt: Signed
    salt: bytes = field(repr=False)
    request_head: bytes = field(repr=False)
    answer_head: bytes = field(repr=False)
    attestation: Attestation = field(repr=False)
    verified_at: int

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {
            "answer_head": self.answer_head.hex(),
            "attestation": self.attestation.to_json(),
            "receipt": self.receipt.to_json(),
            "request_head": self.request_head.hex(),
            "salt": self.salt.hex(),
            "verified_at": self.verified_at,
        }

    @classmethod
    def from_json(cls, value: Any) -> Proof:
        """Return the proof of a JSON value.

        Raises:
            EncodingError, EvidenceFormatError: anything else.
        """
        expected = ["answer_head", "attestation", "receipt", "request_head", "salt", "verified_at"]
        if not isinstance(value, dict) or sorted(value) != expected:  # pyright: ignore[reportUnknownArgumentType]
            raise EncodingError("proof", expected=", ".join(expected), got="other keys")
        if type(value["verified_at"]) is not int:  # pyright: ignore[reportUnknownArgumentType]
            raise EncodingError("proof verified_at", expected="Unix milliseconds", got="another type")
        return cls(
            receipt=Signed.from_json(value["receipt"]),
            salt=_hexadecimal("salt", value["salt"]),
            request_head=_hexadecimal("request_head", value["request_head"]),
            answer_head=_hexadecimal("answer_head", value["answer_head"]),
            attestation=Attestation.from_json(value["attestation"]),
            verified_at=value["verified_at"],
        )

    def verify(
        self, *, policy: RequesterPolicy, endorsements: EndorsementProvider | None = None
    ) -> tuple[Receipt, VerifiedReplica]:
        """Return the receipt and the replica that signed it, verified as of when the answer came.

        Args:
            policy: the requester's own.
            endorsements: the requester's own provider; without one, those that came along are all there are.

        Raises:
            ConfedError: of the class that says what does not hold.
        """
        replica = verify_replica(self.attestation, policy=policy, now_ms=self.verified_at, endorsements=endorsements)
        expected = {
            "manifest": replica.digest,
            "model": replica.manifest.model.start.digest,
            "instance": replica.instance,
            "output": replica.serving.output.digest,
        }
        return verify_receipt(self.receipt, signing_public=replica.signing_public, expected=expected), replica

    def require_texts(self, receipt: Receipt, *, request: bytes | None, answer: bytes | None) -> None:
        """Check bodies against a verified receipt; ``None`` leaves one unchecked.

        Raises:
            LineageError: another request or answer than the receipt is for.
        """
        for name, head, body in (
            ("request", self.request_head, request),
            ("answer", self.answer_head, answer),
        ):
            commitment = Commitment(self.salt, head)
            commitment.add(body or b"")
            if body is not None and commitment.digest != getattr(receipt, name):
                raise LineageError(f"receipt {name}", expected="the one that it was signed for", got="another")


def _hexadecimal(name: str, value: Any) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as error:
        raise EncodingError(f"proof {name}", expected="hexadecimal", got="something else") from error
