"""Plain files as their owner has them, read as Arrow tables: Parquet, CSV, JSON lines, Arrow IPC, folders of images.

Formats that may hold code (pickles, NumPy's object arrays) are refused by name. Errors name the file and the column,
never a value.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

from confed.data.column_types import arrow_type, refuse_objects
from confed.data.nested import json_schema, without_unused
from confed.errors import ColumnError, EmptyDatasetError, MissingFileError, UnreadableDataError, UnsafeDataError
from confed.preparation.contract import REFUSE, Contract

PARQUET = (".parquet", ".pq")
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IMAGE_COLUMN, LABEL_COLUMN = "image", "label"
_UNSAFE = (".npy", ".npz", ".pkl", ".pickle", ".joblib", ".pt", ".pth", ".h5", ".hdf5", ".mat", ".rds")
_NOT_UTF8 = re.compile("invalid utf-?8", re.IGNORECASE)
_CSV_COLUMN = re.compile(r"CSV column #(\d+)")
_JSON_COLUMN = re.compile(r"Column\(/([^)]*?)(?:/\[\])?\)")


def source_files(path: Path) -> tuple[Path, ...]:
    """Return the files of a dataset in order: the one named, or those of a folder that all have one format.

    A folder of images (folders of images by class) is returned as itself.

    Raises:
        MissingFileError: nothing there.
        UnsafeDataError: a format that may hold code.
        UnreadableDataError: a format that is not known, or several.
        EmptyDatasetError: a folder without files.
    """
    if path.is_file():
        _require_known(path)
        return (path,)
    if not path.is_dir():
        raise MissingFileError("dataset", expected="a file or a folder", got=path)
    if _is_image_folder(path):
        _require_images(path)
        return (path,)
    files = tuple(entry for entry in _shown(path) if entry.is_file())
    if not files:
        raise EmptyDatasetError(str(path), expected="at least one file", got="none")
    for file in files:
        _require_known(file)
    formats = {_READERS[file.suffix.lower()] for file in files}
    if len(formats) != 1:
        raise UnreadableDataError(str(path), expected="files of one format", got="several")
    return files


def is_parquet(path: Path) -> bool:
    """Return whether a file is Parquet by its name, so that it is sealed as it is."""
    return path.suffix.lower() in PARQUET


def read_table(path: Path, contract: Contract) -> pa.Table:
    """Return all rows of one file (or folder of images); text formats get the contract's types.

    Raises:
        UnreadableDataError: it is not what its name says.
        UnsafeDataError: a column of objects.
        ColumnError: text that is no value of its column's type, or a column that is not there.
        EmptyDatasetError: no rows.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise EmptyDatasetError(str(path), expected="at least one row", got="an empty file")
    read = _read_images if path.is_dir() else _READERS[path.suffix.lower()]
    table = _reading(partial(read, path, contract), path)
    if table is None:
        raise UnreadableDataError(str(path), expected=f"a file of the format {path.suffix}", got="something else")
    refuse_objects(table.schema, what=str(path))
    if table.num_rows == 0:
        raise EmptyDatasetError(str(path), expected="at least one row", got="none")
    return table


def _reading(read: Callable[[], pa.Table], path: Path) -> pa.Table | None:
    """Return what ``read`` does, or ``None``; Arrow's errors quote values, so nothing leads to them."""
    column: str | None = None
    try:
        table = read()
        table.validate(full=True)  # readers of JSON and Parquet take any bytes for text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        encoded = isinstance(error, UnicodeDecodeError) or _NOT_UTF8.search(str(error)) is not None
        column = None if encoded else _column_in(str(error), path)
    else:
        return table
    if encoded:
        raise UnreadableDataError(str(path), expected="text in UTF-8", got="another encoding")
    if column is not None:
        raise ColumnError(f"{path}: column {column}", expected="values of its type", got="others")
    return None


def _column_in(message: str, path: Path) -> str | None:
    """Return the column that one of Arrow's messages is about: a number in CSV, which its first line names."""
    numbered, named = _CSV_COLUMN.search(message), _JSON_COLUMN.search(message)
    if numbered is None:
        return None if named is None else named.group(1).replace("/", ".")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header = next(csv.reader(file))
    return header[int(numbered.group(1))]


def _read_parquet(path: Path, contract: Contract) -> pa.Table:
    del contract
    return pq.ParquetFile(path).read()


def _read_csv(path: Path, contract: Contract) -> pa.Table:
    for name, terms in contract.columns.items():
        if terms.kind.is_list:
            raise ColumnError(f"{path}: column {name}", expected="Parquet, Arrow or JSON lines for lists", got="CSV")
    types = {name: arrow_type(terms.type) for name, terms in contract.columns.items()}
    options = pyarrow.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True)
    table = pyarrow.csv.read_csv(path, convert_options=options)
    for other, name in ((";", "semicolons"), ("\t", "tabs")):
        if table.num_columns == 1 and other in table.column_names[0]:
            raise UnreadableDataError(str(path), expected="commas between its columns", got=name)
    return table


def _read_json(path: Path, contract: Contract) -> pa.Table:
    schema = json_schema({name: terms.type for name, terms in contract.columns.items()})
    others = "infer" if contract.others == REFUSE else "ignore"
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others)
    return without_unused(pyarrow.json.read_json(path, parse_options=options), contract.columns)


def _read_arrow(path: Path, contract: Contract) -> pa.Table:
    del contract
    with pa.OSFile(str(path)) as source:
        start = source.read(6)
        source.seek(0)
        reader: Any = pyarrow.ipc.open_file(source) if start == b"ARROW1" else pyarrow.ipc.open_stream(source)
        return reader.read_all()


def _read_images(path: Path, contract: Contract) -> pa.Table:
    """Return bytes and label (the name of its folder) of every image; pictures are not decoded."""
    del contract
    files = [(file, folder.name) for folder in _shown(path) for file in _shown(folder)]
    images = pa.array([file.read_bytes() for file, _ in files], pa.binary())
    return pa.table({IMAGE_COLUMN: images, LABEL_COLUMN: pa.array([label for _, label in files], pa.string())})


_READERS: Mapping[str, Callable[[Path, Contract], pa.Table]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
    ".ipc": _read_arrow,
}


def _require_known(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _UNSAFE:
        raise UnsafeDataError(str(path), expected=f"one of {', '.join(_READERS)}", got=f"{suffix} (may hold code)")
    if suffix in IMAGES:
        raise UnreadableDataError(str(path), expected="a folder with a folder for each class of images", got="an image")
    if suffix not in _READERS:
        raise UnreadableDataError(str(path), expected=f"one of {', '.join(_READERS)}", got=suffix or "no suffix")


def _is_image_folder(path: Path) -> bool:
    return any(file.suffix.lower() in IMAGES for folder in _shown(path) if folder.is_dir() for file in folder.iterdir())


def _require_images(path: Path) -> None:
    """Refuse what is in a folder of images and would be left out without a word; hidden files are."""
    for entry in _shown(path):
        if not entry.is_dir():
            raise UnreadableDataError(str(entry), expected="a folder for each class of images alone", got="a file")
        for file in _shown(entry):
            if not file.is_file() or file.suffix.lower() not in IMAGES:
                raise UnreadableDataError(str(file), expected=f"one of {', '.join(IMAGES)}", got=file.suffix or "none")


def _shown(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
