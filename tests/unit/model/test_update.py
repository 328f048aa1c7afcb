"""What an update says: strict, finite, and the sealed part shown nowhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confed import canonical
from confed.errors import ConfedError, DeclarationError, EncodingError, NotFiniteError
from confed.journey import Purpose
from confed.model.update import Declaration, UpdateDetail

DIGEST = "ab" * 32
DETAIL: dict[str, Any] = {
    "run": "run-1",
    "manifest": DIGEST,
    "round": 1,
    "attempt": 0,
    "purpose": Purpose.TRAIN,
    "base": DIGEST,
    "aggregator": DIGEST,
    "site": "north",
    "credential": DIGEST,
    "ticket": DIGEST,
    "layout": DIGEST,
    "compression": "none",
}
DECLARED: dict[str, Any] = {"weight": 10.0, "norm": 0.5, "metrics": {"loss": 0.25}, "dataset": DIGEST}

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, allow_infinity=False)


@given(weight=positive, norm=positive, metrics=st.dictionaries(st.sampled_from(["loss", "accuracy", "é"]), finite))
def test_a_declaration_survives_its_bytes(weight: float, norm: float, metrics: dict[str, float]) -> None:
    declaration = Declaration(weight=weight, norm=norm, metrics=metrics, dataset="")
    assert Declaration.from_bytes(declaration.to_bytes()) == declaration


def test_a_detail_survives_a_header() -> None:
    detail = UpdateDetail(**DETAIL)
    assert UpdateDetail.from_detail(canonical.decode(canonical.encode(detail.to_detail()))) == detail


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manifest", "x"),
        ("base", DIGEST.upper()),
        ("ticket", ""),
        ("run", ""),
        ("site", "x" * 129),
        ("round", 0),
        ("round", True),
        ("attempt", -1),
        ("attempt", 0.5),
        ("purpose", "steal"),
        ("more", 1),
    ],
)
def test_a_malformed_detail_is_refused(field: str, value: Any) -> None:
    with pytest.raises(EncodingError):
        UpdateDetail.from_detail({**DETAIL, "purpose": "train", field: value})


@pytest.mark.parametrize("field", sorted(DETAIL))
def test_a_detail_without_a_field_is_refused(field: str) -> None:
    with pytest.raises(EncodingError):
        UpdateDetail.from_detail({key: value for key, value in DETAIL.items() if key != field})


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"weight": float("nan")}, NotFiniteError),
        ({"weight": float("inf")}, NotFiniteError),
        ({"norm": float("nan")}, NotFiniteError),
        ({"norm": float("-inf")}, NotFiniteError),
        ({"metrics": {"loss": float("nan")}}, NotFiniteError),
        ({"weight": -1.0}, DeclarationError),
        ({"norm": -1.0}, DeclarationError),
        ({"metrics": {"": 1.0}}, DeclarationError),
        ({"metrics": {"x" * 129: 1.0}}, DeclarationError),
        ({"metrics": {str(number): 1.0 for number in range(257)}}, DeclarationError),
        ({"dataset": "x"}, DeclarationError),
    ],
)
def test_a_declaration_out_of_range_is_refused(changed: dict[str, Any], error: type[ConfedError]) -> None:
    with pytest.raises(error):
        Declaration(**{**DECLARED, **changed})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"weight":NaN}',
        b"[" * 100_000,
        canonical.encode({**DECLARED, "more": 1}),
        canonical.encode({**DECLARED, "weight": "10"}),
        canonical.encode({**DECLARED, "metrics": {"loss": True}}),
        canonical.encode(DECLARED) + b" ",
        b" " * 65537,
    ],
)
def test_bytes_that_are_no_declaration_are_refused(data: bytes) -> None:
    with pytest.raises(DeclarationError):
        Declaration.from_bytes(data)


def test_what_is_declared_is_neither_in_a_repr_nor_in_an_error() -> None:
    assert "10" not in repr(Declaration(**DECLARED))
    with pytest.raises(DeclarationError) as caught:
        Declaration.from_bytes(canonical.encode({**DECLARED, "weight": "secret"}))
    assert "secret" not in str(caught.value)
