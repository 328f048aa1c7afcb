"""Refusals that a replica signs: what it notes before, what it never signs, and what a requester takes for one."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confed import canonical
from confed.errors import (
    BusyError,
    ConfedError,
    EncodingError,
    LeaseError,
    LineageError,
    MayHaveRunError,
    ReplayedError,
    SignatureError,
    SizeError,
    StaleEpochError,
    TamperedError,
    UnreachableError,
)
from confed.inference import epochs as epochs_module
from confed.inference.attempts import NotRunError, lost, refused
from confed.inference.epochs import EPOCH_MS, OVERLAP_MS, REMEMBERED_MS, Epochs
from confed.inference.exchange import Sealing
from confed.inference.header import REQUEST_MAGIC, HeaderReader
from confed.inference.messages import Request, RequestHead
from confed.inference.opening import Opening
from confed.inference.refusals import (
    REFUSAL_LIMIT_BYTES,
    Reason,
    Refusal,
    read_refusal,
    reason_of,
    told,
    verify_refusal,
)
from confed.inference.requester import VerifiedReplica
from confed.serving import Padding, PaddingTerms
from confed.statement import Signed, public_bytes, sign

MANIFEST, INSTANCE = "aa" * 32, "bb" * 32
START_MS = 1_800_000_000_000
PLAIN = PaddingTerms(kind=Padding.NONE, block_bytes=0)
SIGNING, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
ONE, OTHER = bytes(32), bytes([1]) * 32


class Ends:
    """A replica's epochs under a clock that a test moves, and requests to them."""

    def __init__(self) -> None:
        self.now = START_MS
        self.epochs = Epochs(manifest=MANIFEST, instance=INSTANCE, signing_key=SIGNING, now=lambda: self.now)
        self.epoch = self.epochs.current()

    def refuse(self, transcript: bytes = ONE) -> str | None:
        return self.epochs.refuse([self.epoch.name], transcript)

    def sealing(self) -> Sealing:
        return Sealing(manifest=MANIFEST, replicas=[(self.epoch.name, self.epoch.key)], padding=PLAIN)

    def opening(self, admit: Callable[[], None] = lambda: None) -> Opening:
        return Opening(epochs=self.epochs, manifest=MANIFEST, largest_bytes=1000, admit=admit)


def a_request(body: bytes = b"asked") -> Request:
    return Request(head=RequestHead(method="POST", path="/v1/chat", headers=()), body=body)


# What a replica notes.


def test_what_was_refused_is_not_taken_afterwards() -> None:
    ends = Ends()
    assert ends.refuse() == ends.epoch.name
    with pytest.raises(ReplayedError):
        ends.epoch.take(ONE)
    ends.epoch.take(OTHER)


def test_what_was_taken_is_never_refused_while_its_list_is_there_and_then_nothing_is_said() -> None:
    ends = Ends()
    ends.epoch.take(ONE)
    for later in (0, EPOCH_MS, OVERLAP_MS, REMEMBERED_MS - 1):
        ends.now += later
        with pytest.raises(ReplayedError):
            ends.refuse()
    assert ends.refuse(OTHER) == ends.epoch.name
    ends.now = START_MS + EPOCH_MS + OVERLAP_MS + REMEMBERED_MS
    assert ends.refuse() is None
    assert ends.refuse(OTHER) is None
    assert not ends.epochs._past


def test_keys_that_are_dropped_early_leave_their_lists() -> None:
    ends = Ends()
    ends.epoch.take(ONE)
    ends.epochs.drop_all()
    with pytest.raises(ReplayedError):
        ends.refuse()
    assert ends.refuse(OTHER) == ends.epoch.name
    assert ends.epochs.named(ends.epoch.name) is None


def test_a_request_to_nobodys_epoch_is_not_refused_by_signature() -> None:
    assert Ends().epochs.refuse(["cc" * 32], ONE) is None


def test_what_was_opened_while_there_was_a_key_does_not_run_once_it_has_gone() -> None:
    """The network keeps the last frame back, has a copy refused, and then sends the frame."""
    ends = Ends()
    asked = ends.sealing()
    *first, last = asked.request(a_request())
    held = ends.opening()
    for piece in first:
        held.feed(piece)
    ends.now += EPOCH_MS + OVERLAP_MS
    copy = ends.opening()
    with pytest.raises(StaleEpochError):
        copy.feed(b"".join(first))
    assert ends.epochs.refuse(asked.epochs, asked.transcript) == ends.epoch.name
    held.feed(last)
    with pytest.raises(StaleEpochError):
        held.finish()


def test_a_key_that_has_gone_opens_no_secret() -> None:
    ends = Ends()
    ends.epoch.close()
    with pytest.raises(StaleEpochError):
        ends.epoch.unwrap(b"", info=b"")


def test_a_full_list_refuses_without_a_note_since_it_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs_module, "MOST_REQUESTS", 1)
    ends = Ends()
    ends.epoch.take(ONE)
    assert ends.refuse(OTHER) == ends.epoch.name
    with pytest.raises(BusyError):
        ends.epoch.take(OTHER)
    with pytest.raises(ReplayedError):
        ends.refuse(ONE)
    assert len(ends.epoch._taken) == 1


def test_a_request_is_either_taken_or_refused_whoever_comes_first() -> None:
    ends, start = Ends(), threading.Barrier(8)

    def at_once(number: int) -> int:
        start.wait(20)
        try:
            ends.epoch.refuse(ONE) if number % 2 else ends.epoch.take(ONE)
        except ReplayedError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(at_once, range(8))) == 1


def test_who_is_not_admitted_is_known_and_nothing_of_it_is_opened() -> None:
    def full() -> None:
        raise BusyError("answers at once")

    ends = Ends()
    asked = ends.sealing()
    opening = ends.opening(full)
    with pytest.raises(BusyError):
        opening.feed(b"".join(asked.request(a_request())))
    assert opening.header is not None
    assert (opening.header.transcript, opening.header.header.epochs) == (asked.transcript, asked.epochs)
    assert opening._opened is None
    assert not ends.epoch._taken


# What a requester takes for one.


def a_refusal(**changes: Any) -> Refusal:
    values: dict[str, Any] = {
        "manifest": MANIFEST, "instance": INSTANCE, "epoch": "cc" * 32, "request": ONE.hex(), "reason": Reason.BUSY,
    }  # fmt: skip
    return Refusal(**{**values, **changes})


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A refusal for a reason that is none."""

    TYPE: ClassVar[str] = Refusal.TYPE
    manifest: str
    instance: str
    epoch: str
    request: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another statement with the fields of a refusal."""

    TYPE: ClassVar[str] = "confed/v1/inference-receipt"
    manifest: str
    instance: str
    epoch: str
    request: str
    reason: str


EXPECTED = {"manifest": MANIFEST, "instance": INSTANCE, "epoch": "cc" * 32, "request": ONE.hex()}
ODD = {**EXPECTED, "reason": "because"}
SIGNED: dict[str, tuple[Callable[[], Signed], type[ConfedError]]] = {
    "by a stranger": (lambda: sign(a_refusal(), STRANGER), SignatureError),
    "by a stranger in its name": (
        lambda: dataclasses.replace(sign(a_refusal(), STRANGER), signer=public_bytes(SIGNING)), SignatureError,
    ),
    "of another request": (lambda: sign(a_refusal(request=OTHER.hex()), SIGNING), LineageError),
    "of another epoch": (lambda: sign(a_refusal(epoch="dd" * 32), SIGNING), LineageError),
    "of another instance": (lambda: sign(a_refusal(instance="dd" * 32), SIGNING), LineageError),
    "of another manifest": (lambda: sign(a_refusal(manifest="dd" * 32), SIGNING), LineageError),
    "for an unknown reason": (lambda: sign(Odd(**ODD), SIGNING), EncodingError),
    "for a replay": (lambda: sign(Odd(**{**ODD, "reason": "replayed"}), SIGNING), EncodingError),
    "that is another statement": (lambda: sign(Other(**{**ODD, "reason": "busy"}), SIGNING), EncodingError),
    "whose text was changed": (
        lambda: dataclasses.replace(
            sign(a_refusal(), SIGNING), payload=sign(a_refusal(reason=Reason.LEASE), SIGNING).payload
        ), SignatureError,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "error"), SIGNED.values(), ids=SIGNED)
def test_a_refusal_is_the_replicas_and_of_this_request_alone(
    make: Callable[[], Signed], error: type[ConfedError]
) -> None:
    with pytest.raises(error):
        verify_refusal(make(), signing_public=public_bytes(SIGNING), expected=EXPECTED)


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_comes_back_whole_and_is_small(reason: Reason) -> None:
    honest = a_refusal(reason=reason)
    data = canonical.encode(told(sign(honest, SIGNING), reason))
    assert len(data) < REFUSAL_LIMIT_BYTES / 2
    assert verify_refusal(read_refusal(data), signing_public=public_bytes(SIGNING), expected=EXPECTED) == honest


def test_only_what_says_that_nothing_ran_is_a_reason() -> None:
    found = [reason_of(kind("x")) for kind in (StaleEpochError, BusyError, LeaseError, SizeError)]
    assert found == list(Reason)
    assert not any(reason_of(kind("x")) for kind in (ReplayedError, TamperedError, MayHaveRunError, EncodingError))


HONEST = told(sign(a_refusal(), SIGNING), Reason.BUSY)
BODIES: dict[str, tuple[bytes, type[ConfedError]]] = {
    "nothing": (b"", EncodingError),
    "a page": (b"<html>503 Service Unavailable</html>", EncodingError),
    "a bare code": (b'{"code":"busy"}', EncodingError),
    "a list": (b"[]", EncodingError),
    "something more": (canonical.encode({**HONEST, "more": 1}), EncodingError),
    "no signature": (canonical.encode({"code": "busy", "refusal": {"payload": ""}}), EncodingError),
    "another spelling": (canonical.encode(HONEST) + b" ", EncodingError),
    "too large": (canonical.encode({**HONEST, "code": "b" * REFUSAL_LIMIT_BYTES}), SizeError),
}


@pytest.mark.parametrize(("data", "error"), BODIES.values(), ids=BODIES)
def test_what_is_no_refusal_is_not_read_as_one(data: bytes, error: type[ConfedError]) -> None:
    with pytest.raises(error):
        read_refusal(data)


WHOLE = canonical.encode(HONEST)


@given(at=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_no_bit_of_a_refusal_can_be_changed_so_that_it_says_something_else(at: int, bit: int) -> None:
    changed = WHOLE[:at] + bytes([WHOLE[at] ^ 1 << bit]) + WHOLE[at + 1 :]
    try:
        found = verify_refusal(read_refusal(changed), signing_public=public_bytes(SIGNING), expected=EXPECTED)
    except ConfedError:
        return
    assert found == a_refusal()  # a digit in capitals, or a letter of the code beside it, which means nothing


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda data: REQUEST_MAGIC + data))
def test_bytes_that_are_no_header_are_refused_by_name(data: bytes) -> None:
    with suppress(ConfedError):
        assert HeaderReader().feed(data) is None


# What an attempt without an answer means.


class Known:
    """What a requester has verified of a replica, as far as refusals need it."""

    def refusal(self, signed: Signed, *, epoch: str, request: bytes) -> Refusal:
        expected = {"manifest": MANIFEST, "instance": INSTANCE, "epoch": epoch, "request": request.hex()}
        return verify_refusal(signed, signing_public=public_bytes(SIGNING), expected=expected)


KNOWN = cast("VerifiedReplica", Known())


def test_a_request_whose_last_frame_was_kept_has_not_run_whatever_is_said() -> None:
    for body in (b"", b"asked"):
        asked = Ends().sealing()
        frames = asked.request(a_request(body))
        pieces = 3 if body else 2
        for _ in range(pieces - 1):
            next(frames)
        assert isinstance(lost("url", httpx.WriteError("x"), sealing=asked), NotRunError)
        early = refused(
            "url", httpx.Response(503, stream=httpx.ByteStream(b'{"code":"busy"}')), sealing=asked, replica=KNOWN
        )
        assert isinstance(early, NotRunError)
        assert isinstance(early.reason, BusyError)
        next(frames)
        assert isinstance(lost("url", httpx.ReadError("x"), sealing=asked), MayHaveRunError)


def test_a_request_that_was_handed_over_has_not_run_only_if_its_replica_signs_that() -> None:
    ends = Ends()
    asked = ends.sealing()
    list(asked.request(a_request()))

    def said(data: bytes, status: int = 503) -> NotRunError | MayHaveRunError:
        return refused("url", httpx.Response(status, stream=httpx.ByteStream(data)), sealing=asked, replica=KNOWN)

    assert isinstance(said(b'{"code":"busy"}'), MayHaveRunError)
    assert isinstance(said(b"x" * (REFUSAL_LIMIT_BYTES + 1)), MayHaveRunError)
    signed = sign(a_refusal(epoch=ends.epoch.name, request=asked.transcript.hex(), reason=Reason.LEASE), SIGNING)
    # What stands beside the signature, and the status, are anybody's word.
    found = said(canonical.encode({"code": "unreachable", "refusal": signed.to_json()}), status=418)
    assert isinstance(found, NotRunError)
    assert isinstance(found.reason, LeaseError)
    assert not isinstance(found.reason, UnreachableError)
