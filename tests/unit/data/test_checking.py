from __future__ import annotations

import datetime
import traceback
from typing import Any

import pyarrow as pa
import pytest
from tables import AGES, CANARY, CANARY_NUMBER, ages, contract_of, not_utf8

from confed.data.checking import check, examine
from confed.data.explanation import explained
from confed.errors import ColumnError, ConfigError, ContractError

BREAKS: list[tuple[str, dict[str, Any], Any, list[tuple[str, str, int]]]] = [
    ("a number below", {"type": "float64", "least": 1.0}, [0.5, 1.0, 0.0], [("x", "least", 2)]),
    ("a number above", {"type": "int32", "most": 3.0}, pa.array([3, 4], pa.int32()), [("x", "most", 1)]),
    ("a bound between whole numbers", {"type": "int64", "least": 1.5}, [1, 2], [("x", "least", 1)]),
    ("no number", {"type": "float64", "least": 0.0}, [float("nan")], [("x", "null", 1), ("x", "number", 1)]),
    (
        "no number where one may miss",
        {"type": "float64", "least": 0.0, "nullable": True},
        [float("nan")],
        [("x", "number", 1)],
    ),
    ("a missing value", {"type": "text"}, ["a", None], [("x", "null", 1)]),
    ("one value twice", {"type": "int64", "unique": True}, [1, 1, 2], [("x", "unique", 2)]),
    ("a value that is no choice", {"type": "text", "choices": ["a"]}, ["a", "b", "c"], [("x", "choices", 2)]),
    ("text that starts well", {"type": "text", "pattern": "[a-z]+"}, ["abc", "abc1"], [("x", "pattern", 1)]),
    ("long text", {"type": "text", "longest": 2}, ["ab", "äöü"], [("x", "longest", 1)]),
    ("many bytes", {"type": "bytes", "longest": 1}, [b"ab"], [("x", "longest", 1)]),
    ("another type", {"type": "int64"}, ["1"], [("x", "type", 1)]),
    ("a list", {"type": "int64"}, [[1]], [("x", "type", 1)]),
    ("a value for a list", {"type": "list<int64>"}, [1], [("x", "type", 1)]),
    ("a list of another type", {"type": "list<int64>"}, [["1"]], [("x", "type", 1)]),
    ("a list of lists", {"type": "list<int64>"}, [[[1]]], [("x", "type", 1)]),
    ("a structure in a list", {"type": "list<int64>"}, [[{"y": 1}]], [("x", "type", 1)]),
    ("items that miss, and lists", {"type": "list<int64>"}, [[1, None], None, []], [("x", "null", 2)]),
    ("items that are no number", {"type": "list<float64>"}, [[1.0, float("nan")]], [("x", "null", 1)]),
    (
        "items out of bounds",
        {"type": "list<float64>", "nullable": True, "least": 0.0, "most": 3.0},
        [[1.0, -2.0], [-1.0, 5.0], [None], None, [float("nan")]],
        [("x", "least", 2), ("x", "most", 2), ("x", "number", 1)],
    ),
    ("items that are no choice", {"type": "list<text>", "choices": ["a"]}, [["a", "b", "b"]], [("x", "choices", 1)]),
    ("items that start well", {"type": "list<text>", "pattern": "[a-z]+"}, [["a1"], ["a"]], [("x", "pattern", 1)]),
    ("many items", {"type": "list<int64>", "longest": 2}, [[1, 2], [1, 2, 3]], [("x", "longest", 1)]),
    ("lists of another length", {"type": "list<int64, 2>"}, [[1, 2], [1], [], None], [("x", "items", 2)]),
    (
        "lists of one length, the wrong one",
        {"type": "list<int64, 3>"},
        pa.array([[1, 2]], pa.list_(pa.int64(), 2)),
        [("x", "type", 1)],
    ),
    (
        "items of lists of one length",
        {"type": "list<int64, 2>", "least": 0.0},
        [[1, 2], [3, -4]],
        [("x", "least", 1)],
    ),
]


@pytest.mark.parametrize(("what", "column", "values", "findings"), BREAKS, ids=[entry[0] for entry in BREAKS])
def test_what_breaks_a_contract_is_a_column_a_check_and_a_count(what, column, values, findings):
    found = examine(pa.table({"x": values}), contract_of({"x": column}))[1]
    assert [(finding.column, finding.check, finding.count) for finding in found] == findings


def test_a_table_that_keeps_its_contract_has_the_contract_s_columns_in_their_types():
    moment = datetime.datetime(2020, 1, 1)  # noqa: DTZ001 (a contract's moments have no zone)
    table = pa.table(
        {
            "when": pa.array([moment], pa.timestamp("ms")),
            "kind": pa.array(["a"]).dictionary_encode(),
            "extra": [1],
        }
    )
    contract = contract_of({"kind": {"type": "text", "choices": ["a"]}, "when": {"type": "datetime"}})
    assert check(table, contract).to_dicts() == [{"kind": "a", "when": moment}]


def test_lists_have_one_length_in_the_table_if_they_have_one_in_the_contract():
    contract = contract_of(
        {"a": {"type": "list<float32, 2>", "nullable": True}, "b": {"type": "list<text>"}, "c": {"type": "list<int8>"}}
    )
    table = pa.table(
        {
            "a": pa.array([[1.0, 2.0], None], pa.large_list(pa.float32())),
            "b": [["x"], []],
            "c": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        }
    )
    found = check(table, contract).to_arrow()
    assert [str(found.schema.field(name).type) for name in "abc"] == [
        "fixed_size_list<item: float>[2]",
        "large_list<item: large_string>",
        "large_list<item: int8>",
    ]
    assert found.to_pydict() == table.to_pydict()


def test_missing_columns_rows_and_others_are_found():
    contract = contract_of(
        {"x": {"type": "int64"}, "gone": {"type": "text"}}, rows={"least": 3, "most": 4}, others="refuse"
    )
    found = examine(pa.table({"x": [1], "y": [2], "z": [3]}), contract)[1]
    assert [(finding.column, finding.check, finding.count) for finding in found] == [
        ("", "others", 2),
        ("", "rows", 1),
        ("gone", "missing", 1),
    ]


def test_no_value_is_in_a_refusal_nor_in_what_leads_to_it():
    contract = contract_of({"age": {"type": "float64", "most": 5.0}, "name": {"type": "text", "pattern": "[a-z]+"}})
    with pytest.raises(ContractError) as refused:
        check(ages(2, age=[1.0, CANARY_NUMBER], name=["x", CANARY]), contract)
    told = "".join(traceback.format_exception(refused.value)) + repr(refused.value.findings)
    assert CANARY not in told
    assert str(CANARY_NUMBER)[:6] not in told
    error: BaseException | None = refused.value
    while error is not None:
        assert isinstance(error, ContractError)
        error = error.__context__


def test_a_check_that_cannot_be_done_is_no_finding():
    contract = contract_of({"x": {"type": "text", "pattern": "(a{1,1000}){1,1000}"}})
    with pytest.raises(ConfigError, match=r"contract.columns.x.pattern"):
        examine(pa.table({"x": [CANARY]}), contract)


def test_text_that_is_none_never_reaches_a_check():
    with pytest.raises(ColumnError, match="values that their types can hold"):
        examine(pa.table({"x": not_utf8()}), contract_of({"x": {"type": "text"}}))


@pytest.mark.parametrize(
    ("column", "terms", "told"),
    [
        ({"x": ["a"]}, {"type": "int64"}, "column x: type, expected int64, got text"),
        ({"x": pa.array([1], pa.int32())}, {"type": "int64"}, "column x: type, expected int64, got int32"),
        ({"x": pa.array([[1]])}, {"type": "list<int64, 2>"}, "column x: items, 1 times"),
        ({"x": pa.array([[[1]]])}, {"type": "list<int64>"}, "column x: type, expected list<int64>, got list<"),
        ({"x.a": [1], "x.b": [1]}, {"type": "int64"}, "column x: missing, it is a structure with x.a, x.b"),
        ({" X": [1]}, {"type": "int64"}, "column x: missing, there is ' X'"),
        ({CANARY: [1]}, {"type": "int64"}, "column x: missing"),
        ({"x": [7]}, {"type": "int64", "most": 5.0}, "column x: most, 1 times"),
    ],
)
def test_who_has_the_table_is_told_what_is_there_instead_and_no_value(column, terms, told):
    table, contract = pa.table(column), contract_of({"x": terms})
    (finding,) = examine(table, contract)[1]
    said = explained(finding, table, contract)
    assert said.startswith(told)
    assert CANARY not in said


def test_rows_and_columns_of_one_name_are_told_by_their_number():
    contract = contract_of({"x": {"type": "int64"}}, rows={"least": 2, "most": 3})
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    assert [explained(finding, table, contract) for finding in examine(table, contract)[1]] == [
        "the table: rows, expected 2 to 3, got 1",
        "column x: missing, it is there 2 times",
    ]


def test_a_refusal_s_message_has_no_findings():
    with pytest.raises(ContractError) as refused:
        check(ages(1, age=[500.0]), AGES)
    assert "age" not in str(refused.value)
    assert refused.value.code == "contract"
