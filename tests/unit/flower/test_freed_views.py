"""Arrays that cost no copy are what Flower's own are, to an app and to Flower."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message import recorddict

from confed.flower import arrays
from confed.flower.arrays import OpenedArray, free_views_at_once, let_go, numbers_of, record_of, serialize_in_one_copy

TENSORS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array(3.5, dtype=np.float64),
    np.empty((0, 5), dtype=np.float16),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.array([True, False]),
]


@pytest.mark.parametrize("tensor", TENSORS)
def test_an_opened_array_is_what_flower_would_have_made(tensor: np.ndarray) -> None:
    opened, flowers = OpenedArray(tensor), Array(tensor)
    assert (opened.dtype, opened.shape, opened.stype) == (flowers.dtype, flowers.shape, flowers.stype)
    assert opened.data == flowers.data
    assert np.array_equal(opened.numpy(), flowers.numpy())


def test_an_app_gets_memory_of_its_own() -> None:
    pytest.importorskip("torch")
    base = np.zeros(4, dtype=np.float32)
    record = record_of({"a": base})
    record["a"].numpy()[:] = 7.0
    record.to_torch_state_dict()["a"].fill_(7.0)
    record.to_numpy_ndarrays()[0][:] = 7.0
    assert not base.any()


@pytest.mark.parametrize("tensor", TENSORS)
def test_numbers_are_read_without_a_copy_and_without_a_difference(tensor: np.ndarray) -> None:
    array = Array(tensor)
    numbers = numbers_of(array)
    assert numbers.dtype == tensor.dtype
    assert np.array_equal(numbers, tensor)
    assert numbers.shape == tensor.shape


def test_a_view_of_bytes_is_a_view_and_cannot_be_written() -> None:
    array = Array(np.arange(1000, dtype=np.float32))
    numbers = numbers_of(array)
    assert np.shares_memory(numbers, np.frombuffer(array.data, dtype=np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        numbers[0] = 1.0


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=b"no header"),
        Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=Array(np.zeros(4)).data[:-1]),
        Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=Array(np.zeros(4)).data[:40]),
    ],
)
def test_what_is_no_array_is_refused(array: Array) -> None:
    with pytest.raises(ValueError, match=r"."):
        numbers_of(array)


def test_another_serialization_is_refused() -> None:
    with pytest.raises(TypeError):
        numbers_of(Array(dtype="float32", shape=(4,), stype="another", data=b"0000"))


@pytest.fixture
def _in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Array, "from_numpy_ndarray", Array.from_numpy_ndarray)  # put back afterwards
    serialize_in_one_copy()


@pytest.mark.usefixtures("_in_one_copy")
@pytest.mark.parametrize("tensor", [*TENSORS, np.arange(24, dtype=">f4").reshape(2, 3, 4)[:, 1:]])
def test_one_copy_makes_the_bytes_that_flower_makes(tensor: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Array(tensor)
    monkeypatch.setattr(Array, "from_numpy_ndarray", arrays._flowers_own)
    flowers = Array(tensor)
    assert made == flowers
    assert made.object_id == flowers.object_id
    assert np.array_equal(made.numpy(), tensor)


@pytest.mark.usefixtures("_in_one_copy")
def test_what_was_written_is_not_parsed_again_unless_an_app_put_something_else_in_its_place() -> None:
    array = Array(np.arange(4, dtype=np.float32))
    assert numbers_of(array).base is not None
    assert numbers_of(array) is numbers_of(array)
    array.data = Array(np.ones(3)).data
    assert numbers_of(array).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.usefixtures("_in_one_copy")
def test_one_copy_serves_torch_and_copies() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(4, dtype=torch.float32)
    array = Array(tensor)
    tensor.fill_(7.0)
    assert array.numpy().tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_record_over_numbers_makes_no_bytes() -> None:
    base = np.zeros(4, dtype=np.float32)
    assert numbers_of(record_of({"a": base})["a"]) is base


def test_what_is_let_go_of_is_freed_at_once_if_large_unless_an_app_kept_it() -> None:
    base = np.zeros(4_000_000, dtype=np.float32)
    alive = weakref.ref(base)
    content, kept = RecordDict({"arrays": record_of({"a": base})}), RecordDict()
    kept["mine"] = content["arrays"]
    del base
    gc.disable()
    try:
        let_go(content)
        assert not content
        assert alive() is not None
        assert not numbers_of(kept.array_records["mine"]["a"]).any()
        let_go(kept)
        assert alive() is None
    finally:
        gc.enable()


def test_what_an_app_has_looked_at_is_freed_without_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorddict._SyncedDict, "__init__", recorddict._SyncedDict.__init__)  # put back afterwards
    free_views_at_once()
    base = np.zeros(4_000_000, dtype=np.float32)
    alive = weakref.ref(base)
    content = RecordDict({"arrays": record_of({"a": base})})
    del base
    [looked_at] = content.array_records.values()
    assert not looked_at["a"].numpy().any()
    del looked_at

    def collected() -> None:
        raise AssertionError

    monkeypatch.setattr(gc, "collect", collected)
    gc.disable()
    try:
        let_go(content)
        assert alive() is None
    finally:
        gc.enable()


def test_views_of_a_message_check_and_write_through_as_flower_s_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorddict._SyncedDict, "__init__", recorddict._SyncedDict.__init__)
    free_views_at_once()
    content = RecordDict({"arrays": record_of({"a": np.zeros(1)}), "metrics": MetricRecord({"loss": 1.0})})
    view = content.metric_records
    assert list(view) == ["metrics"]
    with pytest.raises(TypeError):
        view["metrics"] = ConfigRecord()  # pyright: ignore[reportArgumentType]
    view["more"] = MetricRecord({"loss": 2.0})
    del view["metrics"]
    assert list(content) == ["arrays", "more"]
