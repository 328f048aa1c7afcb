"""kill -9 of a client host in mid-upload, where calls wait in boxes at the courier: left out once, then it counts."""

from __future__ import annotations

import base64
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from road import CLIENT_CODE, OWNER, Road
from test_cut_off import SitesGrid

from confed.attestation.attesters.launch import AttesterTerms
from confed.attestation.tee.simulated import PROFILE
from confed.client.launch import LAUNCH_FILE, ClientLaunch
from confed.errors import CredentialError
from confed.flower.messages import use_local_task_identity
from confed.governor import calling
from confed.governor.calling import CallingGrid
from confed.governor.events import EventLog, EventName, read_events
from confed.governor.incoming import Upload
from confed.governor.rounds import RECORD, Rounds
from confed.keybroker.client import BrokerServer
from confed.manifest import UpdateTerms
from confed.wire.addresses import GOVERNOR_BOX
from confed.wire.boxes import Boxes
from confed.wire.channel import Endpoint

SITE = "north"
MIB = 1024 * 1024
APP = """
import confed.client
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp(mods=[confed.client.confidential])

@app.train()
def train(message, context):
    arrays = {name: Array(array.numpy() + 0.02) for name, array in message.content["arrays"].items()}
    metrics = MetricRecord({"num-examples": 20.0, "loss": 0.5})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)
"""


class Hosts:
    """The site's client host as a process, which may be killed and started again."""

    def __init__(self, road: Road, place: Path) -> None:
        self._road, self._place = road, place
        self._running: list[subprocess.Popen[bytes]] = []
        (place / "app.py").write_text(APP)

    def start(self) -> None:
        """Start one, as an instance of its own."""
        road = self._road
        instance = road.launch(measurement=CLIENT_CODE, shared=False)
        launch = ClientLaunch(
            manifest=base64.b64encode(road.manifest.encoded).decode(),
            attester=AttesterTerms(profile=PROFILE, instance=instance.to_bytes()),
            brokers=(
                BrokerServer(
                    target=road.servers[OWNER].endpoint.target, certificate="", brokers=tuple(road.broker_clients)
                ),
            ),
            courier=Endpoint(target=road.socket("courier"), certificate=""),
            sites=(SITE,),
            client_app=road.manifest.code.client_app,
            app_directory=str(self._place),
            readable=(),
            network=False,
        )
        path = self._place / f"launch-{len(self._running)}"
        path.write_bytes(launch.encode())
        with (self._place / "host.log").open("ab") as log:
            command = [sys.executable, str(Path(__file__).with_name("listening_host.py"))]
            environment = {**os.environ, LAUNCH_FILE: str(path)}
            self._running.append(subprocess.Popen(command, env=environment, stderr=log))

    def kill(self) -> None:
        """Kill the one that runs, at once."""
        self._running[-1].kill()
        self._running[-1].wait()


@pytest.fixture
def road(make_road: Callable[..., Road]) -> Road:
    """A model of 6 MB: an update comes in several parts."""
    update = UpdateTerms(norm_bound=1000.0, weight_cap=1000.0, loss_cap=None)
    road = make_road(
        model={"weight": np.zeros((1500, 1000), dtype=np.float32)},
        change=lambda manifest: dataclasses.replace(manifest, update=update),
    )
    road.aggregator()
    return road


@pytest.fixture
def hosts(road: Road, place: Path) -> Iterator[Hosts]:
    hosts = Hosts(road, place)
    hosts.start()
    yield hosts
    hosts.kill()


def stopped_half_way(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold the next upload after 2 MiB; return what says that it is there, and what lets it go on."""
    half, on = threading.Event(), threading.Event()
    append = Upload.append

    def holding(self: Upload, offset: int, data: bytes | memoryview) -> None:
        append(self, offset, data)
        if not half.is_set() and 2 * MIB <= self.written < self.size_bytes:
            half.set()
            on.wait(30)

    monkeypatch.setattr(Upload, "append", holding)
    return half, on


def test_it_is_left_out_of_the_round_and_counts_in_the_next(
    road: Road, hosts: Hosts, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "_AGAIN_S", 0.2)
    use_local_task_identity(run_id=1, node_id=1)
    with (
        EventLog(place / "events.jsonl") as events,
        road.courier_client() as letters,
        Boxes(Endpoint(target=road.socket("courier"), certificate=""), own=GOVERNOR_BOX) as boxes,
    ):
        sites = SitesGrid(road, listening={SITE})
        grid = CallingGrid(sites, boxes, record=RECORD, patience_s=30)  # pyright: ignore[reportArgumentType]
        rounds = Rounds(road.manifest, road.aggregators[0].governor, events, letters=letters, patience_s=30.0)

        def receive(waiting: set[str], *, until: Callable[[], bool] = lambda: False) -> None:
            deadline = time.monotonic() + 60
            while waiting and not until():
                assert time.monotonic() < deadline, (place / "host.log").read_text()
                for reply in grid.pull_messages(waiting):
                    waiting.discard(reply.metadata.reply_to_message_id)
                    rounds.receive(reply)

        messages = rounds.open(1, "train", grid)
        half, on = stopped_half_way(monkeypatch)
        on.set()  # the others' go through
        waiting = set(grid.push_messages(messages))
        half.clear()
        on.clear()
        receive(waiting, until=half.is_set)
        assert len(waiting) == 1
        hosts.kill()
        on.set()
        hosts.start()
        receive(waiting)
        rounds.close([])
        receive(set(grid.push_messages(rounds.open(2, "train", grid))))
        rounds.close([])
    every = {site.owner.identity for site in road.manifest.sites}
    assert set(road.candidate(1).cohort) == every - {road.manifest.site_named(SITE).owner.identity}
    assert set(road.candidate(2).cohort) == every
    told = tuple(read_events(place / "events.jsonl"))
    # The host that was started again is another instance, and a step has one at its broker.
    failed = [event.fields for event in told if event.event is EventName.CLIENT_FAILED]
    assert [(fields["round"], fields["site"], fields["code"]) for fields in failed] == [(1, SITE, CredentialError.code)]
    assert [body["round"] for body in road.events(SITE, "ticketed")] == [1, 2]
    # What it had sent of its update counts nowhere, and nothing of it is served.
    assert len(road.record(1).tickets) == len(road.land.sites) - 1
    assert (
        len({ticket.digest for number in (1, 2) for ticket in road.record(number).tickets})
        == 2 * len(road.land.sites) - 1
    )
