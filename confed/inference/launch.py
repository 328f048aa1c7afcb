"""What an inference TEE is told when it starts. Nothing here is trusted: the manifest's digest is in its measurement.

Like a client's launch document, it comes over an inherited descriptor, since a simulated TEE's holds a secret.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from confed import canonical, record
from confed.attestation.attesters.launch import AttesterTerms
from confed.errors import EncodingError
from confed.keybroker.client import BrokerServer
from confed.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceLaunch:
    """The launch document of a replica.

    Attributes:
        manifest: the manifest's canonical bytes in base64.
        attester: how this TEE makes its evidence; holds the secret of a simulated one.
        broker: the model owner's.
        model: path of the sealed model.
        app_directory: folder that the engine's module is found in.
        readable: what the TEE may read beside the interpreter and its libraries.
        network: whether it needs the network to reach the broker, or only Unix sockets.
        most_at_once: answers on their way.
        recorded: whether its host keeps the evidence under which keys are released.
        child_folder: a folder in memory, where the engine may run another program and write; empty where it may not.
        devices: files of devices that this program needs.
    """

    manifest: str
    attester: AttesterTerms
    broker: BrokerServer
    model: str
    app_directory: str
    readable: tuple[str, ...]
    network: bool
    most_at_once: int
    recorded: bool
    child_folder: str
    devices: tuple[str, ...]

    def __repr__(self) -> str:
        return f"InferenceLaunch(model={self.model!r}, …)"

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @classmethod
    def decode(cls, data: bytes) -> InferenceLaunch:
        """Return the document of canonical JSON.

        Raises:
            EncodingError: anything else.
        """
        return record.from_json(cls, canonical.decode(data), at="launch")

    def manifest_decoded(self) -> Manifest:
        """Return the manifest.

        Raises:
            EncodingError: not base64 of a canonical manifest.
        """
        try:
            return Manifest.decode(base64.b64decode(self.manifest, validate=True))
        except ValueError as error:
            raise EncodingError("launch manifest", expected="base64", got="something else") from error
