"""One owner's key broker: decides over its store and a clock, and knows nothing of networks.

Every call is one transaction:

1. who is addressed, and under which manifest: only one that this owner approved;
2. what happens whatever the verdict: a nonce is burnt;
3. the rules (``release``, ``tickets``, ``checkpoints``, ``succession``, ``closing``, ``heads``); what a refused
   decision wrote is undone, and the refusal goes into the ledger;
4. the ledger entry, the stored answer, the commit to disk; only then is anything answered.

The same request again gets the stored bytes. Threads may share a broker; so may processes share a store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.attestation.endorsements import EndorsementProvider
from confed.attestation.evidence import Envelope
from confed.attestation.verifier import Registry, default_registry
from confed.errors import (
    BrokerError,
    ConfedError,
    ManifestMismatchError,
    NotApprovedError,
    RequestReplayError,
    SizeError,
)
from confed.keybroker.checkpoints import checkpoint as note_checkpoint
from confed.keybroker.closing import close as close_run
from confed.keybroker.decision import Decision, Terms
from confed.keybroker.documents import approved_manifest
from confed.keybroker.heads import head_of, witness
from confed.keybroker.identity import OwnerHome
from confed.keybroker.ledger import Ledger
from confed.keybroker.lineage import parsed
from confed.keybroker.nonces import NONCE_BYTES, burn, issue
from confed.keybroker.release import release
from confed.keybroker.replies import Released
from confed.keybroker.sessions import Evidence
from confed.keybroker.statements import Candidate, Challenge, CheckpointNote, Head, ReleaseRequest, TicketRequest
from confed.keybroker.statistics import StatisticsRequest, permit
from confed.keybroker.store import Store, Transaction
from confed.keybroker.succession import commit, countersign
from confed.keybroker.tickets import ticket as issue_ticket
from confed.keybroker.vault import Vault
from confed.manifest import Party
from confed.statement import Signed, sign, unverified, verify, word_of
from confed.wire.v1 import confed_pb2 as pb

T = TypeVar("T")
_REQUEST_ID_BYTES = range(8, 65)


def wall_clock() -> int:
    """Return Unix milliseconds of this machine."""
    return time.time_ns() // 1_000_000


class Broker:
    """The broker of one owner, in whichever of its roles a manifest names it."""

    def __init__(
        self,
        *,
        party: Party,
        key: Ed25519PrivateKey,
        vault: Vault,
        store: Store,
        clock: Callable[[], int] = wall_clock,
        registry: Registry | None = None,
        endorsements: EndorsementProvider | None = None,
    ) -> None:
        self.party = party
        self._key = key
        self._vault = vault
        self._store = store
        self._clock = clock
        self._registry = registry if registry is not None else default_registry()
        self._endorsements = endorsements
        self._ledger = Ledger(key)
        self._terms: dict[str, Terms] = {}
        self._approved_runs: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Broker({self.party.name})"

    @classmethod
    def of(
        cls,
        home: OwnerHome,
        *,
        clock: Callable[[], int] = wall_clock,
        endorsements: EndorsementProvider | None = None,
    ) -> Broker:
        """Return the broker of an owner on this machine."""
        return cls(
            party=home.party,
            key=home.broker_key,
            vault=home.vault,
            store=home.store,
            clock=clock,
            endorsements=endorsements,
        )

    @property
    def public(self) -> bytes:
        """The broker's public key: its name in every statement."""
        return self.party.broker

    def challenge(self, manifest: str) -> Signed:
        """Return a fresh single-use nonce under an approved manifest, signed.

        Raises:
            NotApprovedError: the owner did not approve it.
            ChallengeError: too many are outstanding.
        """
        # Losing a fresh nonce in a power failure only means that it is refused, so the disk is not waited for.
        with self._store.transaction(durable=False) as tx:
            self._terms_of(tx, manifest)
            now = self._now(tx)
            nonce, expires_at = issue(tx, manifest, now=now)
        challenge = Challenge(broker=self.public, nonce=nonce, manifest=manifest, issued_at=now, expires_at=expires_at)
        return sign(challenge, self._key)

    def release(self, request: Signed, *, envelope: bytes = b"", base_record: bytes = b"") -> Released:
        """Decide about a ``ReleaseRequest``: burn its nonce, then grant with wrapped keys, or refuse.

        Raises:
            ChallengeError: a nonce that this broker did not issue for this manifest, that was used, or expired.
            RequestReplayError: a request id used before for something else.
            ConfedError: the class of the rule that refuses (see ``release``).
        """
        asked = unverified(request, ReleaseRequest)
        self._require_addressed(asked.broker)
        _require_request_id(asked.request_id)
        fresh = self._evidence(envelope, asked.nonce)

        def first(decision: Decision) -> Released | None:
            stored = self._stored_reply(decision.tx, asked, request)
            if stored is not None:
                return stored
            burn(decision, asked)
            return None

        def decide(decision: Decision) -> Released:
            known = decision.tx.one("SELECT 1 FROM replies WHERE request_id = ?", (asked.request_id,))
            if known is not None:
                raise RequestReplayError("request id", expected="a new one", got="one used for something else")
            released = release(decision, asked, request, fresh=fresh, base_record=base_record, registry=self._registry)
            sealed = self._vault.seal(released.to_wire().SerializeToString(), kind="reply", name=asked.request_id.hex())
            decision.tx.execute(
                "INSERT INTO replies VALUES (?, ?, ?, ?)", (asked.request_id, request.digest, request.signer, sealed)
            )
            return released

        return self._decide("release", asked.manifest, request.digest, decide, first=first)

    def ticket(self, request: Signed) -> Signed:
        """Decide about a ``TicketRequest`` (see ``tickets``) or a ``StatisticsRequest`` (see ``statistics``).

        Raises:
            ConfedError: the class of the rule that refuses.
        """
        if word_of(request, "type") == StatisticsRequest.TYPE:
            return self._permit_statistics(request)
        asked = unverified(request, TicketRequest)
        self._require_addressed(asked.broker)
        _require_request_id(asked.request_id)

        def decide(decision: Decision) -> Signed:
            _require_run(decision, asked.run)
            return issue_ticket(decision, asked, request)

        return self._decide("ticket", asked.manifest, request.digest, decide)

    def _permit_statistics(self, request: Signed) -> Signed:
        asked = unverified(request, StatisticsRequest)
        self._require_addressed(asked.broker)
        _require_request_id(asked.request_id)

        def decide(decision: Decision) -> Signed:
            _require_run(decision, asked.run)
            return permit(decision, asked, request)

        return self._decide("statistics", asked.manifest, request.digest, decide)

    def countersign(self, candidate: Signed, *, tickets: Sequence[Signed], base_record: bytes = b"") -> Signed:
        """Countersign a ``Candidate`` as the one successor of its attempt; see ``succession``.

        Raises:
            ConfedError: the class of the rule that refuses.
        """
        asked = parsed(candidate, Candidate)

        def decide(decision: Decision) -> Signed:
            return countersign(decision, asked, candidate, tickets=tickets, base_record=base_record)

        return self._decide("countersign", asked.manifest, candidate.digest, decide)

    def commit(
        self,
        candidate: Signed,
        *,
        tickets: Sequence[Signed],
        countersignatures: Sequence[Signed],
        base_record: bytes = b"",
    ) -> Signed:
        """Commit a ``Candidate`` with its countersignatures (the model owner's broker); see ``succession``.

        Raises:
            ConfedError: the class of the rule that refuses.
        """
        asked = parsed(candidate, Candidate)

        def decide(decision: Decision) -> Signed:
            return commit(
                decision,
                asked,
                candidate,
                tickets=tickets,
                countersignatures=countersignatures,
                base_record=base_record,
            )

        return self._decide("commit", asked.manifest, candidate.digest, decide)

    def checkpoint(self, note: Signed) -> Signed:
        """Note a training TEE's newest checkpoint, or say which is the newest; see ``checkpoints``.

        Raises:
            ConfedError: the class of the rule that refuses.
        """
        asked = unverified(note, CheckpointNote)
        self._require_addressed(asked.broker)
        _require_request_id(asked.request_id)

        def decide(decision: Decision) -> Signed:
            _require_run(decision, asked.run)
            return note_checkpoint(decision, asked, note)

        return self._decide("checkpoint", asked.manifest, note.digest, decide)

    def observe(self, run: str, *, nonce: bytes, record: bytes = b"") -> Signed:
        """Return the signed ``Head`` of a run under the asker's nonce, after witnessing a commit record if given.

        Raises:
            NotApprovedError: no approved manifest has this run.
            ConfedError: a record that does not hold.
        """
        if len(nonce) > NONCE_BYTES:
            raise SizeError("nonce size in bytes", expected=f"at most {NONCE_BYTES}", got=len(nonce))
        manifest = self._manifest_of_run(run)

        def decide(decision: Decision) -> Signed:
            head = witness(decision, record) if record else head_of(decision)
            return decision.sign(
                Head(
                    broker=self.public,
                    run=run,
                    version=head.version,
                    digest=head.digest,
                    nonce=nonce,
                    time=decision.now,
                )
            )

        # Without a record nothing is written, so there is nothing to wait for.
        return self._decide("observe", manifest, "", decide, durable=bool(record))

    def close(
        self,
        *,
        run: str,
        manifest: str,
        final_record: bytes = b"",
        closing: Signed | None = None,
        history: Sequence[bytes] = (),
    ) -> Signed:
        """Sign a ``Closing``, or countersign one that is given; see ``closing``.

        Raises:
            ConfedError: the class of the rule that refuses.
        """

        def decide(decision: Decision) -> Signed:
            _require_run(decision, run)
            return close_run(decision, final_record=final_record, closing=closing, history=history)

        return self._decide("close", manifest, closing.digest if closing else "", decide)

    def records(self, *, first: int = 0) -> Iterable[Signed]:
        """Yield the ledger's entries from a sequence number on."""
        return self._ledger.read(self._store, first=first)

    def _decide(
        self,
        what: str,
        manifest: str,
        digest: str,
        decide: Callable[[Decision], T],
        *,
        first: Callable[[Decision], T | None] = lambda _: None,
        durable: bool = True,
    ) -> T:
        """Run a decision in one transaction; ``first`` holds whatever the verdict, and may answer at once."""
        failure: ConfedError | None = None
        result: T | None = None
        with self._store.transaction(durable=durable) as tx:
            terms = self._terms_of(tx, manifest)
            decision = Decision(
                tx=tx,
                party=self.party,
                key=self._key,
                vault=self._vault,
                ledger=self._ledger,
                now=self._now(tx),
                terms=terms,
            )
            try:
                result = first(decision)
                if result is None:
                    with tx.savepoint():
                        result = decide(decision)
            except ConfedError as error:
                failure = error
                decision.record("refused", code=error.code, what=what, digest=digest)
        if failure is not None:
            raise failure
        assert result is not None  # noqa: S101 (either a result or a failure)
        return result

    def _evidence(self, envelope: bytes, nonce: bytes) -> Evidence:
        """Fetch what is needed to verify an envelope, before any transaction; a failure refuses inside of it.

        Without a nonce that is outstanding nothing is fetched: such a request is refused, or has its answer in store.
        """
        if not envelope or self._endorsements is None:
            return Evidence(envelope=envelope)
        if not self._store.rows("SELECT 1 FROM nonces WHERE nonce = ? AND used = 0", (nonce,)):
            return Evidence(envelope=envelope)
        try:
            found = self._endorsements.endorsements_for(Envelope.decode(envelope), now_ms=self._clock())
        except ConfedError as error:
            return Evidence(envelope=envelope, failure=error)
        return Evidence(envelope=envelope, endorsements=tuple(found))

    def _now(self, tx: Transaction) -> int:
        """The clock, but never before the last ledger entry: a clock set back revives nothing."""
        return max(self._clock(), self._ledger.time(tx))

    def _require_addressed(self, broker: bytes) -> None:
        if broker != self.public:
            raise BrokerError("request broker", expected=self.public.hex()[:16], got=broker.hex()[:16])

    def _terms_of(self, tx: Transaction, manifest: str) -> Terms:
        terms = self._terms.get(manifest)
        if terms is None:
            row = tx.one("SELECT document FROM approvals WHERE manifest = ?", (manifest,))
            if row is None:
                raise NotApprovedError("manifest", expected="one that this owner approved", got=manifest[:64])
            approved = approved_manifest(self._store.folder, manifest, lambda: row[0])
            terms = self._terms[manifest] = Terms.of(approved, self.party)
        return terms

    def _manifest_of_run(self, run: str) -> str:
        found = self._approved_runs.get(run)
        if found is None:
            rows = self._store.rows("SELECT manifest FROM approvals WHERE run = ?", (run,))
            if not rows:
                raise NotApprovedError("run", expected="one that this owner approved", got=run[:64])
            found = self._approved_runs[run] = rows[0][0]
        return found

    def _stored_reply(self, tx: Transaction, asked: ReleaseRequest, request: Signed) -> Released | None:
        row = tx.one("SELECT request, signer, sealed FROM replies WHERE request_id = ?", (asked.request_id,))
        if row is None or row[:2] != (request.digest, request.signer):
            return None
        verify(request, ReleaseRequest, signer=row[1])
        opened = self._vault.open(row[2], kind="reply", name=asked.request_id.hex())
        return Released.from_wire(pb.ReleaseReplies.Released.FromString(opened))


def _require_request_id(request_id: bytes) -> None:
    if len(request_id) not in _REQUEST_ID_BYTES:
        raise SizeError("request id size in bytes", expected="8 to 64", got=len(request_id))


def _require_run(decision: Decision, run: str) -> None:
    if run != decision.terms.run:
        raise ManifestMismatchError("run", expected=decision.terms.run, got=run[:64])
