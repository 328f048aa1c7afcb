"""``confed doctor``: what this machine can attest with, how it is confined, and what a broker would refuse and why."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from confed import record
from confed.attestation import examination, inventory
from confed.attestation.anchors import pinned_anchors
from confed.attestation.attesters.choose import GOOGLE_TPM, KINDS, SIMULATED, TPM, TpmOptions
from confed.attestation.attesters.nvml import NvmlAttester
from confed.attestation.evidence import Envelope
from confed.attestation.examination import GPU, GPU_PROFILE, Attempt, Case
from confed.attestation.inventory import Confinement, Gpus, Interface
from confed.attestation.rehearsal import Outcome, Verdict
from confed.attestation.vendor_files import parts_of
from confed.attestation.verifier import default_registry
from confed.cli.files import read_file
from confed.cli.plain import plain
from confed.errors import ConfigError, EvidenceUnavailableError
from confed.journey import Role
from confed.keybroker.identity import confed_home
from confed.manifest import PRODUCTION, SIMULATION, Manifest

app = typer.Typer(add_completion=False)

_REGISTERS = "0,1,2,3,4,5,6,7,15"


@app.command()
def doctor(  # noqa: PLR0913 (a command line's options)
    *,
    tee: Annotated[str, typer.Option(metavar="KIND", help=f"The TEE to judge: {', '.join(KINDS)}.")] = SIMULATED,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run's contract: its policy, anchors and environment.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="FILE", help="Appraisal policy (TOML), or the name of a ready one.")
    ] = None,
    environment: Annotated[
        str | None, typer.Option(help="production or simulation; default: the manifest's, or production.")
    ] = None,
    role: Annotated[Role, typer.Option(help="The role to attest as.")] = Role.CLIENT,
    app_directory: Annotated[
        Path | None, typer.Option("--app", metavar="DIR", help="The app's code, for a client's measurement.")
    ] = None,
    privilege_level: Annotated[int, typer.Option(min=0, max=3, help="SEV-SNP: the VMPL to attest as.")] = 0,
    tcti: Annotated[str | None, typer.Option(help="TPM: how to reach it, such as device:/dev/tpmrm0.")] = None,
    enrolment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TPM: its enrolment, which a verifier signed.")
    ] = None,
    google_key: Annotated[str | None, typer.Option(help="TPM of Google's: which key, rsa or ecc.")] = None,
    registers: Annotated[str, typer.Option(metavar="LIST", help="TPM: registers to quote.")] = _REGISTERS,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="GPU", help="Index or UUID of a GPU that attests beside the TEE.")
    ] = None,
    endorsement: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Certificates, collateral or a bundle; repeat for several."),
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Exit with 3 if this TEE gives no evidence here.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="The confed home (default: $CONFED_HOME or ~/.confed).")] = None,
    json_line: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what this machine can attest with, and rehearse what a broker would say, claim by claim.

    Nothing is opened, fetched or changed. Evidence is made for keys that nobody holds and thrown away.
    """
    _require_known("--tee", tee, KINDS)
    for kind in require or ():
        _require_known("--require", kind, (*KINDS, GPU))
    case = _case(manifest, policy=policy, environment=environment, role=role)
    simulated, anchors = examination.simulated_attester(
        case,
        app_directory=None if app_directory is None else app_directory.resolve(),
        root_file=confed_home(home) / "simulated-tee" / "root.pem",
    )
    devices = NvmlAttester([int(one) if one.isdecimal() else one for one in gpu]).collect if gpu else None
    tpms = _tpms(tcti, enrolment, google_key, registers)
    tried = {
        kind: examination.attempt(
            kind,
            case,
            simulated=simulated,
            privilege_level=privilege_level,
            tpm=tpms.get(kind),
            devices=devices if kind == tee else None,
        )
        for kind in KINDS
    }
    envelope = tried[tee][1]
    given = [part for path in endorsement or () for part in parts_of(read_file("endorsement", path))]
    judged = () if envelope is None else _judged(envelope, case, simulated_anchors=anchors, endorsements=given)
    report = _report(tee, case, [attempt for attempt, _ in tried.values()], judged)
    if json_line:
        typer.echo(json.dumps(record.to_json(report)))
    else:
        _print(report)
    for attempt in report["attests"]:
        if attempt.kind in (require or ()) and not attempt.attests:
            raise EvidenceUnavailableError(f"evidence of {attempt.kind}", expected="some", got=attempt.reason)


def _judged(
    envelope: Envelope,
    case: Case,
    *,
    simulated_anchors: Mapping[str, Sequence[bytes]],
    endorsements: Sequence[bytes],
) -> tuple[Verdict, ...]:
    anchors: Mapping[str, Sequence[bytes]] = case.anchors
    if case.policy is None:
        # Nobody has named roots: the ones that vendors publish, and for the simulated TEE its own.
        vendors = {profile: pinned_anchors(profile) for profile in (envelope.profile, GPU_PROFILE)}
        anchors = {**vendors, **simulated_anchors}
    return examination.judge(envelope, case, registry=default_registry(), anchors=anchors, endorsements=endorsements)


def _report(tee: str, case: Case, attempts: Sequence[Attempt], judged: Sequence[Verdict]) -> dict[str, Any]:
    gpus = inventory.gpus()
    return {
        "kernel": inventory.kernel(),
        "confinement": inventory.confinement(),
        "interfaces": inventory.interfaces(),
        "attests": (*attempts, examination.attempt_gpus(len(gpus.names), case)),
        "gpus": gpus,
        "packages": inventory.packages(),
        "broker": {
            "tee": tee,
            "simulated": tee == SIMULATED,
            "environment": case.environment,
            "role": case.role,
            "accepted": bool(judged) and all(verdict.outcome is Outcome.OK for verdict in judged),
            "assumed": case.assumed,
            "claims": tuple(judged),
        },
    }


def _tpms(tcti: str | None, enrolment: Path | None, google_key: str | None, registers: str) -> Mapping[str, TpmOptions]:
    """Return what each kind of TPM has to be told, for those that the command line describes."""
    if tcti is None:
        if enrolment is not None or google_key is not None:
            raise ConfigError("--tcti", expected="how to reach the TPM", got="nothing")
        return {}
    try:
        selection = tuple(int(number) for number in registers.split(","))
    except ValueError as error:
        raise ConfigError("--registers", expected="numbers with commas between them", got=registers[:60]) from error
    found: dict[str, TpmOptions] = {}
    if enrolment is not None:
        signed = read_file("enrolment", enrolment)
        found[TPM] = TpmOptions(tcti=tcti, selection=selection, enrolment=signed)
    if google_key is not None:
        found[GOOGLE_TPM] = TpmOptions(tcti=tcti, selection=selection, algorithm=google_key)
    return found


def _require_known(option: str, kind: str, known: Sequence[str]) -> None:
    if kind not in known:
        raise ConfigError(option, expected=f"one of {', '.join(known)}", got=kind[:40])


def _case(manifest: Path | None, *, policy: str | None, environment: str | None, role: Role) -> Case:
    if environment not in {None, PRODUCTION, SIMULATION}:
        raise ConfigError("--environment", expected=f"{PRODUCTION} or {SIMULATION}", got=environment)
    now_ms = time.time_ns() // 1_000_000
    if manifest is None:
        case = Case.made_up(role=role, environment=environment or PRODUCTION, now_ms=now_ms)
    else:
        contract = Manifest.decode(read_file("manifest", manifest))
        case = Case.of_manifest(contract, role=role, environment=environment, now_ms=now_ms)
    return dataclasses.replace(case, appraisal=_appraisal(policy))


def _appraisal(policy: str | None) -> Mapping[str, Mapping[str, Any]]:
    if policy is None:
        return {}
    from confed.attestation.policy import document, ready  # noqa: PLC0415 (reads every kind of TEE's policy)

    data = ready.ready_policy(policy) if policy in ready.ready_names() else read_file("policy", Path(policy))
    found = document.load(data)
    return {found.profile: found.to_table()}


def _print(report: Mapping[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    _print_confinement(console, report["kernel"], report["confinement"])
    _print_interfaces(console, report["interfaces"], report["gpus"])
    _print_attempts(console, report["attests"])
    _print_packages(console, report["packages"])
    reasons = {attempt.kind: attempt.reason for attempt in report["attests"]}
    _print_broker(console, report["broker"], why=reasons[report["broker"]["tee"]])


def _print_confinement(console: Console, kernel: str, confinement: Confinement) -> None:
    console.print(f"[bold]kernel and confinement[/]  {escape(kernel)}")
    for layer in confinement.active:
        console.print(f"  [green]active[/]   {escape(layer)}")
    for layer in confinement.missing:
        console.print(f"  [yellow]missing[/]  {layer}: {inventory.LAYERS[layer]}")
    if confinement.problem:
        console.print(f"  [red]problem[/]  {escape(confinement.problem)}")


def _print_interfaces(console: Console, interfaces: Sequence[Interface], gpus: Gpus) -> None:
    console.print("\n[bold]interfaces of TEEs and devices[/]")
    for one in interfaces:
        mark = "[green]there[/]" if one.present else "[dim]none[/] "
        says = f"  {escape(plain(one.says))}" if one.present and one.says else ""
        console.print(f"  {mark}  {one.name}  [dim]{escape(one.path)}[/]{says}")
    if gpus.problem:
        console.print(f"  [dim]none[/]   GPUs  [dim]{escape(plain(gpus.problem))}[/]")
    modes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in gpus.modes.items())
    for name in gpus.names:
        console.print(f"  [green]there[/]  {escape(name)}  [dim]driver {escape(gpus.driver)}[/]  {escape(modes)}")


def _print_attempts(console: Console, attempts: Sequence[Attempt]) -> None:
    console.print("\n[bold]gives evidence here[/]")
    for one in attempts:
        colour = "yellow" if one.kind == SIMULATED else "green"
        mark = f"[{colour}]yes[/]" if one.attests else "[dim]no[/] "
        console.print(f"  {mark}  {one.kind:<10} [dim]{escape(plain(one.reason))}[/]")
    if not any(one.attests for one in attempts if one.kind not in {SIMULATED, GPU}):
        console.print("  [yellow]no TEE here: simulated evidence only, which production refuses[/]")


def _print_packages(console: Console, packages: Mapping[str, str]) -> None:
    console.print("\n[bold]packages[/]")
    there = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    absent = ", ".join(name for name, version in packages.items() if not version)
    console.print(f"  {escape(there)}")
    if absent:
        console.print(f"  [dim]not installed: {escape(absent)}[/]")


def _print_broker(console: Console, broker: Mapping[str, Any], *, why: str) -> None:
    what = "SIMULATED evidence" if broker["simulated"] else f"{broker['tee']} evidence"
    console.print(f"\n[bold]what a broker would say[/]  {what}, as {broker['role']}, in {broker['environment']}")
    if not broker["claims"]:
        console.print(f"  [red]refused[/]  there is no evidence to judge: {escape(plain(why))}")
    for verdict in broker["claims"]:
        console.print(_line(verdict, assumed=verdict.claim in broker["assumed"]))
    if not broker["accepted"]:
        console.print("[yellow]a broker would refuse[/]")
    elif broker["assumed"]:
        console.print("[yellow]nothing of this would be refused; what a manifest pins was not looked at[/]")
    else:
        console.print("[green]a broker would accept this evidence[/] (whether it gives a key, its ledger decides)")


def _line(verdict: Verdict, *, assumed: bool) -> str:
    claim = escape(plain(verdict.claim))
    if assumed and verdict.outcome is Outcome.OK:
        return f"  [yellow]unknown[/]  {claim}: nothing pinned (give --manifest)"
    if verdict.outcome is Outcome.REFUSED:
        why = f"expected {verdict.expected}, got {verdict.got}" if verdict.expected or verdict.got else ""
        return f"  [red]refused[/]  {claim}: [bold]{verdict.code}[/]  {escape(plain(why))}"
    if verdict.outcome is Outcome.NOT_REACHED:
        return f"  [dim]not reached  {claim}[/]"
    return f"  [green]ok[/]       {claim}"
