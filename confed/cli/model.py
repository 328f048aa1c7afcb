"""``confed model seal|open|show``: what a model's owner does with it outside a run."""

from __future__ import annotations

import json
import mmap
import secrets
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from confed.cli.model_directory import starting_arrays, write_directory
from confed.errors import (
    EncodingError,
    MissingFileError,
    RecipientError,
    RefusedError,
    ShapeError,
    SizeError,
    UsageError,
)
from confed.files import replacing
from confed.journey import Kind, Purpose
from confed.keybroker.identity import OwnerHome
from confed.keybroker.vault import KeyFloors
from confed.manifest import Unchecked
from confed.model import weights
from confed.model.hub import PICKLES
from confed.scenario import Scenario
from confed.sealing import derivation
from confed.sealing.container import Container, Draft, RecipientEntry, Sealed, seal_to_file
from confed.sealing.recipients import PUBLIC_BYTES, HpkeRecipient, Method

app = typer.Typer(help="Seal a model, open one, or show what a sealed one says without any key.", no_args_is_help=True)

_THREADS = 2
_BY_MANIFEST = Unchecked(unchecked="each manifest lists its own, and its owner approves it")

ModelFile = Annotated[
    Path, typer.Argument(metavar="FILE|DIR", help="A safetensors file, or a model's directory in the Hub's layout.")
]
SealedFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sealed container.")]
Owner = Annotated[str, typer.Option("--owner", metavar="NAME", help="Whose keys: a name in the confed home.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the output file if it is there.")]


@app.command(name="seal")
def seal_command(  # noqa: PLR0913 (one argument an option)
    file: ModelFile,
    owner: Owner,
    *,
    recipient: Annotated[
        list[Path] | None,
        typer.Option(metavar="KEY_FILE", help="File with an HPKE public key in hexadecimal; may be given again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: FILE.sealed.")] = None,
    least_cohort: Annotated[int, typer.Option(min=1, help="Fewest distinct sites in any result, for ever.")] = 2,
    total_rounds: Annotated[int, typer.Option(min=1, help="Rounds over all runs with this key.")] = 1000,
    lease: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Longest lease of an inference TEE; 0 permits none.")
    ] = 0,
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="DIGEST", help="Code of a strategy class that you read: it mixes every update."),
    ] = None,
    scenario: Annotated[
        list[Scenario] | None, typer.Option(help="Kind of run that the key may serve; may be given again.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="An experiment file whose [adapter] the start gets, beside the base."),
    ] = None,
    force: Force = False,
) -> None:
    """Seal a safetensors FILE, or a model's DIR, as a starting model under a new key of its owner."""
    target = out if out is not None else file.with_name(file.resolve().name + ".sealed")
    sealed, tensors = seal_model(
        file,
        owner=owner,
        recipients=recipient or (),
        target=target,
        force=force,
        least_cohort=least_cohort,
        total_rounds=total_rounds,
        lease_s=lease,
        strategies=tuple(strategy or ()),
        scenarios=tuple(scenario or (Scenario.FEDERATED,)),
        adapter=adapter,
    )
    Console(stderr=True, highlight=False).print(f"sealed {tensors} tensors, {sealed.size_bytes} bytes: {target}")
    typer.echo(sealed.digest)


@app.command(name="open")
def open_command(
    file: SealedFile,
    owner: Owner,
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the safetensors file goes.")],
    directory: Annotated[
        bool,
        typer.Option("--directory", help="As a directory: the base in the Hub's layout, PEFT's adapter."),
    ] = False,
    force: Force = False,
) -> None:
    """Open a sealed model FILE with its owner's key, or as one of its recipients."""
    container, tensors = open_model(file, owner=owner, target=out, force=force, directory=directory)
    says = "sealed by its owner" if container.signer == container.header.owner else "sealed by an enclave"
    console = Console(stderr=True, highlight=False)
    console.print(f"opened {tensors} tensors ({says}, key {container.signer.hex()[:16]}): {out}")
    if container.header.version > 0:
        console.print("whether this version was committed is for `confed verify RUN_DIR` to say")


@app.command(name="show")
def show_command(
    file: SealedFile,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what a sealed FILE says in public: what is inside and for whom. Needs no key."""
    facts = public_facts(Container.map(file))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _as_text(value))
    Console(highlight=False).print(table)


def seal_model(  # noqa: PLR0913 (a key and its floors)
    file: Path,
    *,
    owner: str,
    recipients: Sequence[Path],
    target: Path,
    force: bool,
    least_cohort: int,
    total_rounds: int,
    lease_s: int = 0,
    strategies: tuple[str, ...] = (),
    scenarios: tuple[Scenario, ...] = (Scenario.FEDERATED,),
    adapter: Path | None = None,
) -> tuple[Sealed, int]:
    """Seal a safetensors file or a model's directory as a start; return what was written and how many tensors it holds.

    Guarantees: the file is checked whole before a key is made; it is re-packed into the one order that confed uses.

    Raises:
        UsageError: a file that is not there or not safetensors, a bad recipient file, or an output that exists.
    """
    _refuse_pickle(file)
    _refuse_existing(target, force=force)
    if adapter is not None and not file.is_dir():
        raise UsageError("--adapter", expected="with a model's directory", got=f"with the file {file}")
    public_keys = [_recipient_of(path) for path in recipients]
    arrays = starting_arrays(file, adapter) if file.is_dir() else _arrays_of(file, _mapped(file))
    layout = weights.layout_of(arrays)
    container_id = "model-" + secrets.token_hex(16)
    with closing(OwnerHome.load(owner)) as home:
        floors = KeyFloors(
            environment=home.environment,
            least_cohort=least_cohort,
            purposes=tuple(Purpose),
            measurements=_BY_MANIFEST,
            total_rounds=total_rounds,
            discloses_to_model_owner=False,
            counted_identities=_BY_MANIFEST,
            strategies=strategies,
            scenarios=scenarios,
            lease_s=lease_s,
        )
        key_id, key = home.new_key(floors=floors)
        data_key = derivation.container_key(key, container_id=container_id)
        wrapped = [
            RecipientEntry.hpke(public, data_key, kind=Kind.MODEL, container_id=container_id) for public in public_keys
        ]
        draft = Draft(
            kind=Kind.MODEL,
            container_id=container_id,
            owner=home.party.identity,
            detail={"layout": layout.digest},
            recipients=(RecipientEntry.owner_key(key_id), *wrapped),
        )
        parts = weights.pack(arrays)
        sealed = seal_to_file(
            parts, draft, data_key=data_key, signing_key=home.identity_key, path=target, threads=_THREADS
        )
    return sealed, len(layout.tensors)


def open_model(file: Path, *, owner: str, target: Path, force: bool, directory: bool = False) -> tuple[Container, int]:
    """Write what is inside a sealed model, as one file or a directory; return the container and the number of tensors.

    Guarantees: everything is authenticated and checked before a byte is written; mode 0600; whole or not at all.
    A starting model must be signed by the owner that it names.

    Raises:
        UsageError: a file that is not there, not a model, or an output that exists.
        SealError, SignatureError: a container that does not hold, or that these keys do not open.
    """
    _refuse_existing(target, force=force)
    container = Container.map(file)
    header = container.header
    if header.kind is not Kind.MODEL:
        raise UsageError(str(file), expected="a sealed model", got=f"a sealed {header.kind}")
    if header.version == 0:
        container.verify_signer(header.owner)
    with closing(OwnerHome.load(owner)) as home:
        data_key = _data_key(container, home)
    plaintext = container.unlock(data_key).read_all(threads=_THREADS)
    arrays = weights.unpack(plaintext)
    expected, found = header.detail.get("layout"), weights.layout_of(arrays).digest
    if expected != found:
        raise ShapeError("layout", expected=expected, got=found)
    if directory:
        write_directory(arrays, target)
    else:
        _write_private(target, plaintext, force=force)
    return container, len(arrays)


def public_facts(container: Container) -> dict[str, Any]:
    """Return what anybody may know of a container, as JSON values."""
    header = container.header
    return {
        "kind": str(header.kind),
        "container_id": header.container_id,
        "version": header.version,
        "parents": list(header.parents),
        "owner": header.owner.hex(),
        "signer": container.signer.hex(),
        "signature": "holds; whether this signer may sign is not checked here",
        "manifest": header.manifest,
        "digest": container.file_digest(),
        "size_bytes": container.size_bytes,
        "plaintext_bytes": header.plaintext_bytes,
        "chunks": header.chunk_count,
        "chunk_bytes": header.chunk_bytes,
        "recipients": [{"method": str(entry.method), "key_id": entry.key_id} for entry in header.recipients],
        "detail": dict(header.detail),
        "declaration_bytes": len(header.declaration),
    }


def _data_key(container: Container, home: OwnerHome) -> bytes:
    header = container.header
    named = [entry for entry in header.recipients if entry.method is Method.OWNER_KEY]
    if named and header.owner == home.party.identity:
        key = home.key(named[0].key_id)
        if header.version == 0:
            return derivation.container_key(key, container_id=header.container_id)
        run, attempt = header.detail.get("run"), header.detail.get("attempt")
        if not isinstance(run, str) or type(attempt) is not int:
            raise RecipientError("header.detail", expected="run and attempt of the version", got="something else")
        return derivation.version_key(key, run=run, version=header.version, attempt=attempt)
    return container.data_key_for(home.hpke_identity)


def _refuse_pickle(file: Path) -> None:
    if file.suffix.lower() in PICKLES:
        raise UsageError(
            str(file), expected="a safetensors file", got=f"{file.suffix} (may hold code; save it with safetensors)"
        )


def _refuse_existing(target: Path, *, force: bool) -> None:
    if target.exists() and not force:
        raise UsageError(str(target), expected="no such file yet (or --force)", got="a file")
    if not target.parent.is_dir():
        raise MissingFileError(str(target.parent), expected="a folder", got="none")


def _recipient_of(path: Path) -> HpkeRecipient:
    try:
        return HpkeRecipient(bytes.fromhex(path.read_text(encoding="ascii").strip()))
    except OSError as error:
        raise MissingFileError(str(path), expected="a file", got=error.strerror) from error
    except (ValueError, RefusedError) as error:
        expected = f"an HPKE public key in hexadecimal ({PUBLIC_BYTES} bytes)"
        raise UsageError(str(path), expected=expected, got="something else") from error


def _mapped(file: Path) -> mmap.mmap:
    try:
        with file.open("rb") as handle:
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:  # mmap does not map an empty file
        raise UsageError(str(file), expected="a safetensors file", got="an empty one") from error
    except OSError as error:
        raise MissingFileError(str(file), expected="a file", got=error.strerror) from error


def _arrays_of(file: Path, source: mmap.mmap) -> dict[str, weights.Array]:
    try:
        return weights.unpack(memoryview(source), aligned=False)
    except (EncodingError, ShapeError, SizeError) as error:
        raise UsageError(f"{file}: not a safetensors file that can be sealed ({error})") from error


def _write_private(target: Path, data: memoryview, *, force: bool) -> None:
    with replacing(target) as file:
        file.write(data)
        _refuse_existing(target, force=force)


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(_as_text(item) for item in value) or "-"  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return "  ".join(f"{key} {item}" for key, item in value.items()) or "-"  # pyright: ignore[reportUnknownVariableType]
    return str(value) if value != "" else "-"
