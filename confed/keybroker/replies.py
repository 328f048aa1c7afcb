"""What a broker answers to a release: signed, wrapped and public to whoever carries it."""

from __future__ import annotations

from dataclasses import dataclass

from confed.statement import Signed
from confed.wire.channel import pack, unpack
from confed.wire.v1 import confed_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A signed grant, the keys wrapped to the enclave in the request's order, a data owner's credential and ticket."""

    grant: Signed
    wrapped_keys: tuple[bytes, ...]
    credential: Signed | None
    ticket: Signed | None = None

    def __repr__(self) -> str:
        return f"Released({self.grant.digest[:16]}, {len(self.wrapped_keys)} keys)"

    def to_wire(self) -> pb.ReleaseReplies.Released:
        """Return the reply as its message."""
        message = pb.ReleaseReplies.Released(grant=pack(self.grant), wrapped_keys=self.wrapped_keys)
        if self.credential is not None:
            message.credential.CopyFrom(pack(self.credential))
        if self.ticket is not None:
            message.ticket.CopyFrom(pack(self.ticket))
        return message

    @classmethod
    def from_wire(cls, message: pb.ReleaseReplies.Released) -> Released:
        """Return the reply of a message; nothing is verified yet."""
        credential = unpack(message.credential) if message.HasField("credential") else None
        return cls(
            grant=unpack(message.grant),
            wrapped_keys=tuple(message.wrapped_keys),
            credential=credential,
            ticket=unpack(message.ticket) if message.HasField("ticket") else None,
        )
