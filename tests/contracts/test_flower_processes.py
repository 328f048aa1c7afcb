"""Flower's deployment runtime, run for real on loopback with our long-lived client hosts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import confed
from confed.errors import DeploymentError
from confed.flower.calls import FlowerRefusedError
from confed.flower.fleet import FleetAccess, FleetConnection
from confed.flower.reconnecting import Reconnecting
from confed.flower.runtime import RuntimeAccess
from confed.flower.serving import serve_client_app
from confed.simulation.flower_processes import FlowerProcesses, NodeHandle

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

SERVER_APP = """
import json, os, pathlib, time
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from confed.flower.grid import PromptGrid

app = ServerApp()

@app.main()
def main(grid, context):
    if context.run_config["fail"]:
        raise RuntimeError("as asked")
    started = time.monotonic()
    strategy = FedAvg(min_train_nodes=2, min_available_nodes=2, fraction_evaluate=0.0)
    arrays = ArrayRecord([np.zeros(3, dtype=np.float32)])
    result = strategy.start(grid=PromptGrid(grid), initial_arrays=arrays, num_rounds=context.run_config["rounds"])
    seen = {
        "model": result.arrays.to_numpy_ndarrays()[0].tolist(),
        "nodes": {node.name: node.node_id for node in grid.get_nodes()},
        "home": os.environ["FLWR_HOME"],
        "seconds": time.monotonic() - started,
    }
    pathlib.Path(os.environ["SEEN"]).write_text(json.dumps(seen))
"""
CLIENT_APP = ClientApp()


@CLIENT_APP.train()
def train(message: Message, context: Context) -> Message:
    """Add one plus the node's index, and count in the state how often this node was asked."""
    [weights] = message.content.array_records["arrays"].to_numpy_ndarrays()
    index, counter = context.node_config["index"], context.state.metric_records.get("asked", MetricRecord({"times": 0}))
    assert isinstance(index, int)
    asked = counter["times"]
    assert isinstance(asked, int)
    context.state["asked"] = MetricRecord({"times": asked + 1})
    arrays = ArrayRecord([np.asarray(weights + 1 + index, dtype=np.float32)])
    metrics = MetricRecord({"num-examples": 1, "asked": asked + 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@contextlib.contextmanager
def hosts(nodes: Sequence[NodeHandle], answered: dict[int, int]) -> Generator[None]:
    """Run one long-lived host per node, in threads."""
    stop = threading.Event()

    def serve(node: NodeHandle) -> None:
        with node.access.connect() as connection:
            answered[node.index] = serve_client_app(CLIENT_APP, connection, stop, poll_interval_s=0.05)

    threads = [threading.Thread(target=serve, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return a folder with a ServerApp."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "server_app.py").write_text(SERVER_APP)
    return folder


def lives(group: int) -> bool:
    """Tell whether a process of the group is alive."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_nodes_train_two_rounds_and_no_process_is_left(
    app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    # Nothing listens there, and httpx fails on the second without an extra: no proxy may be looked at.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    configs = [{"index": index, "site": f"a site {index}"} for index in range(2)]
    answered: dict[int, int] = {}
    seen = tmp_path / "seen.json"
    environment = {"SEEN": str(seen), "PYTHONPATH": str(Path(confed.__path__[0]).parent)}
    started = time.monotonic()

    with FlowerProcesses(work_folder=tmp_path / "work", node_configs=configs) as federation:
        groups = federation.process_ids
        with hosts(federation.nodes, answered):
            run = federation.start_run(app, run_config={"rounds": 2, "fail": False}, environment=environment)
            status = federation.wait_for_run(run, timeout_s=50)
            groups = federation.process_ids
        nodes = {node.name: node.node_id for node in federation.nodes}

    result = json.loads(seen.read_text())
    assert status.completed
    # Each round adds the mean of 1 and 2.
    assert result["model"] == [3.0, 3.0, 3.0]
    assert result["nodes"] == nodes
    assert result["home"].startswith(str(tmp_path))
    assert answered == {0: 2, 1: 2}
    assert len(groups) == 2
    assert not any(lives(group) for group in groups)
    assert time.monotonic() - started < 60


class CuttableProxy:
    """A TCP relay on loopback that can be cut: connections end, and new ones are refused, until it is mended."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._whole = threading.Event()
        self._whole.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """End every connection, and every new one at once."""
        self._whole.clear()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Relay again."""
        self._whole.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole.is_set():
                near.close()
                continue
            far = socket.create_connection(self._target, timeout=60)
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, sink), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                end.close()


def assert_strangers_are_refused(federation: FlowerProcesses) -> None:
    """Try to join with a key that is not registered, and to take a ServerApp's task with a wrong secret."""
    [node] = federation.nodes
    assert isinstance(node.access, FleetAccess)
    key = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    guess = RuntimeAccess(
        address=node.access.address, root_certificates=node.access.root_certificates, superexec_secret=b"a guess"
    )
    with pytest.raises(FlowerRefusedError):
        dataclasses.replace(node.access, private_key=key).connect()
    with pytest.raises(FlowerRefusedError) as refused:
        guess.claim_server_app()
    assert refused.value.status == 401


def assert_a_host_takes_the_place_of_one_that_was_killed(federation: FlowerProcesses) -> None:
    """Connect twice with one key, as a host does that is started again before the SuperLink misses the first."""
    [node] = federation.nodes
    with node.access.connect() as first, node.access.connect() as second:
        assert isinstance(first, FleetConnection)
        assert isinstance(second, FleetConnection)
        assert first.node_id == second.node_id == node.node_id
        assert second.pull() is None


def test_what_fails_or_dies_is_named_and_strangers_are_refused(app: Path, tmp_path: Path) -> None:
    with FlowerProcesses(work_folder=tmp_path / "work", node_configs=[{"index": 0}]) as federation:
        groups = federation.process_ids
        with hosts(federation.nodes, {}):
            run = federation.start_run(app, run_config={"rounds": 1, "fail": True})
            with pytest.raises(DeploymentError, match=f"{run.process}.*finished:failed"):
                federation.wait_for_run(run, timeout_s=30)
        assert_strangers_are_refused(federation)
        assert_a_host_takes_the_place_of_one_that_was_killed(federation)
        os.killpg(groups[0], 9)
        with pytest.raises(DeploymentError, match="superlink"):
            federation.wait_until_online(timeout_s=10)
    assert not any(lives(group) for group in federation.process_ids)


def wait_for_log(caplog: pytest.LogCaptureFixture, words: str, *, times: int) -> None:
    """Wait until so many lines with these words were logged; fail after half a minute."""
    deadline = time.monotonic() + 30
    while sum(words in record.message for record in caplog.records) < times:
        assert time.monotonic() < deadline, words
        time.sleep(0.05)


def test_a_host_outlives_a_superlink_that_is_gone_for_a_while(
    app: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop, seen = threading.Event(), tmp_path / "seen.json"
    environment = {"SEEN": str(seen), "PYTHONPATH": str(Path(confed.__path__[0]).parent)}
    with (
        FlowerProcesses(work_folder=tmp_path / "work", node_configs=[{"index": 0}, {"index": 1}]) as federation,
        CuttableProxy(federation.superlink_address) as proxy,
    ):
        accesses = [dataclasses.replace(node.access, address=proxy.address) for node in federation.nodes]

        def serve(access: FleetAccess) -> None:
            with Reconnecting(access.connect, stop) as connection:
                serve_client_app(CLIENT_APP, connection, stop, poll_interval_s=0.05)

        threads = [threading.Thread(target=serve, args=(access,)) for access in accesses]
        for thread in threads:
            thread.start()
        try:
            federation.wait_until_online(timeout_s=30)
            proxy.cut()
            wait_for_log(caplog, "connecting again", times=len(threads))
            proxy.mend()
            # A node that comes back leaves first: what is sent to it just then is lost to the round.
            wait_for_log(caplog, "answers again", times=len(threads))
            federation.wait_until_online(timeout_s=30)
            run = federation.start_run(app, run_config={"rounds": 1, "fail": False}, environment=environment)
            status = federation.wait_for_run(run, timeout_s=60)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert status.completed
    assert json.loads(seen.read_text())["model"] == [1.5, 1.5, 1.5]
