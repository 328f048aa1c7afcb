"""``confed infer stream``: live data as JSON lines, each window answered before the next, over one sealed exchange."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from confed import canonical
from confed.cli.endorsement_options import Bundle, Cache, Pccs, PccsAuthorities, endorsement_provider
from confed.errors import EncodingError, MissingFileError
from confed.files import write_whole

_FOLDER_MODE = 0o700
_JSON = "application/json"
_OK = 200


def stream(
    url: Annotated[list[str], typer.Argument(help="A replica's address; several may be given.")],
    *,
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    receipts: Annotated[Path | None, typer.Option(help="Keep each exchange's proof in this folder.")] = None,
    endorsement_cache: Cache = None,
    endorsement_bundle: Bundle = None,
    pccs: Pccs = None,
    pccs_ca: PccsAuthorities = None,
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
    refused = 0
    with ConfidentialClient(url, policy=policy, endorsements=provider) as client:
        path = f"/v2/models/{client.verify().manifest.name}/infer"
        with client.stream() as windows:
            for line in sys.stdin.buffer:
                if line.strip():
                    found = windows.ask("POST", path, body=line.strip(), headers=(("content-type", _JSON),))
                    if dict(found.head.headers).get("content-type") != _JSON:
                        raise EncodingError("answer", expected="JSON: ask for no binary data", got="something else")
                    sys.stdout.buffer.write(found.body + b"\n")
                    sys.stdout.buffer.flush()
                    refused += found.head.status != _OK
    told = {"exchanges": len(windows.proofs), "refused": refused}
    if receipts is not None:
        receipts.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        for proof in windows.proofs:
            write_whole(receipts / f"{proof.receipt.digest}.json", canonical.encode(proof.to_json()))
    typer.echo(json.dumps(told), err=True)
    if refused:
        raise typer.Exit(3)
