"""A run's part of one owner's ledger, its fields read strictly: an entry without what its event needs is refused."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from confed.errors import LedgerError, ManifestMismatchError
from confed.keybroker.statements import LedgerEntry
from confed.manifest import Manifest, Party
from confed.records.places import at

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A verified ledger entry."""

    sequence: int
    previous: str
    time: int
    event: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """An owner in this run, whether it is a data owner, and what its broker's ledger says of this run, in order."""

    party: Party
    is_site: bool
    is_model_owner: bool
    entries: tuple[Entry, ...]

    def of(self, *events: str) -> Iterator[Entry]:
        """Yield the entries of these events, in order."""
        return (entry for entry in self.entries if entry.event in events)

    @contextmanager
    def at(self, entry: Entry) -> Generator[None]:
        """Name this entry as the place of any error in the block."""
        with at(f"ledger of {self.party.name}, entry {entry.sequence} ({entry.event})", missing=LedgerError):
            yield


def entries_of_run(entries: Sequence[LedgerEntry], *, manifest: Manifest, digest: str, party: str) -> tuple[Entry, ...]:
    """Return a ledger's entries that are about this run, leaving out what other runs of this owner left.

    Raises:
        ManifestMismatchError: an entry that names this run under another manifest: its name was used twice.
    """
    found: list[Entry] = []
    for entry in entries:
        named = (entry.body.get("manifest"), entry.body.get("run"))
        if named == (digest, manifest.run):
            found.append(
                Entry(
                    sequence=entry.sequence,
                    previous=entry.previous,
                    time=entry.time,
                    event=entry.event,
                    body=entry.body,
                )
            )
        elif digest == named[0] or manifest.run == named[1]:
            raise ManifestMismatchError(
                f"ledger of {party}, entry {entry.sequence} ({entry.event})",
                expected=f"run {manifest.run} under {digest[:16]}",
                got=f"run {str(named[1])[:64]} under {str(named[0])[:16]}",
            )
    return tuple(found)


def text(entry: Entry, name: str) -> str:
    """Return a field that is text.

    Raises:
        LedgerError: it is not there, or not text.
    """
    value = entry.body.get(name)
    if not isinstance(value, str):
        raise LedgerError(name, expected="text", got=type(value).__name__)
    return value


def number(entry: Entry, name: str) -> int:
    """Return a field that is a whole number.

    Raises:
        LedgerError: it is not there, or not a whole number.
    """
    value = entry.body.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise LedgerError(name, expected="a whole number", got=type(value).__name__)
    return value


def texts(entry: Entry, name: str) -> tuple[str, ...]:
    """Return a field that is a list of texts.

    Raises:
        LedgerError: it is not there, or not a list of texts.
    """
    value = entry.body.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise LedgerError(name, expected="a list of texts", got=type(value).__name__)
    return tuple(value)


def members(entry: Entry, name: str) -> bytes:
    """Return a field that is a cohort as ``Lineage.members`` writes it, in hexadecimal.

    Raises:
        LedgerError: it is not there, or not hexadecimal.
    """
    try:
        return bytes.fromhex(text(entry, name))
    except ValueError:
        raise LedgerError(name, expected="a cohort in hexadecimal", got="something else") from None


def choice(entry: Entry, name: str, kind: type[E]) -> E:
    """Return a field that is one of an enumeration.

    Raises:
        LedgerError: it is not there, or another value.
    """
    value = text(entry, name)
    if value not in [str(member) for member in kind]:
        raise LedgerError(name, expected="one of " + ", ".join(kind), got=value[:40])
    return kind(value)
