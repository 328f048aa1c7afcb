from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import pytest

from confed import record
from confed.errors import ConfigError, EncodingError


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    key: bytes
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int
    flag: bool
    colour: Colour
    inner: Inner
    several: tuple[Inner, ...]
    table: Mapping[str, bool | int | float | str]
    maybe: Inner | None
    reason: str = "none"


GOOD = {
    "name": "n",
    "count": 3,
    "flag": True,
    "colour": "red",
    "inner": {"key": "00ff", "ratio": 1},
    "several": [{"key": "", "ratio": 0.5}],
    "table": {"a": 1, "b": 1.5, "c": "x", "d": False},
    "maybe": None,
}


def test_a_record_survives_the_way_to_json_and_back():
    found = record.from_json(Outer, GOOD)
    assert record.from_json(Outer, record.to_json(found)) == found
    assert isinstance(found.inner.ratio, float)
    assert found.table == GOOD["table"]
    assert type(found.table["d"]) is bool


def changed(**changes):
    return {**GOOD, **changes}


@pytest.mark.parametrize(
    ("sentence", "value", "field"),
    [
        ("an unknown key is refused", changed(cuont=4), "cuont"),
        ("a missing key is refused", {k: v for k, v in GOOD.items() if k != "count"}, "count"),
        ("text in place of a number is refused", changed(count="3"), "count"),
        ("true in place of a number is refused", changed(count=True), "count"),
        ("a fraction in place of a whole number is refused", changed(count=3.5), "count"),
        ("a number in place of true is refused", changed(flag=1), "flag"),
        ("an unknown choice is refused", changed(colour="green"), "colour"),
        ("odd hexadecimal is refused", changed(inner={"key": "0", "ratio": 1}), "inner.key"),
        ("capital hexadecimal is refused", changed(inner={"key": "0F", "ratio": 1}), "inner.key"),
        ("an inner unknown key is refused", changed(inner={"key": "", "ratio": 1, "x": 1}), "inner.x"),
        ("a table in place of a list is refused", changed(several={}), "several"),
        ("a list's bad item is named by its place", changed(several=[{"key": "", "ratio": "x"}]), "several[0].ratio"),
        ("a nested table value is refused", changed(table={"a": []}), "table.a"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_path(sentence, value, field):
    with pytest.raises(EncodingError) as caught:
        record.from_json(Outer, value)
    assert caught.value.field == field


def test_an_unknown_key_is_told_with_the_nearest_valid_one():
    with pytest.raises(ConfigError, match="nearest: count"):
        record.from_json(Outer, changed(cuont=4), error=ConfigError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    what: tuple[str, ...] | Inner | int


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"key": "0", "ratio": 1}, "what.key"),
        ({"kye": ""}, "what.kye"),
        (["a", 1], "what[1]"),
        ("a", "what"),
    ],
)
def test_of_several_types_the_likeliest_one_s_fault_is_told(value, field):
    with pytest.raises(EncodingError) as caught:
        record.from_json(Choice, {"what": value})
    assert caught.value.field == field
