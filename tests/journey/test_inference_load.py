"""A hundred streams at once through the proxy, by the openai package: no error, and nothing that is left behind."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import openai
import psutil
import pytest
from inference_road import Cutter, Deployment, Served

from confed.inference.edge import EXCHANGE_PATH
from confed.inference.engine import GenerationOptions, InvalidRequestError, Piece
from confed.inference.exchange import Sealing
from confed.inference.listening import Serving, bound_socket
from confed.inference.messages import Request, RequestHead
from confed.inference.proxy import Proxy
from confed.inference.streaming import IDLE_S

STREAMS, TOKENS = 100, 3
CURL_PARTIAL = 18


class Words:
    """A model without weights: it says what it was asked, word by word."""

    def __init__(self) -> None:
        self.running = 0
        self.together: threading.Barrier | None = None
        self.asked: list[str] = []
        self.ended, self.held = threading.Event(), threading.Event()
        self.held.set()
        self.pause_s = 0.01
        self._lock = threading.Lock()

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        return messages[-1]["content"]

    def generate(self, prompt: str, options: GenerationOptions) -> Iterator[Piece]:
        if len(prompt) > 1000:
            raise InvalidRequestError(400, "the prompt does not fit")
        with self._lock:
            self.running += 1
            self.asked.append(prompt)
        try:
            for number in range(options.max_tokens or TOKENS):
                yield Piece(text=f"{prompt}/{number} ", finish=None, prompt_tokens=1, tokens=number + 1)
                self.held.wait(20)
                if number == 0 and self.together is not None:
                    self.together.wait(100)
                time.sleep(self.pause_s)  # what a model takes for a token
            yield Piece(text="", finish="length", prompt_tokens=1, tokens=options.max_tokens or TOKENS)
        finally:
            with self._lock:
                self.running -= 1
            self.ended.set()


@dataclass(kw_only=True)
class World:
    served: Served
    words: Words
    proxy: Proxy
    url: str
    asked: openai.OpenAI


def streamed(asked: openai.OpenAI, prompt: str) -> str:
    stream = asked.chat.completions.create(
        model="linear", messages=[{"role": "user", "content": prompt}], max_tokens=TOKENS, stream=True
    )
    return "".join(event.choices[0].delta.content or "" for event in stream)


@pytest.fixture(scope="module")
def world(deployment: Deployment) -> Iterator[World]:
    words = Words()
    with (
        deployment.served(engine=lambda _arrays, _settings: words, most_at_once=128) as served,
        deployment.client(served.url) as client,
        Serving(proxy := Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
        openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as asked,
    ):
        yield World(served=served, words=words, proxy=proxy, url=serving.url, asked=asked)


def wait_for(found: Any) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if found():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to that")


def expected(prompt: str, tokens: int = TOKENS) -> str:
    return "".join(f"{prompt}/{number} " for number in range(tokens))


def threads_left(world: World) -> int:
    """Threads beside those of pools, which grow to their bound and no further; once all streams have ended."""
    wait_for(lambda: world.served.edge._free == 128)
    named = [thread.name.partition("_")[0] for thread in threading.enumerate()]
    assert max(named.count("answer"), named.count("proxy")) <= 2 * 128
    return sum(name not in {"answer", "proxy", "caller"} for name in named)


def test_a_hundred_streams_end_whole_and_leave_nothing(world: World, deployment: Deployment) -> None:
    epochs, files = world.served.replica.epochs, psutil.Process().num_fds()
    with (
        deployment.client(world.served.url) as client,
        Serving(Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
        openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as asked,
        ThreadPoolExecutor(STREAMS, thread_name_prefix="caller") as pool,
    ):
        world.words.together = threading.Barrier(STREAMS)  # none goes on before all have begun
        threads: list[int] = []
        for turn in range(2):
            prompts = [f"stream {turn} {number}" for number in range(STREAMS)]
            before = len(epochs.current()._taken)
            assert list(pool.map(partial(streamed, asked), prompts)) == [expected(prompt) for prompt in prompts]
            assert sorted(world.words.asked[-STREAMS:]) == sorted(prompts)
            assert len(epochs.current()._taken) - before == STREAMS
            threads.append(threads_left(world))
        world.words.together = None
    assert threads[1] <= threads[0]  # fewer, where what an earlier test left ends meanwhile
    assert world.words.running == 0
    assert len(epochs._held) == 1
    wait_for(lambda: psutil.Process().num_fds() <= files)


def test_who_goes_away_in_mid_stream_frees_everything_through_the_proxy(world: World) -> None:
    world.words.ended.clear()
    stream = world.asked.completions.create(model="linear", prompt="long", max_tokens=1_000_000, stream=True)
    next(iter(stream))
    stream.close()
    assert world.words.ended.wait(20)
    wait_for(lambda: world.served.edge._free == 128 and world.words.running == 0)
    assert streamed(world.asked, "after") == expected("after")


def a_sealed_request(world: World, deployment: Deployment, body: bytes) -> bytes:
    epoch, padding = world.served.replica.epochs.current(), world.served.replica.serving.padding
    sealing = Sealing(manifest=deployment.manifest.digest, replicas=[(epoch.name, epoch.key)], padding=padding)
    head = RequestHead(method="POST", path="/v1/completions", headers=())
    return b"".join(sealing.request(Request(head=head, body=body)))


def test_who_does_not_wait_for_a_whole_answer_frees_the_replica(world: World, deployment: Deployment) -> None:
    body = b'{"model": "linear", "prompt": "long", "max_tokens": 1000000}'
    world.words.ended.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            world.served.url + EXCHANGE_PATH,
            content=a_sealed_request(world, deployment, body),
            timeout=httpx.Timeout(20, read=0.5),
        )
    assert world.words.ended.wait(20)
    wait_for(lambda: world.served.edge._free == 128 and world.words.running == 0)


@contextmanager
def impatient(world: World) -> Iterator[socket.socket]:
    """A caller with little room for answers, at a replica that waits for nobody longer than a moment."""
    world.served.edge._idle_s = 0.3
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    host, _, port = world.served.url.removeprefix("http://").partition(":")
    with connection:
        connection.connect((host, int(port)))
        yield connection
    world.served.edge._idle_s = IDLE_S


def test_a_request_that_stands_still_holds_no_place(world: World, deployment: Deployment) -> None:
    data = a_sealed_request(world, deployment, b"{}")
    with impatient(world) as caller:
        caller.sendall(f"POST {EXCHANGE_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode())
        caller.sendall(data[:-1])
        assert caller.recv(65536).startswith(b"HTTP/1.1 400")
        wait_for(lambda: world.served.edge._free == 128)


def test_who_does_not_read_an_answer_holds_no_place(world: World, deployment: Deployment) -> None:
    prompt = "x" * 1000
    body = json.dumps({"model": "linear", "prompt": prompt, "max_tokens": 1_000_000, "stream": True}).encode()
    data = a_sealed_request(world, deployment, body)
    world.words.ended.clear()
    world.words.pause_s = 0
    with impatient(world) as caller:
        caller.sendall(f"POST {EXCHANGE_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode())
        caller.sendall(data)
        assert world.words.ended.wait(20)
        wait_for(lambda: world.served.edge._free == 128 and world.words.running == 0)
    world.words.pause_s = 0.01


def test_curl_reads_a_stream_to_its_end_and_is_told_of_one_that_was_cut_off(
    world: World, deployment: Deployment
) -> None:
    asked = {"model": "linear", "messages": [{"role": "user", "content": "curl"}], "stream": True}
    command = ("curl", "--silent", "--no-buffer", "--max-time", "60", "--json")
    with (
        Cutter.before(world.served.url) as relay,
        deployment.client(relay.url) as client,
        Serving(Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
    ):
        url = f"{serving.url}/v1/chat/completions"
        done = subprocess.run([*command, json.dumps({**asked, "max_tokens": 3}), url], check=True, capture_output=True)
        lines = done.stdout.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
        assert "".join(delta.get("content", "") for delta in deltas) == expected("curl", 3)
        words = [*command, json.dumps({**asked, "max_tokens": 1_000_000}), url]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as cut:
            assert cut.stdout is not None
            assert cut.stdout.readline().startswith(b"data: ")
            relay.cut()
            assert b"[DONE]" not in cut.stdout.read()
        assert cut.returncode == CURL_PARTIAL
    wait_for(lambda: world.words.running == 0)


def test_openais_client_does_not_repeat_by_itself_what_may_have_run(world: World, deployment: Deployment) -> None:
    with (
        Cutter.before(world.served.url) as relay,
        deployment.client(relay.url) as client,
        Serving(Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as serving,
        openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=2) as asked,
        ThreadPoolExecutor(1) as pool,
    ):
        asked.models.list()
        world.words.held.clear()
        waiting = pool.submit(asked.completions.create, model="linear", prompt="once", max_tokens=2)
        wait_for(lambda: "once" in world.words.asked)
        relay.cut()
        failed = waiting.exception()
        world.words.held.set()
    assert isinstance(failed, openai.InternalServerError)
    assert (failed.status_code, failed.response.headers["x-should-retry"]) == (502, "false")
    assert world.words.asked.count("once") == 1


def test_a_busy_replica_is_told_as_such_and_openais_client_asks_again(world: World) -> None:
    world.served.edge._free = 0
    with pytest.raises(openai.InternalServerError) as refused:
        streamed(world.asked, "too many")
    assert (refused.value.status_code, refused.value.response.headers["x-should-retry"]) == (503, "true")
    world.served.edge._free = 128
    assert "too many" not in world.words.asked
