"""``confed``: the commands, and how an error becomes one clear line and an exit code.

Exit codes: 0 done, 2 a user's mistake, 3 refused by a check, 5 a run that fell short of its least cohort.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer
from typer.core import TyperGroup

from confed import __version__
from confed.cli.plain import plain
from confed.errors import ConfedError

# Flower reads these when it is imported: no telemetry, no look for updates.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_COMMANDS = {
    "run": ("confed.cli.run", "Run an experiment: every party, every TEE (simulated), every round."),
    "verify": ("confed.cli.verify", "Check a whole run offline from its records."),
    "evidence": ("confed.cli.evidence", "Verify vendors' evidence; show, sign and fetch what that takes."),
    "measure": ("confed.cli.measure", "Compute what an owner pins: the measurements of this release."),
    "doctor": ("confed.cli.doctor", "What this machine can attest with, and what a broker would refuse."),
    "manifest": ("confed.cli.manifest", "Show and approve the contract of a run."),
    "infer": ("confed.cli.infer", "Serve a model confidentially, and talk to one that is."),
    "model": ("confed.cli.model", "Seal, open and show model files."),
    "data": ("confed.cli.data", "Check, seal and describe datasets."),
    "broker": ("confed.cli.broker", "Run owners' key brokers."),
    "courier": ("confed.cli.courier", "Run the store of ciphertext."),
}


class _LazyGroup(TyperGroup):
    """Imports a command when it is asked for, so that ``confed broker`` needs neither torch nor Flower."""

    def list_commands(self, ctx: object) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: object, cmd_name: str):  # noqa: ANN202 (click's or typer's vendored type)
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, summary = _COMMANDS[cmd_name]
        command = typer.main.get_command(import_module(module).app)
        command.name = cmd_name
        command.short_help = summary
        return command


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(default=False, help="Print the version and leave.")) -> None:  # noqa: FBT001
    """Confidential federated learning: models, data and updates are opened only inside attested TEEs."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def run() -> None:
    """Run the command line; the process's exit code is the error's."""
    try:
        app()
    except ConfedError as error:
        sys.stderr.write(f"error: {plain(str(error))}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run()
