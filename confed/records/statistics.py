"""Statistics that left sites, in a run's directory: where they stand, and what is checked of them offline.

``statistics/SITE.json`` holds a client's credential, its broker's permit and the signed release. For each:

1. the permit is the site's own broker's, for this run and manifest, and costs what the manifest says;
2. it is in that broker's ledger, once;
3. the release is signed by the client that the permit names, and answers the manifest's queries and no others.

Not promised: that the noise is right; that is the approved code's, like everything inside a TEE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from confed import canonical
from confed.errors import CredentialError, EncodingError, LedgerError, ManifestMismatchError, TicketError
from confed.keybroker.statistics import StatisticsPermit, StatisticsRelease
from confed.manifest import Manifest, Site
from confed.preparation.statistics import HISTOGRAM, Query
from confed.records.entries import text
from confed.records.places import at
from confed.records.run_directory import RunDirectory
from confed.records.witnesses import Book
from confed.statement import Signed, verify
from confed.wire.courier_client import CourierClient

FOLDER = "statistics"
_LARGEST_BYTES = 16 * 1024 * 1024


def collect_statistics(courier: CourierClient, directory: RunDirectory, *, run: str, sites: Iterable[Site]) -> None:
    """Write each site's statistics to ``statistics/SITE.json``, if any left.

    Raises:
        ConfedError: the courier does not answer.
    """
    for site in sites:
        for body in courier.collect(f"{run}/{FOLDER}/{site.owner.name}")[:1]:
            # The ledger's name of a party is checked: it names a file.
            name = directory.ledger_file(site.owner.name).stem
            (directory.path / FOLDER).mkdir(exist_ok=True)
            (directory.path / FOLDER / f"{name}.json").write_bytes(body)


def verify_statistics(directory: RunDirectory, manifest: Manifest, books: Mapping[bytes, Book]) -> int:
    """Check what left, and return of how many sites.

    Raises:
        RefusedError: of the class that says why; the message names the file.
    """
    files = sorted((directory.path / FOLDER).glob("*")) if (directory.path / FOLDER).is_dir() else []
    for file in files:
        with at(f"{FOLDER}/{file.name}"):
            site = manifest.site_named(file.stem)
            _verify(file, site, manifest, books[site.owner.broker])
    return len(files)


def _verify(file: Path, site: Site, manifest: Manifest, book: Book) -> None:
    terms = None if manifest.preparation is None else manifest.preparation.statistics
    if terms is None:
        raise ManifestMismatchError("statistics", expected="none: the manifest lets none out", got="some")
    documents = _documents(file)
    # 1.
    signed = documents["permit"]
    permit = verify(signed, StatisticsPermit, signer=site.owner.broker)
    expected = (manifest.run, manifest.digest, site.owner.identity, terms.epsilon)
    if (permit.run, permit.manifest, permit.identity, permit.epsilon) != expected:
        raise TicketError("permit", expected="for this run, site and cost", got="for another")
    # 2.
    entry = book.permit
    if entry is None or text(entry, "permit") != signed.digest:
        raise LedgerError("permit", expected="the one in its owner's ledger", got=signed.digest[:16])
    credential = documents["credential"].digest
    if not permit.credential == credential == text(entry, "credential"):
        raise CredentialError("credential", expected=permit.credential[:16], got=credential[:16])
    # 3.
    release = verify(documents["release"], StatisticsRelease, signer=permit.signing_public)
    about = (manifest.run, manifest.digest, site.owner.identity, signed.digest)
    if (release.run, release.manifest, release.identity, release.permit) != about:
        raise TicketError("release", expected="under this permit", got="another")
    if set(release.answers) != {query.name for query in terms.queries}:
        raise ManifestMismatchError("answers", expected="to the manifest's queries", got="others")
    for query in terms.queries:
        _require_form(query, release.answers[query.name])


def _require_form(query: Query, found: Any) -> None:
    if query.kind == HISTOGRAM:
        bins = cast("list[Any]", found) if isinstance(found, list) else []
        fits = len(bins) == len(query.edges or ()) - 1 and all(type(count) is int for count in bins)
    else:
        fits = isinstance(found, int | float) and not isinstance(found, bool)
    if not fits:
        raise ManifestMismatchError(f"answer to {query.name}", expected=f"one of a {query.kind}", got="something else")


def _documents(file: Path) -> dict[str, Signed]:
    with file.open("rb") as stream:
        value = canonical.decode(stream.read(_LARGEST_BYTES))
    if not isinstance(value, dict) or sorted(value) != ["credential", "permit", "release"]:  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError("statistics", expected="credential, permit and release", got="something else")
    return {name: Signed.from_json(entry) for name, entry in cast("dict[str, Any]", value).items()}
