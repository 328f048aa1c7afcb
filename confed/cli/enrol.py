"""``confed evidence enrol``: a verifier finds out which TPM an attestation key lives in, and signs what it found.

Four steps between two machines, each with a file that goes to the other:

    TPM's machine    enrol request   → request.json    which keys the TPM has
    verifier         enrol challenge → challenge.json  a secret that only this TPM can open (and kept.json, which stays)
    TPM's machine    enrol activate  → answer.json     the secret
    verifier         enrol sign      → enrolment.json  signed; goes along with the TPM's evidence
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from rich.console import Console
from rich.markup import escape

from confed import canonical
from confed.attestation.attesters.tpm import activate_credential, enrolment_request
from confed.attestation.certificates import Certificate, load_certificate, load_certificates
from confed.attestation.enrolment_files import ANSWER_WITHIN_S, LIMIT_BYTES, Answer, Challenge, Kept, Request
from confed.attestation.enrolment_files import decode as decode_file
from confed.attestation.enrolment_files import encode as encode_file
from confed.attestation.tee.tpm_enrolment import LONGEST_S, begin_enrolment, finish_enrolment
from confed.attestation.tee.tpm_structures import parse_public
from confed.cli.files import read_file, remove_file, write_file
from confed.cli.plain import plain
from confed.errors import ConfigError, EndorsementFormatError, KeyBindingError
from confed.keybroker.identity import OwnerHome

app = typer.Typer(
    no_args_is_help=True,
    help="Enrol a TPM's attestation key, in four steps: request, challenge, activate, sign.",
)

_DAY_S = 24 * 3600
_CERTIFICATE_LIMIT_BYTES = 1024 * 1024

_TCTI = Annotated[str, typer.Option(help="How to reach the TPM, such as device:/dev/tpmrm0.")]


@app.command()
def request(
    *,
    tcti: _TCTI,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the request, for the verifier.")],
) -> None:
    """1. On the TPM's machine: make the attestation key, and write which keys the TPM has.

    Nothing is stored in the TPM and nothing in the file is secret. Tell the verifier the fingerprint by another way
    than the file: whoever carries the file could put another TPM's in its place.

    Exit code 0 done, 3 no TPM or one without an EK certificate, 2 a mistake in the command.
    """
    found = enrolment_request(tcti)
    made = Request(
        attestation_key=found.attestation_key, endorsement_key=found.endorsement_key, certificate=found.certificate
    )
    write_file("--out", encode_file(made), out)
    _show_request(made)
    _next(f"give {out} to the verifier: confed evidence enrol challenge {out.name}")


@app.command()
def challenge(
    file: Annotated[Path, typer.Argument(metavar="REQUEST", help="What the TPM's machine wrote.")],
    *,
    root: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Root of a TPM vendor that you trust, PEM or DER; repeat for several."),
    ],
    intermediate: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Certificates between the EK's and the root; repeat for several."),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="HEX", help="The fingerprint that the TPM's machine showed.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the challenge, for the TPM's machine.")],
    keep: Annotated[Path, typer.Option(metavar="FILE", help="Where to write what stays here until the answer.")],
) -> None:
    """2. At the verifier: check the EK certificate, and write a secret that only a TPM with both keys can open.

    The file of --keep holds that secret: it stays here, and lasts a day. No root is pinned: TPM vendors are many.

    Exit code 0 done, 3 a certificate or key that does not hold, 2 a mistake in the command.
    """
    asked = decode_file(Request, read_file("request", file, limit_bytes=LIMIT_BYTES), what="request")
    if out.absolute() == keep.absolute():
        raise ConfigError("--keep", expected="another file than --out: it holds the secret", got=keep)
    if fingerprint is not None and fingerprint.lower() != asked.fingerprint:
        raise KeyBindingError("fingerprint of the request", expected=fingerprint[:64], got=asked.fingerprint)
    now = datetime.now(UTC)
    credential, pending = begin_enrolment(
        attestation_key=asked.attestation_key,
        endorsement_key=asked.endorsement_key,
        certificate=load_certificate(asked.certificate, what="EK"),
        intermediates=_certificates("--intermediate", intermediate or ()),
        anchors=_certificates("--root", root),
        now=now,
    )
    kept = Kept(request=asked.fingerprint, pending=pending, opened_at=int(now.timestamp() * 1000))
    write_file("--keep", encode_file(kept), keep)
    write_file("--out", encode_file(Challenge(request=asked.fingerprint, credential=credential)), out)
    _show_request(asked)
    if fingerprint is None:
        _console().print("[yellow]compare the fingerprint with what the TPM's machine showed, or give --fingerprint[/]")
    hours = ANSWER_WITHIN_S // 3600
    _next(f"give {out} to the TPM's machine, within {hours} h: confed evidence enrol activate {out.name}")


@app.command()
def activate(
    file: Annotated[Path, typer.Argument(metavar="CHALLENGE", help="What the verifier wrote.")],
    *,
    tcti: _TCTI,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the answer, for the verifier.")],
) -> None:
    """3. On the TPM's machine: let the TPM open the challenge, which it does only if it holds both keys.

    Exit code 0 done, 3 the TPM refuses (the challenge is for other keys), 2 a mistake in the command.
    """
    asked = decode_file(Challenge, read_file("challenge", file, limit_bytes=LIMIT_BYTES), what="challenge")
    secret = activate_credential(tcti, asked.credential)
    write_file("--out", encode_file(Answer(request=asked.request, secret=secret)), out)
    _next(f"give {out} to the verifier: confed evidence enrol sign {out.name}")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="ANSWER", help="What the TPM's machine wrote.")],
    *,
    kept: Annotated[Path, typer.Option(metavar="FILE", help="What the challenge left here (--keep).")],
    owner: Annotated[str, typer.Option(help="Whose identity key signs.")],
    days: Annotated[int, typer.Option(min=1, max=LONGEST_S // _DAY_S, help="How long the enrolment lasts.")] = 90,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the enrolment, for the TPM's machine.")],
    home: Annotated[
        Path | None, typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")
    ] = None,
) -> None:
    """4. At the verifier: if the answer is the secret, sign that both keys are in one TPM.

    The enrolment goes back to the TPM's machine (`enrolment` under [tee.attester]) and along with its evidence. Whoever
    verifies names the signer's key, which is printed, beside the roots (`anchors."tpm/1"` under [tee], PEM). What was
    kept is removed: a challenge is for one answer.

    Exit code 0 done, 3 another answer or one that is too late, 2 a mistake in the command.
    """
    remembered = decode_file(Kept, read_file("--kept", kept, limit_bytes=LIMIT_BYTES), what="--kept")
    answer = decode_file(Answer, read_file("answer", file, limit_bytes=LIMIT_BYTES), what="answer")
    now_ms = time.time_ns() // 1_000_000
    remembered.require_open(now_ms)
    if answer.request != remembered.request:
        raise KeyBindingError("request that is answered", expected=remembered.request, got=answer.request[:64])
    authority = OwnerHome.load(owner, home=home).identity_key
    signed = finish_enrolment(
        remembered.pending, answer.secret, authority=authority, now_ms=now_ms, lifetime_s=days * _DAY_S
    )
    write_file("--out", signed, out)
    remove_file("--kept", kept)
    pem = authority.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    typer.echo(pem, nl=False)
    ends = datetime.fromtimestamp(now_ms / 1000 + days * _DAY_S, UTC)
    console = _console()
    console.print(f"enrolled until {ends:%F %T} UTC by {escape(owner)}, whose key stands above")
    _next(f"give {out} to the TPM's machine (tee.attester.enrolment), and the key to whoever verifies (tee.anchors)")


def _certificates(option: str, paths: Sequence[Path]) -> list[Certificate]:
    found: list[Certificate] = []
    for path in paths:
        data = read_file(option, path, limit_bytes=_CERTIFICATE_LIMIT_BYTES)
        try:
            found.extend(load_certificates(data, what=option))
        except EndorsementFormatError as error:
            raise ConfigError(option, expected="certificates, PEM or DER", got=str(path)) from error
    return found


def _show_request(made: Request) -> None:
    console = _console()
    certificate = load_certificate(made.certificate, what="EK")
    for name, value in (
        ("attestation key", parse_public(made.attestation_key).name.hex()),
        ("EK certificate", certificate.subject or "no subject"),
        ("  issued by", certificate.parsed.issuer.rfc4514_string() or "no name"),
        ("  SHA-256", canonical.digest(certificate.der)),
        ("fingerprint", made.fingerprint),
    ):
        console.print(f"{name:<16} {escape(plain(value))}")


def _next(text: str) -> None:
    _console().print(f"[bold]next[/]  {escape(text)}")


def _console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)
