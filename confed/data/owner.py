"""The owner's side: check plain data against a contract, seal it, and sign what anybody may know of it.

1. Files are read and checked against the contract, all as one table: nothing is sealed that breaks it.
2. Parquet files go into the container as they are, other formats as Parquet made in memory: no plaintext is written.
3. The container's digest, with the contract's and the pipeline's, is signed as the dataset's description.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from confed import canonical, record
from confed.data.checking import examine
from confed.data.column_types import column_names, refuse_objects
from confed.data.croissant import About, croissant
from confed.data.dataset import FORMAT, DatasetDetail, FilePlace
from confed.data.described import description_file, read_description
from confed.data.description import DatasetDescription, encode
from confed.data.explanation import explained
from confed.data.nested import flattened
from confed.data.sources import is_parquet, read_table, source_files
from confed.errors import ColumnError, ConfigError, ContractError, EmptyDatasetError, RecipientError
from confed.journey import Kind
from confed.keybroker.identity import OwnerHome
from confed.keybroker.vault import KeyFloors
from confed.manifest import SealedReference
from confed.preparation.contract import Contract
from confed.sealing.container import Container, Draft, RecipientEntry, seal_to_file
from confed.sealing.derivation import container_key
from confed.sealing.recipients import Method
from confed.statement import sign

_ROW_GROUP = 128 * 1024
"""Rows of a row group in Parquet made here: a megabyte or so of a column of numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """A dataset as its owner has it: a table to check, without structures, and the Parquet to seal for each file."""

    table: pa.Table
    parquet: tuple[bytes | memoryview | mmap.mmap, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedTables:
    """What sealing made: the reference that a manifest needs, and the digest of the signed description."""

    reference: SealedReference
    description: str


def read_tables(path: Path, contract: Contract) -> Tables:
    """Return the dataset at a path.

    Raises:
        DatasetError: files that cannot be read, are empty, unsafe, or do not have the same columns; a column of a type
            that no contract can name.
        MissingFileError: nothing there.
    """
    files = source_files(path)
    tables = [read_table(file, contract) for file in files]
    first = tables[0]
    for file, table in zip(files, tables, strict=True):
        if not table.schema.equals(first.schema):
            raise ColumnError(
                str(file), expected="the columns of the folder's first file, of their types", got="others"
            )
    parts = [
        _mapped(file) if is_parquet(file) else _as_parquet(table) for file, table in zip(files, tables, strict=True)
    ]
    whole = flattened(pa.concat_tables(tables))
    column_names(whole.schema)  # it could not be described, so it could not be sealed
    return Tables(table=whole, parquet=tuple(parts))


def tables_of(table: pa.Table, *, what: str) -> Tables:
    """Return a dataset that is in memory.

    Raises:
        EmptyDatasetError: no rows.
        UnsafeDataError: a column of objects.
    """
    refuse_objects(table.schema, what=what)
    if table.num_rows == 0:
        raise EmptyDatasetError(what, expected="at least one row", got="none")
    return Tables(table=flattened(table), parquet=(_as_parquet(table),))


def check_tables(tables: Tables, contract: Contract, *, what: str) -> None:
    """Check a dataset against a contract where its owner is.

    Raises:
        ContractError: it breaks it; the message says the first finding and how many there are, never a value.
    """
    _, findings = examine(tables.table, contract)
    for first in findings:
        more = f" (and {len(findings) - 1} more findings)" if len(findings) > 1 else ""
        got = explained(first, tables.table, contract) + more
        raise ContractError(what, expected=f"contract {contract.name!r} kept", got=got)


def seal_tables(
    tables: Tables,
    *,
    home: OwnerHome,
    contract: Contract,
    pipeline: str | None,
    about: About,
    floors: KeyFloors,
    path: Path,
    description_path: Path,
) -> SealedTables:
    """Seal a dataset under a new key of its owner, and sign its description.

    Guarantees: both files appear whole or not at all, the container first; nothing else is written.

    Raises:
        ColumnError: a column of a type that a contract cannot name.
        FloorError: floors of another environment than the owner's.
        OSError: the file system refuses.
    """
    columns = column_names(tables.table.schema)
    key_id, key = home.new_key(floors=floors)
    container_id = f"dataset-{os.urandom(16).hex()}"
    detail = DatasetDetail(format=FORMAT, contract=contract.digest, files=_places(tables.parquet))
    sealed = seal_to_file(
        tables.parquet,  # pyright: ignore[reportArgumentType] (a mapping is a buffer)
        Draft(
            kind=Kind.DATASET,
            container_id=container_id,
            owner=home.party.identity,
            detail=record.to_json(detail),
            recipients=(RecipientEntry.owner_key(key_id),),
        ),
        data_key=container_key(key, container_id=container_id),
        signing_key=home.identity_key,
        path=path,
        threads=2,
    )
    said = croissant(
        about,
        owner=home.party.name,
        container_id=container_id,
        container=sealed.digest,
        size_bytes=sealed.size_bytes,
        columns=columns,
        contract=contract.digest,
        pipeline=pipeline,
    )
    description = DatasetDescription(
        owner=home.party.identity,
        container_id=container_id,
        container=sealed.digest,
        contract=contract.digest,
        pipeline=pipeline,
        croissant=said,
    )
    data = encode(sign(description, home.identity_key))
    description_path.write_bytes(data)
    reference = SealedReference(
        container_id=container_id, digest=sealed.digest, key_id=key_id, size_bytes=sealed.size_bytes
    )
    return SealedTables(reference=reference, description=canonical.digest(data))


def taken_up(path: Path, *, home: OwnerHome, contract: Contract, pipeline: str) -> SealedTables:
    """Return what an owner sealed before, to be used in a run with this contract and pipeline; nothing is opened.

    Its signed description lies beside it; ``pipeline`` is the digest of the run's.

    Raises:
        MissingFileError: no such file, or no description of it.
        SignatureError, RecipientError, UnknownKeyError: another owner's.
        ConfigError: sealed under another contract, or for another pipeline alone.
        RefusedError: a container or a description that does not hold.
    """
    container = Container.map(path)
    stated = read_description(path, container)
    container.verify_signer(home.party.identity)
    for name, sealed_under, run in (
        ("contract", stated.contract, contract.digest),
        ("pipeline", stated.pipeline, pipeline),
    ):
        if sealed_under not in (None, run):
            expected = (
                f"the one that {path} was sealed {'under' if name == 'contract' else 'for'} ({sealed_under[:16]})"
            )
            raise ConfigError(f"data.{name}", expected=expected, got=run[:16])
    entries = [entry for entry in container.header.recipients if entry.method is Method.OWNER_KEY]
    if len(entries) != 1:
        raise RecipientError("recipient", expected="one key of its owner", got=len(entries))
    home.key(entries[0].key_id)
    reference = SealedReference(
        container_id=container.header.container_id,
        digest=container.file_digest(),
        key_id=entries[0].key_id,
        size_bytes=container.size_bytes,
    )
    return SealedTables(reference=reference, description=canonical.digest(description_file(path).read_bytes()))


def _places(parts: Sequence[bytes | memoryview | mmap.mmap]) -> tuple[FilePlace, ...]:
    places: list[FilePlace] = []
    at = 0
    for part in parts:
        places.append(FilePlace(offset=at, size_bytes=len(part)))
        at += len(part)
    return tuple(places)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _as_parquet(table: pa.Table) -> memoryview:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=_ROW_GROUP, compression="zstd")
    return memoryview(sink.getvalue())
