"""The client host: a long-lived process inside the client TEE that runs the ClientApp which its manifest names.

Two ways to be fed, one way to work: messages over an inherited socket (``local``), or from the Flower deployment
(``deployment``). Under Ray, Flower owns the process and the session starts with the first message.
"""

from __future__ import annotations

import gc
import importlib
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from confed.attestation.attesters.launch import attester_of
from confed.client.current import install, installed
from confed.client.launch import ClientLaunch, FlowerNode
from confed.client.session import ClientSession, Services
from confed.errors import ManifestMismatchError, SessionError
from confed.keybroker.client import connect_brokers
from confed.manifest import Manifest
from confed.memory import keep_freed_by_all
from confed.wire.boxes import Boxes
from confed.wire.courier_client import CourierClient

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

    from confed.flower.fleet import FleetAccess

_LENGTH = struct.Struct(">Q")
_LARGEST_FRAME_BYTES = 1 << 30
_POLL_S = 0.03
_POLL_S_A_SITE = 0.01
"""A poll costs the SuperLink milliseconds of CPU, so many sites ask less often each."""


def session_of(launch: ClientLaunch, *, layers: Sequence[str]) -> ClientSession:
    """Start the session of a launch document and install it in this process.

    Raises:
        ConfedError: the launch document does not fit the manifest.
    """
    from confed.flower.arrays import free_views_at_once, serialize_in_one_copy  # noqa: PLC0415 (after confinement)

    serialize_in_one_copy()
    free_views_at_once()
    manifest = launch.manifest_decoded()
    services = Services(
        brokers=connect_brokers(launch.brokers),
        courier=CourierClient(launch.courier),
    )
    session = ClientSession(
        manifest=manifest,
        attester=attester_of(launch.attester, layers=layers, manifest_digest=manifest.digest),
        services=services,
        sites=launch.sites,
    )
    install(session)
    return session


def session_from_environment() -> ClientSession:
    """Start the session of a process that Flower started, from the launch document that its environment names.

    Raises:
        ConfedError: there is none, or it does not fit.
    """
    from confed.attestation.tee.confinement import confine_late  # noqa: PLC0415

    return installed() or session_of(ClientLaunch.from_environment(), layers=confine_late())


def load_client_app(launch: ClientLaunch, manifest: Manifest) -> ClientApp:
    """Import the ClientApp that the manifest names, never one from a FAB.

    Raises:
        ManifestMismatchError: the entry point or the code differs from the manifest's.
    """
    if launch.client_app != manifest.code.client_app:
        raise ManifestMismatchError("client app", expected=manifest.code.client_app, got=launch.client_app)
    if launch.app_directory and launch.app_directory not in sys.path:
        sys.path.insert(0, launch.app_directory)
    module, _, attribute = launch.client_app.partition(":")
    app = getattr(importlib.import_module(module), attribute, None)
    if app is None:
        raise ManifestMismatchError("client app", expected=f"{attribute} in {module}", got="none")
    return app


def serve_socket(launch: ClientLaunch, channel_fd: int, *, layers: Sequence[str]) -> None:
    """Answer Flower messages that come over an inherited socket until it is closed.

    A frame is an 8-byte big-endian length and what ``batches.encode_batch`` made: messages for some of the hosted
    sites. Each is answered by a frame of its own, in their order.
    """
    from confed.client.batches import answers, decode_batch  # noqa: PLC0415 (imports Flower: after confinement)
    from confed.client.outbox import Outbox  # noqa: PLC0415
    from confed.flower.messages import encode_message  # noqa: PLC0415

    channel = socket.socket(fileno=channel_fd)
    session = session_of(launch, layers=layers)
    if len(launch.sites) > 1:
        session.outbox = Outbox(session.courier)
    app = load_client_app(launch, session.manifest)
    gc.freeze()  # what is imported stays, and looking through it takes a tenth of a second each time
    send_frame(channel, b"ready")
    while (frame := receive_frame(channel)) is not None:
        for reply in answers(app, session, decode_batch(frame)):
            send_frame(channel, encode_message(reply))


def serve_deployment(launch: ClientLaunch, *, layers: Sequence[str]) -> None:
    """Answer the messages that Flower has for this site, in this one process, until SIGTERM.

    A SuperLink that is away is asked again after pauses that double, for ten minutes.

    Raises:
        SessionError: the launch document says nothing of Flower.
        UnreachableError: it stayed away.
        DeploymentError: it does not know this node (any more).
    """
    from confed.client.listening import Listening  # noqa: PLC0415 (imports Flower: after confinement)
    from confed.flower.reconnecting import Reconnecting  # noqa: PLC0415
    from confed.flower.serving import serve_client_app  # noqa: PLC0415

    if launch.flower is None:
        raise SessionError("launch flower", expected="a SuperLink to serve", got="none")
    keep_freed_by_all()
    session = session_of(launch, layers=layers)
    app = load_client_app(launch, session.manifest)
    gc.freeze()  # what is imported stays: collecting after a large model takes milliseconds then
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    session.listens = True
    with (
        Reconnecting(_access(launch.flower).connect, stop) as connection,
        Boxes(launch.courier, own=launch.sites[0]) as boxes,
    ):
        poll_interval_s = max(_POLL_S, _POLL_S_A_SITE * len(session.manifest.sites))
        listening = Listening(
            connection, boxes, stop, node_config=launch.flower.node_config, poll_interval_s=poll_interval_s
        )
        serve_client_app(app, listening, stop)


def _access(flower: FlowerNode) -> FleetAccess:
    from confed.flower.fleet import FleetAccess  # noqa: PLC0415 (imports Flower: after confinement)

    return FleetAccess(
        address=flower.address,
        root_certificates=flower.root_certificates,
        private_key=flower.private_key,
        node_id=int(flower.node_id),
        node_config=flower.node_config,
    )


def send_frame(channel: socket.socket, data: bytes) -> None:
    """Send one frame."""
    channel.sendall(_LENGTH.pack(len(data)) + data)


def receive_frame(channel: socket.socket) -> bytes | None:
    """Receive one frame, or ``None`` when the other side closed between frames.

    Raises:
        SessionError: closed inside a frame, or a frame beyond 1 GiB.
    """
    head = _receive(channel, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _LARGEST_FRAME_BYTES:
        raise SessionError("frame size in bytes", expected=f"at most {_LARGEST_FRAME_BYTES}", got=length)
    body = _receive(channel, length)
    if body is None and length:
        raise SessionError("frame", expected=f"{length} bytes", got="a closed socket")
    return body or b""


def _receive(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            if data:
                raise SessionError("frame", expected=f"{size} bytes", got=len(data))
            return None
        data += part
    return bytes(data)
