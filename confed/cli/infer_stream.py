"""``confed infer stream``: live data as JSON lines, each window answered before the next, over one sealed exchange."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confed import canonical
from confed.cli.endorsement_options import Bundle, Cache, Pccs, PccsAuthorities, endorsement_provider
from confed.cli.tls_options import Authorities, Certificate, Key, tls_context
from confed.errors import ConfedError, EncodingError, MissingFileError
from confed.files import write_whole

if TYPE_CHECKING:
    from confed.inference.live import WindowStream
    from confed.inference.requester import Proof

_FOLDER_MODE = 0o700
_JSON = "application/json"
_OK = 200


def stream(  # noqa: PLR0913 (one argument an option)
    url: Annotated[list[str], typer.Argument(help="A replica's address; several may be given.")],
    *,
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    receipts: Annotated[Path | None, typer.Option(help="Keep each exchange's proof in this folder.")] = None,
    endorsement_cache: Cache = None,
    endorsement_bundle: Bundle = None,
    pccs: Pccs = None,
    pccs_ca: PccsAuthorities = None,
    ca: Authorities = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Answer windows from standard input: one JSON line in, one out, in order, until the input ends.

    A line is a request of the Open Inference Protocol, version 2: {"inputs": [...]}. A window that the model refuses is
    answered by {"error": ...}, and the stream goes on; then the exit code is 3.
    """
    from confed.inference.client import ConfidentialClient  # noqa: PLC0415
    from confed.inference.requester import RequesterPolicy  # noqa: PLC0415

    try:
        policy = RequesterPolicy.decode(policy_file.read_bytes())
    except OSError as error:
        raise MissingFileError("policy", expected="a file that can be read", got=policy_file) from error
    provider = endorsement_provider(endorsement_cache, endorsement_bundle, pccs=pccs, pccs_ca=pccs_ca)
    tls = tls_context(url, ca, certificate, key)
    with ConfidentialClient(url, policy=policy, endorsements=provider, tls=tls) as client:
        path = f"/v2/models/{client.verify().manifest.name}/infer"
        windows = client.stream()
        try:
            refused = _answer(windows, path)
        except BaseException:
            with suppress(ConfedError):  # what was answered before has its receipt all the same, where it can
                windows.close()
            raise
        else:
            windows.close()
        finally:
            if receipts is not None:
                _keep(windows.proofs, receipts)
    typer.echo(json.dumps({"exchanges": len(windows.proofs), "refused": refused}), err=True)
    if refused:
        raise typer.Exit(3)


def _answer(windows: WindowStream, path: str) -> int:
    """Answer every line of the input; return how many windows the model refused."""
    refused = 0
    for line in sys.stdin.buffer:
        if line.strip():
            found = windows.ask("POST", path, body=line.strip(), headers=(("content-type", _JSON),))
            if dict(found.head.headers).get("content-type") != _JSON:
                raise EncodingError("answer", expected="JSON: ask for no binary data", got="something else")
            sys.stdout.buffer.write(found.body + b"\n")
            sys.stdout.buffer.flush()
            refused += found.head.status != _OK
    return refused


def _keep(proofs: Sequence[Proof], folder: Path) -> None:
    folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    for proof in proofs:
        write_whole(folder / f"{proof.receipt.digest}.json", canonical.encode(proof.to_json()))
