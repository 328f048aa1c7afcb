"""What client TEEs told data owners, sealed: kept for them in the run's directory, and readable by nobody else."""

from __future__ import annotations

from collections.abc import Iterable

from confed.manifest import Site
from confed.records.run_directory import RunDirectory
from confed.wire.courier_client import CourierClient

FOLDER = "findings"


def collect_findings(courier: CourierClient, directory: RunDirectory, *, run: str, sites: Iterable[Site]) -> None:
    """Write each site's findings to ``findings/SITE-N.sealed``.

    Raises:
        ConfedError: the courier does not answer.
    """
    for site in sites:
        for number, body in enumerate(courier.collect(f"{run}/{FOLDER}/{site.owner.name}"), start=1):
            # The ledger's name of a party is checked: it names a file.
            name = directory.ledger_file(site.owner.name).stem
            (directory.path / FOLDER).mkdir(exist_ok=True)
            (directory.path / FOLDER / f"{name}-{number}.sealed").write_bytes(body)
