"""The fold gives Flower's result to the bit, and nothing that a wrong sender sends is in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from aggregator_world import norm_of, weights_of
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.combine.fold import Combined, combine
from aggregator.combine.passes import Contribution
from aggregator.combine.tensor_types import number_type
from aggregator.combine.weights import Weights
from confed.errors import CohortError, ConfedError, NormError, NotFiniteError, ShapeError, TamperedError
from confed.model.weights import BFLOAT16, layout_of, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class PlainChunks:
    """Plaintext in chunks; ``bad`` is a chunk whose tag does not match."""

    plaintext: bytes
    chunk_bytes: int = 64
    bad: int = -1

    @property
    def chunk_count(self) -> int:
        return -(-len(self.plaintext) // self.chunk_bytes)

    def chunk_span(self, index: int) -> tuple[int, int]:
        start = index * self.chunk_bytes
        return start, min(start + self.chunk_bytes, len(self.plaintext))

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        if index % self.chunk_count == self.bad % self.chunk_count and self.bad != -1:
            raise TamperedError("chunk", expected="a matching tag", got="another")
        start, end = self.chunk_span(index)
        buffer[:] = self.plaintext[start:end]


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    return b"".join(bytes(part) for part in pack(arrays))


def contribution(
    site: str, arrays: Arrays, base: Arrays, *, weight: float = 1.0, chunk_bytes: int = 64
) -> Contribution:
    return Contribution(
        site=site,
        chunks=PlainChunks(packed(arrays), chunk_bytes),
        weight=weight,
        norm=norm_of(arrays, base),
    )


def flowers(updates: list[Arrays], weights: list[float]) -> Arrays:
    """Return what Flower itself makes of these updates, float16 given to it as float32."""
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(wide(array)) for name, array in arrays.items()}),
                "metrics": MetricRecord({"num-examples": weight}),
            }
        )
        for arrays, weight in zip(updates, weights, strict=True)
    ]
    return {name: array.numpy() for name, array in aggregate_arrayrecords(records, "num-examples").items()}


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def same_bits(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


def model(seed: int, dtypes: tuple[str, ...] = ("f4", "f8", "f2", "f8", "f2", "f4")) -> Arrays:
    generator = np.random.default_rng(seed)
    shapes: list[tuple[int, ...]] = [(5, 7), (), (3,), (2, 2, 3), (11,), (0, 4)]
    return {
        f"tensor-{9 - number}": np.asarray(generator.normal(size=shape) * 3 + 5).astype(np.dtype(dtype))
        for number, (dtype, shape) in enumerate(zip(dtypes, shapes, strict=False))
    }


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    weights=st.lists(st.floats(0.001, 1e6), min_size=5, max_size=5),
    chunk_bytes=st.sampled_from([64, 128, 4096]),
    threads=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_the_fold_is_flowers_mean_to_the_bit(
    seeds: list[int], weights: list[float], chunk_bytes: int, threads: int, order: object
) -> None:
    base, updates = model(5000), [model(seed) for seed in seeds]
    shares = weights[: len(updates)]
    contributions = [
        contribution(f"site-{at}", arrays, base, weight=weight, chunk_bytes=chunk_bytes)
        for at, (arrays, weight) in enumerate(zip(updates, shares, strict=True))
    ]
    order.shuffle(contributions)  # type: ignore[attr-defined]
    combined = combine(contributions, base=weights_of(base), least=1, norm_bound=1e9, threads=threads)
    assert not combined.excluded
    assert same_bits(combined.mean.arrays(), flowers(updates, shares))


def test_a_minus_zero_stays_one() -> None:
    base = {"x": np.zeros(4, dtype=np.float32)}
    minus = {"x": np.full(4, -0.0, dtype=np.float32)}
    combined = combine([contribution("a", minus, base)], base=weights_of(base), least=1, norm_bound=1.0)
    assert same_bits(combined.mean.arrays(), flowers([minus], [1.0]))


BASE = model(1)


def honest(number: int) -> Contribution:
    return contribution(f"site-{number}", model(10 + number), BASE, weight=1.0 + number)


def changed(change: Callable[[Arrays], Arrays], *, norm: float | None = None) -> Contribution:
    """Return site-1's contribution with other tensors; its declared norm is true unless given."""
    arrays = change(model(11))
    declared = norm_of(arrays, BASE) if norm is None else norm
    return Contribution(site="site-1", chunks=PlainChunks(packed(arrays)), weight=2.0, norm=declared)


def with_value(value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        name = next(name for name, array in arrays.items() if array.dtype == np.float32)
        array = arrays[name].copy()
        array.flat[-1] = value
        return {**arrays, name: array}

    return change


def retyped(arrays: Arrays) -> Arrays:
    return {name: array.astype(np.int32) if array.dtype == np.float32 else array for name, array in arrays.items()}


def bad_chunk(index: int) -> Contribution:
    entry = changed(dict)
    chunks = entry.chunks
    assert isinstance(chunks, PlainChunks)
    return dataclasses.replace(entry, chunks=PlainChunks(chunks.plaintext, bad=index % chunks.chunk_count))


def longer() -> Contribution:
    entry = changed(dict)
    assert isinstance(entry.chunks, PlainChunks)
    return dataclasses.replace(entry, chunks=PlainChunks(entry.chunks.plaintext + b"\x00" * 8))


WRONG: list[tuple[str, Callable[[], Contribution], type[ConfedError]]] = [
    ("NaN in it", lambda: changed(with_value(np.nan), norm=1.0), NotFiniteError),
    ("infinity in it", lambda: changed(with_value(np.inf), norm=1.0), NotFiniteError),
    ("minus infinity in it", lambda: changed(with_value(-np.inf), norm=1.0), NotFiniteError),
    ("a norm too low", lambda: changed(dict, norm=norm_of(model(11), BASE) * 0.99), NormError),
    ("a norm too high", lambda: changed(dict, norm=norm_of(model(11), BASE) * 1.01), NormError),
    ("a norm that is NaN", lambda: changed(dict, norm=float("nan")), NormError),
    ("a true norm above the bound", lambda: changed(with_value(1e6)), NormError),
    ("a difference beyond float32 squares", lambda: changed(with_value(3e38), norm=1.0), NormError),
    ("another order of tensors", lambda: changed(lambda a: dict(reversed(a.items()))), ShapeError),
    ("another type", lambda: changed(retyped, norm=1.0), ShapeError),
    (
        "another shape of the same size",
        lambda: changed(lambda a: {n: x.reshape(7, 5) if x.shape == (5, 7) else x for n, x in a.items()}),
        ShapeError,
    ),
    ("another name", lambda: changed(lambda a: {n.replace("9", "8x"): x for n, x in a.items()}, norm=1.0), ShapeError),
    ("a tensor more", lambda: changed(lambda a: {**a, "z": np.zeros(2, dtype=np.float32)}, norm=1.0), ShapeError),
    ("bytes after the last tensor", longer, ShapeError),
    ("a bad first chunk", lambda: bad_chunk(0), TamperedError),
    ("a bad chunk in the middle", lambda: bad_chunk(4), TamperedError),
    ("a bad last chunk", lambda: bad_chunk(-1), TamperedError),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("make", "error"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_sender_is_excluded_by_name_and_leaves_no_trace(
    make: Callable[[], Contribution], error: type[ConfedError], threads: int
) -> None:
    def fold(*contributions: Contribution) -> Combined:
        return combine(contributions, base=weights_of(BASE), least=2, norm_bound=1e4, threads=threads)

    with_wrong = fold(honest(0), make(), honest(2))
    assert {site: type(found) for site, found in with_wrong.excluded.items()} == {"site-1": error}
    assert with_wrong.sites == ("site-0", "site-2")
    assert same_bits(with_wrong.mean.arrays(), fold(honest(0), honest(2)).mean.arrays())


def test_a_wrong_first_sender_does_not_decide_what_the_others_must_be() -> None:
    wrong = dataclasses.replace(longer(), site="site-0")
    combined = combine([wrong, honest(1), honest(2)], base=weights_of(BASE), least=2, norm_bound=1e4)
    assert combined.sites == ("site-1", "site-2")


def test_all_wrong_senders_are_found_in_one_pass() -> None:
    one, other = bad_chunk(-1), dataclasses.replace(changed(with_value(np.nan), norm=1.0), site="site-3")
    combined = combine([honest(0), one, honest(2), other], base=weights_of(BASE), least=2, norm_bound=1e4)
    assert {site: error.code for site, error in combined.excluded.items()} == {
        "site-1": "tampered",
        "site-3": "not-finite",
    }


def test_a_sender_with_two_faults_is_named_by_the_first_whatever_thread_meets_it() -> None:
    arrays = model(11)
    arrays["tensor-9"].flat[0] = np.nan
    late = PlainChunks(packed(arrays), bad=PlainChunks(packed(arrays)).chunk_count - 1)
    for threads in (1, 2, 3):
        entry = Contribution(site="site-1", chunks=late, weight=1.0, norm=1.0)
        combined = combine([honest(0), entry], base=weights_of(BASE), least=1, norm_bound=1e4, threads=threads)
        assert combined.excluded["site-1"].code == "not-finite"


def test_one_too_few_after_exclusion_is_no_result() -> None:
    with pytest.raises(CohortError):
        combine([honest(0), bad_chunk(-1)], base=weights_of(BASE), least=2, norm_bound=1e4)


def test_nobody_is_no_result() -> None:
    with pytest.raises(CohortError):
        combine([], base=weights_of(BASE), least=0, norm_bound=1.0)


def bfloat16(values: list[float]) -> np.ndarray:
    bits = np.array(values, dtype=np.float32).view(np.uint32) >> 16
    return bits.astype(np.uint16).view(BFLOAT16)


def test_bfloat16_is_averaged_in_float32_and_rounded_to_even() -> None:
    base = {"x": bfloat16([0.0, 0.0, 0.0])}
    one, two = {"x": bfloat16([1.0, 1.0078125, 2.0])}, {"x": bfloat16([2.0, 1.015625, 4.0])}

    def entry(site: str, arrays: Arrays) -> Contribution:
        numbers = number_type("BF16").numbers(arrays["x"])
        return Contribution(
            site=site, chunks=PlainChunks(packed(arrays)), weight=1.0, norm=float(np.linalg.norm(numbers))
        )

    combined = combine([entry("a", one), entry("b", two)], base=weights_of(base), least=2, norm_bound=100.0)
    assert not combined.excluded
    restored = combined.mean.restored().arrays()["x"]
    # 1.01171875 lies between 1.0078125 (odd) and 1.015625 (even).
    assert number_type("BF16").numbers(restored).tolist() == [1.5, 1.015625, 3.0]


def test_weights_of_a_packed_file_are_views_of_it_in_the_models_order() -> None:
    arrays = model(3)
    data = bytearray(packed(arrays))
    weights = Weights.parse(data)
    assert same_bits(weights.arrays(), arrays)
    assert all(
        np.shares_memory(flat, np.frombuffer(data, dtype=np.uint8)) for flat in weights.flats.values() if flat.size
    )
    assert weights.layout == layout_of(arrays)


def test_a_file_of_another_program_is_taken_through_our_own_form() -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"b": np.ones(3, dtype=np.int8), "a": np.ones(2, dtype=np.float32)}
    weights = Weights.parse(bytearray(safetensors.save(arrays)))
    found = weights.arrays()
    assert weights.layout == layout_of(found)
    assert {name: array.tolist() for name, array in found.items()} == {"a": [1, 1], "b": [1, 1, 1]}
