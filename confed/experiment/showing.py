"""The manifest of an experiment without running it: all is resolved and sealed in a place that is thrown away."""

from __future__ import annotations

import tempfile
from pathlib import Path

from confed.experiment.config import load_experiment
from confed.experiment.owners import load_owners, seal_everything
from confed.experiment.resolution import prepare, resolve
from confed.manifest import Manifest


def manifest_of(config_file: Path, *, home: Path | None) -> Manifest:
    """Return the manifest that a run of ``config_file`` would have, with ``NAME-shown`` for the run's name.

    Without a home that exists, owners are made in the place that is thrown away, so that looking changes nothing.

    Raises:
        ConfedError: as ``confed run`` would refuse it.
    """
    experiment = load_experiment(config_file)
    prepared = prepare(experiment, config_file=config_file)
    with tempfile.TemporaryDirectory(prefix="confed-") as folder:
        owners = load_owners(prepared, home=home or Path(folder) / "home")
        parts, _ = seal_everything(prepared, owners, folder=Path(folder))
        return resolve(
            prepared,
            run=f"{experiment.name}-shown",
            model_owner=owners.model.party,
            site_owners=[owner.party for owner in owners.sites],
            sealed=parts,
            anchors=owners.anchors,
        )
