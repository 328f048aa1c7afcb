"""What the governor takes from a client's reply: a hostile one cannot end the run, or put anything into its events."""

import pytest
from flwr.app import ConfigRecord

from confed.governor.rounds import _code, _seconds


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("not a number", {"seconds-train": float("nan")}),
        ("without end", {"seconds-train": float("inf")}),
        ("negative", {"seconds-train": -1.0}),
        ("absurd", {"seconds-train": 1e300}),
        ("text", {"seconds-train": "1.0"}),
        ("of an unknown stage", {"seconds-the patient's name": 1.0}),
    ],
)
def test_seconds_that_make_no_sense_are_left_out(sentence, told):
    assert _seconds(ConfigRecord({**told, "seconds-seal": 0.5})) == {"seal": 0.5}


@pytest.mark.parametrize("reason", [None, "", "a sentence", "x" * 100, "Code", "naïve", "code\n"])
def test_a_reason_that_is_no_code_is_not_repeated(reason):
    assert _code(reason) == "client-error"


def test_a_code_is_kept():
    assert _code("not-finite") == "not-finite"
