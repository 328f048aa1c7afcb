"""The courier: what is put comes back, whole and verified, whatever is cut, repeated, full or lying."""

from __future__ import annotations

import datetime
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.errors import (
    ConfedError,
    EncodingError,
    MissingFileError,
    MissingObjectError,
    PortInUseError,
    SizeError,
    StorageError,
    TamperedError,
    TruncatedError,
    UnreachableError,
)
from confed.governor import incoming, object_store
from confed.governor.courier import Courier, Limits, serve_courier
from confed.wire import courier_client
from confed.wire.addresses import LETTER_BYTES
from confed.wire.channel import Endpoint, RunningServer, TlsIdentity, open_channel, serve
from confed.wire.courier_client import CourierClient
from confed.wire.patience import PAUSES_S
from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

PART = 1024 * 1024
MIB = bytes(range(256)) * 4096
THREE = MIB + MIB[::-1] + MIB[:1234]


class Cut(Exception):  # noqa: N818
    """The connection breaks here."""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parts_of(data: bytes, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield parts up to ``stop``, then break the connection; the whole and no break without."""
    end = len(data) if stop is None else stop
    for offset in range(start, end, PART):
        yield offset, data[offset : min(offset + PART, end)]
    if stop is not None:
        raise Cut


def cut_upload(courier: Courier, data: bytes, *, stop: int, start: int = 0, digest: str = "") -> None:
    with pytest.raises(Cut):
        courier.objects.receive(
            digest or digest_of(data), size_bytes=len(data), offset=start, parts=parts_of(data, start=start, stop=stop)
        )


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.fixture
def courier(tmp_path: Path) -> Courier:
    return Courier(tmp_path / "courier", durable=False)


@pytest.fixture
def server(courier: Courier, tmp_path: Path) -> Iterator[RunningServer]:
    with serve_courier(courier, listen=f"unix:{tmp_path}/socket", tls=None) as running:
        yield running


class Naps:
    """Counts how long a client would have slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def client(server: RunningServer) -> Iterator[CourierClient]:
    with CourierClient(server.endpoint, sleep=Naps()) as opened:
        yield opened


@pytest.mark.parametrize("data", [b"", b"x", MIB, MIB + b"y", THREE], ids=["empty", "byte", "part", "part+1", "three"])
def test_what_is_put_comes_back_and_again_putting_it_changes_nothing(
    courier: Courier, client: CourierClient, tmp_path: Path, data: bytes
) -> None:
    digest = client.put(data)
    assert digest == digest_of(data)
    assert client.get(digest) == data
    used = courier.used_bytes
    assert client.put(memoryview(data)) == digest
    assert courier.used_bytes == used == len(data)
    source = tmp_path / "source"
    source.write_bytes(data)
    assert client.put(source) == digest
    client.get_to_file(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert files_in(courier.path(digest).parents[2] / "partial") == []


def test_it_works_over_tls_too(tmp_path: Path) -> None:
    tls = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))
    with (
        serve_courier(tmp_path, listen="127.0.0.1:0", tls=tls) as running,
        CourierClient(running.endpoint) as client,
    ):
        assert client.get(client.put(THREE)) == THREE


@settings(max_examples=30, deadline=None)
@given(stops=st.lists(st.integers(min_value=1, max_value=len(THREE) - 1), min_size=1, max_size=3, unique=True))
def test_an_upload_cut_anywhere_goes_on_where_it_stopped(
    stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    courier = Courier(tmp_path_factory.mktemp("courier"), durable=False)
    digest, start = digest_of(THREE), 0
    for stop in sorted(stops):
        cut_upload(courier, THREE, start=start, stop=stop)
        found = courier.progress(digest)
        assert (found.stored_bytes, found.complete) == (stop, False)
        assert courier.used_bytes == stop
        start = stop
    rest = courier.objects.receive(digest, size_bytes=len(THREE), offset=start, parts=parts_of(THREE, start=start))
    assert rest == len(THREE)
    assert courier.path(digest).read_bytes() == THREE
    assert courier.used_bytes == len(THREE)


def test_a_client_sends_only_what_is_not_there(
    courier: Courier, client: CourierClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_upload(courier, THREE, stop=PART + 7)
    offsets: list[int] = []
    receive = courier.objects.receive

    def watch(digest: str, *, size_bytes: int, offset: int, parts: Iterator[tuple[int, bytes]]) -> int:
        offsets.append(offset)
        return receive(digest, size_bytes=size_bytes, offset=offset, parts=parts)

    monkeypatch.setattr(courier.objects, "receive", watch)
    assert client.get(client.put(THREE)) == THREE
    assert offsets == [PART + 7]
    client.put(THREE)
    assert offsets == [PART + 7]  # Asked, found complete, not sent.


def test_a_client_that_hangs_up_leaves_a_part_that_the_next_one_continues(
    courier: Courier, server: RunningServer
) -> None:
    digest, first_sent, hang_up = digest_of(THREE), threading.Event(), threading.Event()

    def messages() -> Iterator[pb.PutPart]:
        yield pb.PutPart(digest=digest, size_bytes=len(THREE), data=THREE[:PART])
        first_sent.set()
        hang_up.wait(10)

    with open_channel(server.endpoint) as channel:
        call = services.CourierStub(channel).Put.future(messages())
        assert first_sent.wait(10)
        wait_until(lambda: [path.stat().st_size for path in uploads(courier)] == [PART])
        call.cancel()
        hang_up.set()
    wait_until(lambda: courier.progress(digest).stored_bytes == PART)
    with CourierClient(server.endpoint) as client:
        assert client.get(client.put(THREE)) == THREE


def uploads(courier: Courier) -> list[Path]:
    return files_in(courier.objects._partial)  # pyright: ignore[reportPrivateUsage]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_an_upload_interrupted_by_kill_is_continued_after_a_restart(tmp_path: Path) -> None:
    digest = digest_of(THREE)
    Courier(tmp_path)
    (tmp_path / "partial" / f"{digest}.0123").write_bytes(THREE[: PART + 3])
    (tmp_path / "partial" / f"{digest}.4567").write_bytes(THREE[:99])
    (tmp_path / "letters" / "ab").mkdir()
    (tmp_path / "letters" / "ab" / ".00000-half").write_bytes(b"half")
    again = Courier(tmp_path)
    assert again.progress(digest).stored_bytes == again.used_bytes == PART + 3
    assert len(files_in(tmp_path)) == 1
    parts = parts_of(THREE, start=PART + 3)
    again.objects.receive(digest, size_bytes=len(THREE), offset=PART + 3, parts=parts)
    assert again.path(digest).read_bytes() == THREE


LONG, SHORT = THREE, MIB[::-1] + b"short"


@pytest.fixture
def spared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Courier, int]:
    """A courier with one spare file, and the file's inode."""
    monkeypatch.setattr(object_store, "_SPARE_BYTES", PART)
    courier = Courier(tmp_path)
    inode = courier.path(courier.put(LONG)).stat().st_ino
    courier.objects.remove(digest_of(LONG), reuse=True)
    assert courier.used_bytes == len(LONG)
    return courier, inode


@pytest.mark.parametrize("data", [SHORT, LONG, LONG + LONG], ids=["shorter", "the same", "longer"])
def test_a_large_upload_writes_over_a_spare_file_and_holds_nothing_else(
    spared: tuple[Courier, int], tmp_path: Path, data: bytes
) -> None:
    courier, inode = spared
    path = courier.path(courier.put(data))
    assert (path.stat().st_ino, path.read_bytes()) == (inode, data)
    assert courier.used_bytes == len(data)
    assert files_in(tmp_path) == [path]


def test_an_upload_over_a_spare_file_that_is_cut_goes_on_and_one_that_is_wrong_leaves_nothing(
    spared: tuple[Courier, int], tmp_path: Path
) -> None:
    courier, _ = spared
    cut_upload(courier, SHORT, stop=PART)
    assert courier.progress(digest_of(SHORT)).stored_bytes == courier.used_bytes == PART
    courier.objects.receive(digest_of(SHORT), size_bytes=len(SHORT), offset=PART, parts=parts_of(SHORT, start=PART))
    assert courier.path(digest_of(SHORT)).read_bytes() == SHORT
    courier.objects.remove(digest_of(SHORT), reuse=True)
    with pytest.raises(TamperedError):
        courier.objects.receive(digest_of(SHORT), size_bytes=len(LONG), offset=0, parts=parts_of(LONG))
    assert (files_in(tmp_path), courier.used_bytes) == ([], 0)


def test_a_crash_leaves_nothing_of_spare_files_nor_of_what_was_written_over_one(
    spared: tuple[Courier, int], tmp_path: Path
) -> None:
    (tmp_path / "partial" / f"{digest_of(SHORT)}.0123.over").write_bytes(SHORT[:PART] + LONG[PART:])
    again = Courier(tmp_path)
    assert (files_in(tmp_path), again.used_bytes) == ([], 0)
    assert again.progress(digest_of(SHORT)).stored_bytes == 0


def test_spare_files_give_way_and_small_ones_and_what_may_still_be_read_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_SPARE_BYTES", PART)
    courier = Courier(tmp_path, limits=Limits(store_bytes=2 * len(LONG)))
    for data, reuse in ((b"small", True), (SHORT, False)):
        courier.objects.remove(courier.put(data), reuse=reuse)
        assert courier.used_bytes == 0
    courier.objects.remove(courier.put(LONG), reuse=True)
    with pytest.raises(SizeError):
        courier.put(LONG * 3)
    assert courier.put(LONG + MIB) in courier.path(digest_of(LONG + MIB)).name
    assert courier.used_bytes == len(LONG + MIB)


def test_bytes_of_another_digest_are_refused_and_leave_nothing(courier: Courier, client: CourierClient) -> None:
    for data in (b"small", THREE):
        with pytest.raises(TamperedError):
            client.put(data, digest=digest_of(b"other"))
    assert files_in(courier.objects._partial.parent) == []  # pyright: ignore[reportPrivateUsage]
    assert courier.used_bytes == 0


def test_a_poisoned_part_costs_one_more_attempt_and_no_more(courier: Courier, client: CourierClient) -> None:
    cut_upload(courier, bytes(len(THREE)), stop=PART, digest=digest_of(THREE))
    assert client.get(client.put(THREE)) == THREE
    assert courier.used_bytes == len(THREE)


@pytest.mark.parametrize(
    "name",
    ["", "../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 64 + "/..", "..", "\x00" * 64],
)
def test_a_digest_that_is_none_touches_no_file(server: RunningServer, client: CourierClient, name: str) -> None:
    for call in (
        lambda: client.get(name),
        lambda: client.put(b"x", digest=name),
        lambda: client.read_unverified(name, offset=0, size_bytes=1),
        lambda: client.get_to_file(name, Path("never")),
    ):
        with pytest.raises(EncodingError):
            call()
    with open_channel(server.endpoint) as channel:
        stub = services.CourierStub(channel)
        assert stub.Put(iter([pb.PutPart(digest=name, size_bytes=1, data=b"x")])).refusal.code == "encoding"
        assert next(stub.Get(pb.GetCall(digest=name))).refusal.code == "encoding"
        with pytest.raises(grpc.RpcError) as refused:
            stub.Progress(pb.ProgressCall(digest=name))
        assert refused.value.details() == "encoding"  # pyright: ignore[reportAttributeAccessIssue]
        assert stub.Put(iter(())).refusal.code == "encoding"


@pytest.mark.parametrize(
    "topic", ["", "/", "/etc/passwd", "a//b", "a/../b", "..", ".", "a/.", "a\\b", "a\nb", "a" * 241]
)
def test_a_topic_that_is_none_touches_no_file(
    courier: Courier, server: RunningServer, client: CourierClient, topic: str
) -> None:
    for call in (lambda: client.post(topic, b"x"), lambda: client.collect(topic)):
        with pytest.raises(EncodingError):
            call()
    with open_channel(server.endpoint) as channel:
        stub = services.CourierStub(channel)
        assert stub.Post(pb.Letter(topic=topic, body=b"x")).refusal.code == "encoding"
        with pytest.raises(grpc.RpcError):
            stub.Collect(pb.CollectCall(topic=topic))
    assert courier.used_bytes == 0


def test_letters_come_back_in_order_once_each_also_after_a_restart(
    courier: Courier, client: CourierClient, tmp_path: Path
) -> None:
    bodies = [b"third", b"", b"first", b"second"]
    for body in [*bodies, b"first", b"third"]:
        client.post("run 1/evidence/St. Mary", body)
    client.post("run 1/evidence", b"elsewhere")
    assert client.collect("run 1/evidence/St. Mary") == bodies
    assert client.collect("nobody/wrote") == []
    again = Courier(tmp_path / "courier")
    assert again.collect("run 1/evidence/St. Mary") == bodies
    assert again.used_bytes == courier.used_bytes == sum(map(len, bodies)) + len(b"elsewhere")


def test_everything_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(object_bytes=10, store_bytes=25, topics=2, topic_bytes=5)
    courier = Courier(tmp_path, limits=limits, durable=False)
    courier.post("one", b"1234")
    courier.put(b"0123456789")
    refusals: dict[str, Callable[[], object]] = {
        "an object above its bound": lambda: courier.put(b"0123456789a"),
        "a topic above its bound": lambda: courier.post("one", b"56"),
        "a letter above its bound": lambda: Courier(tmp_path / "other").post("two", bytes(LETTER_BYTES + 1)),
        "more parts than announced": lambda: courier.objects.receive(
            digest_of(b"abc"), size_bytes=2, offset=0, parts=[(0, b"abc")]
        ),
        "a part above 1 MiB": lambda: Courier(tmp_path / "other").objects.receive(
            digest_of(THREE), size_bytes=len(THREE), offset=0, parts=[(0, THREE[: PART + 1])]
        ),
    }
    for call in refusals.values():
        with pytest.raises(SizeError):
            call()
    courier.put(b"abcdefghij")
    assert courier.used_bytes == 24
    with pytest.raises(SizeError):
        courier.put(b"zz")
    with pytest.raises(SizeError):
        courier.post("two", b"zz")
    courier.remove(digest_of(b"abcdefghij"))
    courier.post("two", b"zz")
    with pytest.raises(SizeError):
        courier.post("three", b"z")
    monkeypatch.setattr("confed.governor.letter_box.LETTERS_PER_TOPIC", 1)
    with pytest.raises(SizeError):
        courier.post("two", b"y")
    assert courier.collect("two") == [b"zz"]
    assert courier.used_bytes == sum(path.stat().st_size for path in files_in(tmp_path) if "other" not in path.parts)


@pytest.mark.parametrize("second", [0, 5, PART - 1, PART + 1])
def test_parts_that_do_not_follow_each_other_are_refused_and_what_came_before_stays(
    courier: Courier, second: int
) -> None:
    digest = digest_of(THREE)
    with pytest.raises(EncodingError):
        courier.objects.receive(
            digest, size_bytes=len(THREE), offset=0, parts=[(0, THREE[:PART]), (second, THREE[PART : 2 * PART])]
        )
    assert courier.progress(digest).stored_bytes == courier.used_bytes == PART


def test_a_quota_that_is_spent_is_refused_by_code_and_abandoned_uploads_give_way(tmp_path: Path) -> None:
    courier = Courier(tmp_path / "courier", limits=Limits(store_bytes=2 * PART), durable=False)
    cut_upload(courier, MIB[::-1], stop=PART - 1)
    with (
        serve_courier(courier, listen=f"unix:{tmp_path}/socket", tls=None) as running,
        CourierClient(running.endpoint) as client,
    ):
        client.put(MIB)
        assert courier.progress(digest_of(MIB[::-1])).stored_bytes == PART - 1
        client.put(MIB[2:])
        assert courier.progress(digest_of(MIB[::-1])).stored_bytes == 0
        with pytest.raises(SizeError):
            client.put(b"123")
        client.put(b"12")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_or_failing_disk_is_a_code_and_the_service_goes_on(
    courier: Courier, client: CourierClient, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(self: object, offset: int, data: bytes) -> None:
        del self, offset, data
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(incoming.Upload, "append", full)  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(StorageError):
            client.put(MIB)
        with pytest.raises(StorageError):
            courier.put(MIB)
    assert courier.used_bytes == 0
    assert client.get(client.put(MIB)) == MIB


def test_a_write_that_fails_half_way_keeps_only_what_was_counted(courier: Courier) -> None:
    def parts() -> Iterator[tuple[int, bytes]]:
        yield 0, THREE[:PART]
        (path,) = uploads(courier)
        with path.open("ab") as file:
            file.write(b"half of a part")
        raise Cut

    with pytest.raises(Cut):
        courier.objects.receive(digest_of(THREE), size_bytes=len(THREE), offset=0, parts=parts())
    assert courier.progress(digest_of(THREE)).stored_bytes == PART
    courier.objects.receive(digest_of(THREE), size_bytes=len(THREE), offset=PART, parts=parts_of(THREE, start=PART))
    assert courier.path(digest_of(THREE)).read_bytes() == THREE


def test_uploads_of_the_same_bytes_at_once_do_not_disturb_each_other(courier: Courier, server: RunningServer) -> None:
    barrier = threading.Barrier(6)

    def put(number: int) -> str:
        with CourierClient(server.endpoint) as client:
            barrier.wait(10)
            # Some of them are cut half-way first, so that parts change hands as well.
            if number % 2:
                cut_upload(courier, THREE, stop=PART + number)
            return client.put(THREE)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(put, range(6))) == {digest_of(THREE)}
    assert courier.path(digest_of(THREE)).read_bytes() == THREE
    assert uploads(courier) == []
    assert courier.used_bytes == len(THREE)


def test_two_uploads_interleaved_part_by_part_both_end_well(courier: Courier) -> None:
    """The second begins and ends while the first is half-way; the first then finds the object there."""
    digest = digest_of(THREE)

    def parts() -> Iterator[tuple[int, bytes]]:
        for offset, data in parts_of(THREE):
            yield offset, data
            if not offset:
                assert courier.put(THREE) == digest

    assert courier.objects.receive(digest, size_bytes=len(THREE), offset=0, parts=parts()) == len(THREE)
    assert courier.path(digest).read_bytes() == THREE
    assert courier.used_bytes == len(THREE)
    assert uploads(courier) == []


@pytest.mark.parametrize("data", [b"small", THREE], ids=["small", "large"])
def test_a_lying_courier_is_found_out(courier: Courier, client: CourierClient, tmp_path: Path, data: bytes) -> None:
    digest = client.put(data)
    path, target = courier.path(digest), tmp_path / "target"
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    for lie in (flipped, data + b"x", data[:-1], b""):
        path.write_bytes(lie)
        for call in (lambda: client.get(digest), lambda: client.get_to_file(digest, target)):
            with pytest.raises(TamperedError):
                call()
            assert not target.exists()
    path.write_bytes(data)
    client.get_to_file(digest, target)
    assert target.read_bytes() == data


class _Liar(services.CourierServicer):
    """Answers Get with what it is told to, one list of parts a call; an exception in it breaks the connection."""

    def __init__(self, *answers: list[pb.GetPart | None]) -> None:
        self.answers = list(answers)
        self.offsets: list[int] = []

    def Get(self, request: pb.GetCall, context: grpc.ServicerContext) -> Iterator[pb.GetPart]:  # noqa: N802
        self.offsets.append(request.offset)
        for part in self.answers.pop(0):
            if part is None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            yield part

    def Collect(self, request: pb.CollectCall, context: grpc.ServicerContext) -> pb.CollectReply:  # noqa: N802
        del request, context
        return pb.CollectReply(bodies=[bytes(LETTER_BYTES + 1)])


def lying(liar: _Liar, tmp_path: Path) -> RunningServer:
    return serve(
        lambda server: services.add_CourierServicer_to_server(liar, server), listen=f"unix:{tmp_path}/liar", tls=None
    )


LIES: dict[str, tuple[list[pb.GetPart | None], type[ConfedError]]] = {
    "nothing at all": ([], TruncatedError),
    "fewer bytes than announced": ([pb.GetPart(size_bytes=3, data=b"ab")], TruncatedError),
    "more bytes than announced": ([pb.GetPart(size_bytes=2, data=b"abc")], TamperedError),
    "more bytes than a client takes": ([pb.GetPart(size_bytes=1001, data=b"a")], SizeError),
    "other bytes": ([pb.GetPart(size_bytes=3, data=b"abd")], TamperedError),
    "another size after a cut": ([pb.GetPart(size_bytes=3, data=b"a"), None], TamperedError),
    "a refusal half-way": (
        [pb.GetPart(size_bytes=3, data=b"a"), pb.GetPart(refusal=pb.Refusal(code="storage"))],
        StorageError,
    ),
}


@pytest.mark.parametrize(("answer", "refusal"), LIES.values(), ids=list(LIES))
def test_lies_of_every_kind_are_refused(
    tmp_path: Path, answer: list[pb.GetPart | None], refusal: type[ConfedError]
) -> None:
    later: list[pb.GetPart | None] = [pb.GetPart(size_bytes=4, data=b"bc")]
    gets: list[Callable[[CourierClient], object]] = [
        lambda client: client.get(digest_of(b"abc")),
        lambda client: client.get_to_file(digest_of(b"abc"), tmp_path / "target", limit_bytes=1000),
        lambda client: list(client.stream(digest_of(b"abc"))),
    ]
    for get in gets:
        with lying(_Liar(answer, later), tmp_path) as server:  # noqa: SIM117
            with CourierClient(server.endpoint, limit_bytes=1000, sleep=Naps()) as client, pytest.raises(refusal):
                get(client)
        assert not (tmp_path / "target").exists()
        for leftover in tmp_path.glob(".target*"):
            leftover.unlink()


def test_letters_larger_than_letters_can_be_are_refused(tmp_path: Path) -> None:
    with lying(_Liar(), tmp_path) as server, CourierClient(server.endpoint) as client, pytest.raises(SizeError):
        client.collect("topic")


@pytest.mark.parametrize("cuts", [[0], [1], [2, 1], [0, 0, 3]])
def test_a_download_cut_anywhere_goes_on_where_it_stopped(tmp_path: Path, cuts: list[int]) -> None:
    data = b"abcdefgh"
    answers: list[list[pb.GetPart | None]] = []
    offsets = [0]
    for received in cuts:
        start = offsets[-1]
        first = [pb.GetPart(size_bytes=8, data=data[start : start + received])] if received else []
        answers.append([*first, None])
        offsets.append(start + received)
    answers.append([pb.GetPart(size_bytes=8, data=data[offsets[-1] :])])
    for to_file in (False, True):
        liar, naps = _Liar(*[list(answer) for answer in answers]), Naps()
        with lying(liar, tmp_path) as server, CourierClient(server.endpoint, sleep=naps) as client:
            if to_file:
                client.get_to_file(digest_of(data), tmp_path / "target")
                assert (tmp_path / "target").read_bytes() == data
            else:
                assert client.get(digest_of(data)) == data
        assert liar.offsets == offsets
        assert naps.slept == list(PAUSES_S[: len(cuts)])


def test_a_download_that_was_killed_goes_on_and_a_false_beginning_is_thrown_away(
    client: CourierClient, tmp_path: Path
) -> None:
    digest, target = client.put(THREE), tmp_path / "target"
    partial = tmp_path / f".target.{digest}.partial"
    for beginning in (THREE[: PART + 5], bytes(PART), THREE, THREE + b"more", b""):
        partial.write_bytes(beginning)
        client.get_to_file(digest, target)
        assert target.read_bytes() == THREE
        assert not partial.exists()
        target.unlink()


def test_downloads_to_one_path_at_once_do_not_disturb_each_other(client: CourierClient, tmp_path: Path) -> None:
    digest = client.put(THREE)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client.get_to_file, digest, tmp_path / "target") for _ in range(12)]
        for future in waiting:
            future.result()
    assert (tmp_path / "target").read_bytes() == THREE
    assert list(tmp_path.glob(".target*")) == []


@pytest.mark.parametrize("taken_again", [False, True])
def test_a_partial_file_that_another_download_finished_first_is_left_alone(
    client: CourierClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, taken_again: bool
) -> None:
    digest, target, finished = client.put(THREE), tmp_path / "target", tmp_path / "finished"
    partial = tmp_path / f".target.{digest}.partial"
    partial.write_bytes(b"of another download")
    flock = fcntl.flock

    def lock_after_the_other_is_done(file: int, operation: int) -> None:
        if not finished.exists():
            partial.rename(finished)
            if taken_again:
                partial.write_bytes(b"of a third download")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_after_the_other_is_done)
    client.get_to_file(digest, target)
    assert target.read_bytes() == THREE
    assert finished.read_bytes() == b"of another download"
    assert partial.exists() == taken_again


def test_a_range_is_read_where_it_lies(client: CourierClient) -> None:
    digest = client.put(THREE)
    for offset, size in ((0, 0), (0, 1), (PART - 1, 3), (5, 2 * PART), (len(THREE) - 1, 1)):
        assert client.read_unverified(digest, offset=offset, size_bytes=size) == THREE[offset : offset + size]
    with pytest.raises(TruncatedError):
        client.read_unverified(digest, offset=len(THREE) - 1, size_bytes=2)
    with pytest.raises(SizeError):
        client.read_unverified(digest, offset=len(THREE) + 1, size_bytes=1)


def test_what_is_not_there_is_named(client: CourierClient, tmp_path: Path) -> None:
    missing = digest_of(b"never put")
    for call in (
        lambda: client.get(missing),
        lambda: client.get_to_file(missing, tmp_path / "target"),
        lambda: client.read_unverified(missing, offset=0, size_bytes=1),
    ):
        with pytest.raises(MissingObjectError):
            call()
    assert not (tmp_path / "target").exists()
    digest = client.put(b"x")
    with pytest.raises(MissingFileError):
        client.put(tmp_path / "no such file")
    with pytest.raises(MissingFileError):
        client.get_to_file(digest, tmp_path / "no" / "folder")


def test_a_file_that_shrinks_while_it_is_sent_is_refused(client: CourierClient, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(THREE)

    class Shrinking(courier_client.FileSource):
        def read(self, offset: int) -> bytes:
            if offset:
                path.write_bytes(THREE[:PART])
            return super().read(offset)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(courier_client, "FileSource", Shrinking)
        with pytest.raises(TruncatedError):
            client.put(path)


def test_a_courier_that_is_down_is_unreachable_after_pauses_that_double(tmp_path: Path) -> None:
    calls: list[Callable[[CourierClient], object]] = [
        lambda client: client.put(b"x"),
        lambda client: client.put(THREE),
        lambda client: client.get(digest_of(b"x")),
        lambda client: client.post("topic", b"x"),
        lambda client: client.collect("topic"),
    ]
    for call in calls:
        naps = Naps()
        endpoint = Endpoint(target=f"unix:{tmp_path}/nobody", certificate="")
        with CourierClient(endpoint, sleep=naps) as client, pytest.raises(UnreachableError) as refused:
            call(client)
        assert refused.value.field == "courier"
        assert naps.slept == list(PAUSES_S)
        assert all(later == 2 * sooner for sooner, later in pairwise(PAUSES_S))


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    tls = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))
    with (
        serve_courier(tmp_path / "one", listen="127.0.0.1:0", tls=tls) as running,
        pytest.raises(PortInUseError),
    ):
        serve_courier(tmp_path / "two", listen=running.endpoint.target, tls=tls)


def test_what_nobody_foresaw_becomes_a_code(
    courier: Courier, client: CourierClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("details that must not travel")

    monkeypatch.setattr(courier.objects, "receive", broken)
    with pytest.raises(ConfedError) as refused:
        client.put(b"x")
    assert type(refused.value).code == "refused"
    assert "details" not in str(refused.value)
    assert "details" in caplog.text


def test_64_mib_go_through_at_a_speed_that_is_printed(tmp_path: Path) -> None:
    tls = TlsIdentity.generate(now=datetime.datetime.now(datetime.UTC))
    data = MIB * 64
    with (
        serve_courier(tmp_path, listen="127.0.0.1:0", tls=tls) as running,
        CourierClient(running.endpoint) as client,
    ):
        started = time.perf_counter()
        digest = client.put(data)
        stored = time.perf_counter()
        assert client.get(digest) == data
        fetched = time.perf_counter()
    rates = [len(data) / 1e9 / seconds for seconds in (stored - started, fetched - stored)]
    print(f"courier over TLS, one process: put {rates[0]:.2f} GB/s, get {rates[1]:.2f} GB/s")  # noqa: T201
