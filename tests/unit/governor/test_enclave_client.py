"""The governor's client of the enclave: typed answers, refusals by class, and nothing repeated by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.errors import CohortError, DuplicateUpdateError, EncodingError, UnreachableError
from confed.governor.enclave_client import ClosedRound, EnclaveClient, OpenedRound
from confed.journey import Purpose
from confed.keybroker.statements import Candidate, Commit, CommitRecord
from confed.statement import sign
from confed.wire.channel import Endpoint, RunningServer, serve
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

DIGEST = canonical.digest(b"next version")


def record() -> bytes:
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    candidate = Candidate(
        run="run", manifest="", round=1, attempt=0, purpose=Purpose.TRAIN, base="", version=1, digest=DIGEST, state="",
        instance="", cohort=(), tickets=(), excluded={}, metrics="", privacy=None,
    )  # fmt: skip
    commit = Commit(
        broker=b"", candidate="", run="run", round=1, attempt=0, purpose=Purpose.TRAIN, version=1, digest=DIGEST,
        countersignatures=(), time=0,
    )  # fmt: skip
    signed = sign(candidate, key)
    return CommitRecord(candidate=signed, tickets=(), countersignatures=(), commit=sign(commit, key)).to_bytes()


class Enclave(services.AggregatorServicer):
    """Answers as scripted, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.record = record()
        self.refuse = ""

    def _refusal(self, request: object) -> dict[str, object]:
        self.asked.append(request)
        return {"refusal": pb.Refusal(code=self.refuse)} if self.refuse else {}

    def Attest(self, request: pb.AttestCall, context: grpc.ServicerContext) -> pb.AttestReply:  # noqa: N802
        del context
        return pb.AttestReply(instance="me", **self._refusal(request))  # pyright: ignore[reportArgumentType]

    def OpenRound(self, request: pb.OpenRoundCall, context: grpc.ServicerContext) -> pb.OpenRoundReply:  # noqa: N802
        del context
        refusal = self._refusal(request)
        return pb.OpenRoundReply(base=DIGEST, version=7, instance="me", cohort=["a", "b"], **refusal)  # pyright: ignore[reportArgumentType]

    def Submit(self, request: pb.SubmitCall, context: grpc.ServicerContext) -> pb.SubmitReply:  # noqa: N802
        del context
        return pb.SubmitReply(**self._refusal(request))  # pyright: ignore[reportArgumentType]

    def CloseRound(self, request: pb.CloseRoundCall, context: grpc.ServicerContext) -> pb.CloseRoundReply:  # noqa: N802
        del context
        return pb.CloseRoundReply(
            record=self.record,
            metrics={"loss": 0.5},
            excluded={"b": "norm"},
            seconds={"combine": 1.5},
            cohort_size=1,
            **self._refusal(request),  # pyright: ignore[reportArgumentType]
        )

    def CloseRun(self, request: pb.CloseRunCall, context: grpc.ServicerContext) -> pb.CloseRunReply:  # noqa: N802
        del context
        return pb.CloseRunReply(closing=b"{}", **self._refusal(request))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def enclave() -> Enclave:
    return Enclave()


@pytest.fixture
def server(enclave: Enclave, tmp_path: Path) -> Iterator[RunningServer]:
    with serve(
        lambda server: services.add_AggregatorServicer_to_server(enclave, server),
        listen=f"unix:{tmp_path}/enclave",
        tls=None,
    ) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[EnclaveClient]:
    with EnclaveClient(server.endpoint) as opened:
        yield opened


def test_a_round_is_asked_for_and_answered_in_types(enclave: Enclave, client: EnclaveClient) -> None:
    assert client.attest(first_round=3, attempt=1) == "me"
    opened = client.open_round(round_number=3, attempt=1, purpose=Purpose.TRAIN)
    assert opened == OpenedRound(base=DIGEST, version=7, instance="me", cohort=("a", "b"))
    client.submit(site="a", digest=DIGEST)
    assert client.close_round(absent={"b": "no-answer"}) == ClosedRound(
        record=enclave.record,
        version=1,
        digest=DIGEST,
        metrics={"loss": 0.5},
        excluded={"b": "norm"},
        seconds={"combine": 1.5},
        cohort_size=1,
    )
    assert client.close_run() == b"{}"
    assert enclave.asked == [
        pb.AttestCall(first_round=3, attempt=1),
        pb.OpenRoundCall(round=3, attempt=1, purpose="train"),
        pb.SubmitCall(site="a", digest=DIGEST),
        pb.CloseRoundCall(absent={"b": "no-answer"}),
        pb.CloseRunCall(),
    ]


@pytest.mark.parametrize("kind", [CohortError, DuplicateUpdateError])
def test_a_refusal_is_raised_as_its_class(enclave: Enclave, client: EnclaveClient, kind: type[CohortError]) -> None:
    enclave.refuse = kind.code
    for call in (
        lambda: client.attest(first_round=1, attempt=0),
        lambda: client.open_round(round_number=1, attempt=0, purpose="train"),
        lambda: client.submit(site="a", digest=DIGEST),
        lambda: client.close_round(absent={}),
        client.close_run,
    ):
        with pytest.raises(kind):
            call()
    assert len(enclave.asked) == 5


def test_a_record_that_is_none_is_refused(enclave: Enclave, client: EnclaveClient) -> None:
    enclave.record = b"{}"
    with pytest.raises(EncodingError):
        client.close_round(absent={})


def test_an_enclave_that_is_down_is_unreachable_by_name(tmp_path: Path) -> None:
    endpoint = Endpoint(target=f"unix:{tmp_path}/nobody", certificate="")
    with EnclaveClient(endpoint) as client, pytest.raises(UnreachableError) as refused:
        client.attest(first_round=1, attempt=0)
    assert refused.value.field == "aggregator"
