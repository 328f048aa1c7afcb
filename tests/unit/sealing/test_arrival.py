"""A container is opened while it arrives: however it is cut into parts the same, and nothing of it before the end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.errors import (
    ConfedError,
    ContainerFormatError,
    MissingObjectError,
    RefusedError,
    SignatureError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from confed.journey import Kind
from confed.sealing.arrival import open_arriving
from confed.sealing.container import Container, Draft, seal_to_bytes

CHUNK = 4096
KEY = bytes(range(32))
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PLAINTEXT = os.urandom(3 * CHUNK + 100)


def sealed(plaintext: bytes = PLAINTEXT) -> bytes:
    draft = Draft(kind=Kind.MODEL, container_id="model-1")
    return seal_to_bytes([plaintext], draft, data_key=KEY, signing_key=SIGNING_KEY, chunk_bytes=CHUNK)[0]


SEALED = sealed()
FRONT = len(SEALED) - len(PLAINTEXT) - 4 * 16


class Memory:
    """Lends memory that is not zero, and remembers it."""

    def __init__(self) -> None:
        self.lent = memoryview(b"")

    def __call__(self, size_bytes: int) -> memoryview:
        self.lent = memoryview(bytearray(b"\xaa" * size_bytes))
        return self.lent


def parts_of(data: bytes, *sizes: int, announced: int | None = None) -> Iterator[tuple[int, bytes]]:
    at = 0
    for size in (*sizes, len(data)):
        if data[at : at + size]:
            yield len(data) if announced is None else announced, data[at : at + size]
        at += size


def opened(data: bytes, memory: Memory, *sizes: int, announced: int | None = None) -> memoryview:
    parts = parts_of(data, *sizes, announced=announced)
    return open_arriving(parts, key_of=lambda _: KEY, room=memory)[1]


@settings(max_examples=60, deadline=None)
@given(
    length=st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, len(PLAINTEXT)]),
    sizes=st.lists(st.integers(1, 2 * CHUNK), max_size=12),
)
def test_it_opens_however_the_bytes_are_cut(length: int, sizes: list[int]) -> None:
    memory = Memory()
    found = opened(sealed(PLAINTEXT[:length]), memory, *sizes)
    assert found == PLAINTEXT[:length]
    assert found.obj is memory.lent.obj


def test_the_front_that_the_key_is_asked_for_is_verified_and_may_be_refused() -> None:
    memory, seen = Memory(), list[Container]()

    def key_of(container: Container) -> bytes:
        seen.append(container)
        raise RefusedError("kind")

    with pytest.raises(RefusedError):
        open_arriving(parts_of(SEALED, 50), key_of=key_of, room=memory)
    assert seen[0].header.container_id == "model-1"
    assert len(memory.lent) == 0


def changed(at: int) -> bytes:
    return SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :]


def swapped() -> bytes:
    first, second = FRONT, FRONT + CHUNK + 16
    return SEALED[:first] + SEALED[second : second + CHUNK + 16] + SEALED[first:second] + SEALED[second + CHUNK + 16 :]


WRONG: dict[str, tuple[bytes, type[ConfedError]]] = {
    "a bit in the first chunk": (changed(FRONT + 5), TamperedError),
    "a bit in a chunk in the middle": (changed(FRONT + 2 * (CHUNK + 16) + 7), TamperedError),
    "a bit in the last chunk's tag": (changed(len(SEALED) - 1), TamperedError),
    "chunks that changed places": (swapped(), TamperedError),
    "chunks of another container": (SEALED[: FRONT + CHUNK + 16] + sealed()[FRONT + CHUNK + 16 :], TamperedError),
    "a bit in the header": (changed(30), SignatureError),
    "a bit in the signature": (changed(FRONT - 1), SignatureError),
    "another magic": (changed(0), ContainerFormatError),
}


@pytest.mark.parametrize(("data", "refusal"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("part", [1000, 2 * CHUNK], ids=["small-parts", "large-parts"])
def test_what_was_changed_is_refused_and_leaves_zeros(data: bytes, refusal: type[ConfedError], part: int) -> None:
    memory = Memory()
    with pytest.raises(refusal):
        opened(data, memory, *[part] * 20)
    assert not set(bytes(memory.lent)) - {0, 0xAA}  # zeros, or what was there before
    assert PLAINTEXT[:64] not in bytes(memory.lent)


@pytest.mark.parametrize("length", [0, 5, FRONT - 1, FRONT, FRONT + 100, FRONT + CHUNK + 16, len(SEALED) - 1])
def test_what_ends_too_soon_is_refused_and_leaves_zeros(length: int) -> None:
    memory = Memory()
    with pytest.raises(TruncatedError):
        opened(SEALED[:length], memory, 1000, 1000, announced=len(SEALED))
    assert PLAINTEXT[:64] not in bytes(memory.lent)


@pytest.mark.parametrize("more", [-1, 1], ids=["less", "more"])
def test_an_announced_size_that_is_not_the_headers_is_refused_before_memory_is_taken(more: int) -> None:
    memory = Memory()
    with pytest.raises((TruncatedError, ContainerFormatError)):
        opened(SEALED, memory, 3000, announced=len(SEALED) + more)
    assert len(memory.lent) == 0


def test_bytes_behind_the_last_chunk_are_refused() -> None:
    memory = Memory()
    with pytest.raises(ConfedError):
        opened(SEALED + b"x", memory, *[1000] * 20, announced=len(SEALED))
    assert not any(memory.lent[:CHUNK])


def test_another_key_is_refused_before_anything_is_opened() -> None:
    memory = Memory()
    with pytest.raises(WrongKeyError):
        open_arriving(parts_of(SEALED), key_of=lambda _: bytes(32), room=memory)
    assert len(memory.lent) == 0


def test_whoever_brings_the_bytes_may_refuse_them_at_the_end() -> None:
    """As the courier's client does when the digest of the whole is not the one that was asked for."""
    memory = Memory()

    def parts(data: bytes) -> Iterator[tuple[int, bytes]]:
        yield from parts_of(data, 5000)
        raise MissingObjectError("object digest")

    with pytest.raises(MissingObjectError):
        open_arriving(parts(SEALED), key_of=lambda _: KEY, room=memory)
    assert len(memory.lent) == len(PLAINTEXT)
    assert not any(memory.lent)
    with pytest.raises(MissingObjectError):  # rather than what is wrong with bytes that nobody asked for
        open_arriving(parts(changed(0)), key_of=lambda _: KEY, room=memory)
