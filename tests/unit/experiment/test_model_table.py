"""What a researcher writes about the model, and what is refused by the name of its key."""

import numpy as np
import pytest

from confed.errors import ConfigError
from confed.experiment.learning_tables import ModelTable
from confed.experiment.starting import starting_model
from confed.model.bfloat16 import widened

ARRAYS = {
    "embed": np.array([1.0, 1.00390625], np.float32),
    "output": np.array([1.0, 1.00390625], np.float32),
    "steps": np.array([5]),
}


def test_without_the_table_every_floating_tensor_is_trained():
    found = starting_model(ModelTable(), ARRAYS)
    assert (found.trained, found.tied) == (("embed", "output"), {})


def test_what_is_bfloat16_is_sealed_as_that():
    found = starting_model(ModelTable(bfloat16=("emb*",)), ARRAYS)
    assert [tensor.dtype for tensor in found.layout.tensors] == ["BF16", "F32", "I64"]
    assert widened(found.arrays["embed"]).tolist() == [1.0, 1.0]


def test_tied_tensors_travel_once():
    found = starting_model(ModelTable(tied=(("output", "embed"),)), ARRAYS)
    assert (found.trained, found.tied) == (("output",), {"embed": "output"})


@pytest.mark.parametrize(
    ("sentence", "table", "arrays", "field"),
    [
        ("no tensor", {}, {}, "initial_arrays"),
        ("a pattern that nothing has", {"trained": ("hat",)}, ARRAYS, "model.trained"),
        ("nothing but counters", {}, {"steps": np.array([5])}, "model.trained"),
        ("a counter in bfloat16", {"bfloat16": ("steps",)}, ARRAYS, "model.bfloat16"),
        ("NaN in bfloat16", {"bfloat16": ("x",)}, {"x": np.array([np.nan], np.float32)}, "initial_arrays x"),
        ("tied ones that differ", {"tied": (("output", "embed"),)}, {**ARRAYS, "embed": np.zeros(2, np.float32)}, "model.tied"),
        ("tied ones of two types", {"tied": (("output", "embed"),), "bfloat16": ("embed",)}, ARRAYS, "model.tied"),
        ("a tie to nothing", {"tied": (("output", "hat"),)}, ARRAYS, "model.tied"),
    ],
)  # fmt: skip
def test_is_refused_by_the_name_of_its_key(sentence, table, arrays, field):
    with pytest.raises(ConfigError) as refused:
        starting_model(ModelTable(**table), arrays)
    assert refused.value.field == field
