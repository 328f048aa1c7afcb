"""Confidential inference as people run it: broker, replica and proxy as processes, curl, and a relay that sees all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from confed.cli.infer import app as infer_app
from confed.cli.manifest import app as manifest_app
from confed.cli.model import app as model_app
from confed.cli.verify import app as verify_app
from confed.errors import ConfigError, LineageError
from confed.inference.client import ConfidentialClient
from confed.inference.listening import bound_socket
from confed.inference.requester import RequesterPolicy
from confed.keybroker.identity import OwnerHome

PROMPT, ANSWER, WEIGHT = "canary-prompt-7f3a", "canary-answer-91bc", 41.1307
ENGINE = f"""
import numpy as np

class Echo:
    def __init__(self, arrays, settings):
        self._scale = arrays["scale"]

    def inputs(self):
        return {{"x": ("float32", (-1,)), "say": ("uint8", (-1,))}}

    def predict(self, tensors):
        if tensors["say"].tobytes() == b"fail {PROMPT}":
            raise ValueError("{ANSWER} " + tensors["say"].tobytes().decode())
        answer = b"{ANSWER} " + tensors["say"].tobytes()
        return {{"y": tensors["x"] * self._scale, "said": np.frombuffer(answer, dtype=np.uint8)}}
"""
SERVING = """
name = "echo"
environment = "simulation"
engine = "engine:Echo"

[model]
owner = "anna"
file = "model.safetensors.sealed"

[serving]
lease_s = 600

[output.clear]
fields = ["outputs.y.shape", "outputs.y.datatype"]
sink = "file:monitoring.jsonl"
"""


def confed(*words: str, home: Path, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "confed.cli.main", *words], env=environment(home), **more)


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "CONFED_HOME": str(home), "TMPDIR": str(home.parent / "tmp")}


def said(app: Any, *words: str) -> bytes:
    """What a command prints, run in this process: starting an interpreter takes seconds."""
    found = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert found.exit_code == 0
    return found.stdout_bytes


@dataclass
class Relay:
    """Stands between proxy and replica and keeps everything that passes."""

    target: tuple[str, int]
    seen: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        with suppress(OSError), self.listener:
            while True:
                caller, _ = self.listener.accept()
                threading.Thread(target=self._join, args=(caller,), daemon=True).start()

    def _join(self, caller: socket.socket) -> None:
        with caller, socket.create_connection(self.target) as replica:
            back = threading.Thread(target=self._carry, args=(replica, caller))
            back.start()
            self._carry(caller, replica)
            back.join()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self.seen += data
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()


@dataclass
class Road:
    folder: Path
    home: Path
    replica: dict[str, Any]
    proxy: str
    relay: Relay
    processes: list[subprocess.Popen[bytes]]

    def infer(self, say: str) -> httpx.Response:
        data = list(say.encode())
        body = {
            "inputs": [
                {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]},
                {"name": "say", "shape": [len(data)], "datatype": "UINT8", "data": data},
            ]
        }
        return httpx.post(f"{self.proxy}/v2/models/echo/infer", json=body, timeout=60)


@pytest.fixture(scope="module")
def road(quick_disk: Path) -> Iterator[Road]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from started(quick_disk, monkeypatch)


def started(quick_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Road]:
    folder = quick_disk / "infer"
    home = folder / "home"
    for path in (home, folder / "serving", folder / "tmp"):
        path.mkdir(parents=True)
    serving = folder / "serving"
    (serving / "engine.py").write_text(ENGINE)
    (serving / "serving.toml").write_text(SERVING)
    save_file({"scale": np.array([WEIGHT], dtype=np.float32)}, folder / "model.safetensors")
    OwnerHome.create("anna", home=home, environment="simulation", now_ms=time.time_ns() // 1_000_000).close()
    sealed = str(serving / "model.safetensors.sealed")
    monkeypatch.setenv("CONFED_HOME", str(home))
    seal = (
        str(folder / "model.safetensors"),
        "--owner",
        "anna",
        "--scenario",
        "inference",
        "--lease",
        "600",
        "--out",
        sealed,
    )
    said(model_app, "seal", *seal)
    (folder / "model.safetensors").unlink()
    manifest, config = folder / "manifest.json", str(serving / "serving.toml")
    manifest.write_bytes(said(infer_app, "manifest", config))
    said(manifest_app, "approve", str(manifest), "--owner", "anna")
    (folder / "policy.json").write_bytes(said(infer_app, "policy", str(manifest)))
    processes: list[subprocess.Popen[bytes]] = []
    relays: list[Relay] = []

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        log = (folder / f"{name}.log").open("wb")
        processes.append(confed(*words, home=home, stdout=subprocess.PIPE, stderr=log))
        log.close()
        return processes[-1]

    try:
        endpoint = folder / "broker.json"
        broker = start("broker", "broker", "serve", "--owner", "anna", "--listen", f"unix:{folder}/b.sock", "--endpoint-file", str(endpoint))  # fmt: skip
        while not endpoint.exists():
            assert broker.poll() is None
            time.sleep(0.02)
        replica = line_of(
            start(
                "replica",
                "infer",
                "serve",
                str(manifest),
                "--config",
                config,
                "--broker",
                str(endpoint),
                "--listen",
                "127.0.0.1:0",
                "--records",
                str(folder / "records"),
            )
        )
        relays.append(relay := Relay(("127.0.0.1", int(replica["url"].rpartition(":")[2]))))
        proxy = line_of(
            start(
                "proxy",
                "infer",
                "proxy",
                relay.url,
                "--policy",
                str(folder / "policy.json"),
                "--listen",
                "127.0.0.1:0",
                "--receipts",
                str(folder / "receipts"),
            )
        )
        yield Road(folder=folder, home=home, replica=replica, proxy=proxy["url"], relay=relay, processes=processes)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()
        if relays:
            relays[0].close()


def line_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_curl_gets_the_answer_of_a_confined_tee(road: Road) -> None:
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [2]}, {"name": "say", "shape": [1], "datatype": "UINT8", "data": [65]}]}  # fmt: skip
    curl = shutil.which("curl")
    assert curl is not None
    told = subprocess.run(
        [curl, "--silent", "--fail", f"{road.proxy}/v2/models/echo/infer", "--json", json.dumps(request)],
        check=True,
        capture_output=True,
    ).stdout
    outputs = {entry["name"]: entry["data"] for entry in json.loads(told)["outputs"]}
    assert outputs["y"] == pytest.approx([2 * WEIGHT])
    assert "/v2/models/echo/infer" in road.replica["paths"]


def test_a_monitor_sees_the_listed_fields_and_the_records_verify(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFED_HOME", str(road.home))
    road.infer("to the monitor")
    lines = [json.loads(line) for line in (road.folder / "serving" / "monitoring.jsonl").read_bytes().splitlines()]
    assert lines[-1]["record"]["fields"] == {"outputs.y.shape": [2], "outputs.y.datatype": "FP32"}
    assert [line["record"]["number"] for line in lines] == list(range(1, len(lines) + 1))
    records, broker = str(road.folder / "records"), str(road.folder / "broker.json")
    said(infer_app, "records", records, "--owner", "anna", "--broker", broker)
    (owner,) = OwnerHome.owners(road.home)
    trust = road.folder / "trust.json"
    (root,) = json.loads((road.folder / "manifest.json").read_bytes())["trust"]["anchors"]["simulated/1"]
    trust.write_text(json.dumps({"owners": {"anna": owner.party.identity.hex()}, "anchors": {"simulated/1": [root]}}))
    owner.close()
    verified = json.loads(said(verify_app, records, "--trust", str(trust), "--json"))
    assert (verified["manifest"], verified["evidence"]) == (road.replica["manifest"], 1)


def test_answers_for_a_recipient_are_kept_by_the_host_and_opened_by_nobody_else(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFED_HOME", str(road.home))
    folder = road.folder / "ward"
    shutil.copytree(road.folder / "serving", folder)
    said(infer_app, "recipient", "ward", "--out", str(folder))
    told = SERVING.replace("lease_s = 600", "").partition("[output.clear]")[0]
    (folder / "serving.toml").write_text(f'{told}[output]\nmode = "recipients"\nrecipients = {{ ward = "ward.pub" }}\n')
    manifest, policy = folder / "manifest.json", folder / "policy.json"
    manifest.write_bytes(said(infer_app, "manifest", str(folder / "serving.toml")))
    said(manifest_app, "approve", str(manifest), "--owner", "anna")
    policy.write_bytes(said(infer_app, "policy", str(manifest)))
    process = confed(
        "infer", "serve", str(manifest), "--config", str(folder / "serving.toml"), "--answers", str(folder / "answers"),
        "--broker", str(road.folder / "broker.json"), "--listen", "127.0.0.1:0", home=road.home, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        url = line_of(process)["url"]
        body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [2]}, {"name": "say", "shape": [1], "datatype": "UINT8", "data": [67]}]}'
        with ConfidentialClient(url, policy=RequesterPolicy.decode(policy.read_bytes())) as client:
            reply = client.request("POST", "/v2/models/echo/infer", body=body)
            acknowledged = json.loads(reply.read())
    finally:
        process.terminate()
        process.communicate(timeout=20)
    (kept,) = (folder / "answers").iterdir()
    assert kept.name == f"{acknowledged['delivered']}.answer"
    assert ANSWER.encode() not in kept.read_bytes()
    opened = said(infer_app, "open", str(kept), "--key", str(folder / "ward.key"), "--policy", str(policy))
    outputs = {entry["name"]: entry["data"] for entry in json.loads(opened)["outputs"]}
    assert bytes(outputs["said"]) == f"{ANSWER} C".encode()
    shutil.rmtree(folder)


def test_nobody_but_the_requester_and_the_tee_sees_a_word(road: Road) -> None:
    answered = road.infer(PROMPT)
    said_back = bytes(next(entry["data"] for entry in answered.json()["outputs"] if entry["name"] == "said"))
    assert said_back == f"{ANSWER} {PROMPT}".encode()
    failed = road.infer(f"fail {PROMPT}")
    assert (failed.status_code, failed.json()) == (500, {"error": "the engine failed"})
    assert len(road.relay.seen) > 4000
    files = [path for path in road.folder.rglob("*") if path.is_file() and path.name != "engine.py"]
    assert {"replica.log", "proxy.log", "broker.log"} <= {path.name for path in files}
    haystacks = {str(path): path.read_bytes() for path in files}
    haystacks["the wire"] = bytes(road.relay.seen)
    weights = np.array([WEIGHT], dtype=np.float32).tobytes()
    words = (PROMPT, ANSWER, "infer", "Echo", "datatype", str(list(PROMPT.encode()))[1:-1])
    for name, data in haystacks.items():
        assert not any(word in data for word in (PROMPT.encode(), ANSWER.encode(), weights)), name
    assert not any(word.encode() in road.relay.seen for word in words)


def test_a_kept_proof_is_checked_offline_with_the_texts(road: Road, tmp_path: Path) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [2]}, {"name": "say", "shape": [1], "datatype": "UINT8", "data": [66]}]}'
    before = set((road.folder / "receipts").glob("*.json"))
    answer = httpx.post(f"{road.proxy}/v2/models/echo/infer", content=body, timeout=60).content
    (proof,) = wait_for(lambda: set((road.folder / "receipts").glob("*.json")) - before)
    texts = {"request": body, "answer": answer, "other": answer + b" "}
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)

    command = ("verify-receipt", str(proof), "--policy", str(road.folder / "policy.json"))
    told = said(infer_app, *command, "--request", str(tmp_path / "request"), "--answer", str(tmp_path / "answer"))
    assert json.loads(told)["manifest"] == road.replica["manifest"]
    with pytest.raises(LineageError):
        said(infer_app, *command, "--answer", str(tmp_path / "other"))


def wait_for(found: Any) -> Any:
    for _ in range(500):
        if value := found():
            return value
        time.sleep(0.01)
    raise AssertionError("nothing came")


HEADERS: dict[str, dict[str, str]] = {
    "a page of a browser": {"origin": "http://example.org"},
    "a name that was pointed here": {"host": "example.org:80"},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_the_proxy_is_for_programs_on_this_machine(road: Road, headers: dict[str, str]) -> None:
    assert httpx.get(f"{road.proxy}/v2", headers=headers).status_code == 403
    assert httpx.get(f"{road.proxy}/v2").status_code == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "example.org:80", "8080", "127.0.0.1:x"])
def test_the_proxy_listens_on_loopback_alone(listen: str) -> None:
    with pytest.raises(ConfigError):
        bound_socket(listen, loopback_only=True)


def test_a_replica_whose_code_was_changed_does_not_start(road: Road) -> None:
    changed: Sequence[str] = ("serving", "changed")
    source, target = (road.folder / name for name in changed)
    shutil.copytree(source, target)
    (target / "engine.py").write_text(ENGINE + "\n# changed\n")
    process = confed(
        "infer", "serve", str(road.folder / "manifest.json"), "--config", str(target / "serving.toml"),
        "--broker", str(road.folder / "broker.json"), "--listen", "127.0.0.1:0",
        home=road.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _, told = process.communicate()
    assert process.returncode == 3
    assert b"code: expected" in told
    shutil.rmtree(target)
