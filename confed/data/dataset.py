"""A sealed dataset: Parquet files one after another in a container, whose header says where each lies.

The header's ``detail`` is ``{"format", "contract", "files": [{"offset", "size_bytes"}]}``: public, and signed by the
owner with the rest of the header. Names of files and numbers of rows are not in it.

Reading keeps what Parquet is for: of a file only its footer is opened, then the chunks that hold the columns and row
groups asked for. A field of a structure is a column of its own, by its path (``confed.data.nested``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from confed import record
from confed.data.column_types import refuse_objects
from confed.data.nested import chosen, flat_schema
from confed.data.sealed_file import SealedFile
from confed.errors import ColumnError, ContainerFormatError, SealError, ShapeError, UnreadableDataError
from confed.journey import Kind
from confed.sealing.container import Container, OpenContainer

FORMAT = "confed-dataset/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlace:
    """Where a Parquet file lies in the plaintext."""

    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetDetail:
    """What a dataset's header says in public. No field is optional.

    Attributes:
        contract: digest of the contract that it was sealed under.
        files: its Parquet files, in order.
    """

    FORMAT: ClassVar[str] = FORMAT

    format: str
    contract: str
    files: tuple[FilePlace, ...]

    def __post_init__(self) -> None:
        if self.format != FORMAT or not self.files:
            raise ContainerFormatError("dataset detail", expected=f"{FORMAT} with at least one file", got="another")

    @classmethod
    def of(cls, container: Container) -> DatasetDetail:
        """Return what a container's header says.

        Raises:
            ShapeError: not a dataset.
            ContainerFormatError: a dataset of arrays, or one whose detail is not of this form.
        """
        if container.header.kind is not Kind.DATASET:
            raise ShapeError("container kind", expected=Kind.DATASET, got=container.header.kind)
        return record.from_json(cls, dict(container.header.detail), at="dataset detail", error=ContainerFormatError)


class SealedDataset:
    """An opened dataset: its schema and its columns, as they are asked for.

    Raises:
        ShapeError, ContainerFormatError: not a dataset of files.
        UnreadableDataError: a file in it that is not Parquet.
        UnsafeDataError: a column of objects.
        TamperedError: a chunk whose tag does not match.
    """

    def __init__(self, container: OpenContainer) -> None:
        self._container = container
        places = DatasetDetail.of(container.container).files
        self._files = [self._opened(place, number) for number, place in enumerate(places)]
        whole: pa.Schema = self._files[0].schema_arrow
        refuse_objects(whole, what="dataset")
        for number, file in enumerate(self._files):
            if not file.schema_arrow.equals(whole):
                raise ColumnError(f"file {number} of the dataset", expected="the first one's columns", got="others")
        self.schema: pa.Schema = flat_schema(whole)

    @property
    def row_count(self) -> int:
        """How many rows all files have; only their footers are opened."""
        return sum(file.metadata.num_rows for file in self._files)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Return these columns of every row; other columns' chunks stay sealed.

        Raises:
            ColumnError: a column that is not there.
            UnreadableDataError: bytes that are no Parquet.
            TamperedError: a chunk whose tag does not match.
        """
        known = set(self.schema.names)
        for name in columns:
            if name not in known:
                raise ColumnError("column", expected="one of the dataset's", got=name)
        return pa.concat_tables(list(self._tables(list(columns))))

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        for number, file in enumerate(self._files):
            # Arrow takes a name for all paths that begin with it.
            yield chosen(_reading(partial(file.read, columns=columns), number), columns)

    def _opened(self, place: FilePlace, number: int) -> pq.ParquetFile:
        whole = SealedFile(self._container, offset=place.offset, size_bytes=place.size_bytes)
        return _reading(partial(pq.ParquetFile, pa.PythonFile(whole, mode="r"), pre_buffer=True), number)


def _reading(read: Any, number: int) -> Any:
    """Return what ``read`` does; Arrow's own errors, which may quote what is in a file, do not leave."""
    try:
        return read()
    except SealError:
        raise
    except (pa.ArrowException, OSError, ValueError):
        pass
    raise UnreadableDataError(f"file {number} of the dataset", expected="Parquet", got="something else")
