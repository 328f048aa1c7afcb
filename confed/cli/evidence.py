"""``confed evidence``: verify vendors' evidence, and show, check and sign the policies that appraise it."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from confed import record
from confed.attestation import ear
from confed.attestation.evidence import Expectation
from confed.attestation.policy import document, ready, registry
from confed.attestation.vendor_files import KINDS, Kind, kind_of, verify_vendor_files
from confed.cli import enrol
from confed.cli.endorse import endorse
from confed.cli.files import read_file
from confed.cli.plain import plain
from confed.errors import AppraisalError, AttestationError, ConfigError, MissingEndorsementError, RefusedError
from confed.keybroker.identity import OwnerHome
from confed.manifest import Unchecked
from confed.records.run_directory import RunDirectory
from confed.records.tokens import tokens

app = typer.Typer(add_completion=False, no_args_is_help=True)

_REFUSED = 3
_NOT_GENUINE = 4
_LATEST_S = 253_402_300_799  # the end of the year 9999, the last that datetime knows


@app.command()
def verify(  # noqa: PLR0913 (the options of a command)
    *,
    tee: Annotated[str, typer.Option(metavar="KIND", help=f"Kind of evidence: {', '.join(KINDS)}.")],
    evidence: Annotated[Path, typer.Option(metavar="FILE", help="The vendor's evidence: a report, quote or document.")],
    endorsement: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Certificates, collateral, RIMs, event logs, a bundle; repeat for several."),
    ] = None,
    nonce: Annotated[str | None, typer.Option(metavar="HEX", help="The nonce that it must answer.")] = None,
    report_data: Annotated[str | None, typer.Option(metavar="HEX", help="The data that it must be bound to.")] = None,
    at: Annotated[int | None, typer.Option(metavar="UNIX_TIME", help="Judge as of this time (default: now).")] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Appraisal policy (TOML), or the name of a ready one.")
    ] = None,
    policy_key: Annotated[
        str | None, typer.Option(metavar="HEX", help="Ed25519 key that must have signed the policy (FILE.sig).")
    ] = None,
    json_line: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify raw evidence of a TEE, TPM or GPU: is it genuine, and is it acceptable?

    Vendors' roots are pinned; nothing is fetched. Without --policy only the floors apply. Without --nonce freshness is
    not checked, without --report-data neither is what the evidence is bound to.

    Exit code 0 genuine and acceptable, 3 genuine but refused by policy, 4 not genuine, 2 a mistake in the command.
    """
    kind = kind_of(tee)
    if policy is None and policy_key is not None:
        raise ConfigError("--policy-key", expected="--policy with it", got="none")
    expectation = Expectation(nonce=_bytes("--nonce", nonce), report_data=_bytes("--report-data", report_data))
    now = _time(at)
    files = [read_file("--endorsement", path) for path in endorsement or []]
    chosen = None if policy is None else _believed(policy, policy_key)
    verdict = _verdict(kind, read_file("--evidence", evidence), files, expectation, now, chosen)
    if json_line:
        typer.echo(json.dumps(verdict, sort_keys=True))
    else:
        _print(verdict, policy_name=chosen.name if chosen else "", expectation=expectation)
    if not verdict["genuine"]:
        raise typer.Exit(_NOT_GENUINE)
    if not verdict["acceptable"]:
        raise typer.Exit(_REFUSED)


@app.command()
def policies(name: Annotated[str | None, typer.Argument(help="A ready policy to print.")] = None) -> None:
    """List the ready appraisal policies, or print one to start from."""
    if name is not None:
        sys.stdout.buffer.write(ready.ready_policy(name))
        return
    console = Console(highlight=False, soft_wrap=True)
    for entry in ready.ready_names():
        found = document.load(ready.ready_policy(entry))
        console.print(f"[bold]{escape(entry):<20}[/] {escape(found.profile):<16} valid to {found.expires}")


@app.command()
def policy(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A policy file (TOML), or the name of a ready one.")],
    *,
    key: Annotated[str | None, typer.Option(metavar="HEX", help="Ed25519 key that must have signed it.")] = None,
) -> None:
    """Read a policy as strictly as a broker does and print it with its digest."""
    found = _policy(file, key)
    typer.echo(json.dumps(found.to_table(), indent=2, sort_keys=True))
    typer.echo(f"digest: {found.digest}", err=True)


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy file (TOML).")],
    *,
    owner: Annotated[str, typer.Option(help="Whose identity key signs.")],
    home: Annotated[
        Path | None, typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")
    ] = None,
) -> None:
    """Sign a policy with an owner's identity key, into FILE.sig."""
    signature = document.sign_policy(read_file("policy", file), OwnerHome.load(owner, home=home).identity_key)
    target = file.with_name(file.name + ".sig")
    try:
        target.write_bytes(signature)
    except OSError as error:
        raise ConfigError(str(target), expected="a place to write", got=error.strerror) from error
    typer.echo(str(target))


app.command()(endorse)
app.add_typer(enrol.app, name="enrol")


@app.command()
def token(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory that `confed run` made.")],
    *,
    owner: Annotated[str, typer.Option(help="Whose broker's results; its key signs.")],
    audience: Annotated[str, typer.Option(help="Whom the tokens are for.")],
    home: Annotated[
        Path | None, typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")
    ] = None,
) -> None:
    """Print what an owner's broker made of each evidence of a run as a signed EAR token, a line each.

    A token is of the time of its evidence and lasts a day from then.
    """
    key = OwnerHome.load(owner, home=home).broker_key
    for _, made in tokens(RunDirectory.open(run_dir), broker_key=key, audience=audience):
        typer.echo(made)


@app.command()
def read_token(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that holds one token.")],
    *,
    key: Annotated[str, typer.Option(metavar="HEX", help="Ed25519 key of the broker that you trust.")],
    audience: Annotated[str, typer.Option(help="Whom the token must be for.")],
    nonce: Annotated[str | None, typer.Option(metavar="HEX", help="The nonce of its evidence.")] = None,
    at: Annotated[int | None, typer.Option(metavar="UNIX_TIME", help="Judge as of this time (default: now).")] = None,
) -> None:
    """Verify an EAR token under a key that you trust, and print what it says.

    Exit code 0 affirming in every part, 3 anything else.
    """
    trusted = _bytes("--key", key) or b""
    expected = _bytes("--nonce", nonce)
    claims = ear.verify(
        read_file("token", file).decode(errors="replace").strip(),
        keys={ear.key_id(trusted): trusted},
        audience=audience,
        nonce=Unchecked(unchecked="no --nonce was given") if expected is None else expected,
        now_ms=int(_time(at).timestamp() * 1000),
    )
    typer.echo(json.dumps(record.to_json(claims), indent=2, sort_keys=True))
    claims.require_affirming()


def _verdict(
    kind: Kind,
    evidence: bytes,
    endorsements: list[bytes],
    expectation: Expectation,
    now: datetime,
    policy: document.PolicyDocument | None,
) -> dict[str, Any]:
    verdict: dict[str, Any] = {"genuine": False, "acceptable": False, "code": "", "reason": "", "claims": None}
    try:
        claims = verify_vendor_files(kind, evidence, endorsements, expectation=expectation, now=now)
    except AttestationError as error:
        return verdict | {"code": error.code, "reason": str(error)}
    verdict |= {"genuine": True, "claims": record.to_json(claims)}
    try:
        if policy is None:
            registry.require_defaults(kind.profile, claims)
        else:
            policy.appraise(claims, profile=kind.profile, now=now)
    except AppraisalError as error:
        return verdict | {"code": error.code, "reason": str(error)}
    return verdict | {"acceptable": True, "code": "ok", "reason": "genuine and acceptable"}


def _print(verdict: dict[str, Any], *, policy_name: str, expectation: Expectation) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if verdict["claims"] is not None:
        _print_claims(console, verdict["claims"], indent="")
    by = f"policy {policy_name}" if policy_name else "the floors alone (no --policy)"
    reason = escape(f"{verdict['code']}: {plain(verdict['reason'])}")
    if not verdict["genuine"]:
        console.print(f"[bold red]not genuine[/]  {reason}")
        if verdict["code"] == MissingEndorsementError.code:
            console.print("[dim]give it with --endorsement FILE, or fetch it first: confed evidence endorse[/]")
        return
    left_out = [
        name
        for name, value in (("--nonce", expectation.nonce), ("--report-data", expectation.report_data))
        if value is None
    ]
    if left_out:
        console.print(f"[yellow]unchecked[/]    no {' and no '.join(left_out)} was given")
    if verdict["acceptable"]:
        console.print(f"[bold green]genuine and acceptable[/]  to {escape(by)}")
    else:
        console.print(f"[bold yellow]genuine, refused[/]  {reason}")


def _print_claims(console: Console, claims: Any, *, indent: str) -> None:
    for name, value in claims.items():
        if isinstance(value, dict) and value:
            console.print(f"{indent}{escape(plain(name))}")
            _print_claims(console, value, indent=indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, entry in enumerate(value):
                console.print(f"{indent}{escape(plain(name))} {number}")
                _print_claims(console, entry, indent=indent + "  ")
        else:
            console.print(f"{indent}{escape(plain(name)):<28} {escape(_shown(value))}")


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return plain(text if len(text) <= 200 else text[:197] + "…")


def _believed(name: str, key: str | None) -> document.PolicyDocument:
    """Return a policy to verify by; one that its key did not sign is a mistake here, and no verdict on evidence."""
    try:
        return _policy(name, key)
    except RefusedError as error:
        raise ConfigError(error.field, expected=error.expected, got=error.got) from error


def _policy(name: str, key: str | None) -> document.PolicyDocument:
    path = Path(name)
    if key is not None:
        trusted = _bytes("--policy-key", key) or b""
        signature = read_file("policy signature", path.with_name(path.name + ".sig"))
        return document.load_signed(read_file("--policy", path), signature, trusted_keys=(trusted,))
    if not path.exists() and name in ready.ready_names():
        return document.load(ready.ready_policy(name))
    return document.load(read_file("--policy", path))


def _bytes(what: str, value: str | None) -> bytes | None:
    """Return the bytes of an option; an empty one is a variable that was not set, and would check nothing."""
    if value is None:
        return None
    try:
        data = bytes.fromhex(value)
    except ValueError as error:
        raise ConfigError(what, expected="an even number of hexadecimal digits", got=repr(value)[:40]) from error
    if not data:
        raise ConfigError(what, expected="hexadecimal digits", got="nothing")
    return data


def _time(at: int | None) -> datetime:
    seconds = int(time.time()) if at is None else at
    if not 0 <= seconds <= _LATEST_S:
        raise ConfigError("--at", expected="a Unix time in seconds", got=at)
    return datetime.fromtimestamp(seconds, UTC)
