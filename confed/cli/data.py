"""``confed data seal|check|show|findings``: what a data owner does with tables outside a run."""

from __future__ import annotations

import datetime
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from confed.errors import ConfigError, MissingPackageError, RecipientError, ShapeError, UsageError
from confed.journey import Kind, Purpose
from confed.keybroker.identity import OwnerHome
from confed.keybroker.vault import KeyFloors
from confed.manifest import Unchecked
from confed.preparation.documents import read_contract, read_pipeline
from confed.privacy.floor import PrivacyFloor
from confed.privacy.terms import ZERO_OUT
from confed.scenario import Scenario
from confed.sealing.container import Container
from confed.sealing.derivation import container_key
from confed.sealing.recipients import Method

if TYPE_CHECKING:
    from confed.data.description import DatasetDescription

try:
    from confed.data.checking import examine
    from confed.data.croissant import About, type_told
    from confed.data.dataset import DatasetDetail
    from confed.data.described import description_file, read_description
    from confed.data.explanation import explained, told
    from confed.data.findings import open_findings
    from confed.data.owner import check_tables, read_tables, seal_tables
except ModuleNotFoundError as error:
    raise MissingPackageError("confed data", expected="the extra confed[data]", got=error.name) from error

app = typer.Typer(help="Check, seal and describe datasets: tables and folders of images.", no_args_is_help=True)

Source = Annotated[
    Path, typer.Argument(metavar="PATH", help="Parquet, CSV, JSON lines or Arrow: a file, or a folder; or of images.")
]
ContractFile = Annotated[Path, typer.Option("--contract", metavar="FILE", help="The data contract (TOML or JSON).")]
SealedFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sealed container.")]
Owner = Annotated[str, typer.Option("--owner", metavar="NAME", help="Whose keys: a name in the confed home.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command()
def seal(  # noqa: PLR0913 (the options of a command)
    path: Source,
    owner: Owner,
    contract: ContractFile,
    *,
    pipeline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The only pipeline that it may go through (default: any).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the dataset is called (default: the path's name).")] = None,
    description: Annotated[str, typer.Option(help="What it is, in a sentence.")] = "A sealed dataset.",
    licence: Annotated[str, typer.Option(metavar="URL", help="Licence of the data.")] = "urn:confed:licence:none",
    derived_from: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Where the data come from; may be given again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: PATH.sealed.")] = None,
    least_cohort: Annotated[int, typer.Option(min=1, help="Fewest distinct sites in any result, for ever.")] = 2,
    total_rounds: Annotated[int, typer.Option(min=1, help="Rounds over all runs with this key.")] = 1000,
    epsilon: Annotated[
        float | None,
        typer.Option(min=0, help="Privacy budget over all runs with this key (with --delta): none without privacy."),
    ] = None,
    delta: Annotated[float | None, typer.Option(min=0, max=1, help="Of --epsilon.")] = None,
    adjacency: Annotated[str, typer.Option(help="Of --epsilon: zero-out or replace-one.")] = ZERO_OUT,
    statistics_epsilon: Annotated[
        float, typer.Option(min=0.0, help="What statistics of it may spend over all runs (default: none).")
    ] = 0.0,
    discloses_to_model_owner: Annotated[bool, typer.Option(help="Permit runs in which this is the only site.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the output files if they are there.")] = False,
) -> None:
    """Check a dataset against its contract, seal it under a new key, and sign what anybody may know of it."""
    agreed = read_contract(contract)
    only = None if pipeline is None else read_pipeline(pipeline)
    if only is not None:
        only.require(agreed)
    privacy = _budget(epsilon, delta, adjacency)
    target = out if out is not None else path.with_name(path.name + ".sealed")
    beside = description_file(target)
    for file in (target, beside):
        if file.exists() and not force:
            raise UsageError(str(file), expected="no such file yet (or --force)", got="a file")
    if not target.parent.is_dir():
        raise UsageError("--out", expected="a file in a folder that is there", got=target)
    about = About(
        name=path.name if name is None else name,
        description=description,
        licence=licence,
        derived_from=tuple(derived_from or ("not said",)),
        published=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    tables = read_tables(path, agreed)
    check_tables(tables, agreed, what=str(path))
    with closing(OwnerHome.load(owner)) as home:
        sealed = seal_tables(
            tables,
            home=home,
            contract=agreed,
            pipeline=None if only is None else only.digest,
            about=about,
            floors=_floors(
                home.environment,
                least_cohort=least_cohort,
                total_rounds=total_rounds,
                statistics_epsilon=statistics_epsilon,
                discloses=discloses_to_model_owner,
                privacy=privacy,
            ),
            path=target,
            description_path=beside,
        )
    Console(stderr=True, highlight=False).print(
        f"sealed {tables.table.num_rows} rows, {sealed.reference.size_bytes} bytes: {target}\nsigned: {beside}"
    )
    typer.echo(sealed.reference.digest)


@app.command()
def check(path: Source, contract: ContractFile, *, as_json: Json = False) -> None:
    """Check a dataset against a contract where it is; say column, check and count of what breaks it, never a value."""
    agreed = read_contract(contract)
    tables = read_tables(path, agreed)
    findings = examine(tables.table, agreed)[1]
    if as_json:
        typer.echo(json.dumps({"contract": agreed.digest, "findings": [_json(finding) for finding in findings]}))
    else:
        for finding in findings:
            typer.echo(explained(finding, tables.table, agreed))
    check_tables(tables, agreed, what=str(path))
    if not as_json:
        typer.echo(f"{path} keeps contract {agreed.name!r} ({agreed.digest})")


@app.command()
def show(
    file: SealedFile,
    *,
    croissant: Annotated[bool, typer.Option("--croissant", help="The Croissant description alone (JSON-LD).")] = False,
    as_json: Json = False,
) -> None:
    """Show what a sealed dataset says in public: from its header and its signed description; needs no key."""
    container = Container.map(file)
    detail = DatasetDetail.of(container)
    stated = read_description(file, container)
    if croissant:
        typer.echo(json.dumps(stated.croissant, indent=2))
        return
    facts = _facts(container, detail, stated)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, value in facts.items():
        text = "\n".join(f"{key}  {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(what.replace("_", " "), text)
    Console(highlight=False).print(table)


@app.command()
def findings(file: SealedFile, owner: Owner, *, as_json: Json = False) -> None:
    """Open what a TEE told this owner of a dataset that breaks its contract (``findings/`` in a run's directory)."""
    container = Container.map(file)
    if container.header.kind is not Kind.FINDINGS:
        raise ShapeError("container kind", expected=Kind.FINDINGS, got=container.header.kind)
    entries = [entry for entry in container.header.recipients if entry.method is Method.OWNER_KEY]
    if len(entries) != 1:
        raise RecipientError("recipient", expected="one key of an owner", got=len(entries))
    with closing(OwnerHome.load(owner)) as home:
        key = container_key(home.key(entries[0].key_id), container_id=container.header.container_id)
    found = open_findings(container, key)
    if as_json:
        typer.echo(json.dumps([_json(finding) for finding in found]))
        return
    for finding in found:
        typer.echo(told(finding))


def _json(finding: Any) -> dict[str, Any]:
    return {"column": finding.column, "check": finding.check, "count": finding.count}


def _facts(container: Container, detail: DatasetDetail, stated: DatasetDescription) -> dict[str, Any]:
    described = stated.croissant
    fields = described["recordSet"][0]["field"]
    return {
        "name": described["name"],
        "description": described["description"],
        "licence": described["license"],
        "derived_from": "; ".join(described["prov:wasDerivedFrom"]),
        "published": described["datePublished"],
        "owner": f"{described['creator']['name']} ({stated.owner.hex()})",
        "container_id": stated.container_id,
        "digest": stated.container,
        "size_bytes": container.size_bytes,
        "files": len(detail.files),
        "contract": stated.contract,
        "pipeline": stated.pipeline or "any that its owner approves",
        "columns": {field["name"]: type_told(field) for field in fields},
    }


def _budget(epsilon: float | None, delta: float | None, adjacency: str) -> PrivacyFloor | None:
    if epsilon is None and delta is None:
        return None
    if epsilon is None or delta is None:
        missing = "--delta" if delta is None else "--epsilon"
        raise ConfigError(missing, expected="both --epsilon and --delta, or neither", got="none")
    return PrivacyFloor(epsilon=epsilon, delta=delta, adjacency=adjacency)


def _floors(
    environment: str,
    *,
    least_cohort: int,
    total_rounds: int,
    statistics_epsilon: float,
    discloses: bool,
    privacy: PrivacyFloor | None,
) -> KeyFloors:
    any_of_manifest = Unchecked(unchecked="each manifest lists its own, and its owner approves it")
    return KeyFloors(
        environment=environment,
        least_cohort=least_cohort,
        purposes=(Purpose.TRAIN, Purpose.EVALUATE),
        measurements=any_of_manifest,
        total_rounds=total_rounds,
        discloses_to_model_owner=discloses,
        counted_identities=any_of_manifest,
        # A run with one client shows the model's owner what this data did.
        scenarios=tuple(Scenario) if discloses else (Scenario.FEDERATED,),
        statistics_epsilon=statistics_epsilon,
        privacy=privacy,
    )
