"""Policies to start from, by name: each loads as it stands, says where its values come from, and expires.

They name no code of an owner's: which measurements may run is the manifest's to say, and is checked for every profile.
Values that vendors move (minimum TCBs, versions) are dated; past its last day a policy refuses, and a later release of
confed or its owner brings a new one.
"""

from __future__ import annotations

import difflib
import importlib.resources

from confed.errors import UsageError

_ENDING = ".toml"


def ready_names() -> tuple[str, ...]:
    """Return the names of the ready policies, in order."""
    files = importlib.resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(_ENDING) for file in files if file.name.endswith(_ENDING)))


def ready_policy(name: str) -> bytes:
    """Return the bytes of a ready policy's file.

    Raises:
        UsageError: no policy of that name, with the nearest one.
    """
    names = ready_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
        raise UsageError("ready policy", expected=f"a known one (nearest: {near})", got=name[:60])
    return importlib.resources.files(__name__).joinpath(f"{name}{_ENDING}").read_bytes()
