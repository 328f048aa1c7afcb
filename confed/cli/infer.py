"""``confed infer``: serve a model from a TEE, reach one without anybody in between, check an answer's receipt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from confed import canonical, record
from confed.cli.endorsement_options import Bundle, Cache, Pccs, PccsAuthorities, endorsement_provider
from confed.cli.infer_stream import stream
from confed.cli.tls_options import Authorities, Certificate, Key, tls_context
from confed.errors import ConfigError, DeploymentError, EncodingError, MissingFileError
from confed.files import PUBLIC, write_whole
from confed.keybroker.client import BrokerServer
from confed.manifest import Manifest

app = typer.Typer(help="Serve a model confidentially, and talk to one that is.", no_args_is_help=True)
app.command()(stream)

_HOME = typer.Option(help="Where owners' keys are (default: $CONFED_HOME or ~/.confed).")
_RUN = typer.Option(metavar="RUN_DIR", help="Records of the run that made the model: it must be a version of it.")
_TRUST = typer.Option(metavar="FILE", help="With --run: owners' keys and trust anchors, as `confed verify` takes them.")
_FOLDER_MODE = 0o700


@app.command()
def manifest(
    config: Annotated[Path, typer.Argument(help="A serving file (TOML).")],
    *,
    run: Annotated[Path | None, _RUN] = None,
    trust: Annotated[Path | None, _TRUST] = None,
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Print the manifest that a serving file resolves to; its owner approves it with `confed manifest approve`.

    A version that a run made is refused unless this owner's broker committed it; with --run the run's records are
    verified too, countersignatures and all.
    """
    from confed.experiment.serving import serving_manifest  # noqa: PLC0415

    found = serving_manifest(config, home=home)
    _verify_origin(found, run, trust)
    sys.stdout.buffer.write(found.encoded)
    typer.echo(f"digest: {found.digest}", err=True)


@app.command()
def serve(
    manifest_file: Annotated[Path, typer.Argument(metavar="MANIFEST", help="The approved manifest (JSON).")],
    *,
    config: Annotated[Path, typer.Option(help="The serving file: where engine, model and TEE are on this machine.")],
    broker: Annotated[Path, typer.Option(help="Where the model owner's broker listens: its --endpoint-file.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT that requesters reach (port 0 for a free one).")],
    answers: Annotated[Path | None, typer.Option(help="Folder for answers that are sealed to recipients.")] = None,
    records: Annotated[Path | None, typer.Option(help="Keep manifest and evidence here, for `confed verify`.")] = None,
    at_once: Annotated[int, typer.Option(min=1, max=1024, help="Answers at once; one more is refused.")] = 128,
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Start a replica: attest to the model owner's broker, open the model, answer sealed requests until SIGTERM.

    When it answers it says so as one JSON line: {"instance": ..., "manifest": ..., "paths": [...], "url": ...}.
    """
    from confed.experiment.serving import HostFolders, start_replica  # noqa: PLC0415
    from confed.inference.listening import bound_socket  # noqa: PLC0415

    process = start_replica(
        config,
        _manifest(manifest_file),
        broker=_broker(broker),
        listener=bound_socket(listen, loopback_only=False),
        most_at_once=at_once,
        home=home,
        kept=HostFolders(answers=answers, records=records),
    )
    _wait(process)


@app.command()
def policy(
    manifest_file: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A manifest (JSON) that you have read.")],
    *,
    run: Annotated[Path | None, _RUN] = None,
    trust: Annotated[Path | None, _TRUST] = None,
) -> None:
    """Print the policy of a requester who accepts this manifest and its terms, and no other.

    Who may read the answers is said on the error output, and pinned in the policy.
    """
    from confed.inference.requester import RequesterPolicy  # noqa: PLC0415

    manifest = _manifest(manifest_file)
    found = RequesterPolicy.of(manifest)
    _verify_origin(manifest, run, trust)
    sys.stdout.buffer.write(found.encode())
    typer.echo(found.output.told, err=True)


@app.command()
def proxy(  # noqa: PLR0913 (one argument an option)
    url: Annotated[list[str], typer.Argument(help="A replica's address; several may be given.")],
    *,
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    listen: Annotated[str, typer.Option(help="HOST:PORT on loopback.")] = "127.0.0.1:8080",
    receipts: Annotated[Path | None, typer.Option(help="Keep each answer's proof in this folder.")] = None,
    endorsement_cache: Cache = None,
    endorsement_bundle: Bundle = None,
    pccs: Pccs = None,
    pccs_ca: PccsAuthorities = None,
    ca: Authorities = None,
    certificate: Certificate = None,
    key: Key = None,
) -> None:
    """Let any client on this machine talk to an attested replica, as if it were here.

    The replica is verified before it listens; then it says so as one JSON line: {"manifest": ..., "url": ...}.
    Evidence is verified with the endorsements that come along, and with those of a provider if one is named here.
    """
    from confed.inference.client import ConfidentialClient  # noqa: PLC0415
    from confed.inference.listening import address_of, bound_socket  # noqa: PLC0415
    from confed.inference.listening import serve as serve_app  # noqa: PLC0415
    from confed.inference.proxy import Proxy  # noqa: PLC0415
    from confed.inference.requester import Proof, RequesterPolicy  # noqa: PLC0415

    def keep(proof: Proof) -> None:
        if receipts is not None:
            data = canonical.encode(proof.to_json())
            write_whole(receipts / f"{proof.receipt.digest}.json", data)

    provider = endorsement_provider(endorsement_cache, endorsement_bundle, pccs=pccs, pccs_ca=pccs_ca)
    if receipts is not None:
        receipts.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    listener = bound_socket(listen, loopback_only=True)
    accepted = RequesterPolicy.decode(_read(policy_file, "policy"))
    tls = tls_context(url, ca, certificate, key)
    with ConfidentialClient(url, policy=accepted, endorsements=provider, tls=tls) as client:
        replica = client.verify()
        typer.echo(json.dumps({"manifest": replica.digest, "url": address_of(listener)}))
        sys.stdout.flush()
        serve_app(Proxy(client, keep=keep), listener)


@app.command(name="verify-receipt")
def verify_receipt(
    proof_file: Annotated[Path, typer.Argument(metavar="PROOF", help="A proof that the proxy or a client kept.")],
    *,
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    request: Annotated[Path | None, typer.Option(help="The request's body: is the receipt for it?")] = None,
    answer: Annotated[Path | None, typer.Option(help="The answer's body: is the receipt for it?")] = None,
    endorsement_bundle: Bundle = None,
) -> None:
    """Check an answer's receipt offline: evidence, manifest, model, signature, and (where given) the texts."""
    from confed.inference.requester import Proof, RequesterPolicy  # noqa: PLC0415

    proof = Proof.from_json(canonical.decode(_read(proof_file, "proof")))
    provider = endorsement_provider(None, endorsement_bundle, pccs=None, pccs_ca=None)
    receipt, _ = proof.verify(policy=RequesterPolicy.decode(_read(policy_file, "policy")), endorsements=provider)
    proof.require_texts(
        receipt,
        request=None if request is None else _read(request, "request"),
        answer=None if answer is None else _read(answer, "answer"),
    )
    typer.echo(json.dumps(record.to_json(receipt)))


@app.command()
def records(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `confed infer serve --records` kept.")],
    *,
    owner: Annotated[str, typer.Option(help="The model's owner: a name in the confed home.")],
    broker: Annotated[Path, typer.Option(help="Where its broker listens: its --endpoint-file.")],
    home: Annotated[Path | None, _HOME] = None,
) -> None:
    """Add the owner's approval and ledger to a replica's records: then `confed verify DIR` checks them offline."""
    from confed.experiment.serving_records import add_owners_part  # noqa: PLC0415
    from confed.keybroker.identity import OwnerHome  # noqa: PLC0415

    with closing(OwnerHome.load(owner, home=home)) as found:
        kept = add_owners_part(directory, owner=found, server=_broker(broker))
    typer.echo(json.dumps({"evidence": len(kept.evidence()), "manifest": kept.manifest().digest}))


@app.command()
def recipient(
    name: Annotated[
        str, typer.Argument(help="Writes NAME.key (private: keep it) and NAME.pub (for the model's owner).")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where they go.")] = Path(),
) -> None:
    """Make the key pair of a recipient, to whom a model's owner may have answers sealed; prints the public key's id."""
    from confed.sealing.identities import HpkeIdentity  # noqa: PLC0415

    found = HpkeIdentity.generate()
    private, public = out / f"{name}.key", out / f"{name}.pub"
    for path in (private, public):
        if path.exists():
            raise ConfigError("recipient", expected="a new name", got=path)
    write_whole(private, found.to_private_bytes().hex().encode() + b"\n")
    write_whole(public, found.public.hex().encode() + b"\n", mode=PUBLIC)
    typer.echo(found.key_id)


@app.command(name="open")
def open_sealed(
    answer_file: Annotated[Path, typer.Argument(metavar="ANSWER", help="A sealed answer that a replica's host kept.")],
    *,
    key: Annotated[Path, typer.Option(metavar="FILE", help="Your private key (`confed infer recipient`).")],
    policy_file: Annotated[Path, typer.Option("--policy", help="What you accept (`confed infer policy`).")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the answer goes (default: output).")] = None,
    endorsement_bundle: Bundle = None,
) -> None:
    """Open an answer that is sealed to you, after the replica that made it has been verified by your own policy."""
    from confed.inference.requester import RequesterPolicy  # noqa: PLC0415
    from confed.inference.sealed_answers import open_answer  # noqa: PLC0415
    from confed.sealing.identities import HpkeIdentity  # noqa: PLC0415

    try:
        identity = HpkeIdentity.from_private_bytes(bytes.fromhex(_read(key, "key").decode("ascii").strip()))
    except ValueError as error:
        raise ConfigError("key", expected="what `confed infer recipient` wrote", got="something else") from error
    policy = RequesterPolicy.decode(_read(policy_file, "policy"))
    provider = endorsement_provider(None, endorsement_bundle, pccs=None, pccs_ca=None)
    found = open_answer(_read(answer_file, "answer"), identity=identity, policy=policy, endorsements=provider)
    told = {"instance": found.replica.instance, "manifest": found.replica.digest, "status": found.head.status}
    typer.echo(json.dumps({**told, "time": found.time}), err=True)
    if out is None:
        sys.stdout.buffer.write(found.body)
    else:
        write_whole(out, found.body)


def _verify_origin(manifest: Manifest, run: Path | None, trust: Path | None) -> None:
    if run is None:
        if trust is not None:
            raise ConfigError("--trust", expected="--run with it", got="none")
        return
    from confed.records.origin import verify_origin  # noqa: PLC0415
    from confed.records.trust import Trust  # noqa: PLC0415

    if trust is None:
        raise ConfigError("--run", expected="--trust with it: whose countersignatures count", got="none")
    verified = verify_origin(manifest, run, trust=Trust.load(trust))
    typer.echo(f"origin: a version of {verified.run}, whose records hold", err=True)


def _manifest(path: Path) -> Manifest:
    return Manifest.decode(_read(path, "manifest"))


def _broker(path: Path) -> BrokerServer:
    try:
        value = json.loads(_read(path, "broker"))
    except ValueError as error:
        raise ConfigError("broker", expected="what `confed broker serve` wrote", got="something else") from error
    try:
        return record.from_json(BrokerServer, value, at="broker")
    except EncodingError as error:
        raise ConfigError("broker", expected="what `confed broker serve` wrote", got=str(error)) from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFileError(what, expected="a file that can be read", got=path) from error


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a replica's end, hand it the signals that are meant for it, and end with its code.

    Raises:
        DeploymentError: something killed it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        if process.poll() is None:
            os.kill(process.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    code = process.wait()
    if code < 0 and code not in (-signal.SIGTERM, -signal.SIGINT):
        raise DeploymentError("replica", expected="one that runs until it is told to end", got=f"signal {-code}")
    if code > 0:
        raise typer.Exit(code)
