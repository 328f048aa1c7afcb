"""Who goes away before a whole answer has begun: the proxy ends the request at the replica, and holds nothing for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from inference_road import Deployment, Served, TlsBefore

from confed.errors import ConfedError, MayHaveRunError
from confed.inference.connections import Call
from confed.inference.listening import Serving, bound_socket
from confed.inference.proxy import Proxy

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
X = np.ones((1, 4), dtype=np.float32)


@pytest.fixture
def served(deployment: Deployment) -> Iterator[Served]:
    with deployment.served() as served:
        yield served
        if served.engine.held is not None:
            served.engine.held.set()


def wait_for(found: Callable[[], Any]) -> None:
    pause = threading.Event()
    assert any(found() or pause.wait(0.01) for _ in range(1000))


def test_who_does_not_wait_for_a_whole_answer_holds_nothing_at_the_proxy(
    deployment: Deployment, served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        deployment.client(served.url) as client,
        Serving(Proxy(client, most_at_once=1), bound_socket("127.0.0.1:0", loopback_only=True)) as proxy,
    ):
        address = f"{proxy.url}/v2/models/linear/infer"
        served.engine.held = threading.Event()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address, json=BODY, timeout=httpx.Timeout(10, read=0.3))
        assert served.engine.runs == 1
        # The proxy's one worker and the replica's place are free although the model is still at work.
        assert httpx.get(f"{proxy.url}/v2", timeout=5).status_code == 200
        assert not served.engine.held.is_set()
        served.engine.held.set()
        wait_for(lambda: served.edge._free == 8)
        assert served.engine.runs == 1  # and nobody has sent it again
        assert httpx.post(address, json=BODY).status_code == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "over TLS"])
def test_a_call_that_is_ended_fails_at_once_and_harms_no_other(
    deployment: Deployment, served: Served, *, tls: bool
) -> None:
    with TlsBefore.before(served.url) as before:
        given: dict[str, Any] = {"tls": before.context()} if tls else {}
        with deployment.client(before.url if tls else served.url, **given) as client:
            client.predict({"x": X})
            served.engine.held, call = threading.Event(), Call()
            runs = served.engine.runs
            failed: list[ConfedError] = []

            def ask() -> None:
                try:
                    with call:
                        client.predict({"x": X})
                except ConfedError as error:
                    failed.append(error)

            asking = threading.Thread(target=ask)
            asking.start()
            wait_for(lambda: served.engine.runs > runs)
            began = time.monotonic()
            call.end()
            asking.join(10)
            assert time.monotonic() - began < 5
            assert isinstance(failed[0], MayHaveRunError)
            served.engine.held.set()
            served.engine.held = None
            assert client.predict({"x": X})["y"].shape == (1, 3)
            # What is asked by a call that was ended is not sent at all; one that is over is nobody else's end.
            runs = served.engine.runs
            ask()
            assert not isinstance(failed[1], MayHaveRunError)
            with Call() as over:
                client.predict({"x": X})
            over.end()
            assert client.predict({"x": X})
            assert served.engine.runs == runs + 2
