"""A compressed update stands for an ordinary one, and any part of it is read from one chunk alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.compression import CompressionTerms
from confed.errors import CompressionError, NotFiniteError, SizeError
from confed.model.bfloat16 import narrowed, widened
from confed.model.compressed import Apart, CompressedForm, Decoded, apart, compress
from confed.model.weights import flats_of, layout_of, unpack

WAYS = {
    "bf16": CompressionTerms(name="bf16", fraction=None, feedback=False),
    "int8": CompressionTerms(name="int8", fraction=None, feedback=False),
    "top-k": CompressionTerms(name="top-k", fraction=0.05, feedback=False),
    "top-k of few": CompressionTerms(name="top-k", fraction=0.0005, feedback=False),
}


def model(seed, size=3000, scale=1.0):
    generator = np.random.default_rng(seed)
    numbers = [generator.normal(size=size) * scale for _ in range(4)]
    return {
        "half": numbers[0].astype(np.float16),
        "single": numbers[1].astype(np.float32).reshape(-1, 10),
        "brain": narrowed(numbers[2].astype(np.float32)),
        "double": numbers[3],
        "scalar": np.array(seed, np.float32),
    }


def numbers_of(arrays):
    return np.concatenate(
        [(widened(a) if a.dtype.kind == "u" else a).astype(np.float64).reshape(-1) for a in arrays.values()]
    )


class Parts:
    """A container's chunks."""

    def __init__(self, parts):
        self.parts = [bytes(part) for part in parts]

    def read_chunk_into(self, index, buffer):
        buffer[:] = self.parts[index]


def made(way, trained, base, **kwargs):
    form = CompressedForm.of(layout_of(base), WAYS[way])
    flats = [flats_of(arrays, form.layout) for arrays in (trained, base)]
    given_ = {"carried": None, "generator": np.random.default_rng(5), **kwargs}
    return form, compress(form, *flats, **given_), flats[1]


def stood_for(form, parts, base):
    decoded = Decoded(Parts(parts), form, base)
    whole = bytearray(form.layout.total_bytes)
    for index in range(decoded.chunk_count):
        start, end = decoded.chunk_span(index)
        decoded.read_chunk_into(index, memoryview(whole)[start:end])
    return unpack(whole)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [10, 3000, 400_000])
def test_what_it_stands_for_has_the_layout_and_norm_that_are_declared(way, size):
    base, trained = model(1, size), model(2, size)
    form, compressed, flats = made(way, trained, base)
    assert sum(len(part) for part in compressed.parts) == form.total_bytes
    assert [len(part) for part in compressed.parts[:-1]] == [form.chunk_bytes] * (form.span_count - 1)
    found = stood_for(form, compressed.parts, flats)
    assert layout_of(found) == form.layout
    difference = numbers_of(found) - numbers_of(base)
    assert np.linalg.norm(difference) == pytest.approx(compressed.norm, rel=1e-6)
    wanted = numbers_of(trained) - numbers_of(base)
    assert difference @ wanted > 0
    if way in ("bf16", "int8"):
        assert np.linalg.norm(difference - wanted) < 0.02 * np.linalg.norm(wanted)
    again = made(way, trained, base)[1]
    assert [bytes(part) for part in again.parts] == [bytes(part) for part in compressed.parts]


@pytest.mark.parametrize(("way", "share"), [("bf16", 0.51), ("int8", 0.26), ("top-k", 0.11), ("top-k of few", 0.01)])
def test_it_is_as_small_as_it_says(way, share):
    base = {"w": np.zeros(2_000_000, np.float32)}
    form = CompressedForm.of(layout_of(base), WAYS[way])
    assert form.total_bytes < share * form.layout.total_bytes
    assert form.span_bytes <= 1 << 20
    assert form.chunk_bytes & (form.chunk_bytes - 1) == 0
    assert 4096 <= form.chunk_bytes <= 1 << 20


@settings(max_examples=30, deadline=None)
@given(
    way=st.sampled_from(list(WAYS)),
    sizes=st.lists(st.integers(0, 600_000), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_spans_cover_every_element_once(way, sizes, seed):
    kinds = np.random.default_rng(seed).permutation(["f2", "f4", "f8", "f4"])
    arrays = {f"t{at}": np.zeros(size, kind) for at, (size, kind) in enumerate(zip(sizes, kinds, strict=False))}
    form = CompressedForm.of(layout_of(arrays), WAYS[way])
    assert sum(form.counts) == sum(sizes)
    for index in range(form.span_count):
        assert form.encoding.size_bytes(form.counts[index]) <= form.chunk_bytes
        assert form.span(index)[0] % 8 == 0
    assert max(1, -(-form.total_bytes // form.chunk_bytes)) == form.span_count or not sum(sizes)


def test_what_is_left_out_is_carried_over_until_nothing_is():
    base, trained = model(1), model(1)
    trained["single"] = trained["single"] + np.float32(0.01) * np.random.default_rng(4).normal(size=(300, 10)).astype(
        np.float32
    )
    wanted = numbers_of(trained) - numbers_of(base)
    sent, carried = np.zeros_like(wanted), None
    for _ in range(60):
        form, compressed, flats = made("top-k", trained, base, carried=carried)
        sent += numbers_of(stood_for(form, compressed.parts, flats)) - numbers_of(base)
        carried, trained = compressed.residual, base
    assert np.linalg.norm(sent - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_what_is_left_out_of_another_model_is_refused():
    with pytest.raises(SizeError):
        made("int8", model(2), model(1), carried=np.zeros(3, np.float32))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["half", "single", "double", "brain"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_compressed(way, name, value):
    trained = model(2)
    if name == "brain":
        trained[name].view(np.uint16)[3] = 0x7FC0 if np.isnan(value) else 0x7F80
    else:
        trained[name].reshape(-1)[3] = value
    with pytest.raises(NotFiniteError):
        made(way, trained, model(1))


def test_a_difference_beyond_the_type_is_not_compressed():
    with pytest.raises(NotFiniteError):
        made("bf16", {"x": np.array([1e300])}, {"x": np.array([0.0])})
    largest = np.full(4, 65504, np.float16)
    with pytest.raises(NotFiniteError):
        made("bf16", {"x": largest}, {"x": largest}, carried=np.full(4, 1e6, np.float32))


def test_numbers_that_are_not_finite_are_refused_when_they_are_read():
    for way, at, bits in (("bf16", 0, b"\xc0\x7f"), ("bf16", 0, b"\x80\x7f"), ("top-k", 4 * 1, b"\x00\x00\xc0\x7f")):
        base = {"x": np.zeros(10, np.float32)}
        form, compressed, flats = made(way, base, base)
        parts = [bytearray(part) for part in compressed.parts]
        parts[0][at : at + len(bits)] = bits
        with pytest.raises(NotFiniteError):
            stood_for(form, parts, flats)


def test_bytes_behind_a_chunks_numbers_are_refused():
    base = model(1, 400_000)
    form, compressed, flats = made("int8", model(2, 400_000), base)
    parts = [bytearray(part) for part in compressed.parts]
    assert form.encoding.size_bytes(form.counts[0]) < form.chunk_bytes
    parts[0][-1] = 1
    with pytest.raises(CompressionError):
        stood_for(form, parts, flats)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), data=st.data())
def test_tensors_that_lie_apart_are_read_as_one(sizes, data):
    arrays = [np.arange(size * 2, dtype=np.float32).reshape(2, -1) + 100 * at for at, size in enumerate(sizes)]
    whole = np.concatenate([array.reshape(-1) for array in arrays])
    if not whole.size:
        return
    start = data.draw(st.integers(0, whole.size - 1))
    stop = data.draw(st.integers(start + 1, whole.size))
    assert (Apart(arrays)[start:stop] == whole[start:stop]).all()


def test_what_lies_apart_compresses_alike():
    base, trained = model(1), model(2)
    form = CompressedForm.of(layout_of(base), WAYS["int8"])
    pairs = [[how(arrays, form.layout) for arrays in (trained, base)] for how in (flats_of, apart)]
    one, other = (compress(form, *pair, carried=None, generator=np.random.default_rng(1)) for pair in pairs)
    assert [bytes(part) for part in one.parts] == [bytes(part) for part in other.parts]
    assert np.shares_memory(apart(base, form.layout)["F64"][10:20], base["double"])


@settings(max_examples=200, deadline=None)
@given(way=st.sampled_from(list(WAYS)), data=st.data())
def test_whatever_a_chunk_holds_it_stands_for_something_or_is_refused(way, data):
    base = model(1, 60)
    form, compressed, flats = made(way, model(2, 60), base)
    chunk = bytearray(compressed.parts[0])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(chunk) - 1))
        piece = data.draw(
            st.sampled_from([b"\xff\xff\xff\xff", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x01", b"\x80"])
        )
        chunk[at : at + len(piece)] = piece[: len(chunk) - at]
    try:
        found = stood_for(form, [bytes(chunk)], flats)
    except (CompressionError, NotFiniteError):
        return
    assert layout_of(found) == form.layout
