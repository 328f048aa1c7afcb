"""The governor's view of the aggregator enclave: it says when, and carries what the enclave answers.

Nothing that is answered here is trusted or secret: records are verified by whoever relies on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from confed.errors import EnclaveLostError, UnreachableError
from confed.keybroker.statements import Candidate, CommitRecord
from confed.statement import unverified
from confed.wire.channel import Endpoint, open_channel, raise_if_refused, reaching
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

_SERVICE = "aggregator"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRound:
    """A round that accepts updates.

    Attributes:
        base: file digest of the base version in the courier.
        version: the base version's number.
        instance: the enclave instance that will combine.
        cohort: names of the sites drawn, in identity order.
    """

    base: str
    version: int
    instance: str
    cohort: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRound:
    """A round that was combined and committed.

    Attributes:
        record: the CommitRecord's bytes.
        version: the number of the version in it: the new one, or the one that was evaluated; not verified.
        digest: that version's file digest; not verified.
        metrics: the cohort's clear means.
        excluded: why a site is not in the result, as a code by site.
        seconds: time spent, by stage.
        cohort_size: identities in the result.
    """

    record: bytes
    version: int
    digest: str
    metrics: Mapping[str, float]
    excluded: Mapping[str, str]
    seconds: Mapping[str, float]
    cohort_size: int


class Enclave(Protocol):
    """Whoever makes the versions, as the governor asks it: ``EnclaveClient``, or ``lone.LoneTee``."""

    def attest(self, *, first_round: int, attempt: int) -> str:
        """Let it attest for the rounds from one on; return its instance, or nothing where none is known."""
        ...

    def open_round(self, *, round_number: int, attempt: int, purpose: str) -> OpenedRound:
        """Open a round."""
        ...

    def submit(self, *, site: str, digest: str) -> None:
        """Say what a site answered with."""
        ...

    def submit_bundle(self, *, digest: str) -> dict[str, str]:
        """Say that results of several sites lie in the courier as one object."""
        ...

    def fold_batch(self, batch: int) -> None:
        """Have the open batch folded, and open the next."""
        ...

    def close_round(self, *, absent: Mapping[str, str]) -> ClosedRound:
        """Close the round."""
        ...

    def close_run(self) -> bytes:
        """End the run."""
        ...


class EnclaveClient:
    """A client of one aggregator enclave.

    No call is repeated by itself: whether an interrupted round is tried again is the governor's decision, as a new
    attempt. No call has a deadline: fetching and combining take as long as sizes and links do, and an enclave that is
    gone is found by keep-alive (``confed.wire.channel``).
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._channel = open_channel(endpoint)
        self._stub = services.AggregatorStub(self._channel)

    def close(self) -> None:
        """Close the channel; running calls end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attest(self, *, first_round: int, attempt: int) -> str:
        """Let the enclave attest to every owner's broker, to be credentialed from a round on; return its instance.

        Raises:
            RefusedError: the class that the enclave's code names.
            EnclaveLostError: the aggregator is down.
        """
        call = pb.AttestCall(first_round=first_round, attempt=attempt)
        reply: pb.AttestReply = self._ask(self._stub.Attest, call)
        return reply.instance

    def open_round(self, *, round_number: int, attempt: int, purpose: str) -> OpenedRound:
        """Open a round for updates; ``purpose`` is ``train`` or ``evaluate``.

        Raises:
            RefusedError: the class that the enclave's code names.
            EnclaveLostError: the aggregator is down.
        """
        call = pb.OpenRoundCall(round=round_number, attempt=attempt, purpose=purpose)
        reply: pb.OpenRoundReply = self._ask(self._stub.OpenRound, call)
        return OpenedRound(base=reply.base, version=reply.version, instance=reply.instance, cohort=tuple(reply.cohort))

    def submit(self, *, site: str, digest: str) -> None:
        """Say that a site's sealed update lies in the courier.

        Raises:
            UpdateError: the enclave refused the update, as the subclass that its code names.
            EnclaveLostError: the aggregator is down.
        """
        call = pb.SubmitCall(site=site, digest=digest)
        self._ask(self._stub.Submit, call)

    def submit_bundle(self, *, digest: str) -> dict[str, str]:
        """Say that sealed updates of several sites lie in the courier as one object.

        Returns:
            Each site's code of why its update does not count; empty where it does.

        Raises:
            RefusedError: the enclave could not take it at all, of the class that its code names.
            UnreachableError: the aggregator is down.
        """
        reply: pb.SubmitBundleReply = self._ask(self._stub.SubmitBundle, pb.SubmitBundleCall(digest=digest))
        return dict(reply.codes)

    def fold_batch(self, batch: int) -> None:
        """Say that everybody of the open batch (from 0) has sent what it will: the next one is open then.

        Raises:
            RefusedError: the class that the enclave's code names.
            EnclaveLostError: the aggregator is down.
        """
        self._ask(self._stub.FoldBatch, pb.FoldBatchCall(batch=batch))

    def close_round(self, *, absent: Mapping[str, str]) -> ClosedRound:
        """Close the cohort, combine, commit; ``absent`` maps sites to the code of why they sent nothing.

        Raises:
            RefusedError: the class that the enclave's code names; nothing was published.
            EncodingError: the answer is not a commit record.
            EnclaveLostError: the aggregator is down.
        """
        call = pb.CloseRoundCall(absent=dict(absent))
        reply: pb.CloseRoundReply = self._ask(self._stub.CloseRound, call)
        candidate = unverified(CommitRecord.from_bytes(reply.record).candidate, Candidate)
        return ClosedRound(
            record=reply.record,
            version=candidate.version,
            digest=candidate.digest,
            metrics=dict(reply.metrics),
            excluded=dict(reply.excluded),
            seconds=dict(reply.seconds),
            cohort_size=reply.cohort_size,
        )

    def close_run(self) -> bytes:
        """End the run; return the closing entry with its countersignatures, canonical JSON.

        Raises:
            RefusedError: the class that the enclave's code names.
            EnclaveLostError: the aggregator is down.
        """
        reply: pb.CloseRunReply = self._ask(self._stub.CloseRun, pb.CloseRunCall())
        return reply.closing

    def _ask(self, method: Callable[..., Any], call: object) -> Any:
        try:
            with reaching(_SERVICE):
                reply = method(call)
        except UnreachableError as error:
            raise EnclaveLostError(_SERVICE, expected=error.expected, got=error.got) from error
        raise_if_refused(reply, who=_SERVICE)
        return reply
