"""What a verifier knows from outside a run's records: whose identity keys are whose, and whose TEEs are genuine.

A trust file is JSON or TOML with two tables, bytes in hexadecimal:

    [owners]
    hospital-a = "<Ed25519 identity key, 32 bytes>"
    [anchors]
    "simulated/1" = ["<DER certificate>"]
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confed import record
from confed.errors import ConfigError, ManifestMismatchError, MissingFileError, TrustAnchorError
from confed.manifest import Manifest

HOME_FILE = "trust.json"
"""The trust file of a confed home, where simulation notes the owners that it makes."""

_LIMIT_BYTES = 4 * 1024 * 1024
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Identity keys (raw Ed25519) by owner's name, and trust anchors (DER) by evidence profile.

    Raises:
        ConfigError: no owner, or a key that is not 32 bytes.
    """

    owners: Mapping[str, bytes]
    anchors: Mapping[str, tuple[bytes, ...]]

    def __post_init__(self) -> None:
        if not self.owners:
            raise ConfigError("trust.owners", expected="at least one owner", got="none")
        for name, key in self.owners.items():
            if len(key) != _KEY_BYTES:
                raise ConfigError(f"trust.owners.{name}", expected=f"{_KEY_BYTES} bytes", got=len(key))

    @classmethod
    def load(cls, path: Path) -> Trust:
        """Return the trust of a JSON or TOML file (by its suffix).

        Raises:
            MissingFileError: no such file.
            ConfigError: not a trust file; a key that is unknown, missing or of the wrong type.
        """
        return record.from_json(cls, _parse(path), at="trust", error=ConfigError)

    @classmethod
    def from_home(cls, home: Path) -> Trust:
        """Return the trust that a confed home keeps.

        Raises:
            MissingFileError: it keeps none.
            ConfigError: as ``load``.
        """
        return cls.load(home / HOME_FILE)

    def require(self, manifest: Manifest) -> None:
        """Check that a manifest's parties and anchors are those that are trusted.

        Raises:
            ManifestMismatchError: an owner that is not trusted, or with another identity key.
            TrustAnchorError: an anchor that is not trusted, or a profile that is accepted without one.
        """
        for party in (manifest.model.owner, *(site.owner for site in manifest.sites)):
            known = self.owners.get(party.name)
            if known != party.identity:
                expected = "an owner that the trust names" if known is None else known.hex()[:16]
                got = party.identity.hex()[:16]
                raise ManifestMismatchError(f"identity of {party.name}", expected=expected, got=got)
        accepted = {*manifest.client_tee.profiles, *manifest.aggregator_tee.profiles}
        for profile in sorted(accepted | set(manifest.trust.anchors)):
            trusted, listed = self.anchors.get(profile, ()), manifest.trust.anchors.get(profile, ())
            if not listed or not set(listed) <= set(trusted):
                got = "none" if not listed else "another"
                raise TrustAnchorError(f"trust anchors of {profile}", expected="those of the trust", got=got)


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise MissingFileError("trust file", expected="a JSON or TOML file", got=str(path)) from error
    if len(data) > _LIMIT_BYTES:
        raise ConfigError("trust file size in bytes", expected=f"at most {_LIMIT_BYTES}", got=len(data))
    try:
        return tomllib.loads(data.decode()) if path.suffix == ".toml" else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError("trust file", expected="JSON or TOML", got="something else") from error
