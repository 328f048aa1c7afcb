"""Messages with bytes: protobuf's own on the wire, whoever wrote them, and no copy of the bytes when they are read."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from confed.wire.parts import decode_get, decode_put, encode_get, encode_put
from confed.wire.v1 import confed_pb2 as pb

DIGEST = "ab" * 32
SIZES = st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2**32, 2**63])


@given(data=st.binary(max_size=300), size=SIZES, offset=SIZES, named=st.booleans())
def test_what_is_written_is_what_protobuf_writes_and_is_read_back(
    data: bytes, size: int, offset: int, named: bool
) -> None:
    front = pb.PutPart(digest=DIGEST if named else "", size_bytes=size, offset=offset)
    whole = pb.PutPart(digest=front.digest, size_bytes=size, offset=offset, data=data)
    assert encode_put(front, data) == whole.SerializeToString()
    assert encode_get(pb.GetPart(size_bytes=size), data) == pb.GetPart(size_bytes=size, data=data).SerializeToString()
    put, got = decode_put(whole.SerializeToString()), decode_get(encode_get(pb.GetPart(size_bytes=size), data))
    assert (put.front, bytes(put.data)) == (front, data)
    assert (got.front, bytes(got.data)) == (pb.GetPart(size_bytes=size), data)


def test_data_is_a_view_of_the_message() -> None:
    message = encode_get(pb.GetPart(size_bytes=5), b"12345")
    assert decode_get(message).data.obj is message


@given(message=st.binary(max_size=80))
def test_any_bytes_mean_what_they_mean_to_protobuf(message: bytes) -> None:
    for decode, kind in ((decode_put, pb.PutPart), (decode_get, pb.GetPart)):
        try:
            expected = kind.FromString(message)
        except DecodeError:
            with pytest.raises(DecodeError):
                decode(message)
            continue
        found = decode(message)
        assert bytes(found.data) == expected.data
        expected.data = b""
        assert found.front == expected


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("data before another field", b"\x12\x02ab\x08\x05"),
        ("data twice: the last counts", b"\x12\x02ab\x12\x01c"),
        ("data twice, the first as long as the rest", b"\x12\x03\x12\x01c"),
        ("a refusal before data", b"\x1a\x03\x0a\x01x\x12\x01c"),
        ("a field that nobody knows", b"\x7a\x01z\x12\x01c"),
        ("a number spelled longer than it need be", b"\x08\x85\x00\x12\x81\x00c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusual_spellings_are_read_as_protobuf_reads_them(sentence: str, message: bytes) -> None:
    expected, found = pb.GetPart.FromString(message), decode_get(message)
    assert (bytes(found.data), found.front.size_bytes, found.front.refusal) == (
        expected.data,
        expected.size_bytes,
        expected.refusal,
    )
