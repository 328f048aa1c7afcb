"""Sealed containers: round trips of every size, and everything that must not open."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from confed import canonical
from confed.errors import (
    ConfedError,
    ContainerFormatError,
    MissingFileError,
    RecipientError,
    RefusedError,
    SignatureError,
    SizeError,
    TamperedError,
    TruncatedError,
    WrongKeyError,
)
from confed.journey import Kind
from confed.sealing import derivation, sealer
from confed.sealing.chunks import ChunkCipher
from confed.sealing.container import (
    Container,
    Draft,
    OpenContainer,
    RecipientEntry,
    seal,
    seal_to_bytes,
    seal_to_file,
)
from confed.sealing.header import FRAME_BYTES, MAGIC, MAX_HEADER_BYTES, Header, frame
from confed.sealing.identities import HpkeIdentity

CHUNK = 4096
SEALED_CHUNK = CHUNK + 16
DATA_KEY = bytes(range(32))
SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
SIGNER = SIGNING_KEY.public_key().public_bytes_raw()
DRAFT = Draft(
    kind=Kind.MODEL,
    container_id="model-1",
    version=3,
    parents=("ab" * 32,),
    owner=b"\x01" * 32,
    manifest="cd" * 32,
    detail={"layout": "ef" * 32},
    recipients=(RecipientEntry.owner_key("key-1"),),
    declaration_plaintext=b"declared",
)


def sealed(plaintext: bytes, draft: Draft = DRAFT, *, data_key: bytes = DATA_KEY) -> bytes:
    return seal_to_bytes([plaintext], draft, data_key=data_key, signing_key=SIGNING_KEY, chunk_bytes=CHUNK)[0]


def opened(data: bytes, *, data_key: bytes = DATA_KEY, signer: bytes = SIGNER) -> OpenContainer:
    container = Container.parse(data)
    container.verify_signer(signer)
    return container.unlock(data_key)


def everything(data: bytes) -> tuple[bytes, bytes]:
    container = opened(data)
    return container.declaration(), bytes(container.read_all())


def chunks_start(data: bytes) -> int:
    return FRAME_BYTES + int.from_bytes(data[8:12], "big") + 96


def resigned(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The container with another header, signed by the same maker: what a maker without the data key could do."""
    length = int.from_bytes(data[8:12], "big")
    value = json.loads(data[FRAME_BYTES : FRAME_BYTES + length])
    change(value)
    return frame(canonical.encode(value), signing_key=SIGNING_KEY) + data[chunks_start(data) :]


sizes = st.one_of(
    st.integers(0, 64),
    st.builds(lambda chunks, off: max(0, chunks * CHUNK + off), st.integers(0, 9), st.integers(-2, 2)),
)


@settings(max_examples=60, deadline=None)
@given(size=sizes, cuts=st.lists(st.integers(0, 9 * CHUNK), max_size=6), threads=st.integers(1, 3))
def test_what_is_sealed_opens_whatever_its_size_and_parts(size: int, cuts: list[int], threads: int) -> None:
    plaintext = os.urandom(size)
    bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [plaintext[start:end] for start, end in itertools.pairwise(bounds)]
    data, result = seal_to_bytes(
        parts, DRAFT, data_key=DATA_KEY, signing_key=SIGNING_KEY, threads=threads, chunk_bytes=CHUNK
    )
    container = opened(data)
    assert container.read_all(threads=threads) == plaintext
    assert container.declaration() == b"declared"
    assert container.chunk_count == max(1, -(-size // CHUNK))
    assert (result.digest, result.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert container.container.file_digest() == result.digest


@settings(max_examples=60, deadline=None)
@given(size=sizes, data=st.data())
def test_any_range_can_be_read_alone(size: int, data: st.DataObject) -> None:
    plaintext = os.urandom(size)
    start = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - start))
    assert opened(sealed(plaintext)).read(start, count) == plaintext[start : start + count]


def test_memory_sink_and_file_get_the_same_form(tmp_path: Path) -> None:
    plaintext, path, sink = os.urandom(3 * CHUNK + 5), tmp_path / "model.sealed", io.BytesIO()
    keys: dict[str, Any] = {"data_key": DATA_KEY, "signing_key": SIGNING_KEY, "chunk_bytes": CHUNK, "threads": 2}
    in_file = seal_to_file([plaintext], DRAFT, path=path, **keys)
    in_sink = seal([plaintext], DRAFT, sink=sink, **keys)
    for data, result in ((path.read_bytes(), in_file), (sink.getvalue(), in_sink)):
        assert hashlib.sha256(data).hexdigest() == result.digest
        assert everything(data) == (b"declared", plaintext)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.sealed"]


class _LazyExecutor:
    """Runs a piece of work only when its result is asked for: the slowest thread there can be."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return SimpleNamespace(result=cache(lambda: work(*arguments)))


def test_the_thread_that_hashes_may_lag_and_still_sees_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer, "ThreadPoolExecutor", _LazyExecutor)
    sink = io.BytesIO()
    keys: dict[str, Any] = {"data_key": DATA_KEY, "signing_key": SIGNING_KEY, "chunk_bytes": CHUNK, "threads": 2}
    result = seal([bytes(10 * CHUNK)], DRAFT, sink=sink, **keys)
    assert result.digest == hashlib.sha256(sink.getvalue()).hexdigest()


def test_a_file_and_a_mapping_are_read_like_a_buffer(tmp_path: Path) -> None:
    plaintext, path = os.urandom(3 * CHUNK + 5), tmp_path / "model.sealed"
    path.write_bytes(sealed(plaintext))
    from_file = Container.map(path)
    assert from_file.unlock(DATA_KEY).read_all(threads=2) == plaintext
    assert from_file.file_digest() == hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as handle:
        mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    assert Container.parse(mapping).unlock(DATA_KEY).read_all() == plaintext
    assert Container.parse(memoryview(mapping)).unlock(DATA_KEY).read(CHUNK - 1, 2) == plaintext[CHUNK - 1 : CHUNK + 1]


def test_chunks_of_shared_memory_are_copied_before_they_are_authenticated() -> None:
    data = sealed(bytes(CHUNK))
    shared = mmap.mmap(-1, len(data))
    shared.write(data)
    chunk = Container.parse(memoryview(shared)).sealed_chunk(0)
    before = bytes(chunk)
    shared[chunks_start(data)] ^= 1
    assert bytes(chunk) == before
    assert Container.parse(data).sealed_chunk(0).obj is data


def test_a_failed_seal_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.sealed"
    path.write_bytes(b"the one before")
    with pytest.raises(SizeError):
        seal_to_file(
            [b"x"],
            replace(DRAFT, declaration_plaintext=bytes(65537)),
            data_key=DATA_KEY,
            signing_key=SIGNING_KEY,
            path=path,
        )
    assert path.read_bytes() == b"the one before"
    assert len(list(tmp_path.iterdir())) == 1


def test_every_flipped_bit_is_refused() -> None:
    data = sealed(b"plaintext")
    for position in range(len(data) * 8):
        changed = bytearray(data)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(RefusedError):
            everything(bytes(changed))


def test_every_truncation_is_refused() -> None:
    data = sealed(bytes(CHUNK) + b"end")
    for size in range(0, len(data), 7):
        with pytest.raises((TruncatedError, ContainerFormatError)):
            Container.parse(data[:size])


def test_a_container_cut_at_a_chunk_is_refused_even_if_its_header_is_made_to_match() -> None:
    data = sealed(bytes(3 * CHUNK))
    cut = resigned(data, lambda header: header.update(plaintext_bytes=2 * CHUNK))[:-SEALED_CHUNK]
    container = opened(cut)
    with pytest.raises(TamperedError):
        container.read_chunk_into(1, bytearray(CHUNK))


def test_the_last_flag_alone_tells_a_cut() -> None:
    longer, shorter = ChunkCipher(DATA_KEY, chunk_count=3), ChunkCipher(DATA_KEY, chunk_count=2)
    ciphertext = bytearray(24)
    longer.seal_into(1, memoryview(b"12345678"), memoryview(ciphertext))
    with pytest.raises(TamperedError):
        shorter.open_into(1, memoryview(ciphertext), memoryview(bytearray(8)))


def test_the_nonces_are_those_of_the_format() -> None:
    data = sealed(b"a" * CHUNK + b"b")
    container = Container.parse(data)
    key = derivation.chunk_key(DATA_KEY, salt=container.header.salt, header_digest=container.header_digest)
    first, last = data[chunks_start(data) :][:SEALED_CHUNK], data[-17:]
    assert AESGCM(key).decrypt(bytes(12), first, None) == b"a" * CHUNK
    assert AESGCM(key).decrypt(bytes(10) + b"\x01\x01", last, None) == b"b"
    with pytest.raises(InvalidTag):
        AESGCM(key).decrypt(bytes(10) + b"\x01\x00", last, None)


@settings(max_examples=20, deadline=None)
@given(pair=st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda pair: pair[0] < pair[1]))
def test_chunks_that_change_places_are_refused(pair: tuple[int, int]) -> None:
    data = sealed(bytes(4 * CHUNK))
    start = chunks_start(data)
    chunks = [data[start + index * SEALED_CHUNK :][:SEALED_CHUNK] for index in range(4)]
    chunks[pair[0]], chunks[pair[1]] = chunks[pair[1]], chunks[pair[0]]
    container = opened(data[:start] + b"".join(chunks))
    for index in range(4):
        if index in pair:
            with pytest.raises(TamperedError):
                container.read_chunk_into(index, bytearray(CHUNK))
        else:
            container.read_chunk_into(index, bytearray(CHUNK))


def test_a_chunk_of_another_container_of_the_same_key_is_refused() -> None:
    first, second = sealed(bytes(2 * CHUNK)), sealed(bytes(2 * CHUNK))
    at = chunks_start(first)
    assert at == chunks_start(second)
    container = opened(first[:at] + second[at : at + SEALED_CHUNK] + first[at + SEALED_CHUNK :])
    with pytest.raises(TamperedError):
        container.read_all()


def test_a_header_of_another_container_of_the_same_key_is_refused() -> None:
    first, second = sealed(bytes(2 * CHUNK)), sealed(bytes(2 * CHUNK))
    with pytest.raises(TamperedError):
        opened(second[: chunks_start(second)] + first[chunks_start(first) :]).read_all()


def test_the_same_data_key_never_meets_the_same_chunk_key() -> None:
    first, second = sealed(bytes(CHUNK)), sealed(bytes(CHUNK))
    assert Container.parse(first).header.salt != Container.parse(second).header.salt
    assert first[-SEALED_CHUNK:] != second[-SEALED_CHUNK:]


def test_a_bad_chunk_leaves_only_zeros_and_harms_no_other() -> None:
    plaintext = os.urandom(2 * CHUNK)
    changed = bytearray(sealed(plaintext))
    changed[-1] ^= 1
    container, buffer = opened(bytes(changed)), bytearray(b"\xff" * CHUNK)
    with pytest.raises(TamperedError):
        container.read_chunk_into(1, buffer)
    assert buffer == bytes(CHUNK)
    assert container.read(0, CHUNK) == plaintext[:CHUNK]
    for threads in (1, 2):
        whole = bytearray(b"\xff" * (2 * CHUNK))
        with pytest.raises(TamperedError):
            container.read_all_into(whole, threads=threads)
        assert whole[CHUNK:] == bytes(CHUNK)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "dataset"),
        ("container_id", "model-2"),
        ("version", 4),
        ("parents", []),
        ("owner", "02" * 32),
        ("manifest", ""),
        ("recipients", []),
        ("detail", {}),
    ],
)
def test_a_changed_header_is_refused_even_if_its_maker_signs_it_again(field: str, value: Any) -> None:
    data = resigned(sealed(b"plaintext"), lambda header: header.update({field: value}))
    with pytest.raises(TamperedError):
        opened(data).read_all()


def _without(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.pop(field) and None


@pytest.mark.parametrize(
    ("sentence", "change", "error"),
    [
        ("an unknown field", lambda header: header.update(more=1), ContainerFormatError),
        ("a missing field", _without("detail"), ContainerFormatError),
        ("another format", lambda header: header.update(format="confed-container/2"), ContainerFormatError),
        ("an unknown kind", lambda header: header.update(kind="secret"), ContainerFormatError),
        ("a negative version", lambda header: header.update(version=-1), ContainerFormatError),
        ("a parent that is no digest", lambda header: header.update(parents=["x"]), ContainerFormatError),
        ("a short owner", lambda header: header.update(owner="01"), ContainerFormatError),
        ("a manifest that is no digest", lambda header: header.update(manifest="x"), ContainerFormatError),
        ("a short salt", lambda header: header.update(salt="00"), ContainerFormatError),
        ("a short commitment", lambda header: header.update(key_commitment="00"), ContainerFormatError),
        ("upper-case hexadecimal", lambda header: header.update(salt="AB" * 32), ContainerFormatError),
        ("a chunk size that is no power of two", lambda header: header.update(chunk_bytes=5000), ContainerFormatError),
        ("chunks too small", lambda header: header.update(chunk_bytes=2048), ContainerFormatError),
        ("chunks too large", lambda header: header.update(chunk_bytes=2**23), ContainerFormatError),
        ("a negative size", lambda header: header.update(plaintext_bytes=-1), ContainerFormatError),
        ("an enormous size", lambda header: header.update(plaintext_bytes=2**52), TruncatedError),
        ("a smaller size", lambda header: header.update(plaintext_bytes=1), ContainerFormatError),
        ("a boolean for a number", lambda header: header.update(version=True), ContainerFormatError),
        ("an empty id", lambda header: header.update(container_id=""), ContainerFormatError),
        ("a declaration shorter than its tag", lambda header: header.update(declaration="00"), ContainerFormatError),
        (
            "a recipient with a wrapped key of another length",
            lambda header: header.update(recipients=[{"method": "hpke", "key_id": "k", "wrapped": "00"}]),
            RecipientError,
        ),
    ],
)
def test_a_malformed_header_is_refused(
    sentence: str, change: Callable[[dict[str, Any]], None], error: type[ConfedError]
) -> None:
    with pytest.raises(error):
        Container.parse(resigned(sealed(b"plaintext"), change))


def test_another_declaration_under_the_same_header_is_refused() -> None:
    data = resigned(sealed(b"plaintext"), lambda header: header.update(declaration="00" * 24))
    with pytest.raises(TamperedError):
        opened(data).declaration()


@pytest.mark.parametrize(
    ("sentence", "data", "error"),
    [
        ("nothing", b"", ContainerFormatError),
        ("another file", b"PK\x03\x04" + bytes(100), ContainerFormatError),
        ("another version of the format", MAGIC[:-1] + b"\x02" + bytes(100), ContainerFormatError),
        ("only the magic", MAGIC, TruncatedError),
        ("a header above 1 MiB", MAGIC + (MAX_HEADER_BYTES + 1).to_bytes(4, "big") + bytes(200), SizeError),
        ("a header that is not there", MAGIC + (1000).to_bytes(4, "big") + bytes(200), TruncatedError),
        ("a header that is not JSON", frame(b"{", signing_key=SIGNING_KEY), ContainerFormatError),
        ("a header that is a list", frame(b"[]", signing_key=SIGNING_KEY), ContainerFormatError),
        ("trailing bytes", sealed(b"plaintext") + b"\x00", ContainerFormatError),
    ],
)
def test_what_is_not_a_container_is_refused(sentence: str, data: bytes, error: type[ConfedError]) -> None:
    with pytest.raises(error):
        Container.parse(data)


def test_another_spelling_of_the_header_is_refused() -> None:
    data = sealed(b"plaintext")
    length = int.from_bytes(data[8:12], "big")
    spaced = json.dumps(json.loads(data[FRAME_BYTES : FRAME_BYTES + length])).encode()
    with pytest.raises(ContainerFormatError):
        Container.parse(frame(spaced, signing_key=SIGNING_KEY) + data[chunks_start(data) :])


def test_another_signer_is_refused() -> None:
    data = sealed(b"plaintext")
    length = int.from_bytes(data[8:12], "big")
    other = Ed25519PrivateKey.generate()
    forged = frame(data[FRAME_BYTES : FRAME_BYTES + length], signing_key=other) + data[chunks_start(data) :]
    container = Container.parse(forged)
    with pytest.raises(SignatureError):
        container.verify_signer(SIGNER)
    renamed = forged[: FRAME_BYTES + length] + SIGNER + forged[FRAME_BYTES + length + 32 :]
    with pytest.raises(SignatureError):
        Container.parse(renamed)


@pytest.mark.parametrize("key", [bytes(32), DATA_KEY[:31], b"", DATA_KEY + b"\x00"])
def test_another_data_key_is_refused_before_anything_is_opened(key: bytes) -> None:
    with pytest.raises(WrongKeyError):
        Container.parse(sealed(b"plaintext")).unlock(key)


def test_a_header_commits_to_one_key() -> None:
    data = resigned(
        sealed(b"plaintext"),
        lambda header: header.update(
            key_commitment=derivation.key_commitment(bytes(32), salt=bytes.fromhex(header["salt"])).hex()
        ),
    )
    with pytest.raises(WrongKeyError):
        Container.parse(data).unlock(DATA_KEY)


def test_a_recipient_opens_and_nobody_else() -> None:
    identity, stranger = HpkeIdentity.generate(), HpkeIdentity.generate()
    entry = RecipientEntry.hpke(identity.recipient, DATA_KEY, kind=Kind.MODEL, container_id="model-1")
    container = Container.parse(sealed(b"plaintext", replace(DRAFT, recipients=(*DRAFT.recipients, entry))))
    assert container.unlock(container.data_key_for(identity)).read_all() == b"plaintext"
    with pytest.raises(RecipientError):
        container.data_key_for(stranger)
    elsewhere = Container.parse(sealed(b"plaintext", replace(DRAFT, container_id="model-2", recipients=(entry,))))
    with pytest.raises(WrongKeyError):
        elsewhere.data_key_for(identity)


@pytest.mark.parametrize(
    ("sentence", "draft", "data_key", "error"),
    [
        ("a short data key", DRAFT, bytes(31), SizeError),
        ("a header above 1 MiB", replace(DRAFT, detail={"x": "x" * MAX_HEADER_BYTES}), DATA_KEY, SizeError),
        ("a long declaration", replace(DRAFT, declaration_plaintext=bytes(65537)), DATA_KEY, SizeError),
        ("an owner of another length", replace(DRAFT, owner=b"x"), DATA_KEY, ContainerFormatError),
        ("a detail that JSON cannot hold", replace(DRAFT, detail={"x": float("nan")}), DATA_KEY, RefusedError),
    ],
)
def test_what_cannot_be_sealed_is_refused(
    sentence: str, draft: Draft, data_key: bytes, error: type[ConfedError]
) -> None:
    with pytest.raises(error):
        sealed(b"plaintext", draft, data_key=data_key)


def test_a_range_or_chunk_that_is_not_there_is_refused() -> None:
    container = opened(sealed(bytes(CHUNK + 1)))
    for work in (
        lambda: container.read(0, CHUNK + 2),
        lambda: container.read(-1, 1),
        lambda: container.chunk_span(2),
        lambda: container.read_chunk_into(-1, bytearray(CHUNK)),
        lambda: container.read_chunk_into(0, bytearray(CHUNK + 1)),
        lambda: container.read_all_into(bytearray(CHUNK)),
    ):
        with pytest.raises(SizeError):
            work()


def test_a_file_that_is_missing_or_cut_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.sealed"
    with pytest.raises(MissingFileError):
        Container.map(path)
    with pytest.raises(MissingFileError):
        Container.map(tmp_path)
    path.write_bytes(sealed(bytes(2 * CHUNK)))
    container = Container.map(path).unlock(DATA_KEY)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(TruncatedError):
        container.read_all()


def test_neither_plaintext_nor_keys_are_in_a_repr() -> None:
    container = opened(sealed(b"plaintext"))
    shown = repr(container) + repr(container.container) + repr(DRAFT)
    assert "declared" not in shown
    assert DATA_KEY.hex() not in shown
    assert repr(DATA_KEY) not in shown


def test_a_header_survives_its_bytes() -> None:
    header = Container.parse(sealed(b"plaintext")).header
    assert Header.decode(header.encode()) == header
    assert (header.version, header.parents, header.owner) == (DRAFT.version, DRAFT.parents, DRAFT.owner)
