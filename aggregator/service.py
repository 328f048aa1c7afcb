"""The edge of the enclave: gRPC in, codes and permitted values out.

Errors cross as their stable code. What is not an error of confed is a defect of ours: its class name is logged,
never its text, which could hold what the enclave saw, and the caller gets the code ``aggregator``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from confed.errors import AggregatorError, ConfedError
from confed.wire.channel import refusal
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from aggregator.run import Run

_LOG = logging.getLogger("confed.aggregator")

Reply = TypeVar(
    "Reply",
    pb.AttestReply,
    pb.OpenRoundReply,
    pb.SubmitReply,
    pb.SubmitBundleReply,
    pb.FoldBatchReply,
    pb.CloseRoundReply,
    pb.CloseRunReply,
)


class AggregatorService(services.AggregatorServicer):
    """Answers the governor for one run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def register(self, server: grpc.Server) -> None:
        """Serve on ``server``."""
        services.add_AggregatorServicer_to_server(self, server)

    def Attest(self, request: pb.AttestCall, context: Any) -> pb.AttestReply:
        """Attest to every owner's broker."""
        del context

        def answer() -> pb.AttestReply:
            return pb.AttestReply(instance=self._run.attest(first_round=request.first_round, attempt=request.attempt))

        return _answered(answer, pb.AttestReply)

    def OpenRound(self, request: pb.OpenRoundCall, context: Any) -> pb.OpenRoundReply:
        """Open a round and name its cohort."""
        del context

        def answer() -> pb.OpenRoundReply:
            opened = self._run.open_round(round_number=request.round, attempt=request.attempt, purpose=request.purpose)
            return pb.OpenRoundReply(
                base=opened.base, version=opened.version, instance=self._run.instance, cohort=opened.cohort
            )

        return _answered(answer, pb.OpenRoundReply)

    def Submit(self, request: pb.SubmitCall, context: Any) -> pb.SubmitReply:
        """Check a sealed result on arrival."""
        del context

        def answer() -> pb.SubmitReply:
            self._run.submit(site=request.site, digest=request.digest)
            return pb.SubmitReply()

        return _answered(answer, pb.SubmitReply)

    def SubmitBundle(self, request: pb.SubmitBundleCall, context: Any) -> pb.SubmitBundleReply:
        """Check several sealed results that came as one object, each by itself."""
        del context
        return _answered(
            lambda: pb.SubmitBundleReply(codes=self._run.submit_bundle(digest=request.digest)), pb.SubmitBundleReply
        )

    def FoldBatch(self, request: pb.FoldBatchCall, context: Any) -> pb.FoldBatchReply:
        """Add the open batch to the round's sum and open the next."""
        del context

        def answer() -> pb.FoldBatchReply:
            self._run.fold_batch(batch=request.batch)
            return pb.FoldBatchReply()

        return _answered(answer, pb.FoldBatchReply)

    def CloseRound(self, request: pb.CloseRoundCall, context: Any) -> pb.CloseRoundReply:
        """Combine, commit and publish; a refusal comes with why each drawn site is not in the round."""
        del context

        def answer() -> pb.CloseRoundReply:
            closed = self._run.close_round(absent=dict(request.absent))
            return pb.CloseRoundReply(
                record=closed.record,
                metrics=closed.metrics,
                excluded=closed.excluded,
                seconds=closed.seconds,
                cohort_size=closed.cohort_size,
            )

        reply = _answered(answer, pb.CloseRoundReply)
        if reply.HasField("refusal"):
            reply.excluded.update(self._run.excluded)
        return reply

    def CloseRun(self, request: pb.CloseRunCall, context: Any) -> pb.CloseRunReply:
        """End the run."""
        del request, context
        return _answered(lambda: pb.CloseRunReply(closing=self._run.close_run()), pb.CloseRunReply)


def _answered(answer: Callable[[], Reply], kind: Callable[..., Reply]) -> Reply:
    try:
        return answer()
    except ConfedError as error:
        _LOG.warning("refused: %s (%s)", error.code, type(error.__cause__).__name__ if error.__cause__ else "-")
        return kind(refusal=refusal(error))
    except Exception as error:  # noqa: BLE001 - the edge: a defect must not carry the enclave's data out
        _LOG.error("failed: %s", type(error).__name__)
        return kind(refusal=refusal(AggregatorError("aggregator")))
