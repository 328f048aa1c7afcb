from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_world import Owner
from tables import ages

from confed.data.column_types import refuse_objects
from confed.data.dataset import SealedDataset
from confed.data.nested import flattened
from confed.data.owner import Tables
from confed.data.sealed_file import SealedFile
from confed.errors import (
    ColumnError,
    ContainerFormatError,
    SizeError,
    TamperedError,
    UnreadableDataError,
    UnsafeDataError,
    WrongKeyError,
)
from confed.journey import Kind
from confed.sealing.container import CHUNK_BYTES, Container, Draft, seal_to_bytes


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Owner:
    return Owner(tmp_path_factory.mktemp("owners"), "east")


def wide(columns: int = 8, rows: int = 200_000) -> pa.Table:
    generator = np.random.default_rng(1)
    return pa.table({f"c{number}": generator.normal(size=rows) for number in range(columns)})


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, **options)
    return sink.getvalue()


def counting(opened: Any, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Note which chunks are asked for from now on."""
    asked: set[int] = set()
    read = type(opened.container).sealed_chunk

    def sealed_chunk(self: Any, index: int) -> memoryview:
        asked.add(index)
        return read(self, index)

    monkeypatch.setattr(type(opened.container), "sealed_chunk", sealed_chunk)
    return asked


def test_reading_one_column_opens_only_the_chunks_that_hold_it(owner, monkeypatch):
    table = wide()
    sealed, data, _ = owner.seal(Tables(table=table, parquet=(parquet(table),)))
    opened = owner.opened(sealed, data)
    asked = counting(opened, monkeypatch)
    dataset = SealedDataset(opened)
    assert dataset.row_count == 200_000
    assert asked == {opened.chunk_count - 1}  # the footer
    assert dataset.read(["c3"]).equals(table.select(["c3"]))
    column_chunks = 200_000 * 8 // CHUNK_BYTES + 2
    assert len(asked) <= column_chunks + 1
    assert opened.chunk_count > 4 * column_chunks


def test_reading_a_field_of_a_structure_opens_only_the_chunks_that_hold_it(owner, monkeypatch):
    flat = wide()
    whole = pa.table(
        {
            "s": pa.StructArray.from_arrays(
                [flat[name].combine_chunks() for name in flat.column_names], flat.column_names
            )
        }
    )
    sealed, data, _ = owner.seal(Tables(table=flattened(whole), parquet=(parquet(whole),)))
    opened = owner.opened(sealed, data)
    asked = counting(opened, monkeypatch)
    assert SealedDataset(opened).read(["s.c3"])["s.c3"].equals(flat["c3"])
    assert len(asked) <= 200_000 * 8 // CHUNK_BYTES + 3


def test_a_name_reads_no_other_column_whose_path_begins_with_it(owner):
    table = pa.table({"a": [1, 2], "a.b": [3, 4], "s": [{"x": 1, "y": [1]}, None]})
    sealed, data, _ = owner.seal(table)
    dataset = SealedDataset(owner.opened(sealed, data))
    assert dataset.schema.names == ["a", "a.b", "s.x", "s.y"]
    assert dataset.read(["a"]).to_pydict() == {"a": [1, 2]}
    assert dataset.read(["s.y", "a.b"]).to_pydict() == {"s.y": [[1], None], "a.b": [3, 4]}
    with pytest.raises(ColumnError, match="column"):
        dataset.read(["s"])


def test_files_one_after_another_are_one_table(owner):
    parts = [ages(3), ages(5)]
    sealed, data, _ = owner.seal(Tables(table=pa.concat_tables(parts), parquet=tuple(map(parquet, parts))))
    dataset = SealedDataset(owner.opened(sealed, data))
    assert dataset.row_count == 8
    assert dataset.read(["name", "age"]).equals(pa.concat_tables(parts).select(["name", "age"]))


def test_another_key_opens_nothing(owner, tmp_path: Path):
    stranger = Owner(tmp_path, "west")
    _, data, _ = owner.seal(ages())
    other = stranger.seal(ages())[0]
    with pytest.raises(WrongKeyError):
        Container.parse(data).unlock(stranger.key(other))


@pytest.mark.parametrize("place", [-10, -40_000])
def test_a_changed_byte_is_refused_before_it_is_parsed(owner, place):
    table = wide(1, 10_000)
    sealed, data, _ = owner.seal(Tables(table=table, parquet=(parquet(table),)))
    changed = bytearray(data)
    changed[place] ^= 1
    with pytest.raises(TamperedError):
        SealedDataset(owner.opened(sealed, bytes(changed))).read(["c0"])


def test_what_is_no_parquet_is_refused_by_its_place(owner):
    sealed, data, _ = owner.seal(Tables(table=ages(), parquet=(parquet(ages()), b"PAR1 something else PAR1")))
    with pytest.raises(UnreadableDataError, match="file 1"):
        SealedDataset(owner.opened(sealed, data))


def test_files_of_unlike_columns_and_columns_that_are_not_there_are_refused(owner):
    sealed, data, _ = owner.seal(Tables(table=ages(), parquet=(parquet(ages()), parquet(pa.table({"age": [1]})))))
    with pytest.raises(ColumnError, match="file 1"):
        SealedDataset(owner.opened(sealed, data))
    sealed, data, _ = owner.seal(ages())
    with pytest.raises(ColumnError, match="weight"):
        SealedDataset(owner.opened(sealed, data)).read(["weight"])


def test_arrays_are_no_dataset_of_files(owner):
    draft = Draft(kind=Kind.DATASET, container_id="arrays")
    data, _ = seal_to_bytes([b"x"], draft, data_key=bytes(32), signing_key=owner.home.identity_key)
    with pytest.raises(ContainerFormatError, match="detail"):
        SealedDataset(Container.parse(data).unlock(bytes(32)))


def test_columns_of_objects_are_refused():
    for field in (
        pa.field("x", pa.binary(), metadata={"ARROW:extension:name": "arrow.py_extension_type"}),
        pa.field("x", pa.uuid()),
        pa.field("x", pa.list_(pa.uuid())),
        pa.field("x", pa.struct([pa.field("y", pa.binary(), metadata={"ARROW:extension:name": "pickled"})])),
    ):
        with pytest.raises(UnsafeDataError, match="column x"):
            refuse_objects(pa.schema([field]), what="dataset")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_seeks_and_reads_are_those_of_a_plain_file(sealed_bytes, data):
    opened, plain = sealed_bytes
    offset = data.draw(st.integers(0, len(plain)))
    size = data.draw(st.integers(0, len(plain) - offset))
    file, known = SealedFile(opened, offset=offset, size_bytes=size), io.BytesIO(plain[offset : offset + size])
    for _ in range(data.draw(st.integers(1, 6))):
        place, count = data.draw(st.integers(0, size + 10)), data.draw(st.integers(-1, 40_000))
        assert file.seek(place) == known.seek(place)
        assert bytes(file.read(count)) == known.read(count)
        assert file.tell() == known.tell()


def test_behind_the_end_there_is_nothing_and_no_error(sealed_bytes):
    opened, plain = sealed_bytes
    file = SealedFile(opened, offset=len(plain) - 5, size_bytes=5)
    for place in (5, 6, 10_000):
        file.seek(place)
        assert bytes(file.read(3)) == b""
        assert file.tell() == place


@pytest.fixture(scope="module")
def sealed_bytes(owner):
    plain = bytes(range(256)) * 200
    draft = Draft(kind=Kind.DATASET, container_id="bytes")
    key = owner.home.identity_key
    data, _ = seal_to_bytes([plain], draft, data_key=bytes(32), signing_key=key, chunk_bytes=4096)
    return Container.parse(data).unlock(bytes(32)), plain


def test_a_sealed_file_reads_as_a_file_does(owner):
    plain = bytes(range(256)) * 20_000
    draft = Draft(kind=Kind.DATASET, container_id="bytes")
    data, _ = seal_to_bytes([plain], draft, data_key=bytes(32), signing_key=owner.home.identity_key)
    opened = Container.parse(data).unlock(bytes(32))
    inner = plain[1000:-1000]
    file, known = SealedFile(opened, offset=1000, size_bytes=len(inner)), io.BytesIO(inner)
    for offset, whence, size in ((0, 0, 10), (5, 1, 3_000_000), (-7, 2, 100), (0, 2, 1), (1_048_000, 0, 600)):
        assert file.seek(offset, whence) == known.seek(offset, whence)
        assert bytes(file.read(size)) == known.read(size)
        assert file.tell() == known.tell()
    file.seek(3)
    assert file.readinto(bytearray(4)) == 4
    for offset, size in ((-1, 1), (0, len(plain) + 1), (len(plain), 1)):
        with pytest.raises(SizeError):
            SealedFile(opened, offset=offset, size_bytes=size)
