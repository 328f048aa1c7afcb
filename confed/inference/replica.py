"""One replica: a TEE with keys of its own that gets the model's key from its owner's broker, and attests to requesters.

1. It attests to the model owner's broker under that broker's nonce, and is released the one key that the manifest's
   scenario permits: that of the model to serve.
2. It opens the sealed model, whose file digest is the manifest's.
3. It attests to any requester under that requester's own nonce; its evidence vouches for its signing key, and that key
   signs the epochs' keys and the receipts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.attestation.attester import Attester
from confed.attestation.evidence import Binding, instance_of
from confed.errors import ConfedError, ManifestMismatchError, SessionError, ShapeError
from confed.inference.epochs import Epochs
from confed.inference.lease import HeldLease, since_boot
from confed.inference.opening import Opening
from confed.inference.outlet import Leaving, Outlet
from confed.inference.receipts import Receipt
from confed.inference.refusals import Refusal, reason_of
from confed.journey import Kind, Purpose, Role, Use
from confed.keybroker.client import BrokerClient
from confed.keybroker.clock import EnclaveClock
from confed.keybroker.lease import Lease
from confed.keybroker.statements import KeyName, ReleaseRequest
from confed.manifest import Manifest
from confed.model.weights import Array, layout_of, unpack
from confed.sealing.container import Container
from confed.sealing.identities import HpkeIdentity
from confed.serving import ServingTerms
from confed.statement import Signed, Statement, sign, unverified

REQUESTER_AUDIENCE = canonical.digest(b"confed/v1/inference-requester")
"""The audience of evidence for requesters: no broker's, so it is worth nothing to one; their nonce makes it fresh."""
NONCE_BYTES = 32
_THREADS = 2


class Answered(Protocol):
    """What a receipt is for: both directions of an exchange so far, by their commitments."""

    @property
    def epoch(self) -> str:
        """The epoch key that the request was sealed to."""
        ...

    @property
    def request_commitment(self) -> str:
        """Of the request."""
        ...

    @property
    def commitment(self) -> str:
        """Of the answer."""
        ...


class Replica:
    """An inference TEE's keys, evidence and epochs. Its keys are born here and end with the process.

    Args:
        manifest: of the scenario ``inference``.
        attester: makes this TEE's evidence.
        broker: the model owner's.
        clock: seconds that only go on, by which a lease ends.
        evidence_outlet: where each evidence goes under which a key was released; ``None``: nobody keeps it.

    Raises:
        ManifestMismatchError: a manifest of another scenario.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        attester: Attester,
        broker: BrokerClient,
        clock: Callable[[], float] = since_boot,
        evidence_outlet: Outlet | None = None,
    ) -> None:
        if manifest.serving is None:
            raise ManifestMismatchError("scenario", expected="inference", got=manifest.scenario)
        self.manifest = manifest
        self.serving: ServingTerms = manifest.serving
        self.digest = manifest.digest
        self._attester = attester
        self._broker = broker
        self._hpke = HpkeIdentity.generate()
        self._signing = Ed25519PrivateKey.generate()
        self._signing_public = self._signing.public_key().public_bytes_raw()
        self.instance = instance_of(self._hpke.public, self._signing_public)
        self._clock = EnclaveClock(monotonic=since_boot)
        self.lease = HeldLease(self.serving.lease, clock=clock)
        self._attesting = threading.Lock()
        self._evidence = ""
        self._evidence_outlet = evidence_outlet
        self.epochs = Epochs(
            manifest=self.digest, instance=self.instance, signing_key=self._signing, now=self._clock.now
        )

    def open_model(self, container: Container) -> dict[str, Array]:
        """Return the tensors of the sealed model, opened with the key that the owner's broker releases.

        Raises:
            ManifestMismatchError: a file other than the manifest's.
            ConfedError: the broker refused or is down, or the container does not hold.
        """
        start = self.manifest.model.start
        found = container.file_digest()
        if found != start.digest or container.header.kind is not Kind.MODEL:
            raise ManifestMismatchError("sealed model", expected=start.digest[:16], got=found[:16])
        arrays = unpack(container.unlock(self._released_key()).read_all(threads=_THREADS))
        if layout_of(arrays).digest != self.manifest.model.layout:
            raise ShapeError("model", expected="the manifest's tensors", got="others")
        return arrays

    def renew(self) -> None:
        """Get a new lease from the owner's broker, with fresh evidence.

        Raises:
            ConfedError: the broker refused or is down; the old lease runs on.
        """
        self._released_key()

    def attest(self, nonce: bytes) -> bytes:
        """Return this replica's evidence for a requester's nonce (32 bytes), encoded.

        Raises:
            SessionError: no model has been opened yet.
            LeaseError: the lease is over.
            EvidenceFormatError: a nonce of another length.
            AttestationError, EvidenceUnavailableError: the TEE gives none.
        """
        if not self._evidence:
            raise SessionError("replica", expected="a model that was opened", got="none")
        self.lease.require()
        with self._attesting:
            return self._attested(nonce, audience=REQUESTER_AUDIENCE)

    def opening(self, *, admit: Callable[[], None]) -> Opening:
        """Return what opens one sealed request; it takes none once the lease is over.

        Args:
            admit: raises where there is no place for it.
        """

        def admitted() -> None:
            self.lease.require()
            admit()

        largest = self.serving.largest_request_bytes
        return Opening(epochs=self.epochs, manifest=self.digest, largest_bytes=largest, admit=admitted)

    def refusal(self, opening: Opening, error: ConfedError) -> Signed | None:
        """Return the signed refusal of a request that has not been taken, which from now on it never will be.

        ``None`` where there is nothing to sign: it is not known which request it is, its epoch is not remembered, or
        the error is none of the reasons (``confed.inference.refusals``).

        Raises:
            ReplayedError: it was taken, or refused, before.
        """
        reason, header = reason_of(error), opening.header
        if reason is None or header is None or header.header.manifest != self.digest:
            return None
        epoch = self.epochs.refuse(header.header.epochs, header.transcript)
        if epoch is None:
            return None
        request = header.transcript.hex()
        return self.sign(
            Refusal(manifest=self.digest, instance=self.instance, epoch=epoch, request=request, reason=reason)
        )

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that this TEE's evidence vouches for; it never leaves this process."""
        return self._signing

    def now(self) -> int:
        """Return the enclave's time in Unix milliseconds.

        Raises:
            SessionError: no broker has been heard yet.
        """
        return self._clock.now()

    def sign(self, statement: Statement) -> Signed:
        """Sign a statement as this replica."""
        return sign(statement, self._signing)

    def receipt(self, answering: Answered, *, delivered: str | None = None) -> Signed:
        """Return the signed receipt of what was asked and answered so far.

        Args:
            answering: the exchange.
            delivered: digest of the sealed answer that went to recipients instead; ``None`` where none did.
        """
        receipt = Receipt(
            manifest=self.digest,
            model=self.manifest.model.start.digest,
            instance=self.instance,
            evidence=self._evidence,
            epoch=answering.epoch,
            request=answering.request_commitment,
            answer=answering.commitment,
            output=self.serving.output.digest,
            delivered=delivered,
            time=self._clock.now(),
        )
        return sign(receipt, self._signing)

    def _released_key(self) -> bytes:
        """Attest to the model owner's broker and unwrap the one key (rule 1)."""
        owner, asked_at = self.manifest.model.owner, self.lease.asked()
        (challenge,) = self._broker.challenge([(owner.broker, self.digest)])
        if isinstance(challenge, ConfedError):
            raise challenge
        self._clock.advance(challenge.issued_at)
        envelope = self._attested(challenge.nonce, audience=canonical.digest(owner.broker))
        request = sign(self._request(challenge.nonce), self._signing)
        (reply,) = self._broker.release([(request, envelope, b"")])
        if isinstance(reply, ConfedError):
            raise reply
        lease = None if reply.credential is None else unverified(reply.credential, Lease)  # the client verified it
        self.lease.take(lease, asked_at=asked_at)
        self._clock.advance(reply.grant.time)
        self._evidence = canonical.digest(envelope)
        if self._evidence_outlet is not None:
            self._evidence_outlet.send(Leaving.EVIDENCE, self._evidence, envelope)
        return self._hpke.unwrap(reply.wrapped_keys[0], info=reply.grant.context)

    def _request(self, nonce: bytes) -> ReleaseRequest:
        manifest = self.manifest
        return ReleaseRequest(
            request_id=os.urandom(16),
            broker=manifest.model.owner.broker,
            nonce=nonce,
            manifest=self.digest,
            run=manifest.run,
            instance=self.instance,
            role=Role.INFERENCE,
            purpose=Purpose.INFER,
            identity=b"",
            round=1,
            attempt=0,
            base=manifest.model.start.digest,
            keys=(_key_of(manifest, self.serving),),
            ticket_for="",
        )

    def _attested(self, nonce: bytes, *, audience: str) -> bytes:
        binding = Binding(
            profile=self._attester.profile,
            nonce=nonce,
            audience=audience,
            manifest=self.digest,
            role=Role.INFERENCE,
            run=self.manifest.run,
            hpke_public=self._hpke.public,
            signing_public=self._signing_public,
            issued_at=self._clock.now(),
        )
        return self._attester.attest(binding).encode()


def _key_of(manifest: Manifest, serving: ServingTerms) -> KeyName:
    start, origin = manifest.model.start, serving.origin
    return KeyName(
        key_id=start.key_id,
        use=Use.START if origin is None else Use.VERSION,
        container=start.container_id if origin is None else "",
        version=0 if origin is None else origin.version,
        attempt=0 if origin is None else origin.attempt,
    )
