"""The edge: codes out and nothing else; and the process that serves it."""

from __future__ import annotations

import base64
import json
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aggregator_world import NOW, World

from aggregator.launch import AggregatorLaunch
from aggregator.service import AggregatorService
from confed import canonical, record
from confed.attestation.attesters.launch import AttesterTerms
from confed.attestation.tee.simulated import PROFILE, SimulatedPlatform
from confed.errors import EncodingError
from confed.wire.channel import Endpoint, open_channel, serve
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1.confed_pb2_grpc import AggregatorStub

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "enclave", rounds=1)


def test_a_round_over_the_wire(world: World, tmp_path: Path) -> None:
    run = world.run()
    with serve(AggregatorService(run).register, listen=f"unix:{tmp_path}/a.sock", tls=None) as server:
        stub = AggregatorStub(open_channel(server.endpoint))
        attested = stub.Attest(pb.AttestCall(first_round=1, attempt=0))
        assert attested.instance == run.instance
        opened = stub.OpenRound(pb.OpenRoundCall(round=1, attempt=0, purpose="train"))
        assert list(opened.cohort) == ["site-0", "site-1", "site-2", "site-3"]
        assert (opened.base, opened.version) == (world.manifest.model.start.digest, 0)
        for number in range(3):
            digest = world.send(number, world.trained(number, world.model), metrics={"loss": 0.5})
            assert not stub.Submit(pb.SubmitCall(site=f"site-{number}", digest=digest)).HasField("refusal")
        again = stub.Submit(pb.SubmitCall(site="site-2", digest=digest))
        assert again.refusal.code == "duplicate-update"
        closed = stub.CloseRound(pb.CloseRoundCall(absent={"site-3": "client-error"}))
        assert not closed.HasField("refusal")
        assert dict(closed.metrics) == {"loss": 0.5}
        assert dict(closed.excluded) == {"site-3": "client-error"}
        assert closed.cohort_size == 3
        assert not stub.CloseRun(pb.CloseRunCall()).HasField("refusal")


def test_a_round_that_fails_says_who_was_missing_and_why(world: World) -> None:
    service = AggregatorService(world.run())
    service.Attest(pb.AttestCall(first_round=1, attempt=0), None)
    service.OpenRound(pb.OpenRoundCall(round=1, attempt=0, purpose="train"), None)
    reply = service.CloseRound(pb.CloseRoundCall(absent={"site-1": "client-error"}), None)
    assert reply.refusal.code == "cohort-short"
    assert reply.excluded["site-1"] == "client-error"
    assert not reply.record


def test_a_defect_crosses_as_one_code_and_is_logged_by_its_class_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    run = world.run()
    secret = "weights of the model"

    def broken(**_: object) -> None:
        raise ValueError(secret)

    run.attest = broken  # type: ignore[method-assign, assignment]
    with caplog.at_level(logging.DEBUG):
        reply = AggregatorService(run).Attest(pb.AttestCall(first_round=1, attempt=0), None)
    assert reply.refusal.code == "aggregator"
    assert "ValueError" in caplog.text
    assert secret not in caplog.text


def launch_document(world: World, folder: Path, **changes: object) -> bytes:
    platform = SimulatedPlatform.create(NOW)
    instance = platform.launch(
        measurement="0" * 64,
        configuration=world.manifest.digest,
        environment="simulation",
        shared=False,
        now_ms=NOW,
    )
    brokers = [keys.party.broker.hex() for keys in (world.owner, *world.sites)]
    return canonical.encode(
        {
            "manifest": base64.b64encode(world.manifest.encoded).decode(),
            "attester": record.to_json(AttesterTerms(profile=PROFILE, instance=instance.to_bytes())),
            "brokers": [{"target": f"unix:{folder}/none.sock", "certificate": "", "brokers": brokers}],
            "courier": {"target": f"unix:{folder}/none.sock", "certificate": ""},
            "listen": f"unix:{folder}/aggregator.sock",
            "tls": None,
            "endpoint_file": f"{folder}/endpoint.json",
            "readable": [str(ROOT / "confed"), str(ROOT / "aggregator")],
            "network": False,
            **changes,
        }
    )


def test_the_process_starts_confined_answers_and_ends_on_sigterm(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    read_end, write_end = os.pipe()
    os.write(write_end, launch_document(world, folder))
    os.close(write_end)
    process = subprocess.Popen(
        [sys.executable, "-m", "aggregator", "--launch-fd", str(read_end)],
        cwd=ROOT,
        pass_fds=(read_end,),
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(read_end)
    try:
        endpoint = folder / "endpoint.json"
        ended = os.pidfd_open(process.pid)
        while not endpoint.exists():
            assert not select.select([ended], [], [], 0.02)[0], process.stderr and process.stderr.read().decode()
        os.close(ended)
        told = json.loads(endpoint.read_bytes())
        stub = AggregatorStub(open_channel(Endpoint(target=told["target"], certificate=told["certificate"])))
        reply = stub.Attest(pb.AttestCall(first_round=1, attempt=0), timeout=30)
        assert reply.refusal.code == "unreachable"
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".sock") == ["endpoint.json"]


def test_the_enclave_runs_without_torch() -> None:
    code = "import sys, aggregator.service, aggregator.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_launch_document_is_read_strictly(world: World, tmp_path: Path) -> None:
    with pytest.raises(EncodingError):
        AggregatorLaunch.decode(launch_document(world, tmp_path, more=1))
    with pytest.raises(EncodingError):
        AggregatorLaunch.decode(launch_document(world, tmp_path, manifest="?")).manifest_decoded()
    assert "key" not in repr(AggregatorLaunch.decode(launch_document(world, tmp_path)))
