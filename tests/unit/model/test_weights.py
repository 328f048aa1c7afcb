"""Arrays to safetensors and back: the library's files load here, ours load there, and nothing odd loads at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from confed.errors import ConfedError, EncodingError, ShapeError, SizeError
from confed.model import weights
from confed.model.weights import BFLOAT16, NUMPY_DTYPES, layout_of, pack, parse_layout, unpack

dtypes = st.sampled_from([dtype for name, dtype in NUMPY_DTYPES.items() if name != "BF16"])
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
models = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
    arrays,
    max_size=6,
)


def packed(mapping: Mapping[str, Any], **options: Any) -> bytes:
    return b"".join(pack(mapping, **options))


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


@settings(max_examples=60, deadline=None)
@given(model=models)
def test_what_is_packed_unpacks_in_its_own_order(model: dict[str, Any]) -> None:
    data = packed(model)
    assert same(unpack(data), model)
    layout = parse_layout(data, len(data))
    assert layout == layout_of(model)
    assert data.startswith(layout.header)
    layout.require_packed()


@settings(max_examples=40, deadline=None)
@given(model=models)
def test_the_library_loads_our_files(model: dict[str, Any]) -> None:
    loaded = safetensors.numpy.load(packed(model))
    assert same({name: loaded[name] for name in model}, model)
    assert len(loaded) == len(model)


@settings(max_examples=40, deadline=None)
@given(model=models)
def test_the_librarys_files_load_here(model: dict[str, Any]) -> None:
    loaded = unpack(safetensors.numpy.save(model))
    assert same({name: loaded[name] for name in model}, model)


def test_bfloat16_travels_both_ways() -> None:
    tensors = {"b": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16), "a": torch.tensor([3], dtype=torch.uint16)}
    arrays = unpack(safetensors.torch.save(tensors))
    assert {
        name: entry.dtype for name, entry in zip("ba", ("BF16", "U16"), strict=True) for entry in [_entry(arrays, name)]
    }
    again = safetensors.torch.load(packed(arrays))
    assert again["b"].dtype == torch.bfloat16
    assert again["a"].dtype == torch.uint16
    assert torch.equal(again["b"], tensors["b"])


def _entry(arrays: Mapping[str, Any], name: str) -> Any:
    return next(tensor for tensor in layout_of(arrays).tensors if tensor.name == name)


def test_like_says_that_16_bits_are_bfloat16() -> None:
    plain = {"w": np.array([1, 2], dtype=np.uint16)}
    base = layout_of({"w": np.array([0, 0], dtype=BFLOAT16)})
    assert _entry(plain, "w").dtype == "U16"
    assert layout_of(plain, like=base) == base
    assert safetensors.torch.load(packed(plain, like=base))["w"].dtype == torch.bfloat16


def test_arrays_are_neither_copied_in_nor_out() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    part = pack({"w": array})[1]
    assert np.shares_memory(np.frombuffer(part, dtype=np.uint8), array)
    tagged = np.zeros(4, dtype=np.uint16).view(BFLOAT16)
    assert np.shares_memory(np.frombuffer(pack({"w": tagged})[1], dtype=np.uint8), tagged)
    buffer = bytearray(packed({"w": array}))
    opened = unpack(buffer)["w"]
    assert np.shares_memory(opened, np.frombuffer(buffer, dtype=np.uint8))
    opened[0, 0] = 7
    assert unpack(buffer)["w"][0, 0] == 7
    assert not unpack(bytes(buffer))["w"].flags.writeable


def test_arrays_in_other_orders_of_memory_are_packed_by_value() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for variant in (np.asfortranarray(array), array[::-1][::-1], array.astype(">f4")):
        assert packed({"w": variant}) == packed({"w": array})


def test_every_element_is_aligned_and_large_elements_come_first() -> None:
    model = {"c": np.zeros(3, np.int8), "b": np.zeros(3, np.float32), "a": np.zeros(1, np.float64)}
    layout = layout_of(model)
    assert layout.data_start % 8 == 0
    assert [tensor.name for tensor in layout.tensors] == ["c", "b", "a"]
    assert [tensor.name for tensor in layout.data_order] == ["a", "b", "c"]


@settings(max_examples=40, deadline=None)
@given(model=models, chunk_words=st.integers(1, 40))
def test_the_runs_of_all_chunks_cover_the_data_once_with_the_right_types(
    model: dict[str, Any], chunk_words: int
) -> None:
    layout, chunk = layout_of(model), chunk_words * 8
    seen: dict[int, str] = {}
    for start in range(0, layout.total_bytes, chunk):
        end = min(start + chunk, layout.total_bytes)
        at = max(start, layout.data_start)
        for dtype, low, high in layout.runs(start, end):
            assert low == at
            assert low < high <= end
            assert low % NUMPY_DTYPES[dtype].itemsize == high % NUMPY_DTYPES[dtype].itemsize == 0
            seen.update(dict.fromkeys(range(low, high), dtype))
            at = high
    for tensor in layout.tensors:
        assert all(seen[place] == tensor.dtype for place in range(tensor.start, tensor.end))
    assert len(seen) == layout.total_bytes - layout.data_start


def test_neighbours_of_one_type_are_one_run() -> None:
    model = {"a": np.zeros(4, np.float32), "i": np.zeros(4, np.int32), "b": np.zeros(4, np.float32)}
    layout = layout_of(model)
    start = layout.data_start
    assert list(layout.runs(0, layout.total_bytes)) == [("F32", start, start + 32), ("I32", start + 32, start + 48)]
    assert list(layout.runs(start + 8, start + 40)) == [("F32", start + 8, start + 32), ("I32", start + 32, start + 40)]
    assert list(layout.runs(0, start)) == []


@pytest.mark.parametrize(("start", "end"), [(-1, 8), (8, 0), (0, 10**6), (2, 10**3), (0, 2)])
def test_a_range_outside_or_through_an_element_is_refused(start: int, end: int) -> None:
    layout = layout_of({"w": np.zeros(4, np.float32)})
    with pytest.raises(SizeError):
        list(layout.runs(layout.data_start + start if start >= 0 else -1, layout.data_start + end))


def test_the_digest_says_names_types_shapes_and_order() -> None:
    one, two = np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    base = layout_of({"a": one, "b": two}).digest
    assert base == layout_of({"a": one + 1, "b": two}).digest
    others = [
        {"b": two, "a": one},
        {"a": one, "c": two},
        {"a": one.reshape(3, 2), "b": two},
        {"a": one.astype(np.int32), "b": two},
        {"a": one},
    ]
    assert len({base, *(layout_of(other).digest for other in others)}) == 6


@pytest.mark.parametrize(
    "other",
    [
        {"w": np.zeros(5, np.float32)},
        {"w": np.zeros(4, np.int32)},
        {"v": np.zeros(4, np.float32)},
        {"w": np.zeros((2, 2), np.float32)},
        {"w": np.zeros(4, np.float32), "v": np.zeros(1, np.float32)},
        {},
    ],
)
def test_another_layout_than_required_is_refused(other: dict[str, Any]) -> None:
    base = layout_of({"w": np.zeros(4, np.float32)})
    with pytest.raises(ShapeError):
        pack(other, like=base)


def test_a_file_with_its_tensors_elsewhere_is_not_the_packed_form() -> None:
    data = safetensors.numpy.save({"b": np.zeros(2, np.float32), "a": np.zeros(2, np.float64)})
    with pytest.raises(EncodingError):
        parse_layout(data, len(data)).require_packed()


def _file(header: Any, data: bytes = b"", *, pad: int = 8) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % pad)
    return len(encoded).to_bytes(8, "little") + encoded + data


def _tensor(start: int, end: int, shape: Any = (2,), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end], **more}


_ONE = json.dumps(_tensor(0, 8)).encode()


@pytest.mark.parametrize(
    ("sentence", "data", "error"),
    [
        ("nothing", b"", EncodingError),
        ("a pickle", b"\x80\x05\x95" + bytes(20), EncodingError),
        ("a header above 16 MiB", (2**24 + 1).to_bytes(8, "little") + b"{}", SizeError),
        ("a header of 2^63 bytes", (2**63).to_bytes(8, "little") + b"{}", SizeError),
        ("a header that is cut", _file({"a": _tensor(0, 8)})[:20], EncodingError),
        ("a header that is not JSON", _file(b"{nothing"), EncodingError),
        ("a header that is a list", _file(b"[]"), EncodingError),
        ("a header that starts with a space", _file(b" {}"), EncodingError),
        ("a header that is not UTF-8", _file(b'{"\xff": 1}'), EncodingError),
        ("JSON a hundred thousand deep", _file(b'{"a":' + b"[" * 100_000), EncodingError),
        ("a name twice", _file(b'{"a":%b,"a":%b}' % (_ONE, _ONE), bytes(8)), EncodingError),
        ("a tensor that is a number", _file({"a": 1}), EncodingError),
        ("an unknown key", _file({"a": _tensor(0, 8, more=1)}, bytes(8)), EncodingError),
        ("an unknown type", _file({"a": _tensor(0, 8, dtype="C64")}, bytes(8)), EncodingError),
        ("a type that is a number", _file({"a": _tensor(0, 8, dtype=1)}, bytes(8)), EncodingError),
        ("a negative dimension", _file({"a": _tensor(0, 8, shape=[-2])}, bytes(8)), EncodingError),
        ("a dimension that is a fraction", _file({"a": _tensor(0, 8, shape=[2.0])}, bytes(8)), EncodingError),
        ("a dimension that is a boolean", _file({"a": _tensor(0, 4, shape=[True])}, bytes(4)), EncodingError),
        ("a shape that is a number", _file({"a": _tensor(0, 8, shape=2)}, bytes(8)), EncodingError),
        ("three offsets", _file({"a": {**_tensor(0, 8), "data_offsets": [0, 4, 8]}}, bytes(8)), EncodingError),
        ("an end before the start", _file({"a": _tensor(8, 0)}, bytes(8)), EncodingError),
        ("a shape larger than its bytes", _file({"a": _tensor(0, 8, shape=[3])}, bytes(8)), ShapeError),
        ("a shape of 2^100 elements", _file({"a": _tensor(0, 8, shape=[2**50, 2**50])}, bytes(8)), ShapeError),
        ("a shape that wraps 64 bits", _file({"a": _tensor(0, 8, shape=[2**32, 2**31, 2])}, bytes(8)), ShapeError),
        ("thousands of dimensions", _file({"a": _tensor(0, 4, shape=[1] * 5000)}, bytes(4)), SizeError),
        ("a gap at the start", _file({"a": _tensor(8, 16)}, bytes(16)), EncodingError),
        ("a gap", _file({"a": _tensor(0, 8), "b": _tensor(16, 24)}, bytes(24)), EncodingError),
        ("an overlap", _file({"a": _tensor(0, 8), "b": _tensor(4, 12)}, bytes(12)), EncodingError),
        ("the same bytes twice", _file({"a": _tensor(0, 8), "b": _tensor(0, 8)}, bytes(8)), EncodingError),
        ("data that is cut", _file({"a": _tensor(0, 8)}, bytes(7)), SizeError),
        ("trailing bytes", _file({"a": _tensor(0, 8)}, bytes(9)), SizeError),
        (
            "elements that are not aligned",
            _file({"a": _tensor(0, 1, (1,), "U8"), "b": _tensor(1, 9)}, bytes(9)),
            EncodingError,
        ),
        ("data that starts anywhere", _file({"a": _tensor(0, 1, (1,), "U8")}, bytes(1), pad=7), EncodingError),
        ("metadata that is a list", _file({"__metadata__": []}), EncodingError),
        ("metadata that is no text", _file({"__metadata__": {"a": 1}}), EncodingError),
        ("an order that is not JSON", _file({"__metadata__": {"order": "["}}), EncodingError),
        (
            "an order of other names",
            _file({"__metadata__": {"order": '["b"]'}, "a": _tensor(0, 8)}, bytes(8)),
            EncodingError,
        ),
        ("an order of numbers", _file({"__metadata__": {"order": "[1]"}, "a": _tensor(0, 8)}, bytes(8)), EncodingError),
        ("a boolean that is 2", _file({"a": _tensor(0, 1, (1,), "BOOL")}, b"\x02"), EncodingError),
    ],
)
def test_what_is_not_strictly_safetensors_is_refused(sentence: str, data: bytes, error: type[ConfedError]) -> None:
    with pytest.raises(error):
        unpack(data)


def test_files_of_other_programs_may_be_unaligned_when_asked_for() -> None:
    data = _file(
        {"a": _tensor(0, 1, (1,), "U8"), "b": _tensor(1, 9)}, b"\x01" + np.ones(2, np.float32).tobytes(), pad=7
    )
    loaded = unpack(data, aligned=False)
    assert loaded["b"].tolist() == [1.0, 1.0]
    assert unpack(packed(loaded))["b"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("size", [7, 8, 30])
def test_a_layout_needs_only_the_header(size: int) -> None:
    data = packed({"w": np.zeros(100, np.float32)})
    assert parse_layout(data[: weights.header_size(data[:8])], len(data)).total_bytes == len(data)
    with pytest.raises(EncodingError):
        parse_layout(data[:size], len(data))


@pytest.mark.parametrize(
    ("sentence", "mapping"),
    [
        ("complex numbers", {"w": np.zeros(2, np.complex64)}),
        ("objects", {"w": np.array([object()])}),
        ("text", {"w": np.array(["x"])}),
        ("dates", {"w": np.zeros(2, "M8[s]")}),
        ("records", {"w": np.zeros(2, [("a", "i4")])}),
        ("the metadata's name", {"__metadata__": np.zeros(2, np.float32)}),
        ("a lone surrogate", {"\ud800": np.zeros(2, np.float32)}),
    ],
)
def test_what_safetensors_cannot_hold_is_refused(sentence: str, mapping: dict[str, Any]) -> None:
    with pytest.raises(EncodingError):
        pack(mapping)
