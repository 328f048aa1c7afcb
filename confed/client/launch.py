"""What a client TEE is told when it starts: the manifest, where services listen, and whom it acts for.

Nothing here is trusted: brokers are known by the keys in the manifest, the manifest by its digest, which is in the
measured configuration of the TEE.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from confed import canonical, record
from confed.attestation.attesters.launch import AttesterTerms
from confed.errors import EncodingError, MissingFileError
from confed.keybroker.client import BrokerServer
from confed.manifest import Manifest
from confed.wire.channel import Endpoint

LAUNCH_FILE = "CONFED_CLIENT_LAUNCH"
"""Environment variable with the path of a launch document, for processes that others start (Flower on Ray)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerNode:
    """How a host gets Flower's messages as a node of its own: the SuperLink, and the key that this node joins with.

    Attributes:
        address: host and port of the SuperLink.
        root_certificates: PEM.
        private_key: PEM of an elliptic-curve key whose public half the SuperLink has registered.
        node_id: what the SuperLink called the node then; text, since it is larger than JSON's whole numbers.
        node_config: what the app finds in ``Context.node_config``.
    """

    address: str
    root_certificates: bytes
    private_key: bytes
    node_id: str
    node_config: Mapping[str, bool | int | float | str]

    def __repr__(self) -> str:
        return f"FlowerNode(address={self.address!r}, …)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLaunch:
    """The launch document of a client TEE.

    Attributes:
        manifest: the manifest's canonical bytes in base64.
        attester: how this TEE makes its evidence; holds the secret of a simulated one.
        sites: names of the sites that this TEE acts for; empty where Flower decides which (Ray).
        client_app: entry point ``module:attribute``; must be the manifest's.
        app_directory: directory that the entry point's module is found in; empty if it is installed.
        readable: what the TEE may read beside the interpreter and its libraries.
        network: whether it needs the network (``deployment``) or only Unix sockets.
        flower: where Flower's deployment brings the messages: this site's node of the SuperLink.
    """

    manifest: str
    attester: AttesterTerms
    brokers: tuple[BrokerServer, ...]
    courier: Endpoint
    sites: tuple[str, ...]
    client_app: str
    app_directory: str
    readable: tuple[str, ...]
    network: bool
    flower: FlowerNode | None = None

    def __repr__(self) -> str:
        return f"ClientLaunch(sites={self.sites!r}, …)"

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @classmethod
    def decode(cls, data: bytes) -> ClientLaunch:
        """Return the document of canonical JSON.

        Raises:
            EncodingError: anything else.
        """
        return record.from_json(cls, canonical.decode(data), at="launch")

    @classmethod
    def from_environment(cls) -> ClientLaunch:
        """Return the document that ``CONFED_CLIENT_LAUNCH`` names.

        Raises:
            MissingFileError: the variable or the file is missing.
        """
        path = os.environ.get(LAUNCH_FILE)
        if not path:
            raise MissingFileError(LAUNCH_FILE, expected="the path of a launch document", got="nothing")
        try:
            return cls.decode(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise MissingFileError(LAUNCH_FILE, expected="a file", got=path) from error

    def manifest_decoded(self) -> Manifest:
        """Return the manifest.

        Raises:
            EncodingError: not base64 of a canonical manifest.
        """
        try:
            return Manifest.decode(base64.b64decode(self.manifest, validate=True))
        except ValueError as error:
            raise EncodingError("launch manifest", expected="base64", got="something else") from error
