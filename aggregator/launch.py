"""What the enclave is told when it starts. Nothing in it is trusted but the instance's key, which is a secret.

Brokers are known by the keys in the manifest, the manifest by its digest, which is in the measured configuration.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from confed import canonical, record
from confed.attestation.attesters.launch import AttesterTerms
from confed.errors import EncodingError
from confed.keybroker.client import BrokerServer
from confed.manifest import Manifest
from confed.wire.channel import Endpoint, TlsIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorLaunch:
    """The launch document: canonical JSON, read once from an inherited descriptor.

    Attributes:
        manifest: canonical bytes of the manifest, in base64.
        attester: how this TEE makes its evidence; holds the secret of a simulated one.
        listen: ``unix:PATH``, or ``127.0.0.1:0`` with ``tls``.
        endpoint_file: where to say that the service listens; its folder is written to, and no other but the next.
        strategy: files of a strategy class of one's own, path -> text; run only if their digest is the manifest's.
        courier_directory: the courier's own, where it is on this machine: updates are read there and not fetched, and
            versions written to its folder ``handed`` and not sent; or empty.
        base_records_dir: folder with commit records of an earlier instance, beside those in the courier; or empty.
    """

    manifest: str
    attester: AttesterTerms
    brokers: tuple[BrokerServer, ...]
    courier: Endpoint
    listen: str
    tls: TlsIdentity | None
    endpoint_file: str
    readable: tuple[str, ...]
    network: bool
    courier_directory: str = ""
    base_records_dir: str = ""
    strategy: Mapping[str, str] = field(default_factory=dict[str, str])

    def __repr__(self) -> str:
        return f"AggregatorLaunch(listen={self.listen!r}, …)"

    @classmethod
    def decode(cls, data: bytes) -> AggregatorLaunch:
        """Return the document of canonical JSON.

        Raises:
            EncodingError: anything else.
        """
        return record.from_json(cls, canonical.decode(data), at="launch")

    @property
    def folder(self) -> Path:
        """The folder of the endpoint's file."""
        return Path(self.endpoint_file).parent

    def manifest_decoded(self) -> Manifest:
        """Return the manifest.

        Raises:
            EncodingError: not base64 of canonical JSON.
            ConfigError: not a manifest.
        """
        return Manifest.decode(_from_base64("launch.manifest", self.manifest))


def _from_base64(field: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise EncodingError(field, expected="base64", got="something else") from error
