"""How whoever made a version has it agreed to: the enclave's half of what ``succession`` and ``closing`` decide.

1. Every site's broker is asked to countersign the candidate; more than half must.
2. The maker keeps the ciphertext with the courier, so that a committed version is never lost.
3. The model owner's broker commits it.
4. The record is verified as any client would, and posted. Before that, nobody is told a metric or a digest.

The aggregator makes versions in a federation; the one client TEE where the scenario has no aggregator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from confed import canonical
from confed.errors import ConfedError, QuorumError
from confed.journey import Kind
from confed.keybroker.lineage import verify_commit_record
from confed.keybroker.statements import Candidate, ClearMetrics, Closing, CommitRecord
from confed.keybroker.topics import closing_topic, commit_topic
from confed.manifest import Manifest
from confed.sealing.recipients import RecipientEntry
from confed.sealing.sealer import Draft
from confed.statement import Signed, unverified, verify

S = TypeVar("S")
T = TypeVar("T")
_PARALLEL_SERVERS = 8


class CommittingBrokers(Protocol):
    """The brokers behind one server; ``confed.keybroker.client.BrokerClient`` is one. Replies come verified."""

    def countersign(
        self, brokers: Sequence[bytes], *, candidate: Signed, tickets: Sequence[Signed], base_record: bytes = b""
    ) -> list[Signed | ConfedError]:
        """Return each broker's countersignature."""
        ...

    def commit(
        self,
        broker: bytes,
        *,
        candidate: Signed,
        tickets: Sequence[Signed],
        countersignatures: Sequence[Signed],
        base_record: bytes = b"",
    ) -> Signed:
        """Return the model owner's broker's commit."""
        ...

    def close(
        self,
        brokers: Sequence[bytes],
        *,
        run: str,
        manifest: str,
        final_record: bytes,
        closing: Signed | None = None,
        history: Sequence[bytes] = (),
    ) -> list[Signed | ConfedError]:
        """Return closings, or countersignatures of one."""
        ...


class Letters(Protocol):
    """Where small public documents are posted and found; ``CourierClient`` is one."""

    def post(self, topic: str, body: bytes) -> None:
        """Add a letter under a topic."""
        ...

    def collect(self, topic: str) -> list[bytes]:
        """Return the letters under a topic, oldest first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """A signed candidate and what brokers need with it; may be proposed again until it is committed."""

    candidate: Signed
    tickets: tuple[Signed, ...]
    base_record: bytes
    metrics: ClearMetrics


class Committer:
    """Has one maker's candidates countersigned and committed, and its run closed.

    Args:
        manifest: the run's; ``digest`` is its, computed once.
        brokers: who answers for each broker key of the manifest; several keys may share one.
        letters: the courier's letters.
    """

    def __init__(
        self, manifest: Manifest, *, digest: str, brokers: Mapping[bytes, CommittingBrokers], letters: Letters
    ) -> None:
        self._manifest = manifest
        self._digest = digest
        self._brokers = brokers
        self._letters = letters
        self._sites = [site.owner.broker for site in manifest.sites]

    def countersigned(self, proposed: Proposed) -> tuple[Signed, ...]:
        """Return the countersignatures of more than half of the sites' brokers (step 1).

        Raises:
            QuorumError: too few; its cause is the first refusal. Nothing has left the enclave.
        """
        answers = each_server(
            self._brokers,
            self._sites,
            lambda server, brokers: server.countersign(
                brokers, candidate=proposed.candidate, tickets=proposed.tickets, base_record=proposed.base_record
            ),
        )
        return _quorum("countersignatures", answers, self._manifest.quorum)

    def committed(self, proposed: Proposed, countersignatures: tuple[Signed, ...]) -> CommitRecord:
        """Have a countersigned candidate committed, post its record and return it (steps 3 and 4).

        Raises:
            ConfedError: the model owner's broker refused, or a service is down; the proposal may be tried again.
        """
        owner = self._manifest.model.owner.broker
        commit = self._brokers[owner].commit(
            owner,
            candidate=proposed.candidate,
            tickets=proposed.tickets,
            countersignatures=countersignatures,
            base_record=proposed.base_record,
        )
        record = CommitRecord(
            candidate=proposed.candidate,
            tickets=proposed.tickets,
            countersignatures=countersignatures,
            commit=commit,
            metrics=proposed.metrics,
        )
        said = unverified(proposed.candidate, Candidate)
        verify_commit_record(
            record,
            manifest=self._manifest,
            round_number=said.round,
            purpose=said.purpose,
            attempt=said.attempt,
            base=said.base,
        )
        self._letters.post(commit_topic(said.run, said.purpose, said.round), record.to_bytes())
        return record

    def close_run(self, final_record: bytes, *, history: Sequence[bytes]) -> bytes:
        """Have the run closed by the model owner's broker and countersigned by the others; return the documents.

        ``history`` are all commit records in their order, abridged, where the manifest has a stop rule. Like every
        record of the run the documents are posted, readable by all: they show by themselves whether they hold.

        Raises:
            QuorumError: too few brokers agree that the run ended so.
            ConfedError: the model owner's broker refused or is down.
        """
        terms: dict[str, Any] = {
            "run": self._manifest.run,
            "manifest": self._digest,
            "final_record": final_record,
            "history": history,
        }
        owner = self._manifest.model.owner.broker
        (closing,) = self._brokers[owner].close([owner], **terms)
        if isinstance(closing, ConfedError):
            raise closing
        verify(closing, Closing, signer=owner)
        answers = each_server(
            self._brokers, self._sites, lambda server, brokers: server.close(brokers, **terms, closing=closing)
        )
        agreed = _quorum("closing countersignatures", answers, self._manifest.quorum)
        documents = canonical.encode(
            {"closing": closing.to_json(), "countersignatures": [signed.to_json() for signed in agreed]}
        )
        self._letters.post(closing_topic(self._manifest.run), documents)
        return documents


def each_server(
    servers: Mapping[bytes, S], brokers: Sequence[bytes], call: Callable[[S, list[bytes]], list[T | ConfedError]]
) -> dict[bytes, T | ConfedError]:
    """Call every server once with its brokers among these, side by side; a server that is down refuses for all."""
    groups: dict[int, tuple[S, list[bytes]]] = {}
    for broker in brokers:
        server = servers[broker]
        groups.setdefault(id(server), (server, []))[1].append(broker)

    def one(group: tuple[S, list[bytes]]) -> list[T | ConfedError]:
        try:
            return call(*group)
        except ConfedError as error:
            return [error] * len(group[1])

    results: dict[bytes, T | ConfedError] = {}
    if len(groups) == 1:
        answers = [one(group) for group in groups.values()]
    else:
        with ThreadPoolExecutor(max_workers=_PARALLEL_SERVERS) as pool:
            answers = list(pool.map(one, groups.values()))
    for (_, asked), answer in zip(groups.values(), answers, strict=True):
        results.update(zip(asked, answer, strict=True))
    return results


def hidden(values: Mapping[str, float]) -> ClearMetrics:
    """Return metrics under a fresh salt, so that a candidate's digest of them tells nobody what they are."""
    return ClearMetrics(salt=os.urandom(32), values=values)


def version_draft(
    manifest: Manifest, *, digest: str, kind: Kind, version: int, attempt: int, base: str, detail: Mapping[str, Any]
) -> Draft:
    """Return what a version of the model, or the state that belongs to it, says about itself in public.

    Args:
        manifest: the run's.
        digest: the manifest's, computed once.
        kind: model or strategy state.
        version: its number.
        attempt: that made it: with run and version it names the key.
        base: file digest of the version that it was made from.
        detail: what else the header says.
    """
    model = manifest.model
    suffix = "/state" if kind is Kind.STRATEGY_STATE else ""
    return Draft(
        kind=kind,
        container_id=f"{manifest.run}/{version}.{attempt}{suffix}",
        version=version,
        parents=(base,),
        owner=model.owner.identity,
        manifest=digest,
        detail={"run": manifest.run, "version": version, "attempt": attempt, **detail},
        recipients=(RecipientEntry.owner_key(model.start.key_id),),
    )


def _quorum(what: str, answers: Mapping[bytes, Signed | ConfedError], least: int) -> tuple[Signed, ...]:
    """Return what was signed, if at least ``least`` brokers did.

    Raises:
        QuorumError: fewer; its cause is the first refusal.
    """
    signed = tuple(answer for answer in answers.values() if isinstance(answer, Signed))
    if len(signed) < least:
        codes = sorted({answer.code for answer in answers.values() if isinstance(answer, ConfedError)})
        first = next((answer for answer in answers.values() if isinstance(answer, ConfedError)), None)
        raise QuorumError(what, expected=f"{least} identities", got=f"{len(signed)} ({', '.join(codes)})") from first
    return signed
