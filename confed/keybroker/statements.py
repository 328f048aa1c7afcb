"""What brokers and enclaves say to each other, as signed statements (DESIGN §4).

The order in which they are made in one round:

1. ``Challenge``         broker: a single-use nonce.
2. ``ReleaseRequest``    enclave: I attested under your nonce; I ask for these keys (and a credential) for this step.
3. ``Grant``             broker: what was decided; the sealed keys are bound to it. With it, for a data owner's own
                         client a ``ClientCredential``, for the aggregator an ``AggregatorCredential``; and a nonce
                         for the next request.
4. ``TicketRequest``     client: I am about to seal one result for this aggregator. A ``ReleaseRequest`` may say so.
5. ``Ticket``            broker: charged; at most one result may be sent under it.
6. ``Candidate``         aggregator: this would be the next version.
7. ``Countersignature``  every owner's broker: the only successor of this base and attempt that I sign.
8. ``Commit``            model owner's broker: with a majority of countersignatures, this is the version.
9. ``Closing``           model owner's broker, then ``ClosingCountersignature`` of the others: the run ended here.

Where one TEE trains: ``CheckpointNote`` (this is my newest checkpoint), answered by a broker's ``NewestCheckpoint``.

Times are Unix milliseconds. Digests are SHA-256 in hexadecimal; a statement's digest is that of its payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from confed import canonical, record
from confed.errors import EncodingError
from confed.journey import Purpose, Role, Use
from confed.privacy.terms import PrivacyState
from confed.statement import Signed
from confed.stopping import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """An owner approves a manifest by its digest; signed with the owner's identity key."""

    TYPE: ClassVar[str] = "confed/v1/approval"
    manifest: str
    owner: bytes
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A nonce (32 bytes) of this broker for evidence and a request under this manifest; single-use."""

    TYPE: ClassVar[str] = "confed/v1/challenge"
    broker: bytes
    nonce: bytes
    manifest: str
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyName:
    """A key of an owner: the vault's key id, its use, and for VERSION and STATE the version and attempt.

    ``container`` is the container id for DATA and START, empty otherwise.
    """

    key_id: str
    use: Use
    container: str
    version: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequest:
    """What an enclave asks for; signed by its signing key, under a fresh nonce of the broker.

    ``identity`` is the site that a client acts for (its identity key), empty for the aggregator. ``base`` is the
    file digest of the version that this step starts from. ``ticket_for`` is the aggregator instance for which a client
    asks for a ticket beside its credential, empty where it asks for none: then this is a ``TicketRequest`` as well.
    """

    TYPE: ClassVar[str] = "confed/v1/release-request"
    request_id: bytes
    broker: bytes
    nonce: bytes
    manifest: str
    run: str
    instance: str
    role: Role
    purpose: Purpose
    identity: bytes
    round: int
    attempt: int
    base: str
    keys: tuple[KeyName, ...]
    ticket_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a broker decided about a request: signed, in the ledger before any key is wrapped.

    ``context`` = SHA-256 of canonical {binding, request, policy, claims, entry}: the HPKE ``info`` of every wrapped
    key. ``entry`` is the digest of the ledger entry. ``next_nonce`` is a nonce for a later request under the same
    manifest, until ``next_expires_at``: a ``Challenge`` as any other; empty and 0 where the broker has no room for one.
    """

    TYPE: ClassVar[str] = "confed/v1/grant"
    broker: bytes
    binding: str
    request: str
    policy: str
    claims: str
    entry: str
    time: int
    next_nonce: bytes
    next_expires_at: int

    @property
    def context(self) -> bytes:
        """The HPKE ``info`` (32 bytes)."""
        value = {
            "binding": self.binding,
            "claims": self.claims,
            "entry": self.entry,
            "policy": self.policy,
            "request": self.request,
        }
        return bytes.fromhex(canonical.digest(canonical.encode(value)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCredential:
    """A site's own broker says: this enclave's signing key speaks for this identity in this round and purpose."""

    TYPE: ClassVar[str] = "confed/v1/client-credential"
    broker: bytes
    identity: bytes
    manifest: str
    run: str
    round: int
    attempt: int
    purpose: Purpose
    instance: str
    signing_public: bytes
    evidence: str
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorCredential:
    """A site's own broker says: this aggregator attested to me; seal to its key in these rounds (inclusive)."""

    TYPE: ClassVar[str] = "confed/v1/aggregator-credential"
    broker: bytes
    identity: bytes
    manifest: str
    run: str
    instance: str
    signing_public: bytes
    hpke_public: bytes
    first_round: int
    last_round: int
    evidence: str
    nonce: bytes
    issued_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketRequest:
    """A client asks for the right to send one result; signed by its credentialed key."""

    TYPE: ClassVar[str] = "confed/v1/ticket-request"
    request_id: bytes
    broker: bytes
    identity: bytes
    manifest: str
    run: str
    round: int
    attempt: int
    purpose: Purpose
    base: str
    aggregator: str
    credential: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A site's own broker permits one result; charged when issued, never refunded.

    ``counted`` are the identities that the owner's data key counts (none named: every one of them); of those, a
    result with this ticket in it has at least ``least_cohort``. So it is for everybody to check, not for one broker.
    """

    TYPE: ClassVar[str] = "confed/v1/ticket"
    ticket_id: bytes
    broker: bytes
    identity: bytes
    manifest: str
    run: str
    round: int
    attempt: int
    purpose: Purpose
    base: str
    aggregator: str
    credential: str
    signing_public: bytes
    issued_at: int
    expires_at: int
    least_cohort: int = 1
    counted: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearMetrics:
    """A cohort's metrics as they leave in clear once their candidate is committed; the salt hides them before."""

    salt: bytes
    values: Mapping[str, float]

    @property
    def digest(self) -> str:
        """What stands for them in the candidate."""
        return canonical.digest(canonical.encode(record.to_json(self)))

    @classmethod
    def none(cls) -> ClearMetrics:
        """Return no metrics: nothing to hide, so no salt."""
        return cls(salt=bytes(32), values={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The aggregator proposes a version, or (purpose evaluate) clear metrics; signed by its signing key.

    For training ``digest`` is the file digest of the sealed next version, ``version`` its number and ``state`` the
    file digest of the sealed strategy state. For evaluation ``version`` is the version evaluated, ``digest`` equals
    ``base`` and ``state`` is empty. ``cohort`` lists identities in identity order, ``tickets`` the digests of their
    tickets in the same order; ``excluded`` maps site names to the code of why they are not in it. ``metrics`` is the
    digest of ``ClearMetrics``: brokers agree to them unseen, so that nobody learns those of a result that is not
    agreed to, and takes the difference to those of one that is. ``privacy`` is the accountant after a training round
    with central privacy, and ``None`` else.
    """

    TYPE: ClassVar[str] = "confed/v1/candidate"
    run: str
    manifest: str
    round: int
    attempt: int
    purpose: Purpose
    base: str
    version: int
    digest: str
    state: str
    instance: str
    cohort: tuple[bytes, ...]
    tickets: tuple[str, ...]
    excluded: Mapping[str, str]
    metrics: str
    privacy: PrivacyState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Countersignature:
    """A broker signs the one successor of (base, attempt) that it will ever sign."""

    TYPE: ClassVar[str] = "confed/v1/countersignature"
    broker: bytes
    identity: bytes
    candidate: str
    run: str
    round: int
    attempt: int
    purpose: Purpose
    base: str
    digest: str
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The model owner's broker makes a candidate the version; only with a quorum of countersignatures."""

    TYPE: ClassVar[str] = "confed/v1/commit"
    broker: bytes
    candidate: str
    run: str
    round: int
    attempt: int
    purpose: Purpose
    version: int
    digest: str
    countersignatures: tuple[str, ...]
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a broker has witnessed as the newest committed version of a run, under the asker's nonce."""

    TYPE: ClassVar[str] = "confed/v1/head"
    broker: bytes
    run: str
    version: int
    digest: str
    nonce: bytes
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One entry of a broker's hash chain; ``previous`` is the digest of the entry before it (empty at first)."""

    TYPE: ClassVar[str] = "confed/v1/ledger-entry"
    broker: bytes
    sequence: int
    previous: str
    time: int
    event: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointNote:
    """The TEE that makes a round's version notes its newest checkpoint, or asks for the newest (counter 0, no digest).

    ``counter`` counts the checkpoints of a round from 1 on, whatever the attempt; ``digest`` is the file's.
    """

    TYPE: ClassVar[str] = "confed/v1/checkpoint-note"
    request_id: bytes
    broker: bytes
    manifest: str
    run: str
    instance: str
    round: int
    attempt: int
    base: str
    counter: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestCheckpoint:
    """A broker's answer to one ``CheckpointNote``, by its digest: the newest of the round (counter 0: none)."""

    TYPE: ClassVar[str] = "confed/v1/newest-checkpoint"
    broker: bytes
    manifest: str
    run: str
    round: int
    note: str
    counter: int
    digest: str
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """A run ends: its last version, how many rounds led there, and why there (``confed.stopping``)."""

    TYPE: ClassVar[str] = "confed/v1/closing"
    broker: bytes
    run: str
    manifest: str
    rounds: int
    version: int
    digest: str
    ending: Ending
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosingCountersignature:
    """An owner's broker agrees that the run ended so; ``head`` is the digest of its last ledger entry before."""

    TYPE: ClassVar[str] = "confed/v1/closing-countersignature"
    broker: bytes
    identity: bytes
    closing: str
    run: str
    version: int
    digest: str
    head: str
    time: int


RECORD_LIMIT_BYTES = 64 * 1024 * 1024
_RECORD_PARTS = ["candidate", "commit", "countersignatures", "metrics", "tickets"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRecord:
    """Everything that proves one committed version: what clients, brokers and ``confed verify`` check.

    Not itself signed: its parts are, and the candidate has the digest of ``metrics``. ``tickets`` are the cohort's
    tickets in the candidate's order.
    """

    candidate: Signed
    tickets: tuple[Signed, ...]
    countersignatures: tuple[Signed, ...]
    commit: Signed
    metrics: ClearMetrics = field(default_factory=ClearMetrics.none)

    def abridged(self) -> CommitRecord:
        """Return the record without tickets and countersignatures: what was measured, and that it was committed."""
        return replace(self, tickets=(), countersignatures=())

    def to_bytes(self) -> bytes:
        """Return the record as canonical JSON."""
        return canonical.encode(
            {
                "candidate": self.candidate.to_json(),
                "commit": self.commit.to_json(),
                "countersignatures": [signed.to_json() for signed in self.countersignatures],
                "metrics": record.to_json(self.metrics),
                "tickets": [signed.to_json() for signed in self.tickets],
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> CommitRecord:
        """Return the record of canonical JSON; nothing in it is verified yet.

        Raises:
            EncodingError: anything else.
            SizeError: more than a record of the largest cohort has.
        """
        value = canonical.decode(data, limit_bytes=RECORD_LIMIT_BYTES)
        if not isinstance(value, dict) or sorted(value) != _RECORD_PARTS:  # pyright: ignore[reportUnknownArgumentType]
            raise EncodingError("commit record", expected="its five parts", got="something else")
        parts: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        for name in ("tickets", "countersignatures"):
            if not isinstance(parts[name], list):
                raise EncodingError(f"commit record {name}", expected="a list", got="something else")
        return cls(
            candidate=Signed.from_json(parts["candidate"]),
            commit=Signed.from_json(parts["commit"]),
            countersignatures=tuple(Signed.from_json(item) for item in parts["countersignatures"]),
            metrics=record.from_json(ClearMetrics, parts["metrics"], at="metrics"),
            tickets=tuple(Signed.from_json(item) for item in parts["tickets"]),
        )


def policy_digest(policy: Any) -> str:
    """Return the digest of a policy record, as it stands in a Grant."""
    return canonical.digest(canonical.encode(record.to_json(policy)))
