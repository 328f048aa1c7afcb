"""Results of many sites as one object: what a TEE that hosts them all hands over at a time.

A simulation's client TEE acts for hundreds of sites, each with a small result, a credential and a ticket of its own.
One object in the courier and one call to the enclave for dozens of them replace four of each for every site. The
bundle promises nothing: it is a list of things that are each signed, and each is checked as if it had come alone.

Layout: magic, length of the list (4 bytes, big-endian), the list as canonical JSON, then the results in its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from confed import canonical
from confed.errors import EncodingError, SizeError
from confed.statement import Signed

MAGIC = b"confed-bundle/1\n"
MOST_RESULTS = 1024
MOST_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4
FRONT_BYTES = len(MAGIC) + _LENGTH_BYTES
_KEYS = ["credential", "site", "size_bytes", "ticket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclosed:
    """One site's sealed result with the documents that its header names; nothing is verified."""

    site: str
    credential: Signed
    ticket: Signed
    sealed: bytes = field(repr=False)


def bundle(results: Sequence[Enclosed]) -> bytes:
    """Return results as one object.

    Raises:
        SizeError: more than a bundle may hold.
    """
    if len(results) > MOST_RESULTS:
        raise SizeError("results in a bundle", expected=f"at most {MOST_RESULTS}", got=len(results))
    entries = [
        {
            "credential": entry.credential.to_json(),
            "site": entry.site,
            "size_bytes": len(entry.sealed),
            "ticket": entry.ticket.to_json(),
        }
        for entry in results
    ]
    listed = canonical.encode(entries)
    data = b"".join([MAGIC, len(listed).to_bytes(_LENGTH_BYTES, "big"), listed, *(entry.sealed for entry in results)])
    if len(data) > MOST_BYTES:
        raise SizeError("bundle size in bytes", expected=f"at most {MOST_BYTES}", got=len(data))
    return data


def unbundle(data: bytes | bytearray) -> list[Enclosed]:
    """Return what is in a bundle, in its order; nothing in it is verified yet.

    Raises:
        EncodingError: not a bundle, a site twice, or sizes that are not those of the results.
        SizeError: more than a bundle may hold.
    """
    start = FRONT_BYTES
    if len(data) > MOST_BYTES:
        raise SizeError("bundle size in bytes", expected=f"at most {MOST_BYTES}", got=len(data))
    if data[: len(MAGIC)] != MAGIC or len(data) < start:
        raise EncodingError("bundle", expected="a list and its results", got="something else")
    end = start + int.from_bytes(data[len(MAGIC) : start], "big")
    entries = canonical.decode(bytes(data[start:end]))
    if not isinstance(entries, list):
        raise EncodingError("bundle", expected="a list", got=type(entries).__name__)
    listed: list[Any] = entries  # pyright: ignore[reportUnknownVariableType]
    if len(listed) > MOST_RESULTS:
        raise SizeError("results in a bundle", expected=f"at most {MOST_RESULTS}", got=len(listed))
    found: list[Enclosed] = []
    for entry in listed:
        size = _size(entry)
        found.append(
            Enclosed(
                site=entry["site"],
                credential=Signed.from_json(entry["credential"]),
                ticket=Signed.from_json(entry["ticket"]),
                sealed=bytes(data[end : end + size]),
            )
        )
        end += size
    if end != len(data) or len({entry.site for entry in found}) != len(found):
        raise EncodingError("bundle", expected="each site once, and results of the listed sizes", got="others")
    return found


def results_offset(front: bytes) -> int:
    """Return where the first result of a bundle lies, from its first ``FRONT_BYTES``; 0 for what is no bundle."""
    if len(front) < FRONT_BYTES or front[: len(MAGIC)] != MAGIC:
        return 0
    return FRONT_BYTES + int.from_bytes(front[len(MAGIC) :], "big")


def _size(entry: Any) -> int:
    if not isinstance(entry, dict) or sorted(entry) != _KEYS or not isinstance(entry["site"], str):  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError("bundle entry", expected="a site, its documents and a size", got="something else")
    size = entry["size_bytes"]  # pyright: ignore[reportUnknownVariableType]
    if type(size) is not int or not 0 < size <= MOST_BYTES:
        raise EncodingError("bundle entry size", expected=f"from 1 to {MOST_BYTES}", got="another")
    return size
