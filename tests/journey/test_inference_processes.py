"""Confidential inference as people run it: broker, replica and proxy as processes, curl, and a relay that sees all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
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

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "chat"))
from relay import Relay

PROMPT, ANSWER, WEIGHT = "canary-prompt-7f3a", "canary-answer-91bc", 41.1307
ENGINE = f"""
import hashlib
import sys
import time

import numpy as np

from confed.inference.engine import Piece

class Echo:
    def __init__(self, arrays, settings):
        self._scale = arrays["scale"]

    def chat_prompt(self, messages):
        return messages[-1]["content"]

    def generate(self, prompt, options):
        sys.stderr.write("ran " + hashlib.sha256(prompt.encode()).hexdigest() + chr(10))
        sys.stderr.flush()
        for number in range(options.max_tokens):
            yield Piece(text="{ANSWER} " + prompt + ";", finish=None, prompt_tokens=1, tokens=number + 1)
            time.sleep(0.02)
        yield Piece(text="", finish="length", prompt_tokens=1, tokens=options.max_tokens)

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
class Road:
    folder: Path
    home: Path
    replica: dict[str, Any]
    proxy: str
    relay: Relay
    start: Callable[..., subprocess.Popen[bytes]]

    def saying(self, say: str) -> dict[str, Any]:
        data = list(say.encode())
        return {
            "inputs": [
                {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]},
                {"name": "say", "shape": [len(data)], "datatype": "UINT8", "data": data},
            ]
        }

    def infer(self, say: str) -> httpx.Response:
        return httpx.post(f"{self.proxy}/v2/models/echo/infer", json=self.saying(say), timeout=60)

    def serve(self, name: str) -> subprocess.Popen[bytes]:
        """Start another replica."""
        manifest, config = str(self.folder / "manifest.json"), str(self.folder / "serving" / "serving.toml")
        broker = ("--broker", str(self.folder / "broker.json"), "--listen", "127.0.0.1:0")
        return self.start(name, "infer", "serve", manifest, "--config", config, *broker)


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
    relays = ExitStack()

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
        relay = relays.enter_context(Relay.before(replica["url"]))
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
        yield Road(folder=folder, home=home, replica=replica, proxy=proxy["url"], relay=relay, start=start)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()
        relays.close()


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
    with openai.OpenAI(base_url=f"{road.proxy}/v1", api_key="none", max_retries=0) as asked:
        chat = asked.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": PROMPT}], max_tokens=3, stream=True
        )
        assert "".join(event.choices[0].delta.content or "" for event in chat) == f"{ANSWER} {PROMPT};" * 3
    policy = RequesterPolicy.decode((road.folder / "policy.json").read_bytes())
    with ConfidentialClient(road.relay.url, policy=policy) as client, client.stream() as stream:
        for say in (PROMPT, f"fail {PROMPT}"):
            found = stream.ask("POST", "/v2/models/echo/infer", body=json.dumps(road.saying(say)).encode())
        assert found.body == b'{"error":"the engine failed"}'
    assert len(road.relay.seen) > 4000
    assert not any(road.relay.saw(word) for word in (PROMPT, ANSWER, "infer", "models"))
    files = [path for path in road.folder.rglob("*") if path.is_file() and path.name != "engine.py"]
    assert {"replica.log", "proxy.log", "broker.log"} <= {path.name for path in files}
    haystacks = {str(path): path.read_bytes() for path in files}
    haystacks["the wire"] = road.relay.seen
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
    for _ in range(3000):
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


# A replica that is killed in mid-stream.


def ran(road: Road, *prompts: str) -> list[int]:
    """How often each prompt ran, by what the engines of all replicas said."""
    said = b"".join(log.read_bytes() for log in road.folder.glob("*.log")).decode()
    return [said.count(f"ran {hashlib.sha256(prompt.encode()).hexdigest()}") for prompt in prompts]


def test_a_replica_that_is_killed_in_mid_stream_loses_its_streams_and_nothing_runs_twice_unasked(road: Road) -> None:
    first, second = (road.serve(name) for name in ("first", "second"))
    urls = [line_of(process)["url"] for process in (first, second)]
    accepted = ("--policy", str(road.folder / "policy.json"), "--listen", "127.0.0.1:0")
    proxy = line_of(road.start("proxy-of-two", "infer", "proxy", *urls, *accepted))["url"]
    prompts = [f"prompt {number}" for number in range(6)]

    def asked(prompt: str, *, tokens: int) -> int:
        """Ask with a client that repeats by itself whatever it may; return how many pieces came."""
        with openai.OpenAI(base_url=f"{proxy}/v1", api_key="none", max_retries=2) as client:
            stream = client.completions.create(model="echo", prompt=prompt, max_tokens=tokens, stream=True)
            pieces = 0
            for event in stream:
                pieces += bool(event.choices[0].text)
            return pieces

    with ThreadPoolExecutor(len(prompts)) as pool:
        waiting = [pool.submit(asked, prompt, tokens=100_000) for prompt in prompts]
        wait_for(lambda: ran(road, *prompts) == [1] * len(prompts))
        (tee,) = psutil.Process(first.pid).children()
        tee.kill()
        for found in waiting:
            assert isinstance(found.exception(), httpx.HTTPError | openai.APIError), found
    # A stream that was cut off is an error, and is not asked again by anybody but its caller.
    assert ran(road, *prompts) == [1] * len(prompts)
    # Who asks again gets the other replica.
    assert [asked(prompt, tokens=2) for prompt in prompts] == [2] * len(prompts)
    assert ran(road, *prompts) == [2] * len(prompts)
    assert first.wait(20) != 0
