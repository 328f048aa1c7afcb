from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from tables import AGES, CANARY, ages, contract_of, not_utf8

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


NESTED = contract_of(
    {
        "window": {"type": "list<float64, 2>"},
        "place.lat": {"type": "float64"},
        "place.of.name": {"type": "text", "nullable": True},
    }
)


def nested() -> pa.Table:
    places = [{"lat": 1.0, "of": {"name": "x"}, "other": 7}, {"lat": 2.0, "of": None, "other": 8}]
    return pa.table({"window": [[1.0, 2.0], [3.0, 4.0]], "place": places})


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".feather", ".arrow"])
def test_lists_and_structures_are_read_by_path_and_sealed_as_they_are(tmp_path, suffix):
    tables = read_tables(write(tmp_path / f"a{suffix}", nested()), NESTED)
    check_tables(tables, NESTED, what="a")
    assert tables.table.select(["window", "place.lat", "place.of.name"]).to_pydict() == {
        "window": [[1.0, 2.0], [3.0, 4.0]], "place.lat": [1.0, 2.0], "place.of.name": ["x", None],
    }  # fmt: skip
    inside = pq.read_schema(pa.BufferReader(memoryview(tables.parquet[0])))
    assert pa.types.is_struct(inside.field("place").type)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"window": [1, 2], "place.lat": 1, "place.of.name": "x"}], None),
        ([{"window": [1, 2], "place.lat": 1}], None),
        ([{"window": [1, 2], "place.lat": 1}, {"window": [1, 2], "place": {"lat": 1}}], "place.lat: missing"),
        ([{"window": [1, 2]}], "place.lat: null"),
        ([{"window": [1], "place": {"lat": 1}}], "window: items"),
    ],
    ids=["paths as keys", "some of them", "both spellings", "neither", "a short list"],
)
def test_json_spells_a_path_as_a_key_or_as_objects_but_not_both(tmp_path, rows, told):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = read_tables(tmp_path / "a.jsonl", NESTED)
    if told is None:
        check_tables(tables, NESTED, what="a")
    else:
        with pytest.raises(ContractError, match=told):
            check_tables(tables, NESTED, what="a")


@pytest.mark.parametrize(
    ("row", "column"),
    [({"window": [CANARY]}, "window"), ({"window": 1}, "window"), ({"place": {"lat": CANARY}}, "place.lat")],
    ids=["an item", "no list", "a field"],
)
def test_a_value_of_another_type_in_a_list_or_structure_is_refused_by_its_path(tmp_path, row, column):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ColumnError, match=re.escape(f"column {column}: ")) as refused:
        read_tables(tmp_path / "a.jsonl", NESTED)
    assert CANARY not in "".join(traceback.format_exception(refused.value))


def test_csv_has_no_lists(tmp_path):
    (tmp_path / "a.csv").write_text("window,place.lat,place.of.name\n1,2,x\n")
    with pytest.raises(ColumnError, match="column window: expected Parquet, Arrow or JSON lines"):
        read_tables(tmp_path / "a.csv", NESTED)


COLUMNS: dict[str, dict[str, pa.Array]] = {
    "uuid.parquet": {"age": pa.array([bytes(16)], pa.uuid())},
    "zone.parquet": {"age": pa.array([1.0]), "seen": pa.array([0], pa.timestamp("us", tz="UTC"))},
    "latin.parquet": {"age": pa.array([1.0]), "name": not_utf8()},
    "map.parquet": {"age": pa.array([1.0]), "m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))},
}


LATIN = f"{CANARY}\u00e4".encode("latin-1")
BYTES: dict[str, bytes] = {
    "latin.csv": b"age,name\n1," + LATIN,
    "header.csv": b"age,n\xe4me\n1,a\n",
    "latin.jsonl": b'{"age": 1.0, "name": "\xe4"}\n',
    "semicolons.csv": b"age;name\n1;a\n",
    "tabs.csv": b"age\tname\n1\ta\n",
    "image.png": b"x",
    "wrong.csv": f"age,name\n1,a\n{CANARY},b\n".encode(),
    "wrong.jsonl": f'{{"age": 1.0, "name": "a"}}\n{{"age": "{CANARY}", "name": "b"}}\n'.encode(),
}
IMAGES: dict[str, str] = {
    "a table beside images": "labels.csv",
    "another kind of image": "cat/2.heic",
    "a pickle among images": "cat/2.pkl",
    "a folder in a folder": "cat/small/1.png",
}


def files_of(what: str) -> dict[str, bytes]:
    """Return what is written as it stands, by its place in the dataset's path."""
    if what in IMAGES:
        return dict.fromkeys(("cat/1.png", "cat/.hidden", IMAGES[what]), b"x")
    return {"": BYTES[what]} if what in BYTES else {}


def make_bad(folder: Path, what: str) -> Path:
    path = folder / f"{what}"
    for name, data in files_of(what).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    if path.exists():
        return path
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
    elif what in COLUMNS:
        pq.write_table(pa.table(COLUMNS[what]), path)
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
    ("zone.parquet", ColumnError, "column seen: expected one of .*datetime.*, got timestamp"),
    ("latin.parquet", UnreadableDataError, "latin.parquet: expected text in UTF-8"),
    *(
        (name, UnreadableDataError, f"{name}: expected text in UTF-8")
        for name in ("latin.csv", "header.csv", "latin.jsonl")
    ),
    ("semicolons.csv", UnreadableDataError, "got semicolons"),
    ("tabs.csv", UnreadableDataError, "got tabs"),
    ("image.png", UnreadableDataError, "a folder for each class"),
    *((what, UnreadableDataError, name) for what, name in IMAGES.items() if "small" not in name),
    ("a folder in a folder", UnreadableDataError, "cat/small: expected one of .bmp"),
    ("map.parquet", ColumnError, "column m: expected one of .*, got map"),
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
