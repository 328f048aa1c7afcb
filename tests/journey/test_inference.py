"""Confidential inference: the honest road over real HTTP and a real broker, and every wrong turn of it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from inference_road import Deployment, Linear, Served, with_serving

from confed import canonical
from confed.attestation.tee.simulated import SimulatedPlatform
from confed.errors import (
    AnswerError,
    BindingMismatchError,
    BusyError,
    ConfedError,
    ConfigError,
    ConfigurationError,
    EvidenceFormatError,
    FloorError,
    LineageError,
    ManifestMismatchError,
    MeasurementError,
    NotApprovedError,
    PurposeError,
    RoundError,
    SignatureError,
    SimulatedInProductionError,
    SizeError,
    StaleEvidenceError,
    TamperedError,
    TruncatedError,
    TrustAnchorError,
    UnknownKeyError,
    UnreachableError,
)
from confed.inference.client import ConfidentialClient
from confed.inference.edge import EPOCH_PATH, EVIDENCE_PATH, EXCHANGE_PATH
from confed.inference.epochs import EPOCH_MS
from confed.inference.exchange import Sealing
from confed.inference.messages import Request, RequestHead
from confed.inference.receipts import verify_receipt
from confed.inference.replica import Replica
from confed.inference.requester import Proof, RequesterPolicy, verify_replica
from confed.journey import Purpose, Role, Use
from confed.manifest import PRODUCTION, Manifest
from confed.scenario import Scenario
from confed.sealing.container import Container
from confed.sealing.derivation import version_key
from confed.serving import Origin

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture
def client(deployment: Deployment, served: Served) -> Iterator[ConfidentialClient]:
    with deployment.client(served.url) as client:
        yield client


@pytest.fixture
def make(quick_disk: Path, request: pytest.FixtureRequest) -> Callable[..., Deployment]:
    def made(**terms: Any) -> Deployment:
        folder = quick_disk / f"inference-{abs(hash(request.node.name)):x}"[:40]
        folder.mkdir()
        deployment = Deployment(folder=folder, **terms)
        request.addfinalizer(deployment.stack.close)
        return deployment

    return made


def test_an_answer_is_that_of_the_plain_model_with_a_receipt(
    deployment: Deployment, client: ConfidentialClient
) -> None:
    plain = Linear(deployment.arrays, {}).predict({"x": X})["y"]
    assert client.predict({"x": X})["y"].tobytes() == plain.tobytes()
    body = b'{"id": "7", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2, 3, 4]]}]}'
    reply = client.request("POST", "/v2/models/linear/infer", body=body)
    assert b'"id":"7"' in reply.read()
    assert reply.receipt is not None
    assert reply.receipt.model == deployment.manifest.model.start.digest
    assert reply.proof is not None
    proof = Proof.from_json(reply.proof.to_json())
    assert proof.verify(policy=deployment.policy)[0] == reply.receipt


def test_one_replica_gets_one_key_and_the_ledger_says_so(deployment: Deployment, served: Served) -> None:
    (released,) = [body for body in deployment.events("released") if body["instance"] == served.replica.instance]
    assert (released["role"], released["purpose"], released["identity"]) == (Role.INFERENCE, Purpose.INFER, "")
    assert [(key["use"], key["container"]) for key in released["keys"]] == [(Use.START, "model-1")]


def test_a_megabyte_comes_back_whole(client: ConfidentialClient, deployment: Deployment) -> None:
    large = np.random.default_rng(2).normal(size=(65536, 4)).astype(np.float32)
    plain = Linear(deployment.arrays, {}).predict({"x": large})["y"]
    assert client.predict({"x": large})["y"].tobytes() == plain.tobytes()


def test_metadata_is_answered_sealed_too(client: ConfidentialClient, served: Served) -> None:
    for path in ("/v2", "/v2/health/ready", "/v2/models/linear", "/v2/models/linear/ready"):
        assert client.request("GET", path).head.status == 200
        assert httpx.get(served.url + path).status_code == 404


# Bad input, in the interface's own form.

INPUTS: dict[str, tuple[str, bytes, int]] = {
    "an unknown model": ("/v2/models/other/infer", b"{}", 404),
    "no JSON": ("/v2/models/linear/infer", b"x", 400),
    "no object": ("/v2/models/linear/infer", b"[]", 400),
    "nested beyond reason": ("/v2/models/linear/infer", b"[" * 100_000, 400),
    "no inputs": ("/v2/models/linear/infer", b"{}", 400),
    "an unknown input": ("/v2/models/linear/infer", b'{"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}', 400),
    "a wrong type": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": [1, 2, 3, 4]}]}', 400),
    "a wrong shape": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 5], "datatype": "FP32", "data": [1, 2, 3, 4, 5]}]}', 400),
    "a negative shape": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [-1, 4], "datatype": "FP32", "data": []}]}', 400),
    "too few values": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2]}]}', 400),
    "ragged values": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [[1, 2], [3]]}]}', 400),
    "text as values": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": ["a", "b", "c", "d"]}]}', 400),
    "bytes that are not there": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]}', 400),
    "an input twice": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [0, 4], "datatype": "FP32", "data": []}, {"name": "x", "shape": [0, 4], "datatype": "FP32", "data": []}]}', 400),
    "an unknown output": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [0, 4], "datatype": "FP32", "data": []}], "outputs": [{"name": "z"}]}', 400),
    "an engine that fails": ("/v2/models/linear/infer", b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [NaN, 2, 3, 4]}]}', 500),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status"), INPUTS.values(), ids=INPUTS)
def test_bad_input_is_told_to_the_requester_alone(
    client: ConfidentialClient, capfd: pytest.CaptureFixture[str], path: str, body: bytes, status: int
) -> None:
    reply = client.request("POST", path, body=body)
    assert reply.head.status == status
    assert b'"error"' in reply.read()
    assert "canary" not in "".join(capfd.readouterr())


def test_a_refusal_of_the_model_is_an_error_to_a_program(client: ConfidentialClient) -> None:
    with pytest.raises(AnswerError):
        client.predict({"x": X.astype(np.float64)})


def test_an_oversized_request_is_refused(client: ConfidentialClient) -> None:
    with pytest.raises(SizeError):
        client.request("POST", "/v2/models/linear/infer", body=bytes(2 * 1024 * 1024))
    assert client.predict({"x": X})


# Whom a requester talks to.


def changed(policy: RequesterPolicy, **changes: Any) -> RequesterPolicy:
    return dataclasses.replace(policy, **changes)


def other_measurement(policy: RequesterPolicy) -> RequesterPolicy:
    return changed(policy, tee=dataclasses.replace(policy.tee, measurements=("dd" * 32,)))


def other_anchor(policy: RequesterPolicy) -> RequesterPolicy:
    anchor = SimulatedPlatform.create(1_800_000_000_000).anchor
    return changed(policy, trust=dataclasses.replace(policy.trust, anchors={"simulated/1": (anchor,)}))


POLICIES: dict[str, tuple[Callable[[RequesterPolicy], RequesterPolicy], type[ConfedError]]] = {
    "another manifest": (lambda policy: changed(policy, manifests=("dd" * 32,)), ManifestMismatchError),
    "production": (lambda policy: changed(policy, environment=PRODUCTION), ManifestMismatchError),
    "other code": (other_measurement, MeasurementError),
    "another root": (other_anchor, TrustAnchorError),
    "no root": (lambda policy: changed(policy, trust=dataclasses.replace(policy.trust, anchors={})), TrustAnchorError),
}


@pytest.mark.parametrize(("change", "error"), POLICIES.values(), ids=POLICIES)
def test_a_replica_that_the_policy_does_not_accept_gets_nothing(
    deployment: Deployment,
    served: Served,
    change: Callable[[RequesterPolicy], RequesterPolicy],
    error: type[ConfedError],
) -> None:
    runs = served.engine.runs
    with deployment.client(served.url, policy=change(deployment.policy)) as client, pytest.raises(error):
        client.predict({"x": X})
    assert served.engine.runs == runs


def test_a_simulated_tee_is_refused_in_production_by_requester_and_broker(make: Callable[..., Deployment]) -> None:
    deployment = make(environment=PRODUCTION)
    with pytest.raises(SimulatedInProductionError):
        deployment.replica().open_model(Container.parse(deployment.sealed))
    # A broker that released it all the same would not help: the requester appraises by itself.
    replica = deployment.replica()
    replica._evidence = "00" * 32
    replica._clock.advance(1_800_000_000_000)
    attestation = _attestation(replica)
    with pytest.raises(SimulatedInProductionError):
        verify_replica(attestation, policy=deployment.policy, now_ms=1_800_000_000_000)


def _attestation(replica: Replica) -> Any:
    from confed.inference.requester import Attestation  # noqa: PLC0415

    return Attestation(nonce=bytes(32), envelope=replica.attest(bytes(32)), manifest=replica.manifest.encoded)


def test_evidence_for_a_requester_is_for_its_nonce_alone(deployment: Deployment, served: Served) -> None:
    attestation = _attestation(served.replica)
    now = served.replica._clock.now()
    verify_replica(attestation, policy=deployment.policy, now_ms=now)
    with pytest.raises(BindingMismatchError):
        verify_replica(dataclasses.replace(attestation, nonce=bytes([1]) * 32), policy=deployment.policy, now_ms=now)


def test_evidence_for_the_broker_is_none_for_a_requester(deployment: Deployment, served: Served) -> None:
    envelope = served.replica._attested(bytes(32), audience=canonical.digest(deployment.home.party.broker))
    attestation = dataclasses.replace(_attestation(served.replica), envelope=envelope)
    with pytest.raises(BindingMismatchError):
        verify_replica(attestation, policy=deployment.policy, now_ms=served.replica._clock.now())


def test_a_policy_names_a_manifest(deployment: Deployment) -> None:
    with pytest.raises(ConfigError):
        changed(deployment.policy, manifests=())
    assert RequesterPolicy.decode(deployment.policy.encode()) == deployment.policy


# What a broker releases.

RELEASES: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "a key of federations": ({"floors": {"scenarios": (Scenario.FEDERATED,)}}, FloorError),
    "a key that is not for inference": ({"floors": {"purposes": (Purpose.TRAIN,)}}, PurposeError),
    "a key for other code": ({"floors": {"measurements": ("dd" * 32,)}}, MeasurementError),
    "a manifest that nobody approved": ({"approves": False}, NotApprovedError),
}


@pytest.mark.parametrize(("terms", "error"), RELEASES.values(), ids=RELEASES)
def test_a_key_goes_nowhere_below_its_floors(
    make: Callable[..., Deployment], terms: dict[str, Any], error: type[ConfedError]
) -> None:
    deployment = make(**terms)
    with pytest.raises(error):
        deployment.replica().open_model(Container.parse(deployment.sealed))
    assert not deployment.events("released")


LAUNCHES: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "other code": ({"measurement": "dd" * 32}, MeasurementError),
    "another manifest": ({"configuration": "dd" * 32}, ConfigurationError),
}


@pytest.mark.parametrize(("launch", "error"), LAUNCHES.values(), ids=LAUNCHES)
def test_a_tee_that_the_manifest_does_not_accept_gets_no_key(
    deployment: Deployment, launch: dict[str, Any], error: type[ConfedError]
) -> None:
    with pytest.raises(error):
        deployment.replica(**launch).open_model(Container.parse(deployment.sealed))


REQUESTS: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "a client's role": ({"role": Role.CLIENT}, PurposeError),
    "an aggregator's role": ({"role": Role.AGGREGATOR}, PurposeError),
    "to train": ({"purpose": Purpose.TRAIN}, PurposeError),
    "to evaluate": ({"purpose": Purpose.EVALUATE}, PurposeError),
    "an identity": ({"identity": bytes(32)}, ConfedError),
    "another round": ({"round": 2}, RoundError),
}
KEYS: dict[str, tuple[dict[str, Any], type[ConfedError]]] = {
    "a version's key": ({"use": Use.VERSION, "version": 1, "container": ""}, PurposeError),
    "the strategy's state": ({"use": Use.STATE, "version": 1, "container": ""}, PurposeError),
    "a dataset's key": ({"use": Use.DATA}, PurposeError),
    "another key": ({"key_id": "00" * 16}, UnknownKeyError),
    "another container's key": ({"container": "model-2"}, UnknownKeyError),
}


@pytest.mark.parametrize(("changes", "error"), REQUESTS.values(), ids=REQUESTS)
def test_a_replica_asks_for_inference_and_nothing_else(
    deployment: Deployment, changes: dict[str, Any], error: type[ConfedError]
) -> None:
    replica = deployment.replica()
    asked = replica._request
    replica._request = lambda nonce: dataclasses.replace(asked(nonce), **changes)  # type: ignore[method-assign]
    with pytest.raises(error):
        replica.open_model(Container.parse(deployment.sealed))


@pytest.mark.parametrize(("changes", "error"), KEYS.values(), ids=KEYS)
def test_a_replica_gets_no_other_key(deployment: Deployment, changes: dict[str, Any], error: type[ConfedError]) -> None:
    replica = deployment.replica()
    asked = replica._request

    def other(nonce: bytes) -> Any:
        request = asked(nonce)
        return dataclasses.replace(request, keys=(dataclasses.replace(request.keys[0], **changes),))

    replica._request = other  # type: ignore[method-assign]
    with pytest.raises(error):
        replica.open_model(Container.parse(deployment.sealed))


def test_a_swapped_model_is_refused(deployment: Deployment) -> None:
    told = deployment.told
    other = {name: array + 1 for name, array in deployment.arrays.items()}
    sealed = deployment.seal(other, container_id="model-1", data_key=None)
    deployment.told = told
    with pytest.raises(ManifestMismatchError):
        deployment.replica().open_model(Container.parse(sealed))


# A version that a run made.


RUN = Origin(run="training-1", manifest="ee" * 32, version=3, attempt=1)


@pytest.fixture(scope="module")
def trained(quick_disk: Path) -> Iterator[Deployment]:
    """A model that the run training-1 made as version 3, as its owner's broker committed it."""
    folder = quick_disk / "trained"
    folder.mkdir()
    with Deployment(folder=folder, approves=False) as deployment:
        key = version_key(deployment.key, run=RUN.run, version=RUN.version, attempt=RUN.attempt)
        deployment.sealed = deployment.seal(deployment.arrays, container_id="model-1", data_key=key)
        with deployment.home.store.transaction() as tx:
            tx.execute("INSERT INTO approvals VALUES (?, ?, ?, ?, ?, ?)", (RUN.manifest, RUN.run, b"", b"", b"", b""))
            for version, digest, attempt in ((2, "22" * 32, 0), (3, deployment.told.digest, 1), (4, "44" * 32, 0)):
                tx.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?)", (RUN.manifest, version, digest, attempt, ""))
        yield deployment


def serve_origin(deployment: Deployment, origin: Origin, *, run: str) -> None:
    """Approve a manifest that serves this version."""
    start = dataclasses.replace(
        deployment.manifest.model.start, digest=deployment.told.digest, size_bytes=deployment.told.size_bytes
    )
    model = dataclasses.replace(deployment.manifest.model, start=start)
    deployment.manifest = with_serving(dataclasses.replace(deployment.manifest, model=model, run=run), origin=origin)
    deployment.home.approve(deployment.manifest)


def test_a_version_of_another_run_is_served_under_the_same_owners_key(trained: Deployment) -> None:
    serve_origin(trained, RUN, run="serving-version")
    arrays = trained.replica().open_model(Container.parse(trained.sealed))
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in trained.arrays.items()
    }
    for changes, error in (
        ({"version": 2}, PurposeError),
        ({"attempt": 0}, RoundError),
        ({"use": Use.START, "version": 0, "attempt": 0, "container": "model-1"}, PurposeError),
    ):
        test_a_replica_gets_no_other_key(trained, changes, error)


ORIGINS: dict[str, dict[str, Any]] = {
    "a run that its owner never approved": {"run": "training-2"},
    "another manifest of that run": {"manifest": "dd" * 32},
    "a version that was never committed": {"version": 5},
    "an attempt that was not committed": {"attempt": 0},
    "another version, in the name of this model": {"version": 2, "attempt": 0},
}


@pytest.mark.parametrize("changes", ORIGINS.values(), ids=ORIGINS)
def test_a_version_that_the_owners_broker_never_committed_is_not_served(
    trained: Deployment, request: pytest.FixtureRequest, changes: dict[str, Any]
) -> None:
    serve_origin(trained, dataclasses.replace(RUN, **changes), run=f"never-{abs(hash(request.node.name)):x}")
    with pytest.raises(LineageError):
        trained.replica().open_model(Container.parse(trained.sealed))


# Keys and time.


def test_a_key_that_is_gone_is_verified_anew_and_the_request_sent_once_more(
    deployment: Deployment, client: ConfidentialClient, served: Served
) -> None:
    client.predict({"x": X})
    runs = served.engine.runs
    served.replica.epochs.drop_all()  # as if an hour and ten minutes had passed there
    client.predict({"x": X})
    assert served.engine.runs == runs + 1


def test_a_key_that_nobody_remembers_is_refused_with_422_and_no_signature(
    deployment: Deployment, served: Served
) -> None:
    epoch = served.replica.epochs.current()
    pieces = list(_sealed(deployment, epoch.name, epoch.key))
    served.replica.epochs._held.clear()
    refused = httpx.post(served.url + EXCHANGE_PATH, content=b"".join(pieces))
    assert (refused.status_code, refused.json()) == (422, {"code": "stale-epoch"})


def _sealed(deployment: Deployment, name: str, key: Any) -> Iterator[bytes]:
    assert deployment.manifest.serving is not None
    sealing = Sealing(
        manifest=deployment.manifest.digest, replicas=[(name, key)], padding=deployment.manifest.serving.padding
    )
    return sealing.request(Request(head=RequestHead(method="GET", path="/v2", headers=()), body=b""))


def test_a_replayed_request_is_refused_with_409_and_does_not_run(deployment: Deployment, served: Served) -> None:
    epoch = served.replica.epochs.current()
    content = b"".join(_sealed(deployment, epoch.name, epoch.key))
    assert httpx.post(served.url + EXCHANGE_PATH, content=content).status_code == 200
    refused = httpx.post(served.url + EXCHANGE_PATH, content=content)
    assert (refused.status_code, refused.json()) == (409, {"code": "replayed"})


def test_evidence_that_is_too_old_for_the_requester_is_refused(deployment: Deployment, served: Served) -> None:
    now = served.replica._clock.now()
    with deployment.client(served.url, now=lambda: now) as client:
        client.predict({"x": X})
        now += EPOCH_MS  # its clock is ahead of the replica's by more than may be: evidence is stale
        with pytest.raises(StaleEvidenceError):
            client.predict({"x": X})


EDGES: dict[str, tuple[str, str, bytes, int]] = {
    "a nonce that is too short": ("POST", EVIDENCE_PATH, bytes(31), 400),
    "a nonce that is too long": ("POST", EVIDENCE_PATH, bytes(33), 413),
    "a request in clear": ("POST", EXCHANGE_PATH, b'{"model": "linear"}', 400),
    "nothing": ("POST", EXCHANGE_PATH, b"", 400),
    "another path": ("POST", "/v2/models/linear/infer", b"{}", 404),
    "another method": ("GET", EXCHANGE_PATH, b"", 404),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), EDGES.values(), ids=EDGES)
def test_the_edge_takes_nothing_but_sealed_requests(
    served: Served, method: str, path: str, body: bytes, status: int
) -> None:
    found = httpx.request(method, served.url + path, content=body)
    assert (found.status_code, list(found.json())) == (status, ["code"])


def test_the_epoch_alone_is_signed_by_the_instance(deployment: Deployment, served: Served) -> None:
    assert set(httpx.get(served.url + EPOCH_PATH).json()) == {"epoch"}


# The network between.


class Between:
    """A hostile network: an HTTP transport that changes what comes back."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self.change = change
        self.inner = httpx.HTTPTransport()

    def transport(self) -> httpx.MockTransport:
        def handle(request: httpx.Request) -> httpx.Response:
            response = self.inner.handle_request(
                httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            )
            data = response.read()
            if request.url.path == EXCHANGE_PATH:
                data = self.change(data)
            return httpx.Response(response.status_code, stream=httpx.ByteStream(data))

        return httpx.MockTransport(handle)


ON_THE_WAY: dict[str, tuple[Callable[[bytes], bytes], type[ConfedError]]] = {
    "a flipped bit": (lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:], TamperedError),
    "no last frame": (lambda data: data[:-400], TruncatedError),
    "half of it": (lambda data: data[: len(data) // 2], TruncatedError),
    "an answer in clear": (lambda _data: b'{"outputs": []}' * 20, ConfedError),
    "nothing": (lambda _data: b"", ConfedError),
}


@pytest.mark.parametrize(("change", "error"), ON_THE_WAY.values(), ids=ON_THE_WAY)
def test_what_the_network_changes_is_an_error(
    deployment: Deployment, served: Served, change: Callable[[bytes], bytes], error: type[ConfedError]
) -> None:
    between = Between(change)
    with deployment.client(served.url) as client:
        client._http.close()
        client._wire = between.transport()
        client._http = httpx.Client(transport=client._wire)
        with pytest.raises(error):
            client.predict({"x": X})
    between.inner.close()


def test_outside_a_sealed_request_stands_its_length_and_nothing_of_its_client(
    deployment: Deployment, served: Served
) -> None:
    between, seen = Between(lambda data: data), list[set[str]]()
    network = between.transport()

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == EXCHANGE_PATH:
            assert int(request.headers["content-length"]) == len(request.read())
            seen.append(set(request.headers))
        return network.handle_request(request)

    with deployment.client(served.url) as client:
        client._http.close()
        client._wire = httpx.MockTransport(handle)
        client._http = httpx.Client(transport=client._wire)
        client.predict({"x": X})
        client.request("POST", "/v2", body=bytes(200_000)).close()
    between.inner.close()
    assert seen == [{"host", "content-type", "content-length"}] * 2


def test_a_receipt_is_for_this_request_and_answer_alone(deployment: Deployment, client: ConfidentialClient) -> None:
    replies = [client.request("GET", path) for path in ("/v2", "/v2/models/linear")]
    for reply in replies:
        reply.read()
    one, other = (reply.proof for reply in replies)
    assert one is not None
    assert other is not None
    receipt, replica = one.verify(policy=deployment.policy)
    for changes, error in (
        ({"expected": {"answer": "00" * 32}}, LineageError),
        ({"signing_public": bytes(32)}, SignatureError),
    ):
        with pytest.raises(error):
            verify_receipt(one.receipt, **{"signing_public": replica.signing_public, "expected": {}, **changes})  # type: ignore[arg-type]
    swapped = dataclasses.replace(one, receipt=other.receipt)
    assert swapped.verify(policy=deployment.policy)[0] != receipt
    with pytest.raises(MeasurementError):
        one.verify(policy=other_measurement(deployment.policy))
    with pytest.raises(EvidenceFormatError):
        Proof.from_json({**one.to_json(), "attestation": {**one.to_json()["attestation"], "envelope": "x"}})


# Load, and those who go away.


def test_one_more_than_may_be_at_once_is_refused_and_not_run(deployment: Deployment) -> None:
    with deployment.served(most_at_once=1) as served, deployment.client(served.url) as client:
        client.verify()
        served.engine.held = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.predict, {"x": X})
            while served.engine.runs == 0:
                pass
            with pytest.raises(BusyError):
                client.predict({"x": X})
            served.engine.held.set()
            assert waiting.result()
        assert served.engine.runs == 1
        served.engine.held = None
        assert client.predict({"x": X})


def test_a_replica_that_is_gone_is_passed_over(deployment: Deployment, served: Served) -> None:
    with deployment.client("http://127.0.0.1:9", served.url) as client:
        assert client.predict({"x": X})
    with deployment.client("http://127.0.0.1:9") as client, pytest.raises(UnreachableError):
        client.predict({"x": X})


def let_the_hour_end(client: ConfidentialClient) -> None:
    """As if the epochs that the client knows had begun an hour earlier, and its evidence were still good."""
    for place in client._places:
        if place.epoch is not None:
            name, key = place.epoch
            place.epoch = name, dataclasses.replace(key, not_before=key.not_before - EPOCH_MS)


def test_a_replica_that_is_gone_when_its_hour_is_over_is_passed_over(deployment: Deployment, served: Served) -> None:
    with deployment.served() as first, deployment.client(first.url, served.url) as client:
        client.predict({"x": X})
        assert first.engine.runs == 1
        client._places[0].url = "http://127.0.0.1:9"
        let_the_hour_end(client)
        runs = served.engine.runs
        assert client.predict({"x": X})
        assert served.engine.runs == runs + 1


def test_an_instance_that_took_anothers_place_is_verified_when_the_hour_is_over(
    deployment: Deployment, served: Served
) -> None:
    with deployment.served() as first, deployment.client(first.url) as client:
        before = client.verify()
        client._places[0].url = served.url
        let_the_hour_end(client)
        assert client.predict({"x": X})
        assert before.instance != client._places[0].replica.instance == served.replica.instance  # type: ignore[union-attr]


def test_an_instance_that_the_policy_does_not_accept_takes_nobodys_place(
    deployment: Deployment, served: Served, make: Callable[..., Deployment]
) -> None:
    with make().served() as other, deployment.client(served.url) as client:
        client.verify()
        client._places[0].url = other.url
        let_the_hour_end(client)
        with pytest.raises(ManifestMismatchError):
            client.predict({"x": X})
        assert other.engine.runs == 0


# The manifest.

MANIFESTS: dict[str, dict[str, Any]] = {
    "no serving terms": {"serving": None},
    "another scenario": {"scenario": Scenario.TRAINING},
    "two rounds": {"rounds": 2},
    "a seed": {"seed": 1},
    "two attempts": {"max_attempts": 2},
    "training parameters": {"train_config": {"lr": 0.1}},
}


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_serves_says_nothing_of_training(deployment: Deployment, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(deployment.manifest, **changes)
    assert Manifest.decode(deployment.manifest.encoded) == deployment.manifest
