"""``confed measure simulated|serving|snp|nitro``: what an owner pins, computed before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from confed import canonical, record
from confed.attestation import reference_values
from confed.attestation.reference_values import ReferenceValues, SnpGuest
from confed.cli.files import read_file
from confed.errors import UsageError
from confed.journey import Role
from confed.strategy import StrategySource

app = typer.Typer(help="Compute the measurements that an owner pins for a TEE.", no_args_is_help=True)

_ROLE = Annotated[Role, typer.Option(help="The role that this TEE has in a run.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def simulated(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="The experiment file whose app and lock file count.")
    ] = None,
    *,
    lock: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The lock file, for an app that it pins (without CONFIG).")
    ] = None,
    json_line: _JSON = False,
) -> None:
    """Measure the code that is installed here, as simulated TEEs of this release do."""
    if config is not None and lock is not None:
        raise UsageError("--lock", expected="none with an experiment file, which has its own", got=lock)
    if config is None:
        digest = canonical.digest(b"" if lock is None else read_file("lock file", lock))
        _show(reference_values.simulated(None, digest), json_line=json_line)
        return
    from confed.experiment.config import load_experiment  # noqa: PLC0415 (only where an experiment is read)
    from confed.experiment.resolution import lock_digest  # noqa: PLC0415 (imports Flower: only when it is needed)

    directory = (config.parent / load_experiment(config).app.directory).resolve()
    _show(reference_values.simulated(directory, lock_digest(config)), json_line=json_line)


@app.command()
def serving(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The serving file, in the folder of its engine.")],
    *,
    json_line: _JSON = False,
) -> None:
    """Measure the inference TEE of a serving file, as a simulated TEE of this release does."""
    from confed.experiment.resolution import lock_digest  # noqa: PLC0415 (imports Flower: only when it is needed)

    lock = lock_digest(config)
    _show(reference_values.simulated_serving(config.parent.resolve(), lock), json_line=json_line)


@app.command()
def snp(  # noqa: PLR0913 (every input of the measurement is an option)
    *,
    firmware: Annotated[Path, typer.Option(metavar="FILE", help="OVMF for SEV-SNP (with --kernel: the AmdSev build).")],
    vcpus: Annotated[int, typer.Option(help="Number of vCPUs.")],
    kernel: Annotated[Path | None, typer.Option(metavar="FILE", help="Kernel for direct boot.")] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Initial file system, with --kernel.")] = None,
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="Kernel command line, with --kernel.")] = None,
    vcpu_type: Annotated[
        str | None, typer.Option(metavar="MODEL", help="vCPU model of QEMU, such as EPYC-v4 or EPYC-Genoa.")
    ] = None,
    vcpu_signature: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Its CPUID signature (0x…) in place of --vcpu-type.")
    ] = None,
    guest_features: Annotated[str, typer.Option(metavar="NUMBER", help="SEV_FEATURES of the guest.")] = "0x1",
    vmm: Annotated[str, typer.Option(help=f"Hypervisor: {', '.join(reference_values.VMMS)}.")] = "qemu",
    role: _ROLE = Role.CLIENT,
    json_line: _JSON = False,
) -> None:
    """Compute the launch digest of an SEV-SNP guest (MEASUREMENT) with sev-snp-measure."""
    if vcpu_type is not None and vcpu_signature is not None:
        raise UsageError("vCPU", expected="--vcpu-type or --vcpu-signature", got="both")
    signature = None
    if vcpu_type is not None:
        signature = reference_values.vcpu_signature(vcpu_type)
    elif vcpu_signature is not None:
        signature = _number("--vcpu-signature", vcpu_signature)
    guest = SnpGuest(
        firmware=firmware,
        kernel=kernel,
        initrd=initrd,
        append=append,
        vcpus=vcpus,
        vcpu_signature=signature,
        guest_features=_number("--guest-features", guest_features),
        vmm=vmm,
    )
    _show(reference_values.snp(guest, role=role), json_line=json_line)


@app.command()
def strategy(
    entry: Annotated[str, typer.Argument(metavar="MODULE:CLASS", help="A strategy class of one's own.")],
    *,
    directory: Annotated[Path, typer.Option(metavar="DIR", help="Where its module is.")] = Path(),
) -> None:
    """Print the digest of a strategy class's code: what a manifest holds and `confed model seal --strategy` takes."""
    typer.echo(StrategySource.read(directory, entry).digest)


@app.command()
def nitro(
    measurements: Annotated[
        Path, typer.Argument(metavar="FILE", help="The JSON that `nitro-cli build-enclave` (or describe-eif) printed.")
    ],
    *,
    role: _ROLE = Role.CLIENT,
    json_line: _JSON = False,
) -> None:
    """Read PCR0 to PCR2 of a Nitro enclave image from what its build printed."""
    _show(reference_values.nitro(read_file("measurements", measurements), role=role), json_line=json_line)


def _show(found: ReferenceValues, *, json_line: bool) -> None:
    if json_line:
        value = record.to_json(found)
        texts = {"toml": "\n".join(value.pop("lines")), "policy": "\n".join(value.pop("policy"))}
        typer.echo(json.dumps({**value, **texts}))
        return
    console = Console(highlight=False, soft_wrap=True)
    # One line each, whole: values are copied, and a table would break them.
    for style, entries in (("dim", found.inputs), ("bold", found.values)):
        for name, value in entries.items():
            console.print(f"[{style}]{escape(f'{name:<15}')}[/] {escape(value)}")
    for note in found.notes:
        console.print(f"[yellow]note[/]  {escape(note)}")
    for where, lines in (
        ("the experiment file", found.lines),
        (f"an appraisal policy of {found.profile}", found.policy),
    ):
        if lines:
            console.print(f"\n[dim]# for {where}[/]")
        for line in lines:
            console.print(escape(line))


def _number(option: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError as error:
        raise UsageError(option, expected="a number, such as 0x1", got=text) from error
