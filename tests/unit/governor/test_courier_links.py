"""The courier over links that are cut, slow or full: transfers go on where they stopped and memory stays flat."""

from __future__ import annotations

import datetime
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from benchmarks.link import Direction, Link
from confed.errors import DiskFullError, UnreachableError
from confed.governor import incoming
from confed.governor.courier import Courier, serve_courier
from confed.wire.channel import Endpoint, RunningServer, TlsIdentity, open_channel, serve
from confed.wire.courier_client import CourierClient
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

MIB = 1024 * 1024
LARGE = 400_000_000
CUTS = tuple(range(60_000_000, 400_000_000, 70_000_000))
LOST_A_CUT = 24 * MIB
"""What may be under way in buffers and windows of both ends and of the link when it is cut."""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of 400 MB that no compression and no accident makes equal to another."""
    path, block = tmp_path / "large", os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(-(-LARGE // MIB)):
            file.write(number.to_bytes(8, "big") + block[8:])
        file.truncate(LARGE)
    return path


@pytest.fixture
def tls() -> TlsIdentity:
    return TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_400_mb_cut_five_times_each_way_resume_and_do_not_start_over(
    large: Path, tmp_path: Path, tls: TlsIdentity
) -> None:
    digest = digest_of(large)
    courier = Courier(tmp_path / "courier", durable=False)
    up, down = Direction(cuts=CUTS), Direction(cuts=CUTS)
    with (
        serve_courier(courier, listen="127.0.0.1:0", tls=tls) as server,
        Link(server.endpoint, up=up, down=down) as link,
        CourierClient(link.endpoint) as client,
    ):
        client.put(large, digest=digest)
        assert link.connections == 1 + len(CUTS)
        assert LARGE < up.bytes_passed < 1.03 * LARGE + len(CUTS) * LOST_A_CUT
        assert digest_of(courier.path(digest)) == digest
        assert courier.used_bytes == LARGE
        client.get_to_file(digest, tmp_path / "copy")
        assert link.connections == 1 + 2 * len(CUTS)
        assert LARGE < down.bytes_passed < 1.03 * LARGE + len(CUTS) * LOST_A_CUT
    assert digest_of(tmp_path / "copy") == digest


def put_parts(data: bytes, *, stop: int, gone: threading.Event) -> Iterator[pb.PutPart]:
    """Yield the parts up to ``stop``, then nothing until ``gone``, then one more: a peer that is gone without a word."""
    for offset in range(0, stop, MIB):
        size = len(data) if not offset else 0
        yield pb.PutPart(
            digest=hashlib.sha256(data).hexdigest(), size_bytes=size, offset=offset, data=data[offset : offset + MIB]
        )
    gone.wait(30)
    yield pb.PutPart(offset=stop, data=bytes(MIB))


def test_an_upload_whose_connection_is_gone_without_a_word_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "IDLE_S", 0.2)
    data, gone = os.urandom(5 * MIB + 3), threading.Event()
    courier = Courier(tmp_path / "courier", durable=False)
    digest = hashlib.sha256(data).hexdigest()
    with (
        serve_courier(courier, listen=f"unix:{tmp_path}/socket", tls=None) as server,
        open_channel(server.endpoint) as channel,
    ):
        try:
            stuck = services.CourierStub(channel).Put.future(put_parts(data, stop=3 * MIB, gone=gone))
            partial = tmp_path / "courier" / "partial"
            deadline = time.monotonic() + 10
            while [path.stat().st_size for path in partial.iterdir()] != [3 * MIB]:
                assert time.monotonic() < deadline
                threading.Event().wait(0.01)
            offsets: list[int] = []
            receive = courier.objects.receive

            def watch(asked: str, *, size_bytes: int, offset: int, parts: Iterator[tuple[int, bytes]]) -> int:
                offsets.append(offset)
                return receive(asked, size_bytes=size_bytes, offset=offset, parts=parts)

            monkeypatch.setattr(courier.objects, "receive", watch)
            with CourierClient(server.endpoint) as client:
                assert client.put(data) == digest
                assert client.get(digest) == data
            assert offsets == [3 * MIB]
            assert courier.used_bytes == len(data)
            assert list(partial.iterdir()) == []
        finally:
            gone.set()
        # The old connection ends by itself; what it comes back with is not written.
        with pytest.raises(grpc.RpcError):
            stuck.result(10)
    assert courier.path(digest).read_bytes() == data
    assert courier.used_bytes == len(data)


class _Silent(services.CourierServicer):
    """Takes every call and moves nothing."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended = threading.Event()

    def Put(self, request_iterator: Iterator[pb.PutPart], context: grpc.ServicerContext) -> pb.PutReply:  # noqa: N802
        del request_iterator, context
        self.calls += 1
        self.ended.wait(30)
        return pb.PutReply()

    def Get(self, request: pb.GetCall, context: grpc.ServicerContext) -> Iterator[pb.GetPart]:  # noqa: N802
        del request, context
        self.calls += 1
        yield pb.GetPart(size_bytes=2, data=b"a")
        self.ended.wait(30)


def test_a_courier_that_stands_still_is_unreachable_after_the_second_time(tmp_path: Path) -> None:
    silent = _Silent()
    with serve(
        lambda server: services.add_CourierServicer_to_server(silent, server),
        listen=f"unix:{tmp_path}/silent",
        tls=None,
    ) as server:
        with CourierClient(server.endpoint, stall_s=0.2, sleep=lambda _: None) as client:
            with pytest.raises(UnreachableError, match="progress"):
                client.put(b"x")
            assert silent.calls == 2
            with pytest.raises(UnreachableError, match="progress"):
                client.get("a" * 64)
        silent.ended.set()


def test_a_slow_link_takes_longer_than_any_call_may_stand_still(tmp_path: Path, tls: TlsIdentity) -> None:
    """100 ms each way and 20 Mbit/s, 8 MiB both ways: about seven seconds, none of which moves nothing."""
    data = os.urandom(8 * MIB)
    ways = [Direction(rate=20e6 / 8, delay_s=0.1) for _ in range(2)]
    naps: list[float] = []
    with (
        serve_courier(tmp_path / "courier", listen="127.0.0.1:0", tls=tls) as server,
        Link(server.endpoint, up=ways[0], down=ways[1]) as link,
        CourierClient(link.endpoint, stall_s=2.5, sleep=naps.append) as client,
    ):
        started = time.monotonic()
        digest = client.put(data)
        sent = time.monotonic()
        assert client.get(digest) == data
        fetched = time.monotonic()
    assert naps == []
    assert link.connections == 1
    for seconds in (sent - started, fetched - sent):
        assert seconds > 8 * MIB / (20e6 / 8)


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (entry for entry in status.splitlines() if entry.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


@pytest.fixture
def courier_process(tmp_path: Path) -> Iterator[tuple[int, Endpoint]]:
    """A courier as a process of its own, as it is deployed."""
    socket = f"unix:{tmp_path}/courier.sock"
    arguments = ["courier", "serve", "--directory", tmp_path / "store", "--listen", socket]
    process = subprocess.Popen(
        [sys.executable, "-m", "confed.cli.main", *map(str, arguments), "--endpoint-file", str(tmp_path / "endpoint")],
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "endpoint").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        yield process.pid, Endpoint(target=socket, certificate="")
    finally:
        process.terminate()
        process.wait(10)


def test_readers_that_do_not_read_and_writers_that_stop_cost_the_courier_no_memory(
    courier_process: tuple[int, Endpoint],
) -> None:
    pid, endpoint = courier_process
    count, data = 16, os.urandom(64 * MIB)
    with CourierClient(endpoint) as client:
        digest = client.put(data)
        assert client.get(digest) == data  # Whatever a first transfer allocates is there now.
    before = resident_mib(pid)
    gone = threading.Event()
    with ExitStack() as stack:
        stack.callback(gone.set)
        for number in range(count):
            channel = stack.enter_context(open_channel(endpoint))
            stub = services.CourierStub(channel)
            reader = stub.Get(pb.GetCall(digest=digest))
            stack.callback(reader.cancel)
            assert next(reader).size_bytes == len(data)  # One part, and then no more is read.
            other = number.to_bytes(1, "big") + data[1:]
            stack.callback(stub.Put.future(put_parts(other, stop=2 * MIB, gone=gone)).cancel)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            # A part or two for each of them; all that they ask for would be 2 GiB.
            assert resident_mib(pid) - before < count * 2 * 8
            threading.Event().wait(0.1)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a file system may not be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_is_told_by_name_and_what_was_there_stays(full_disk: Path, tmp_path: Path) -> None:
    with (
        serve_courier(full_disk / "courier", listen=f"unix:{tmp_path}/socket", tls=None) as server,
        CourierClient(server.endpoint) as client,
    ):
        small = client.put(os.urandom(3 * MIB))
        with pytest.raises(DiskFullError, match="disk is full") as refused:
            client.put(os.urandom(16 * MIB))
        assert refused.value.code == "disk-full"
        assert len(client.get(small)) == 3 * MIB
        (full_disk / "filler").write_bytes(bytes(_free(full_disk)))
        with pytest.raises(DiskFullError):
            client.post("topic", os.urandom(64 * 1024))
        assert client.collect("topic") == []
        (full_disk / "filler").unlink()
        client.post("topic", b"there is room again")
        assert client.collect("topic") == [b"there is room again"]


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_server_that_is_started_again_is_found_within_the_patience(tmp_path: Path, tls: TlsIdentity) -> None:
    data = os.urandom(3 * MIB)
    first = serve_courier(tmp_path / "courier", listen="127.0.0.1:0", tls=tls)
    again: list[RunningServer] = []

    def restart() -> None:
        threading.Event().wait(2)
        again.append(serve_courier(tmp_path / "courier", listen=first.endpoint.target, tls=tls))

    with CourierClient(first.endpoint) as client:
        digest = client.put(data)
        first.stop(0)
        thread = threading.Thread(target=restart)
        thread.start()
        started = time.monotonic()
        assert client.get(digest) == data
        # Soon after it was back, and not when gRPC's own pauses would have ended.
        assert time.monotonic() - started < 2 + 8
        thread.join()
    again[0].stop()
