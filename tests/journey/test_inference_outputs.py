"""Where answers go is the owner's policy: to recipients, or fields of them in clear; and every way around it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_road import Deployment, Linear, Served, with_serving

from confed import canonical
from confed.errors import (
    AnswerError,
    ConfedError,
    ConfigError,
    DeliveryError,
    EncodingError,
    LineageError,
    ManifestMismatchError,
    MeasurementError,
    RecipientError,
    SealError,
    SignatureError,
    StaleEvidenceError,
)
from confed.inference.apis import Door
from confed.inference.clear import verify_line
from confed.inference.client import ConfidentialClient
from confed.inference.edge import Edge
from confed.inference.messages import AnswerHead, Request, RequestHead
from confed.inference.outlet import Leaving
from confed.inference.outputs import Directed
from confed.inference.replica import NONCE_BYTES
from confed.inference.requester import Attestation, RequesterPolicy
from confed.inference.sealed_answers import MAGIC, AnswerMaker, open_answer, seal_answer
from confed.manifest import Manifest
from confed.sealing.identities import HpkeIdentity
from confed.serving import AnswerRecipient, ClearTerms, OutputMode, OutputTerms

X = np.arange(8, dtype=np.float32).reshape(2, 4)
PATH = "/v2/models/linear/infer"
BODY = json.dumps({"id": "7", "inputs": [{"name": "x", "shape": [2, 4], "datatype": "FP32", "data": X.tolist()}]}).encode()  # fmt: skip
CLEAR = ClearTerms(fields=("outputs.y.shape", "id"), sink="stdout")
WARD, CLINIC, STRANGER = (HpkeIdentity.generate() for _ in range(3))


@dataclass
class Kept:
    """An outlet that keeps what leaves; it may fail."""

    lines: list[bytes] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    fails: bool = False

    def send(self, kind: Leaving, name: str, content: bytes) -> None:
        if self.fails:
            raise DeliveryError("outlet", expected="a disk", got="none")
        if kind is Leaving.CLEAR:
            self.lines.append(content)
        else:
            self.answers[name] = content


@dataclass
class Road:
    deployment: Deployment
    served: Served
    client: ConfidentialClient
    kept: Kept

    def ask(self, **headers: str) -> Any:
        return self.client.request("POST", PATH, body=BODY, headers=tuple(headers.items()))


TO_RECIPIENTS = OutputTerms(
    mode=OutputMode.RECIPIENTS,
    recipients=(AnswerRecipient(name="ward", public=WARD.public), AnswerRecipient(name="clinic", public=CLINIC.public)),
    clear=None,
)
BESIDE = OutputTerms(mode=OutputMode.REQUESTER, recipients=None, clear=CLEAR)
ALONE = OutputTerms(mode=OutputMode.CLEAR, recipients=None, clear=CLEAR)


def changes(output: OutputTerms) -> Callable[[Manifest], Manifest]:
    return lambda manifest: with_serving(manifest, output=output)


def road(folder: Path, output: OutputTerms) -> Iterator[Road]:
    folder.mkdir()
    kept = Kept()
    with (
        Deployment(folder=folder, change=changes(output)) as deployment,
        deployment.served(outlet=kept) as served,
        deployment.client(served.url) as client,
    ):
        yield Road(deployment, served, client, kept)


@pytest.fixture(scope="module")
def sealed(quick_disk: Path) -> Iterator[Road]:
    yield from road(quick_disk / "to-recipients", TO_RECIPIENTS)


@pytest.fixture(scope="module")
def beside(quick_disk: Path) -> Iterator[Road]:
    yield from road(quick_disk / "beside", BESIDE)


@pytest.fixture(scope="module")
def alone(quick_disk: Path) -> Iterator[Road]:
    yield from road(quick_disk / "alone", ALONE)


def plain(road: Road) -> np.ndarray:
    return Linear(road.deployment.arrays, {}).predict({"x": X})["y"]


# Sealed to recipients.


def test_each_recipient_opens_the_answer_and_who_asked_gets_an_acknowledgement(sealed: Road) -> None:
    reply = sealed.ask()
    told = json.loads(reply.read())
    (digest,) = set(sealed.kept.answers) - {""}
    assert (reply.head.status, told) == (
        202,
        {"output": "recipients", "delivered": digest, "recipients": ["ward", "clinic"]},
    )
    assert reply.receipt is not None
    assert (reply.receipt.delivered, reply.receipt.output) == (digest, TO_RECIPIENTS.digest)
    for identity in (WARD, CLINIC):
        found = open_answer(sealed.kept.answers[digest], identity=identity, policy=sealed.deployment.policy)
        outputs = {entry["name"]: entry["data"] for entry in json.loads(found.body)["outputs"]}
        assert outputs["y"] == plain(sealed).reshape(-1).tolist()
        assert found.replica.instance == sealed.served.replica.instance
    assert not sealed.kept.lines


def test_windows_of_live_data_go_where_answers_go(sealed: Road, beside: Road) -> None:
    before = len(sealed.kept.answers)
    with sealed.client.stream() as windows:
        told = [json.loads(windows.ask("POST", PATH, body=BODY).body) for _ in range(2)]
    assert [entry["output"] for entry in told] == ["recipients"] * 2
    assert {entry["delivered"] for entry in told} <= set(sealed.kept.answers)
    assert len(sealed.kept.answers) == before + 2
    lines = len(beside.kept.lines)
    with beside.client.stream() as windows:
        windows.ask("POST", PATH, body=BODY)
        assert windows.ask("POST", f"{PATH}?output=recipients", body=BODY).head.status == 403
    assert len(beside.kept.lines) == lines + 1


def test_what_is_no_answer_of_the_model_goes_to_who_asked(sealed: Road) -> None:
    before = len(sealed.kept.answers)
    assert json.loads(sealed.client.request("GET", "/v2/models/linear").read())["name"] == "linear"
    assert sealed.client.request("POST", PATH, body=b"x").head.status == 400
    assert len(sealed.kept.answers) == before


def test_a_program_that_expects_an_answer_is_told_that_it_went_elsewhere(sealed: Road) -> None:
    with pytest.raises(AnswerError):
        sealed.client.predict({"x": X})


def an_answer(road: Road) -> bytes:
    road.ask().read()
    return list(road.kept.answers.values())[-1]


def other_code(policy: RequesterPolicy) -> RequesterPolicy:
    return dataclasses.replace(policy, tee=dataclasses.replace(policy.tee, measurements=("dd" * 32,)))


OPENINGS: dict[str, tuple[Callable[[bytes], bytes], HpkeIdentity, Callable[[RequesterPolicy], RequesterPolicy], type[ConfedError]]] = {
    "by who is no recipient": (lambda data: data, STRANGER, lambda policy: policy, RecipientError),
    "with a bit changed": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), WARD, lambda policy: policy, SealError),
    "cut off": (lambda data: data[:-1], WARD, lambda policy: policy, SealError),
    "without its evidence": (lambda data: data[:40], WARD, lambda policy: policy, EncodingError),
    "of something else": (lambda data: b"x" + data, WARD, lambda policy: policy, EncodingError),
    "of code that is not accepted": (lambda data: data, WARD, other_code, MeasurementError),
    "of a manifest that is not accepted": (
        lambda data: data, WARD, lambda policy: dataclasses.replace(policy, manifests=("dd" * 32,)), ManifestMismatchError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "identity", "accepting", "error"), OPENINGS.values(), ids=OPENINGS)
def test_a_sealed_answer_is_not_opened(
    sealed: Road,
    change: Callable[[bytes], bytes],
    identity: HpkeIdentity,
    accepting: Callable[[RequesterPolicy], RequesterPolicy],
    error: type[ConfedError],
) -> None:
    data = an_answer(sealed)
    with pytest.raises(error):
        open_answer(change(data), identity=identity, policy=accepting(sealed.deployment.policy))


def test_a_sealed_answer_of_another_maker_is_refused(quick_disk: Path, sealed: Road) -> None:
    ours = an_answer(sealed)
    folder = quick_disk / "other-maker"
    for theirs in (an_answer(other) for other in road(folder, TO_RECIPIENTS)):
        at = len(MAGIC) + 4 + int.from_bytes(ours[len(MAGIC) : len(MAGIC) + 4], "big")
        there = len(MAGIC) + 4 + int.from_bytes(theirs[len(MAGIC) : len(MAGIC) + 4], "big")
        with pytest.raises(SignatureError):
            open_answer(ours[:at] + theirs[there:], identity=WARD, policy=sealed.deployment.policy)


ELSEWHERE: dict[str, dict[str, str]] = {
    "of another manifest": {"manifest": "dd" * 32},
    "of another model": {"model": "dd" * 32},
    "of another instance": {"instance": "dd" * 32},
}


@pytest.mark.parametrize("changed", [{}, *ELSEWHERE.values()], ids=["its own", *ELSEWHERE])
def test_what_an_attested_replica_sealed_for_something_else_is_no_answer(sealed: Road, changed: dict[str, str]) -> None:
    replica, head = sealed.served.replica, AnswerHead(status=200, headers=())
    nonce = os.urandom(NONCE_BYTES)
    shown = Attestation(nonce=nonce, envelope=replica.attest(nonce), manifest=replica.manifest.encoded)
    told = {"manifest": replica.digest, "model": replica.manifest.model.start.digest, "instance": replica.instance}
    maker = AnswerMaker(**{**told, **changed}, time=replica.now(), signing_key=replica.signing_key)
    recipients, padding = TO_RECIPIENTS.recipients or (), replica.serving.padding
    _, data = seal_answer(head, b"x", recipients=recipients, maker=maker, attestation=shown, padding=padding)
    with pytest.raises(ManifestMismatchError) if changed else nullcontext():
        assert open_answer(data, identity=WARD, policy=sealed.deployment.policy).body == b"x"


def test_an_answer_later_than_its_evidence_serves_is_refused(sealed: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    an_answer(sealed)
    replica = sealed.served.replica
    late = replica.now() + sealed.deployment.policy.tee.reattest_s * 1000 + 1
    with monkeypatch.context() as context:
        context.setattr(type(replica), "now", lambda _: late)
        context.setattr("confed.inference.outputs.Directed._attestation", lambda self, _now: self._shown[1])
        data = an_answer(sealed)
    with pytest.raises(StaleEvidenceError):
        open_answer(data, identity=WARD, policy=sealed.deployment.policy)


# Fields in clear.


def test_listed_fields_leave_in_clear_and_nothing_else(beside: Road) -> None:
    before = len(beside.kept.lines)
    reply = beside.ask()
    assert json.loads(reply.read())["outputs"][0]["data"] == plain(beside).reshape(-1).tolist()
    (line,) = beside.kept.lines[before:]
    record = verify_line(line, signing_public=beside.served.replica._signing_public)
    assert record.fields == {"id": "7", "outputs.y.shape": [2, 3]}
    assert (record.whole, record.status, record.number) == (True, 200, before + 1)
    assert set(json.loads(line)["record"]) == {"type", *(field.name for field in dataclasses.fields(record))}


def test_raw_tensors_are_read_too_and_long_ones_stay(beside: Road) -> None:
    beside.client.predict({"x": np.zeros((4096, 4), dtype=np.float32)})
    assert verify_line(beside.kept.lines[-1], signing_public=beside.served.replica._signing_public).fields == {}


LINES: dict[str, tuple[Callable[[bytes], bytes], type[ConfedError]]] = {
    "with a field changed": (lambda line: line.replace(b'"7"', b'"8"'), SignatureError),
    "with another signature": (lambda line: line.replace(b'"signature":"', b'"signature":"00')[:-2], EncodingError),
    "with a field more": (lambda line: b'{"a":1,' + line[1:], EncodingError),
    "that is none": (lambda _line: b"{}", EncodingError),
}


@pytest.mark.parametrize(("change", "error"), LINES.values(), ids=LINES)
def test_a_clear_record_that_was_changed_shows(
    beside: Road, change: Callable[[bytes], bytes], error: type[ConfedError]
) -> None:
    beside.ask().read()
    with pytest.raises(error):
        verify_line(change(beside.kept.lines[-1]), signing_public=beside.served.replica._signing_public)


def test_an_answer_whose_record_is_lost_does_not_end(beside: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside.kept, "fails", True)
    with pytest.raises(DeliveryError):
        beside.ask().read()


@pytest.mark.parametrize("fails", [False, True])
def test_who_stops_reading_is_seen_all_the_same(
    beside: Road, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *, fails: bool
) -> None:
    monkeypatch.setattr(beside.kept, "fails", fails)
    before = len(beside.kept.lines)
    directed = Directed(Door(beside.served.engine, name="linear"), replica=beside.served.replica, outlet=beside.kept)
    body = iter(directed.answer(Request(head=RequestHead(method="POST", path=PATH, headers=()), body=BODY)).body)
    next(body)
    body.close()  # type: ignore[attr-defined]
    if fails:
        assert "DeliveryError" in capfd.readouterr().err
    else:
        record = verify_line(beside.kept.lines[before], signing_public=beside.served.replica._signing_public)
        assert (record.whole, record.fields["id"]) == (False, "7")
    assert len(beside.kept.lines) == before + (not fails)


def test_with_clear_alone_who_asked_gets_an_acknowledgement(alone: Road) -> None:
    reply = alone.ask()
    assert (reply.head.status, json.loads(reply.read())) == (202, {"output": "clear"})
    record = verify_line(alone.kept.lines[-1], signing_public=alone.served.replica._signing_public)
    assert record.fields == {"id": "7", "outputs.y.shape": [2, 3]}


# Who asks for another output.

ASKS: dict[str, tuple[str, bytes, tuple[tuple[str, str], ...]]] = {
    "for clear": (PATH, BODY, (("confed-output", "clear"),)),
    "for recipients": (PATH, BODY, (("Confed-Output", "recipients"),)),
    "for recipients of its own": (PATH, BODY, (("confed-recipients", "00"),)),
    "for clear in the address": (f"{PATH}?output=clear", BODY, ()),
    "for recipients in the address": (f"{PATH}?a=1&confed-recipients=", BODY, ()),
    "for clear in the body": (PATH, BODY.replace(b"{", b'{"output": "clear", ', 1), ()),
    "for recipients in the parameters": (PATH, BODY.replace(b"{", b'{"parameters": {"recipients": []}, ', 1), ()),
}


@pytest.mark.parametrize(("path", "body", "headers"), ASKS.values(), ids=ASKS)
def test_a_caller_who_asks_for_another_output_is_refused_by_name(
    beside: Road, path: str, body: bytes, headers: tuple[tuple[str, str], ...]
) -> None:
    runs, lines = beside.served.engine.runs, len(beside.kept.lines)
    reply = beside.client.request("POST", path, body=body, headers=headers)
    told = json.loads(reply.read())["error"]
    assert reply.head.status == 403
    assert "output" in told.split(":")[0] or "recipients" in told.split(":")[0]
    assert (beside.served.engine.runs, len(beside.kept.lines)) == (runs, lines)


def test_a_caller_may_count_on_the_output_that_is_on(beside: Road) -> None:
    reply = beside.client.request("POST", PATH, body=BODY, headers=(("confed-output", "requester"),))
    assert reply.head.status == 200
    reply.close()


# Who may read answers is pinned by who asks.


def test_a_requester_refuses_a_replica_whose_output_its_policy_does_not_accept(beside: Road) -> None:
    pinned = dataclasses.replace(beside.deployment.policy, output=OutputTerms.to_requester())
    with beside.deployment.client(beside.served.url, policy=pinned) as client, pytest.raises(ManifestMismatchError):
        client.predict({"x": X})
    assert RequesterPolicy.decode(beside.deployment.policy.encode()).output == BESIDE


def test_a_receipt_of_other_output_terms_is_refused(beside: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BESIDE.__dict__, "digest", canonical.digest(b"others"))
    serving = dataclasses.replace(beside.served.replica.serving, output=BESIDE)
    monkeypatch.setattr(beside.served.replica, "serving", serving)
    with pytest.raises(LineageError):
        beside.ask().read()


def test_a_replica_without_an_outlet_does_not_serve_what_needs_one(beside: Road) -> None:
    with pytest.raises(ConfigError):
        Edge(beside.served.replica, Door(beside.served.engine, name="linear"), most_at_once=1)
