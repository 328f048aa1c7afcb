"""``confed run``: one command from an experiment file to a verified, sealed model."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from confed.cli.display import RunDisplay, print_summary
from confed.errors import PrivacyBudgetError
from confed.governor.events import EventReader
from confed.manifest import Manifest
from confed.stopping import PRIVACY

app = typer.Typer(add_completion=False)
_STOPPED = 130  # what a shell reports of a program that Ctrl-C ended
_FIRST = ("run", "engine", "rounds", "accuracy", "seconds", "model")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The experiment file (TOML).")],
    *,
    engine: Annotated[str, typer.Option(help="Where client TEEs live: local, ray or deployment.")] = "local",
    runs: Annotated[Path, typer.Option(help="Directory that the run's directory is made in.")] = Path("runs"),
    home: Annotated[
        Path | None, typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")
    ] = None,
    json_line: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object, last line.")] = False,
) -> None:
    """Run an experiment with every party on this machine.

    Owners are made and approve by themselves where the environment is simulation. TEEs are SIMULATED: the protocol
    is the real one, the protection against this machine's administrator is not.

    Raises:
        PrivacyBudgetError: the run was closed before its last round, because its privacy budget is spent.
    """
    from confed.experiment.running import RunRequest, run_experiment  # noqa: PLC0415 (imports Flower: only when it runs)

    # Flower's own log lines would tear the display; what matters of them is in the run's events.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    request = RunRequest(config_file=config, engine=engine, home=home, runs_directory=runs)
    with RunDisplay(quiet=json_line) as display:

        def watcher(manifest: Manifest, events: EventReader) -> None:
            display.begin(manifest)
            for event in events.poll():
                display.show(event)

        # Whoever ends this process politely gets what Ctrl-C gets: every party is stopped first.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            summary = run_experiment(request, watcher=watcher)
        except KeyboardInterrupt:
            typer.echo("stopped: every party of the run was ended; nothing half-done was committed", err=True)
            raise typer.Exit(_STOPPED) from None
    print_summary(summary)
    if json_line:
        typer.echo(json.dumps(_ordered(summary)))
    if summary.get("ended_by") == PRIVACY:
        # Not what was asked for: whoever waits for this command must not take it for the last round.
        raise PrivacyBudgetError("rounds", expected="the last one", got=summary["ended"])


def _ordered(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {key: summary[key] for key in _FIRST} | {key: summary[key] for key in summary if key not in _FIRST}
