"""For ``benchmarks.inference``: one model served twice, sealed by a confined inference TEE and in the clear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from confed.cli.model import seal_model
from confed.experiment.serving import HostFolders, serving_manifest, start_replica
from confed.inference.client import ConfidentialClient
from confed.inference.listening import address_of, bound_socket
from confed.inference.requester import RequesterPolicy
from confed.keybroker.broker import Broker
from confed.keybroker.client import BrokerServer
from confed.keybroker.identity import OwnerHome
from confed.keybroker.server import serve_brokers
from confed.manifest import Manifest
from confed.scenario import Scenario

NAME, OWNER = "served", "anna"
APP = Path(__file__).parent / "inference_app"
ROOT = Path(__file__).parent.parent


@dataclass(kw_only=True)
class Pair:
    """A model's owner with a broker that listens, and what it takes to start either server."""

    folder: Path
    engine: str
    settings: Mapping[str, Any]
    plain_model: Path
    manifest: Manifest
    broker: BrokerServer

    @contextmanager
    def sealed(self) -> Iterator[tuple[ConfidentialClient, float]]:
        """A replica, a client that has verified it, and the seconds from starting it to its being ready."""
        read, write = os.pipe()
        started = time.perf_counter()
        process = start_replica(
            self.folder / "serving.toml", self.manifest, broker=self.broker, home=self.folder / "home", output=write,
            listener=bound_socket("127.0.0.1:0", loopback_only=True), most_at_once=128,
            kept=HostFolders(answers=None, records=None),
        )  # fmt: skip
        os.close(write)
        try:
            with os.fdopen(read) as lines:
                told = json.loads(lines.readline())
                took = time.perf_counter() - started
                with ConfidentialClient(told["url"], policy=RequesterPolicy.of(self.manifest)) as client:
                    client.verify()
                    yield client, took
        finally:
            process.terminate()
            process.wait()

    @contextmanager
    def plain(self) -> Iterator[tuple[httpx.Client, float]]:
        """The plain server, a client of it, and the seconds from starting it to its being ready."""
        listener = bound_socket("127.0.0.1:0", loopback_only=True)
        words = ["--engine", self.engine, "--model", str(self.plain_model), "--listen-fd", str(listener.fileno())]
        words += ["--settings", json.dumps(dict(self.settings)), "--name", NAME]
        url, started = address_of(listener), time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.inference_app.plain", *words],
            pass_fds=(listener.fileno(),), stdout=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        listener.close()
        try:
            (process.stdout or sys.stdin).readline()
            took = time.perf_counter() - started
            limits = httpx.Limits(max_connections=1024, max_keepalive_connections=64)
            with httpx.Client(base_url=url, timeout=600, limits=limits, trust_env=False) as client:
                yield client, took
        finally:
            process.terminate()
            process.wait()


@contextmanager
def pair(folder: Path, *, engine: str, settings: Mapping[str, Any], write: Callable[[Path], Path]) -> Iterator[Pair]:
    """A pair in a folder of its own; ``write`` makes the plain model (a file, or a directory that is served from)."""
    folder.mkdir()
    home = folder / "home"
    home.mkdir()
    os.environ["CONFED_HOME"] = str(home)
    made = write(folder)
    owner = OwnerHome.create(OWNER, home=home, environment="simulation", now_ms=time.time_ns() // 1_000_000)
    try:
        seal_model(
            made, owner=OWNER, recipients=(), target=folder / "model.sealed", force=False, least_cohort=2,
            total_rounds=10, strategies=(), scenarios=(Scenario.INFERENCE,), adapter=None,
        )  # fmt: skip
        told = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
        (folder / "serving.toml").write_text(
            f'name = "{NAME}"\nenvironment = "simulation"\nengine = "{engine}"\n'
            f'[model]\nowner = "{OWNER}"\nfile = "model.sealed"\n[settings]\n{told}\n'
        )
        (folder / "engine.py").write_bytes((APP / "engine.py").read_bytes())
        manifest = serving_manifest(folder / "serving.toml", home=home)
        owner.approve(manifest)
        brokers = {owner.party.broker: Broker.of(owner)}
        with serve_brokers(brokers, listen=f"unix:{folder}/b.sock", tls=None) as server:
            where = server.endpoint
            yield Pair(
                folder=folder, engine=engine, settings=settings, plain_model=plain_file(made, folder),
                manifest=manifest,
                broker=BrokerServer(target=where.target, certificate=where.certificate, brokers=(owner.party.broker,)),
            )  # fmt: skip
    finally:
        owner.close()


def plain_file(made: Path, folder: Path) -> Path:
    """Return the plain model as one safetensors file, documents and all: what a sealed one is opened to."""
    if made.is_file():
        return made
    from confed.model.hub import read_directory
    from confed.model.weights import pack

    path = folder / "plain.safetensors"
    with path.open("wb") as file:
        for part in pack(read_directory(made)):
            file.write(part)
    return path
