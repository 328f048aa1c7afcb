"""Settings of an app: read by type and bounds, refused by name, and told of outside by a name that is known there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from clients.tasks import causal_lm, central, digits
from confed.client.settings import Settings, code_of
from confed.errors import SettingError, error_for

VALUES: dict[str, Any] = {"epochs": 3, "rate": 0.5, "word": "cosine", "on": True, "text": "4", "nan": math.nan}

READ: dict[str, tuple[Callable[[Settings], Any], Any]] = {
    "a whole number": (lambda s: s.whole("epochs", least=1), 3),
    "a number": (lambda s: s.number("rate", above=0), 0.5),
    "a whole number as a number": (lambda s: s.number("epochs", least=3, most=3), 3.0),
    "a word": (lambda s: s.choice("word", ("step", "cosine")), "cosine"),
    "a text": (lambda s: s.text("text"), "4"),
    "a default": (lambda s: (s.whole("w", least=0, default=0), s.number("n", default=0.0), s.text("t", default="x")), (0, 0.0, "x")),
}  # fmt: skip


@pytest.mark.parametrize("what", READ)
def test_a_setting_is_read(what: str) -> None:
    read, expected = READ[what]
    assert read(Settings(VALUES)) == expected


REFUSED: dict[str, Callable[[Settings], Any]] = {
    "missing": lambda s: s.whole("missing", least=1),
    "word": lambda s: s.choice("word", ("step", "constant")),
    "epochs": lambda s: s.whole("epochs", least=4),
    "rate": lambda s: s.number("rate", above=0.5),
    "text": lambda s: s.whole("text", least=1),
    "on": lambda s: s.number("on"),
    "nan": lambda s: s.number("nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_the_settings_name(name: str) -> None:
    with pytest.raises(SettingError, match=rf"^settings\.{name}: expected ") as refused:
        REFUSED[name](Settings(VALUES))
    assert refused.value.exit_code == 2


def test_outside_is_told_a_name_that_the_manifest_has_and_no_other() -> None:
    for name, expected in (
        ("lr-schedule", "setting-lr-schedule"),
        ("patient-4711", "setting"),
        ("a" * 60, "setting"),
        ("Ärger", "setting"),
    ):
        error = SettingError(f"settings.{name}", expected="a word", got="patient 4712")
        assert code_of(error, {"lr-schedule", "a" * 60, "Ärger"}) == expected
    found = error_for("setting-lr-schedule", "the training TEE")
    assert type(found) is SettingError
    assert "(setting-lr-schedule)" in str(found)


CENTRAL = {"epochs": 1, "num-server-rounds": 2, "batch-size": 8, "learning-rate": 0.1}
TUNING = {"local-epochs": 1, "learning-rate": 0.1, "batch-size": 8, "max-tokens": 64}
DIGITS = {"local-epochs": 1, "learning-rate": 0.1, "batch-size": 8}
READY: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (central, CENTRAL, {"lr-schedule": "warm"}, "lr-schedule"),
    (central, CENTRAL, {"precision": "float8"}, "precision"),
    (central, CENTRAL, {"device": "tpu"}, "device"),
    (central, CENTRAL, {"epochs": 0}, "epochs"),
    (central, CENTRAL, {"learning-rate": "fast"}, "learning-rate"),
    (digits, DIGITS, {"batch-size": 0}, "batch-size"),
    (causal_lm, TUNING, {"quantize": "int3"}, "quantize"),
    (causal_lm, TUNING, {"test-every": 1}, "test-every"),
    (causal_lm, TUNING, {"noise-multiplier": 1.0}, "clip-norm"),
]


@pytest.mark.parametrize(("app", "good", "bad", "name"), READY, ids=[entry[3] for entry in READY])
def test_ready_apps_refuse_a_setting_before_anything_is_sealed(
    app: Any, good: dict[str, Any], bad: dict[str, Any], name: str
) -> None:
    app.require_settings(good)
    with pytest.raises(SettingError, match=rf"settings\.{name}:"):
        app.require_settings({**good, **bad})
