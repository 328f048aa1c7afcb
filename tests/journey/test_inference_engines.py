"""Engines on the whole road: a network without code of one's own, streams in a batch, tenants, vLLM in a confined TEE."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from inference_road import Deployment
from test_inference_processes import confed, line_of
from test_inference_processes import said as ran

from clients.engines.batching import Batched
from clients.engines.generation import TextGeneration
from clients.engines.tensors import TorchModule
from clients.tasks.digits import Network
from confed.cli.infer import app as infer_app
from confed.cli.manifest import app as manifest_app
from confed.cli.model import app as model_app
from confed.inference.client import ConfidentialClient
from confed.inference.listening import bound_socket
from confed.inference.messages import NO_TENANT
from confed.inference.requester import RequesterPolicy
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.model.hub import read_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "clients"))
import fake_vllm
from language_world import hub_directory, said

DIGITS = {
    "network": "clients.tasks.digits:Network",
    "inputs": "pixels: float32[-1, 64]",
    "outputs": "scores: float32[-1, 10]",
}
PROMPT = "The north side of the house is where"


def test_the_digits_network_is_served_by_its_name_alone(quick_disk: Path) -> None:
    folder = quick_disk / "engine-digits"
    folder.mkdir()
    torch.manual_seed(2)
    network = Network().eval()
    arrays = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    pixels = np.random.default_rng(1).random((40, 64), dtype=np.float32)
    with (
        Deployment(folder=folder, arrays=arrays) as deployment,
        deployment.served(engine=lambda opened, _: TorchModule(opened, {**DIGITS, "batch": 64})) as served,
        deployment.client(served.url) as client,
    ):
        with torch.inference_mode():
            plain = network(torch.from_numpy(pixels)).numpy()
        assert client.predict({"pixels": pixels})["scores"].tobytes() == plain.tobytes()
        told = json.loads(client.request("GET", "/v2/models/linear").read())
        assert told["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}]


@pytest.fixture(scope="module")
def language(quick_disk: Path) -> Path:
    return hub_directory(quick_disk / "engine-llama")


@pytest.fixture(scope="module")
def road(quick_disk: Path, language: Path) -> Iterator[tuple[Deployment, str, TextGeneration]]:
    folder = quick_disk / "engine-road"
    folder.mkdir()
    engine = TextGeneration(read_directory(language), {"batch": 4, "prefix-cache": 500})
    with (
        Deployment(folder=folder) as deployment,
        deployment.served(engine=lambda *_: engine, most_at_once=32) as served,
    ):
        yield deployment, served.url, engine


def completed(client: ConfidentialClient, prompt: str, **more: Any) -> str:
    body = json.dumps({"model": "linear", "prompt": prompt, "max_tokens": 12, "temperature": 0, **more}).encode()
    reply = client.request("POST", "/v1/completions", body=body)
    found = json.loads(reply.read())
    assert reply.head.status == 200, found
    assert reply.proof is not None
    shown = json.dumps(reply.proof.to_json())
    assert client._tenant.hex() not in shown  # who is shown a proof learns no tenant
    return str(found["choices"][0]["text"])


def reused(engine: TextGeneration) -> int:
    waited = threading.Event()
    assert any(engine._decoder.held == 0 or waited.wait(0.005) for _ in range(2000))  # type: ignore[attr-defined]
    return int(engine._decoder._reader._prefixes.found_tokens)  # type: ignore[attr-defined]


def test_nothing_that_is_kept_crosses_from_one_tenant_to_another(
    road: tuple[Deployment, str, TextGeneration],
) -> None:
    deployment, url, engine = road
    with (
        deployment.client(url) as one,
        deployment.client(url) as other,
        deployment.client(url, tenant=one._tenant) as same,
        deployment.client(url, tenant=NO_TENANT) as none,
    ):
        answer = completed(one, PROMPT)
        before = reused(engine)
        for client, more in ((other, {}), (none, {}), (none, {}), (one, {"cache_salt": "part"})):
            assert completed(client, PROMPT, **more) == answer
            assert reused(engine) == before
        for client, more in ((one, {}), (same, {}), (one, {"cache_salt": "part"})):
            assert completed(client, PROMPT, **more) == answer
            assert reused(engine) > before
            before = reused(engine)


def test_concurrent_streams_of_a_batch_are_each_the_text_alone(
    road: tuple[Deployment, str, TextGeneration], language: Path
) -> None:
    deployment, url, engine = road
    alone = TextGeneration(read_directory(language), {})
    prompts = [f"stream number {number} of them" for number in range(12)]
    with deployment.client(url) as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda prompt: completed(client, prompt), prompts))
    assert found == [said(alone, prompt, max_tokens=12) for prompt in prompts]
    assert isinstance(engine._decoder, Batched)
    assert engine._decoder.largest == 4


def test_who_goes_away_frees_the_place_in_the_batch(road: tuple[Deployment, str, TextGeneration]) -> None:
    deployment, url, engine = road
    body = json.dumps({"model": "linear", "prompt": "a", "max_tokens": 90, "stream": True, "temperature": 0}).encode()
    with deployment.client(url) as client:
        for _ in range(6):
            reply = client.request("POST", "/v1/completions", body=body)
            next(iter(reply))
            reply.close()
        reused(engine)  # waits until the batch is empty
        assert completed(client, "a")


def test_a_listening_socket_sends_small_pieces_at_once() -> None:
    with bound_socket("127.0.0.1:0", loopback_only=True) as listener:
        # What asyncio looks at before it turns Nagle's algorithm off: without, each first frame waits 40 ms.
        assert listener.proto == socket.IPPROTO_TCP


# vLLM, as a child of a confined inference TEE.

SERVING = """
name = "words"
environment = "simulation"
engine = "clients.engines.vllm:Vllm"

[model]
owner = "anna"
file = "model.sealed"

[child]
memory = "{memory}"

[settings]
max-model-len = 96
"""


@pytest.fixture
def with_child(quick_disk: Path, language: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    folder = quick_disk / "vllm-road"
    serving, home = folder / "serving", folder / "home"
    for path in (serving, home, folder / "tmp", folder / "memory"):
        path.mkdir(parents=True)
    (serving / "serving.toml").write_text(SERVING.format(memory=folder / "memory"))
    fake_vllm.install(serving)  # the image's code: what the replica may read
    monkeypatch.setenv("CONFED_HOME", str(home))
    OwnerHome.create("anna", home=home, environment="simulation", now_ms=time.time_ns() // 1_000_000).close()
    sealed, manifest = str(serving / "model.sealed"), folder / "manifest.json"
    ran(model_app, "seal", str(language), "--owner", "anna", "--scenario", "inference", "--out", sealed)
    manifest.write_bytes(ran(infer_app, "manifest", str(serving / "serving.toml")))
    ran(manifest_app, "approve", str(manifest), "--owner", "anna")
    endpoint = folder / "broker.json"
    words = (
        "broker",
        "serve",
        "--owner",
        "anna",
        "--listen",
        f"unix:{folder}/b.sock",
        "--endpoint-file",
        str(endpoint),
    )
    processes = [confed(*words, home=home, stdout=subprocess.DEVNULL)]
    try:
        while not endpoint.exists():
            assert processes[0].poll() is None
            time.sleep(0.02)
        words = ("infer", "serve", str(manifest), "--config", str(serving / "serving.toml"), "--broker", str(endpoint))
        processes.append(confed(*words, "--listen", "127.0.0.1:0", home=home, stdout=subprocess.PIPE))
        told = {"policy": RequesterPolicy.of(Manifest.decode(manifest.read_bytes())), "memory": folder / "memory"}
        yield {**line_of(processes[1]), **told, "process": processes[1]}
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(20)
        if len(processes) > 1 and processes[1].stdout is not None:
            processes[1].stdout.close()


def test_vllm_answers_from_within_a_confined_tee(with_child: dict[str, Any]) -> None:
    with ConfidentialClient(with_child["url"], policy=with_child["policy"]) as client:
        body = json.dumps({"model": "words", "prompt": "one two three", "stream": True}).encode()
        data = client.request("POST", "/v1/completions", body=body).read()
    events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line and line != "data: [DONE]"]
    assert [event["choices"][0]["text"] for event in events] == ["one ", "two ", "three ", ""]
    # What vLLM wrote goes with the TEE, however that ends.
    assert list(with_child["memory"].iterdir())
    (tee,) = psutil.Process(with_child["process"].pid).children()
    tee.kill()
    assert with_child["process"].wait(20) == 2
    assert not list(with_child["memory"].iterdir())
