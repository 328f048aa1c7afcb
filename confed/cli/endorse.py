"""``confed evidence endorse``: fetch what a verifier needs besides evidence, ahead of time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from confed.attestation.endorsement_provider import gathered
from confed.attestation.endorsements import Endorsement, encode_bundle
from confed.attestation.endorsing.files import needs_of_files
from confed.attestation.endorsing.vendors import VENDOR_HOSTS, Sources, vendor_fetcher, vendor_sources
from confed.attestation.vendor_files import KINDS, kind_of
from confed.cli.files import read_file, write_file
from confed.errors import ConfigError

_LARGEST_FILE_BYTES = 4 * 1024 * 1024


def endorse(
    *,
    tee: Annotated[str, typer.Option(metavar="KIND", help=f"Kind of evidence: {', '.join(KINDS)}.")],
    evidence: Annotated[Path, typer.Option(metavar="FILE", help="The vendor's evidence: a report, quote or document.")],
    endorsement: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What is there already: certificates, a GPU's chain; repeat for several."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Where to write (default: the output).")] = None,
    source_host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help=f"The only hosts to ask (default: {', '.join(VENDOR_HOSTS)})."),
    ] = None,
    pccs: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="A PCCS to ask in place of Intel's service.")
    ] = None,
    pccs_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate authorities of the PCCS, in PEM.")
    ] = None,
) -> None:
    """Fetch the endorsements that evidence needs, and write them as one bundle.

    For a site without internet: its broker, or `confed evidence verify --endorsement BUNDLE`, takes the bundle instead
    of asking vendors. The bundle is not trusted; whoever uses it verifies everything in it against pinned roots. It
    serves until the first of its endorsements expires.

    Exit code 0 with a bundle of everything that is needed; 3 without one, and the host and reason.
    """
    kind = kind_of(tee)
    if pccs is None and pccs_ca is not None:
        raise ConfigError("--pccs-ca", expected="--pccs with it", got="none")
    hints = [read_file("--endorsement", path, limit_bytes=_LARGEST_FILE_BYTES) for path in endorsement or []]
    raw = read_file("--evidence", evidence, limit_bytes=_LARGEST_FILE_BYTES)
    wanted = needs_of_files(kind.profile, raw, hints)
    fetcher = vendor_fetcher(hosts=tuple(source_host or VENDOR_HOSTS), pccs=pccs, pccs_authorities=pccs_ca)
    sources = Sources(vendor_sources(fetcher, pccs=pccs))
    found = gathered(wanted, lambda need: sources.fetch(need, now_ms=time.time_ns() // 1_000_000))
    write_file("--out", encode_bundle(found), out)
    typer.echo(_summary(found, out), err=True)


def _summary(found: tuple[Endorsement, ...], out: Path | None) -> str:
    if not found:
        return "this kind of evidence needs no endorsements; the bundle is empty"
    first = min(found, key=lambda entry: entry.expires_at)
    ends = datetime.fromtimestamp(first.expires_at / 1000, UTC)
    return f"{len(found)} endorsements in {out or 'the output'}, good until {ends:%F %T} UTC ({first.need.KIND})"
