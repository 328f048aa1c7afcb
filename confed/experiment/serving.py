"""From a serving file (TOML) to the manifest of the scenario ``inference``, and to a running replica on this machine.

The file says what is served and how; it lies in the folder of the engine's code, which is measured with confed. Only
``[tee.attester]`` and the model's path are about this machine, and in no manifest.
"""

from __future__ import annotations

import base64
import datetime
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from confed import record
from confed.attestation.attesters.launch import AttesterTerms
from confed.attestation.measurement import inference_image, package_directory
from confed.attestation.tee.simulated import PROFILE as SIMULATED_PROFILE
from confed.attestation.tee.simulated import SimulatedPlatform
from confed.errors import ConfigError, ManifestMismatchError, MissingFileError, RecipientError
from confed.experiment.config import TeeTable
from confed.experiment.resolution import lock_digest
from confed.experiment.serving_records import begin_records
from confed.experiment.tees import attester_terms, tee_policy, trust_anchors
from confed.inference.launch import InferenceLaunch
from confed.inference.outlet import Carrier
from confed.journey import Kind, Role
from confed.keybroker.client import BrokerServer
from confed.keybroker.identity import OwnerHome, confed_home
from confed.keybroker.origins import require_committed
from confed.manifest import (
    FORMAT,
    UNTRAINED,
    CodeTerms,
    Manifest,
    ModelTerms,
    Scalar,
    SealedReference,
    TrustTerms,
    untrained,
)
from confed.scenario import Scenario
from confed.sealing.container import Container
from confed.sealing.recipients import HpkeRecipient, Method
from confed.serving import (
    AnswerRecipient,
    ClearTerms,
    LeaseTerms,
    Origin,
    OutputMode,
    OutputTerms,
    Padding,
    PaddingTerms,
    ServingTerms,
)
from confed.simulation.tethered import tether

_SETTINGS = dict[str, Scalar]
_KEY_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """Whose model: the owner's name in the confed home, and its sealed file, named beside the serving file."""

    owner: str
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTable:
    """How it is served; see ``confed.serving.ServingTerms``. ``lease_s`` 0: no leases."""

    padding: Padding = Padding.POWERS
    block_bytes: int = 0
    largest_request_bytes: int = 16 * 1024 * 1024
    lease_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTable:
    """Who may read the answers; see ``confed.serving.OutputTerms``.

    ``recipients`` are names and, beside the serving file, the files of their public keys (`confed infer recipient`).
    """

    mode: OutputMode = OutputMode.REQUESTER
    recipients: Mapping[str, str] = field(default_factory=dict[str, str])
    clear: ClearTerms | None = None

    def terms(self, folder: Path) -> OutputTerms:
        """Return the terms, with the keys read from their files.

        Raises:
            MissingFileError: a key file is not there.
            ConfigError: one that holds no key, or terms that contradict each other.
        """
        named = tuple(
            AnswerRecipient(name=name, public=_public_key(name, folder / file))
            for name, file in sorted(self.recipients.items())
        )
        return OutputTerms(mode=self.mode, recipients=named or None, clear=self.clear)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildTable:
    """For an engine that runs another program: a folder of a file system in memory, and the devices that it needs.

    It loosens what confines the process here, and is in no manifest: evidence names the layers that are left.
    """

    memory: str = "/dev/shm"  # noqa: S108 (a private folder is made in it)
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingFile:
    """One serving file. ``engine`` is a factory ``module:attribute`` of its folder, or of what is installed."""

    name: str
    environment: str
    engine: str
    model: ModelTable
    serving: ServingTable = field(default_factory=ServingTable)
    output: OutputTable = field(default_factory=OutputTable)
    tee: TeeTable = field(default_factory=TeeTable)
    child: ChildTable | None = None
    settings: Mapping[str, Scalar] = field(default_factory=_SETTINGS)

    def __post_init__(self) -> None:
        if not self.name or not all(part.isalnum() for part in self.name.split("-")):
            raise ConfigError("name", expected="letters, digits and hyphens", got=self.name)
        if self.engine.count(":") != 1 or not all(self.engine.split(":")):
            raise ConfigError("engine", expected="module:attribute", got=self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFolders:
    """What a replica's host keeps for others; ``None``: nothing.

    Attributes:
        answers: folder for answers that are sealed to recipients, where the manifest has such.
        records: directory for this host's part of the records (``serving_records``).
    """

    answers: Path | None
    records: Path | None


def load_serving(path: Path) -> ServingFile:
    """Read a serving file.

    Raises:
        MissingFileError: it is not there.
        ConfigError: not TOML, or a key is unknown, missing or of the wrong type.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingFileError("serving file", expected="a file", got=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), expected="TOML", got=str(error)) from error
    return record.from_json(ServingFile, value, error=ConfigError)


def serving_manifest(path: Path, *, home: Path | None) -> Manifest:
    """Return the manifest of a serving file: the contract that the model's owner approves.

    Raises:
        ConfigError: a file that contradicts itself, or a model that is not this owner's.
        LineageError: a version of a run that this owner's broker never committed.
        MissingFileError: the model, the owner or another file is not there.
    """
    told, folder = load_serving(path), path.resolve().parent
    lock = lock_digest(path)
    image = inference_image(folder, lock)
    now = datetime.datetime.now(datetime.UTC)
    policy = tee_policy(told.tee, folder, role=Role.CLIENT, code=image, now=now)
    with closing(OwnerHome.load(told.model.owner, home=home)) as owner:
        model, origin = _model_terms(owner, _container(folder / told.model.file))
    return Manifest(
        **untrained(),
        format=FORMAT,
        name=told.name,
        scenario=Scenario.INFERENCE,
        run=f"{told.name}-{secrets.token_hex(4)}",
        environment=told.environment,
        model=model,
        code=CodeTerms(client_app=told.engine, client_image=image, aggregator_image=image, lock=lock, strategy=None),
        settings=told.settings,
        serving=ServingTerms(
            origin=origin,
            output=told.output.terms(folder),
            lease=LeaseTerms(seconds=told.serving.lease_s) if told.serving.lease_s else None,
            padding=PaddingTerms(kind=told.serving.padding, block_bytes=told.serving.block_bytes),
            largest_request_bytes=told.serving.largest_request_bytes,
        ),
        client_tee=policy,
        aggregator_tee=policy,
        trust=TrustTerms(anchors=trust_anchors(told.tee, folder, simulated=_platform(home).anchor)),
    )


def start_replica(
    path: Path,
    manifest: Manifest,
    *,
    broker: BrokerServer,
    listener: socket.socket,
    most_at_once: int,
    home: Path | None,
    kept: HostFolders,
    output: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a replica in a process of its own, confined where it is a simulated TEE, and return the process.

    Args:
        path: the serving file: its folder has the engine, and it names the model and how evidence is made here.
        manifest: as its owner approved it.
        broker: the model owner's.
        listener: the socket that requesters reach.
        most_at_once: answers on their way.
        home: the confed home, whose root certifies a simulated TEE.
        kept: what this host keeps, and where.
        output: descriptor for what it says; ``None``: this process's own.

    Raises:
        ManifestMismatchError: the code here is not the manifest's.
        ConfigError: another profile than the manifest's, or one that there is no attester for.
    """
    told, folder = load_serving(path), path.resolve().parent
    image = inference_image(folder, manifest.code.lock)
    if manifest.client_tee.profiles != (told.tee.profile,):
        raise ConfigError("tee.profile", expected=", ".join(manifest.client_tee.profiles), got=told.tee.profile)
    if told.tee.profile == SIMULATED_PROFILE and image != manifest.code.client_image:
        raise ManifestMismatchError("code", expected=manifest.code.client_image[:16], got=image[:16])
    model, carrier = (folder / told.model.file).resolve(), _carrier(manifest, folder, kept)
    launch = InferenceLaunch(
        manifest=base64.b64encode(manifest.encoded).decode(),
        attester=_attester(told, folder, manifest, home),
        broker=broker,
        model=str(model),
        app_directory=str(folder),
        readable=(str(folder), str(model), *(str(package_directory(name)) for name in ("confed", "clients"))),
        network=not broker.target.startswith("unix:"),
        most_at_once=most_at_once,
        recorded=kept.records is not None,
        child_folder=_child_folder(told.child),
        devices=() if told.child is None else told.child.devices,
    )
    process = _spawn(launch, listener, carrier, output)
    if launch.child_folder:
        # Not a daemon's: this process ends after it.
        threading.Thread(target=_remove_after, args=(process, Path(launch.child_folder)), name="child-folder").start()
    return process


def _carrier(manifest: Manifest, folder: Path, kept: HostFolders) -> Carrier | None:
    """Return what carries other outputs than answers to requesters, where the manifest or this host has such."""
    terms = OutputTerms.to_requester() if manifest.serving is None else manifest.serving.output
    if (terms.recipients is None) != (kept.answers is None):
        expected = "a folder exactly where answers are sealed to recipients"
        raise ConfigError("--answers", expected=expected, got=kept.answers or "none")
    keep = None if kept.records is None else begin_records(kept.records, manifest).write_evidence
    if terms.plain and keep is None:
        return None
    sink = None if terms.clear is None else terms.clear.sink
    return Carrier(sink=sink, folder=folder, answers=kept.answers, keep_evidence=keep)


def _public_key(name: str, path: Path) -> bytes:
    try:
        text = path.read_bytes()[:_KEY_FILE_BYTES].decode("ascii")
        return HpkeRecipient(bytes.fromhex(text.strip())).public
    except OSError as error:
        raise MissingFileError(f"output.recipients.{name}", expected="a public key's file", got=path) from error
    except (ValueError, RecipientError) as error:
        raise ConfigError(f"output.recipients.{name}", expected="a public key", got="something else") from error


def _child_folder(told: ChildTable | None) -> str:
    if told is None:
        return ""
    try:
        return tempfile.mkdtemp(prefix="confed-", dir=told.memory)  # for this user alone
    except OSError as error:
        raise ConfigError("child.memory", expected="a folder that can be written to", got=told.memory) from error


def _remove_after(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Remove what a replica's child wrote, however the replica ended: it was told of a model and of requests."""
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)  # the child, killed with it, may still be writing


def _attester(told: ServingFile, folder: Path, manifest: Manifest, home: Path | None) -> AttesterTerms:
    if told.tee.profile != SIMULATED_PROFILE:
        return attester_terms(told.tee, folder)
    instance = _platform(home).launch(
        measurement=manifest.code.client_image,
        configuration=manifest.digest,
        environment=manifest.environment,
        shared=False,
        now_ms=time.time_ns() // 1_000_000,
    )
    return AttesterTerms(profile=told.tee.profile, instance=instance.to_bytes())


def _platform(home: Path | None) -> SimulatedPlatform:
    return SimulatedPlatform.load_or_create(
        confed_home(home) / "simulated-tee" / "root.pem", time.time_ns() // 1_000_000
    )


def _container(path: Path) -> Container:
    try:
        return Container.map(path)
    except OSError as error:
        raise MissingFileError("model.file", expected="a sealed model", got=path) from error


def _model_terms(owner: OwnerHome, container: Container) -> tuple[ModelTerms, Origin | None]:
    header = container.header
    named = [entry.key_id for entry in header.recipients if entry.method is Method.OWNER_KEY]
    layout, run, attempt = (header.detail.get(name) for name in ("layout", "run", "attempt"))
    if header.kind is not Kind.MODEL or header.owner != owner.party.identity or not named:
        raise ConfigError("model.file", expected=f"a model of {owner.name}", got=f"another {header.kind}")
    origin = None
    if header.version > 0:
        if not isinstance(run, str) or type(attempt) is not int:
            raise ConfigError("model.file", expected="the run and attempt of its version", got="none")
        origin = Origin(run=run, manifest=header.manifest, version=header.version, attempt=attempt)
        with owner.store.transaction() as tx:
            require_committed(tx, origin, digest=container.file_digest())
    start = SealedReference(
        container_id=header.container_id,
        digest=container.file_digest(),
        key_id=named[0],
        size_bytes=container.size_bytes,
    )
    return ModelTerms(owner=owner.party, start=start, layout=str(layout), trained=UNTRAINED, tied={}), origin


def _spawn(
    launch: InferenceLaunch, listener: socket.socket, carrier: Carrier | None, output: int | None
) -> subprocess.Popen[bytes]:
    read_end, write_end = os.pipe()
    given = {"--launch-fd": read_end, "--listen-fd": listener.fileno()}
    if carrier is not None:
        given["--outlet-fd"] = carrier.other.fileno()
    words = ["-m", "confed.inference", *(word for name, number in given.items() for word in (name, str(number)))]
    process = subprocess.Popen(  # noqa: S603
        tether([sys.executable, *words]), pass_fds=tuple(given.values()), stdin=subprocess.DEVNULL, stdout=output
    )
    os.close(read_end)
    if carrier is not None:
        carrier.start()
    with os.fdopen(write_end, "wb") as stream:
        stream.write(launch.encode())
    listener.close()
    return process
