from __future__ import annotations

from typing import Any

import pytest

from confed import canonical, record
from confed.errors import ConfigError, MissingFileError
from confed.preparation.contract import Contract
from confed.preparation.documents import read_contract, read_pipeline
from confed.preparation.pipeline import Pipeline
from confed.preparation.terms import PreparationTerms

CONTRACT: dict[str, Any] = {
    "name": "ages",
    "rows": {"least": 1, "most": 10},
    "others": "ignore",
    "columns": {"age": {"type": "float64"}, "kind": {"type": "text"}},
}


def contract(**column: Any) -> Contract:
    return Contract.from_document({**CONTRACT, "columns": {"age": {"type": "float64", **column}}})


def test_what_a_document_leaves_out_is_written_out_and_hashed():
    short = Contract.from_document(CONTRACT)
    whole = record.from_json(Contract, record.to_json(short))
    assert whole == short
    assert whole.digest == short.digest == canonical.digest(canonical.encode(record.to_json(whole)))
    assert short.digest != contract().digest


@pytest.mark.parametrize(
    "change", [{"least": 1.0}, {"most": 2.0}, {"nullable": True}, {"unique": True}, {"type": "int8"}]
)
def test_every_term_is_in_the_digest(change):
    assert contract(**change).digest != contract().digest


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("a type that is not known", {"type": "number"}, "age.type"),
    ("a bound of text", {"type": "text", "least": 1.0}, "age.least"),
    ("bounds the wrong way round", {"least": 2.0, "most": 1.0}, "age.most"),
    ("a pattern of a number", {"pattern": "x"}, "age.pattern"),
    ("no pattern", {"type": "text", "pattern": "("}, "age.pattern"),
    ("a pattern that looks ahead", {"type": "text", "pattern": "(?=a)a"}, "age.pattern"),
    ("a pattern that looks behind", {"type": "text", "pattern": "(?<!b)a"}, "age.pattern"),
    ("a pattern that looks back", {"type": "text", "pattern": r"(a)\1"}, "age.pattern"),
    ("choices of another type", {"type": "int8", "choices": ["a"]}, "age.choices"),
    ("a key that is not known", {"nulable": True}, "age.nulable"),
    ("an infinite bound", {"most": float("inf")}, "age.most"),
    ("lists of lists", {"type": "list<list<int8>>"}, "age.type"),
    ("lists of no type", {"type": "list<number>"}, "age.type"),
    ("lists of length 0", {"type": "list<int8, 0>"}, "age.type"),
    ("another spelling of a list", {"type": "list<int8,3>"}, "age.type"),
    ("lists each once", {"type": "list<int8>", "unique": True}, "age.unique"),
    ("a pattern of lists of numbers", {"type": "list<int8>", "pattern": "a"}, "age.pattern"),
    ("bounds of lists of text", {"type": "list<text>", "least": 1.0}, "age.least"),
    ("choices of another type than the items'", {"type": "list<int8>", "choices": ["a"]}, "age.choices"),
    ("most items of lists of one length", {"type": "list<int8, 3>", "longest": 3}, "age.longest"),
]


@pytest.mark.parametrize(("what", "column", "field"), MISTAKES, ids=[entry[0] for entry in MISTAKES])
def test_a_mistake_in_a_column_is_named_with_it(what, column, field):
    with pytest.raises(ConfigError, match=f"contract.columns.{field}"):
        contract(**column)


def test_a_column_that_is_no_table_is_named():
    with pytest.raises(ConfigError, match=r"contract.columns.age: expected a table, got str"):
        Contract.from_document({**CONTRACT, "columns": {"age": "float64"}})


def test_ordinary_patterns_are_taken():
    for pattern in (r"[A-Z]{2}\d+", r"(?:a|b)c?", r"\\1", r"(?P<x>a)", r"(?i)ill"):
        assert contract(type="text", pattern=pattern).columns["age"].pattern == pattern


PIPELINES: list[tuple[str, dict[str, Any], str]] = [
    ("no such step", {"steps": [{"step": "dorp"}]}, r"steps\[0\].step"),
    ("a missing key", {"steps": [{"step": "clip", "column": "age", "least": 0.0}]}, r"steps\[0\].most"),
    ("an unknown key", {"steps": [{"step": "select", "columns": ["age"], "x": 1}]}, r"steps\[0\].x"),
    ("a column that is not there", {"steps": [{"step": "drop_nulls", "columns": ["ages"]}]}, r"steps\[0\].column"),
    (
        "a column that is not there any more",
        {"steps": [{"step": "select", "columns": ["kind"]}, {"step": "fill", "column": "age", "value": 1.0}]},
        r"steps\[1\].column",
    ),
    ("a name taken", {"steps": [{"step": "rename", "names": {"age": "kind"}}]}, r"steps\[0\].names"),
    ("a deviation of 0", {"steps": [{"step": "standardise", "columns": {"age": [1.0, 0.0]}}]}, "columns.age"),
    ("an operator of its own", {"steps": [{"step": "filter", "where": {"column": "age", "operator": "~", "value": 1}}]}, "operator"),
    ("one class", {"labels": {"column": "y", "classes": ["a"], "functions": [{"name": "f", "column": "kind"}]}}, "labels.classes"),
    ("a label of no class", {"labels": {"column": "y", "classes": ["a", "b"], "functions": [
        {"name": "f", "when": {"column": "age", "operator": ">", "value": 1}, "label": "c"}]}}, "functions.f.label"),
    ("a function of nothing", {"labels": {"column": "y", "classes": ["a", "b"], "functions": [{"name": "f"}]}}, "functions.f"),
    ("a label that is there", {"labels": {"column": "age", "classes": ["a", "b"], "functions": [{"name": "f", "column": "kind"}]}}, "labels.column"),
    ("a vote that is missing", {"labels": {"column": "y", "classes": ["a", "b"], "functions": [{"name": "f", "column": "gone"}]}}, "pipeline.labels"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "document", "field"), PIPELINES, ids=[entry[0] for entry in PIPELINES])
def test_a_mistake_in_a_pipeline_is_named(what, document, field):
    with pytest.raises(ConfigError, match=field):
        Pipeline.from_document({"name": "p", **document}).require(Contract.from_document(CONTRACT))


def test_a_change_of_a_pipeline_changes_its_digest():
    clip = {"step": "clip", "column": "age", "least": 0.0, "most": 1.0}
    one, other = (Pipeline.from_document({"name": "p", "steps": [{**clip, "most": most}]}) for most in (1.0, 2.0))
    assert one.digest != other.digest


def test_a_manifest_s_terms_name_a_description_of_each_site():
    terms = PreparationTerms(
        contract=Contract.from_document(CONTRACT),
        pipeline=Pipeline.from_document({"name": "p"}),
        statistics=None,
        descriptions={"a": "00" * 32},
    )
    terms.require(sites={"a"})
    with pytest.raises(ConfigError, match="descriptions"):
        terms.require(sites={"a", "b"})


def test_documents_are_toml_or_json(tmp_path):
    (tmp_path / "c.toml").write_text(
        'name = "c"\nrows = {least = 1, most = 2}\nothers = "refuse"\ncolumns.x.type = "bool"\n'
    )
    (tmp_path / "p.json").write_text('{"name": "p", "steps": []}')
    (tmp_path / "bad.toml").write_text("name =")
    assert read_contract(tmp_path / "c.toml").columns["x"].type == "bool"
    assert read_pipeline(tmp_path / "p.json").name == "p"
    with pytest.raises(ConfigError, match="TOML"):
        read_contract(tmp_path / "bad.toml")
    with pytest.raises(MissingFileError):
        read_contract(tmp_path / "none.toml")
