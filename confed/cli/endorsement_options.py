"""Options by which a command is told where endorsements come from: a cache that asks vendors, or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confed.errors import ConfigError

if TYPE_CHECKING:
    from confed.attestation.endorsements import EndorsementProvider

Cache = Annotated[
    Path | None,
    typer.Option("--endorsement-cache", help="Fetch endorsements from vendors, and keep them in this directory."),
]
Bundle = Annotated[
    Path | None,
    typer.Option(
        "--endorsement-bundle",
        help="Take endorsements from this bundle (`confed evidence endorse`); nothing is fetched.",
    ),
]
Pccs = Annotated[
    str | None, typer.Option("--pccs", metavar="HOST[:PORT]", help="Ask this PCCS in place of Intel's service.")
]
PccsAuthorities = Annotated[
    Path | None, typer.Option("--pccs-ca", metavar="FILE", help="Certificate authorities of the PCCS, in PEM.")
]


def endorsement_provider(
    cache: Path | None, bundle: Path | None, *, pccs: str | None, pccs_ca: Path | None
) -> EndorsementProvider | None:
    """Return the provider that the options name; ``None`` where they name none.

    Raises:
        ConfigError: options that contradict each other, or one that would be ignored.
        MissingFileError: a file that is not there.
        EndorsementFormatError: a bundle that is none.
    """
    if cache is not None and bundle is not None:
        raise ConfigError("endorsements", expected="a cache or a bundle", got="both")
    if cache is None and (pccs is not None or pccs_ca is not None):
        given = "--pccs-ca" if pccs is None else "--pccs"
        raise ConfigError(given, expected="--endorsement-cache with it", got="none")
    if pccs is None and pccs_ca is not None:
        raise ConfigError("--pccs-ca", expected="--pccs with it", got="none")
    from confed.attestation.endorsement_cache import EndorsementCache  # noqa: PLC0415 (only where it is asked for)
    from confed.attestation.endorsement_provider import BundleProvider, CachedProvider  # noqa: PLC0415
    from confed.attestation.endorsing.vendors import VENDOR_HOSTS, vendor_fetcher, vendor_sources  # noqa: PLC0415

    if bundle is not None:
        return BundleProvider.load(bundle)
    if cache is None:
        return None
    fetcher = vendor_fetcher(hosts=VENDOR_HOSTS, pccs=pccs, pccs_authorities=pccs_ca)
    return CachedProvider(EndorsementCache(cache), vendor_sources(fetcher, pccs=pccs))
