"""What a broker answers to a release: signed, wrapped and public to whoever carries it."""

from __future__ import annotations

from dataclasses import dataclass

from confed.statement import Signed
from confed.wire.channel import pack, unpack
from confed.wire.v1 import confed_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A signed grant, the keys wrapped to the enclave in the request's order, and a data owner's credential.

    ``next_challenge`` is a nonce for a later request, the same where the answer is given again.
    """

    grant: Signed
    wrapped_keys: tuple[bytes, ...]
    credential: Signed | None
    next_challenge: Signed | None = None

    def __repr__(self) -> str:
        return f"Released({self.grant.digest[:16]}, {len(self.wrapped_keys)} keys)"

    def to_wire(self) -> pb.ReleaseReplies.Released:
        """Return the reply as its message."""
        message = pb.ReleaseReplies.Released(grant=pack(self.grant), wrapped_keys=self.wrapped_keys)
        if self.credential is not None:
            message.credential.CopyFrom(pack(self.credential))
        if self.next_challenge is not None:
            message.next_challenge.CopyFrom(pack(self.next_challenge))
        return message

    @classmethod
    def from_wire(cls, message: pb.ReleaseReplies.Released) -> Released:
        """Return the reply of a message; nothing is verified yet."""
        credential = unpack(message.credential) if message.HasField("credential") else None
        following = unpack(message.next_challenge) if message.HasField("next_challenge") else None
        return cls(
            grant=unpack(message.grant),
            wrapped_keys=tuple(message.wrapped_keys),
            credential=credential,
            next_challenge=following,
        )
