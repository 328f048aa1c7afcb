from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from tables import AGES, CANARY, ages, contract_of

from confed.data.owner import check_tables, read_tables
from confed.errors import (
    ColumnError,
    ContractError,
    EmptyDatasetError,
    MissingFileError,
    UnreadableDataError,
    UnsafeDataError,
)


def write(path: Path, table: pa.Table) -> Path:
    suffix = path.suffix
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif suffix == ".feather":
        pa.feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".feather", ".arrow"])
def test_each_format_gives_the_same_table_and_is_sealed_as_parquet(tmp_path, suffix):
    tables = read_tables(write(tmp_path / f"a{suffix}", ages()), AGES)
    assert tables.table.to_pylist() == ages().to_pylist()
    assert pq.read_table(pa.BufferReader(memoryview(tables.parquet[0]))).to_pylist() == ages().to_pylist()


def test_a_folder_is_its_files_in_order(tmp_path):
    for number in (2, 1):
        write(tmp_path / f"{number}.parquet", ages(number))
    tables = read_tables(tmp_path, AGES)
    assert tables.table.to_pylist() == ages(1).to_pylist() + ages(2).to_pylist()
    assert len(tables.parquet) == 2


def test_a_folder_of_images_is_bytes_and_labels(tmp_path):
    for kind, name in (("cat", "1.png"), ("cat", "2.PNG"), ("dog", "1.jpg")):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / name).write_bytes(name.encode())
    contract = contract_of({"image": {"type": "bytes"}, "label": {"type": "text", "choices": ["cat", "dog"]}})
    tables = read_tables(tmp_path, contract)
    check_tables(tables, contract, what="images")
    assert tables.table.to_pydict() == {"image": [b"1.png", b"2.PNG", b"1.jpg"], "label": ["cat", "cat", "dog"]}


def test_an_empty_text_is_missing_and_na_is_a_text(tmp_path):
    (tmp_path / "a.csv").write_text("age,name\n1,NA\n2,\n")
    assert read_tables(tmp_path / "a.csv", AGES).table["name"].to_pylist() == ["NA", None]


def make_bad(folder: Path, what: str) -> Path:
    path = folder / f"{what}"
    if what == "folder":
        path.mkdir()
    elif what == "mixed":
        path.mkdir()
        write(path / "a.parquet", ages())
        write(path / "b.csv", ages())
    elif what == "unlike":
        path.mkdir()
        write(path / "a.parquet", ages())
        write(path / "b.parquet", pa.table({"age": ["x"]}))
    elif what.startswith("empty"):
        write(path, ages(0))
    elif what == "a.npy":
        np.save(path, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    elif what == "wrong.csv":
        path.write_text(f"age,name\n1,a\n{CANARY},b\n")
    elif what == "wrong.jsonl":
        path.write_text(f'{{"age": 1.0, "name": "a"}}\n{{"age": "{CANARY}", "name": "b"}}\n')
    elif what == "uuid.parquet":
        pq.write_table(pa.table({"age": pa.array([bytes(16)], pa.uuid())}), path)
    elif what != "gone.parquet":
        path.write_text(CANARY)
    return path


BAD: list[tuple[str, type[Exception], str]] = [
    ("gone.parquet", MissingFileError, "gone"),
    ("folder", EmptyDatasetError, "folder"),
    ("mixed", UnreadableDataError, "several"),
    ("unlike", ColumnError, "b.parquet"),
    ("empty.parquet", EmptyDatasetError, "row"),
    ("empty.csv", EmptyDatasetError, "row"),
    ("a.npy", UnsafeDataError, "npy"),
    ("a.pkl", UnsafeDataError, "pkl"),
    ("a.txt", UnreadableDataError, "txt"),
    ("plain", UnreadableDataError, "no suffix"),
    ("junk.parquet", UnreadableDataError, "junk"),
    ("junk.feather", UnreadableDataError, "junk"),
    ("wrong.csv", ColumnError, "column age"),
    ("wrong.jsonl", ColumnError, "column age"),
    ("uuid.parquet", UnsafeDataError, "column age"),
]


@pytest.mark.parametrize(("what", "kind", "named"), BAD, ids=[entry[0] for entry in BAD])
def test_files_that_cannot_be_used_are_refused_by_name_and_without_a_value(tmp_path, what, kind, named):
    with pytest.raises(kind, match=named) as refused:
        read_tables(make_bad(tmp_path, what), AGES)
    assert refused.value.exit_code == 2
    assert CANARY not in "".join(traceback.format_exception(refused.value))
    context = refused.value.__context__
    assert context is None or CANARY not in str(context)


def test_a_dataset_that_breaks_its_contract_is_one_line_without_a_value(tmp_path):
    values: dict[str, Any] = {"age": [1.0, 500.0, -3.0], "name": ["a", CANARY, None]}
    tables = read_tables(write(tmp_path / "a.parquet", pa.table(values)), AGES)
    with pytest.raises(ContractError) as refused:
        check_tables(tables, AGES, what="a.parquet")
    assert str(refused.value) == (
        "a.parquet: expected contract 'test' kept, got column age: least, 1 times (and 2 more findings)"
    )
