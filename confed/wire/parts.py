"""The messages that carry bytes of objects, written and read without protobuf's copies of those bytes.

On the wire they are protobuf's own bytes of ``PutPart`` and ``GetPart``, and either side may be plain protobuf: data is
a message's last field, so what stands before it is written and read by protobuf, and data is joined or sliced here.
Anything else than data at the end of a message is left to protobuf altogether.

Source: Protocol Buffers, "Encoding" (base-128 varints, length-delimited fields).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from confed.wire.v1 import confed_pb2 as pb
from confed.wire.v1 import confed_pb2_grpc as services

_PUT_DATA, _GET_DATA = 0x22, 0x12
"""Field 4 of ``PutPart`` and field 2 of ``GetPart``, both length-delimited."""
_VARINT, _DELIMITED = 0, 2
_LONGEST_FRONT = 256
_SERVICE = "confed.wire.v1.Courier"

Front = TypeVar("Front", pb.PutPart, pb.GetPart)


@dataclass(frozen=True, slots=True)
class Part(Generic[Front]):
    """One message: its small fields (``data`` among them is empty), and the data, which is a view of what arrived."""

    front: Front
    data: memoryview


def encode_put(front: pb.PutPart, data: bytes | memoryview) -> bytes:
    """Return the bytes of ``front`` with ``data``."""
    return _encode(front, _PUT_DATA, data)


def encode_get(front: pb.GetPart, data: bytes | memoryview) -> bytes:
    """Return the bytes of ``front``, which is no refusal, with ``data``."""
    return _encode(front, _GET_DATA, data)


def decode_put(message: bytes) -> Part[pb.PutPart]:
    """Return the message of these bytes.

    Raises:
        google.protobuf.message.DecodeError: they are none.
    """
    return _decode(message, pb.PutPart, _PUT_DATA)


def decode_get(message: bytes) -> Part[pb.GetPart]:
    """Return the message of these bytes.

    Raises:
        google.protobuf.message.DecodeError: they are none.
    """
    return _decode(message, pb.GetPart, _GET_DATA)


def put_method(channel: grpc.Channel) -> Any:
    """Return ``Put`` of a courier behind a channel: it takes encoded messages."""
    return channel.stream_unary(f"/{_SERVICE}/Put", response_deserializer=pb.PutReply.FromString)


def get_method(channel: grpc.Channel) -> Any:
    """Return ``Get`` of a courier behind a channel: it gives ``Part``s."""
    return channel.unary_stream(
        f"/{_SERVICE}/Get", request_serializer=pb.GetCall.SerializeToString, response_deserializer=decode_get
    )


def register_courier(servicer: services.CourierServicer, server: grpc.Server) -> None:
    """Serve a courier whose ``Put`` takes ``Part``s and whose ``Get`` yields encoded messages."""
    services.add_CourierServicer_to_server(servicer, _Registering(server, servicer))  # pyright: ignore[reportArgumentType]


class _Registering:
    """Takes what the generated code registers, but for the two methods that move bytes."""

    def __init__(self, server: grpc.Server, servicer: services.CourierServicer) -> None:
        self._server = server
        self._ours = {
            "Put": grpc.stream_unary_rpc_method_handler(
                servicer.Put, request_deserializer=decode_put, response_serializer=pb.PutReply.SerializeToString
            ),
            "Get": grpc.unary_stream_rpc_method_handler(servicer.Get, request_deserializer=pb.GetCall.FromString),
        }

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Nothing to do: the same methods come registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        found = {**handlers, **self._ours}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, found),))
        self._server.add_registered_method_handlers(service, found)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] (newer than its stubs)


def _encode(front: pb.PutPart | pb.GetPart, tag: int, data: bytes | memoryview) -> bytes:
    encoded = front.SerializeToString()
    return b"".join((encoded, bytes((tag,)), _varint(len(data)), data)) if len(data) else encoded


def _decode(message: bytes, kind: type[Front], tag: int) -> Part[Front]:
    start, end = _data_at_the_end(message, tag)
    if start == end:
        whole = kind.FromString(message)
        data, whole.data = whole.data, b""
        return Part(whole, memoryview(data))
    return Part(kind.FromString(message[:start]), memoryview(message)[end:])


def _data_at_the_end(message: bytes, tag: int) -> tuple[int, int]:
    """Return where the field with this tag begins and where its bytes do, if they are the rest; else the same twice."""
    at, size = 0, len(message)
    while at < min(size, _LONGEST_FRONT):
        key = message[at]
        if key & 0x80 or key & 7 not in (_VARINT, _DELIMITED):
            break
        value, after = _read_varint(message, at + 1)
        if after == 0:
            break
        if key == tag:
            return (at, after) if after + value == size else (0, 0)
        at = after + (value if key & 7 == _DELIMITED else 0)
    return 0, 0


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends; an end of 0 where there is none."""
    value = 0
    for index in range(10):
        if at + index >= len(message):
            break
        byte = message[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, 0


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
