"""What the governor is told when it starts: the manifest, and where enclave and courier listen. It holds no key."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path

from confed import canonical, record
from confed.errors import MissingFileError
from confed.manifest import Manifest
from confed.wire.channel import Endpoint

GOVERNOR_FILE = "CONFED_GOVERNOR"
"""Environment variable with the path of the governor's launch document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GovernorLaunch:
    """The launch document of the ServerApp's process."""

    manifest: str
    aggregator: Endpoint
    courier: Endpoint
    events_file: str
    round_timeout_s: float

    @property
    def events(self) -> Path:
        """Where the run's events are written."""
        return Path(self.events_file)

    def encode(self) -> bytes:
        """Return the document as canonical JSON."""
        return canonical.encode(record.to_json(self))

    @classmethod
    def from_environment(cls) -> GovernorLaunch:
        """Return the document that ``CONFED_GOVERNOR`` names.

        Raises:
            MissingFileError: the variable or the file is missing.
            EncodingError: the file is not a launch document.
        """
        path = os.environ.get(GOVERNOR_FILE, "")
        if not path or not Path(path).is_file():
            raise MissingFileError(GOVERNOR_FILE, expected="the path of a launch document", got=path or "nothing")
        return record.from_json(cls, canonical.decode(Path(path).read_bytes()), at="governor launch")

    def manifest_decoded(self) -> Manifest:
        """Return the manifest."""
        return Manifest.decode(base64.b64decode(self.manifest, validate=True))
