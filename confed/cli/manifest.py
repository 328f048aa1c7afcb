"""``confed manifest``: the contract of a run, shown and approved."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from confed import record
from confed.errors import MissingFileError
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest

app = typer.Typer(add_completion=False, no_args_is_help=True)
_HOME = typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")


@app.command()
def show(
    config: Annotated[Path, typer.Argument(help="An experiment file (TOML) or a manifest (JSON).")],
    *,
    home: Annotated[Path | None, _HOME] = None,
    canonical: Annotated[bool, typer.Option("--canonical", help="Print the exact bytes that owners sign.")] = False,
) -> None:
    """Print the manifest that an experiment file resolves to, and its digest.

    The run's name, the sealed start and the datasets are new in each run, so their digests are too.
    """
    manifest = _read(config) if config.suffix == ".json" else _resolved(config, home)
    if canonical:
        sys.stdout.buffer.write(manifest.encoded)
        return
    typer.echo(json.dumps(record.to_json(manifest), indent=2, sort_keys=True))
    typer.echo(f"digest: {manifest.digest}", err=True)


@app.command()
def approve(
    manifest: Annotated[Path, typer.Argument(help="The manifest (JSON) as it was received.")],
    *,
    owner: Annotated[str, typer.Option(help="Whose approval this is.")],
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Approve a manifest by signing its digest with the owner's identity key; its broker acts on it from then on."""
    decoded = _read(manifest)
    signed = OwnerHome.load(owner, home=home).approve(decoded)
    typer.echo(json.dumps(signed.to_json()))
    typer.echo(f"{owner} approves {decoded.digest}", err=True)


def _read(path: Path) -> Manifest:
    try:
        return Manifest.decode(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingFileError("manifest", expected="a file", got=path) from error


def _resolved(config: Path, home: Path | None) -> Manifest:
    from confed.experiment.showing import manifest_of  # noqa: PLC0415 (imports Flower: only when it is needed)

    return manifest_of(config, home=home)
