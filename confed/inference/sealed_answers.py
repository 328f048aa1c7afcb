"""An answer that is sealed to named recipients: made by a replica, opened by one of them, read by nobody between.

1. The replica seals the answer's head and body to a fresh key, and wraps that to each recipient of its manifest. The
   container's header (manifest, model, instance, time) is signed with the key that its evidence vouches for.
2. A sealed answer is a file: magic, length of the attestation (4 bytes), the attestation, the container.
3. A recipient verifies the evidence by its own policy, then the container's maker, and opens it with its private key.

Evidence serves for as long as the manifest's policy says (``reattest_s``). Not promised: that every answer arrives; the
host carries them. A requester's receipt names the sealed answer that it caused.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.attestation.endorsements import EndorsementProvider
from confed.attestation.evidence import Binding, Envelope
from confed.errors import EncodingError, ManifestMismatchError, StaleEvidenceError
from confed.inference.messages import HEAD_LIMIT_BYTES, AnswerHead
from confed.inference.requester import Attestation, RequesterPolicy, VerifiedReplica, verify_replica
from confed.journey import Kind
from confed.sealing.container import Container, Draft, seal_to_bytes
from confed.sealing.identities import HpkeIdentity
from confed.sealing.recipients import HpkeRecipient, RecipientEntry
from confed.serving import AnswerRecipient, PaddingTerms

MAGIC = b"confed-sealed-answer/1\n"
_LENGTH_BYTES = 4
_BODY_LENGTH_BYTES = 8
_ATTESTATION_LIMIT_BYTES = 8 * 1024 * 1024
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMaker:
    """What the header of a sealed answer says of who made it, and the key to sign it with."""

    manifest: str
    model: str
    instance: str
    time: int
    signing_key: Ed25519PrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedAnswer:
    """An answer that a recipient opened, and the verified replica that made it."""

    head: AnswerHead
    body: bytes = field(repr=False)
    replica: VerifiedReplica
    time: int


def seal_answer(
    head: AnswerHead,
    body: bytes,
    *,
    recipients: tuple[AnswerRecipient, ...],
    maker: AnswerMaker,
    attestation: Attestation,
    padding: PaddingTerms,
) -> tuple[str, bytes]:
    """Return the digest of the sealed container, and the file that holds it.

    Raises:
        RecipientError: a recipient's key that is none.
    """
    container_id, data_key = secrets.token_hex(16), os.urandom(_KEY_BYTES)
    entries = [
        RecipientEntry.hpke(HpkeRecipient(entry.public), data_key, kind=Kind.ANSWER, container_id=container_id)
        for entry in recipients
    ]
    draft = Draft(
        kind=Kind.ANSWER,
        container_id=container_id,
        manifest=maker.manifest,
        detail={"instance": maker.instance, "model": maker.model, "time": maker.time},
        recipients=tuple(entries),
    )
    encoded = head.encoded
    front = len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded + len(body).to_bytes(_BODY_LENGTH_BYTES, "big")
    size = len(front) + len(body)
    parts = (front, body, bytes(padding.padded_whole(size) - size))
    sealed, told = seal_to_bytes(parts, draft, data_key=data_key, signing_key=maker.signing_key)
    shown = canonical.encode(attestation.to_json())
    return told.digest, MAGIC + len(shown).to_bytes(_LENGTH_BYTES, "big") + shown + sealed


def open_answer(
    data: bytes,
    *,
    identity: HpkeIdentity,
    policy: RequesterPolicy,
    endorsements: EndorsementProvider | None = None,
) -> OpenedAnswer:
    """Return a sealed answer, opened by one of its recipients, after the replica that made it has been verified.

    Raises:
        EncodingError, SealError: not a sealed answer, a changed one, or one for others.
        SignatureError: made by another than the attested replica.
        AttestationError, AppraisalError, ManifestMismatchError: a replica that the policy does not accept.
    """
    shown, sealed = _parts(data)
    # The evidence as of when it was made, and the answer within the time for which it serves.
    made = Binding.decode(Envelope.decode(shown.envelope).binding).issued_at
    replica = verify_replica(shown, policy=policy, now_ms=made, endorsements=endorsements)
    container = Container.parse(sealed)
    container.verify_signer(replica.signing_public)
    header = container.header
    expected = {"instance": replica.instance, "model": replica.manifest.model.start.digest}
    found = {name: header.detail.get(name) for name in expected}
    if (header.kind, header.manifest, found) != (Kind.ANSWER, replica.digest, expected):
        raise ManifestMismatchError("sealed answer", expected="one of this replica and model", got="another")
    time = header.detail.get("time")
    if type(time) is not int or not made <= time <= made + policy.tee.reattest_s * 1000:
        raise StaleEvidenceError("sealed answer time", expected="one that its evidence serves for", got="another")
    opened = bytes(container.unlock(container.data_key_for(identity)).read_all())
    head, body = _answer(opened)
    return OpenedAnswer(head=head, body=body, replica=replica, time=time)


def _parts(data: bytes) -> tuple[Attestation, bytes]:
    at = len(MAGIC) + _LENGTH_BYTES
    size = int.from_bytes(data[len(MAGIC) : at], "big")
    if not data.startswith(MAGIC) or size > _ATTESTATION_LIMIT_BYTES or len(data) < at + size:
        raise EncodingError("sealed answer", expected="a file of a replica", got="something else")
    return Attestation.from_json(canonical.decode(data[at : at + size])), data[at + size :]


def _answer(opened: bytes) -> tuple[AnswerHead, bytes]:
    end = _LENGTH_BYTES + int.from_bytes(opened[:_LENGTH_BYTES], "big")
    start = end + _BODY_LENGTH_BYTES
    size = int.from_bytes(opened[end:start], "big")
    if end - _LENGTH_BYTES > HEAD_LIMIT_BYTES or start + size > len(opened) or any(opened[start + size :]):
        raise EncodingError("sealed answer", expected="a head, a body and zeros", got="another")
    return AnswerHead.decode(opened[_LENGTH_BYTES:end]), opened[start : start + size]
