"""``confed verify``: check a whole run offline from its records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from confed.errors import MissingFileError, RefusedError
from confed.keybroker.identity import confed_home
from confed.records.trust import Trust
from confed.records.verification import Verified, verify_run

app = typer.Typer(add_completion=False)


@app.command()
def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory that `confed run` made.")],
    *,
    trust: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Owners' identity keys and trust anchors (JSON or TOML); default: trust.json in the confed home.",
        ),
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="The confed home to take trust from (default: $CONFED_HOME or ~/.confed).")
    ] = None,
    json_line: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check every approval, version, cohort, evidence, ticket, countersignature and ledger of a run.

    Works offline on the run's records alone. Exit code 0 when all holds against owners' keys and trust anchors from
    outside the run directory; 3 with the first broken link named when not, and 3 without such keys: then the records
    are self-consistent only.
    """
    verified = verify_run(run_dir, trust=_trust(trust, home))
    if json_line:
        typer.echo(json.dumps(dataclasses.asdict(verified)))
    else:
        _print(verified)
    if verified.self_consistent_only:
        raise RefusedError(
            "self-consistent only", expected="owners' keys and trust anchors from outside (--trust FILE)", got="none"
        )


def _trust(file: Path | None, home: Path | None) -> Trust | None:
    """Return the trust of a file that was named, or of the home; none where the home keeps none."""
    if file is not None:
        return Trust.load(file)
    try:
        return Trust.from_home(confed_home(home))
    except MissingFileError:
        if home is not None:
            raise
        return None


def _print(verified: Verified) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for checked in verified.steps:
        console.print(f"[green]ok[/]  {checked.step:<12} {escape(checked.what)}")
    if verified.self_consistent_only:
        console.print(f"[yellow]{escape(verified.run)}: its records fit each other; whose they are, nobody said[/]")
        return
    simulated = "" if verified.environment == "production" else f" ({verified.environment.upper()})"
    console.print(
        f"[bold green]verified[/]  {escape(verified.run)}{simulated}: {verified.versions} versions, "
        f"{verified.evidence} evidences, {verified.tickets} tickets, {verified.countersignatures} countersignatures, "
        f"{verified.ledger_entries} ledger entries"
    )
