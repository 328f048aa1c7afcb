"""A client of the Open Inference Protocol that nobody here wrote (tritonclient), unmodified, through the proxy; and curl."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from inference_road import Deployment, Linear, Served
from tritonclient.utils import InferenceServerException

from confed.inference.listening import Serving, bound_socket
from confed.inference.proxy import Proxy

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def proxy(deployment: Deployment, served: Served) -> Iterator[str]:
    with (
        deployment.client(served.url) as client,
        Serving(Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as proxy,
    ):
        yield proxy.url


@pytest.fixture
def asked(proxy: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(url=proxy.removeprefix("http://"))
    yield client
    client.close()


def tensor(array: np.ndarray, name: str = "x", *, binary: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), {"f4": "FP32", "f8": "FP64"}[array.dtype.str[1:]])
    given.set_data_from_numpy(array, binary_data=binary)
    return given


def test_it_finds_server_and_model_ready_and_reads_their_metadata(asked: Any) -> None:
    assert asked.is_server_live()
    assert asked.is_server_ready()
    assert asked.is_model_ready("linear")
    assert not asked.is_model_ready("other")
    assert asked.get_server_metadata() == {"name": "confed", "version": "1", "extensions": ["binary_tensor_data"]}
    told = asked.get_model_metadata("linear")
    assert (told["name"], told["inputs"]) == ("linear", [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}])


# How tensors go there and come back: raw bytes after the JSON are what it does by itself.
WAYS: dict[str, tuple[bool, list[Any] | None]] = {
    "raw both ways": (True, None),
    "JSON there": (False, None),
    "JSON back": (True, [triton.InferRequestedOutput("y", binary_data=False)]),
    "JSON both ways": (False, [triton.InferRequestedOutput("y", binary_data=False)]),
}


@pytest.mark.parametrize(("binary", "outputs"), WAYS.values(), ids=WAYS)
def test_its_answers_are_the_plain_models_to_the_bit(
    asked: Any, deployment: Deployment, *, binary: bool, outputs: list[Any] | None
) -> None:
    found = asked.infer("linear", [tensor(X, binary=binary)], outputs=outputs, request_id="7")
    plain = Linear(deployment.arrays, {}).predict({"x": X})["y"]
    assert found.as_numpy("y").tobytes() == plain.tobytes()
    assert found.get_response()["id"] == "7"


def test_it_sends_several_at_once(asked: Any, deployment: Deployment) -> None:
    waiting = [asked.async_infer("linear", [tensor(X + step)]) for step in range(4)]
    for step, found in enumerate(waiting):
        plain = Linear(deployment.arrays, {}).predict({"x": X + step})["y"]
        assert found.get_result().as_numpy("y").tobytes() == plain.tobytes()


BAD: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "an unknown model": (lambda asked: asked.infer("other", [tensor(X)]), "404", "no such"),
    "an unknown model's metadata": (lambda asked: asked.get_model_metadata("other"), "404", "no such"),
    "a wrong type": (lambda asked: asked.infer("linear", [tensor(X.astype(np.float64))]), "400", "FP32"),
    "a wrong shape": (lambda asked: asked.infer("linear", [tensor(X.T)]), "400", "shape"),
    "an unknown input": (lambda asked: asked.infer("linear", [tensor(X, "z")]), "400", "no such input"),
    "an unknown output": (lambda asked: asked.infer("linear", [tensor(X)], outputs=[triton.InferRequestedOutput("z")]), "400", "outputs"),
    "too large": (lambda asked: asked.infer("linear", [tensor(np.zeros((200_000, 4), np.float32))]), "413", "size"),
    "an engine that fails": (lambda asked: asked.infer("linear", [tensor(X * np.nan)]), "500", "failed"),
}  # fmt: skip


@pytest.mark.parametrize(("ask", "status", "words"), BAD.values(), ids=BAD)
def test_what_it_does_wrong_is_told_in_the_protocols_own_form(
    asked: Any, ask: Callable[[Any], Any], status: str, words: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(asked)
    assert refused.value.status() == status
    assert words in refused.value.message()


def curl(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        ["curl", "--silent", "--max-time", "60", "--write-out", "\n%{http_code}", *words],
        check=False,
        capture_output=True,
    )
    body, _, status = done.stdout.decode().rpartition("\n")
    return int(status), body


# What curl is told: in each interface's form, by the replica or by the proxy itself.
CURLED: dict[str, tuple[tuple[str, ...], int, type]] = {
    "a path of the protocol that is not there": (("/v2/models/other/infer", "--json", "{}"), 404, str),
    "no JSON": (("/v2/models/linear/infer", "--json", "x"), 400, str),
    "a wrong shape": (("/v2/models/linear/infer", "--json", '{"inputs": [{"name": "x", "shape": [4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}'), 400, str),
    "a path of OpenAI's that is not there": (("/v1/chat/completions", "--json", "{}"), 404, dict),
    "another method": (("/v2", "--request", "DELETE"), 502, str),
    "a browser's page": (("/v2", "--header", "origin: http://example.org"), 403, str),
    "a browser's page, of OpenAI's": (("/v1/models", "--header", "origin: http://example.org"), 403, dict),
}  # fmt: skip


@pytest.mark.parametrize(("words", "status", "form"), CURLED.values(), ids=CURLED)
def test_curl_is_told_what_is_wrong_in_the_interfaces_own_form(
    proxy: str, words: tuple[str, ...], status: int, form: type
) -> None:
    found, body = curl(proxy + words[0], *words[1:])
    assert found == status
    assert isinstance(json.loads(body)["error"], form)


@pytest.mark.parametrize(("path", "form"), [("/v2/models/linear/infer", str), ("/v1/chat/completions", dict)])
def test_an_oversized_body_is_told_too(proxy: str, tmp_path: Path, path: str, form: type) -> None:
    (tmp_path / "large").write_bytes(bytes(3 * 1024 * 1024))
    status, body = curl(proxy + path, "--data-binary", f"@{tmp_path}/large", "--header", "expect:")
    assert status == 413
    assert isinstance(json.loads(body)["error"], form)


def test_nothing_behind_the_proxy_is_an_error_in_the_interfaces_own_form(deployment: Deployment) -> None:
    with (
        deployment.client("http://127.0.0.1:9") as client,
        Serving(Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as proxy,
    ):
        assert curl(f"{proxy.url}/v2")[0] == curl(f"{proxy.url}/v1/models")[0] == 502
