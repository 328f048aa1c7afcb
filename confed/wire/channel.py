"""gRPC channels and servers as every confed service uses them: TLS with a pinned certificate, or a Unix socket.

TLS protects against bystanders only. What confed promises rests on signed statements and HPKE, so a wrong TLS key
can cause failure and nothing more.
"""

from __future__ import annotations

import datetime
import functools
import ipaddress
import secrets
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confed.errors import ConfedError, EncodingError, PortInUseError, UnreachableError, error_for
from confed.statement import Signed
from confed.wire.v1 import confed_pb2 as pb

_SERVER_NAME = "confed.internal"
_MESSAGE_LIMIT = 64 * 1024 * 1024
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    # What may be on its way before it is read: enough for 160 Mbit/s a stream at 100 ms, and little enough that a slow
    # link is not taken for one that stands still. gRPC's own estimate grows with every pause of a busy reader (a
    # gigabyte was seen), and all of it is memory.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 * 1024 * 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
    # A peer that is gone without a word (a cable, a NAT's table) is found while a call waits, from both ends.
    # Its answer may stand behind megabytes in a slow link's queue, so it has a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that was busy (a record of 27 MB, say) reads the signs of life of a minute at once: no flood.
    ("grpc.http2.max_ping_strikes", 0),
    # A service that was restarted is found within its client's patience: gRPC's own pauses begin at 1 s and reach 120.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a service listens: ``127.0.0.1:PORT`` with its pinned PEM certificate, or ``unix:PATH`` without.

    ``identity`` is what the caller shows there, where the service asks who calls (the courier does); a secret.
    """

    target: str
    certificate: str
    identity: TlsIdentity | None = None

    def __post_init__(self) -> None:
        if not self.certificate and not self.target.startswith("unix:"):
            raise EncodingError("endpoint certificate", expected="a PEM certificate for a network address", got="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """A server's or a caller's certificate and private key, PEM."""

    certificate: str
    private_key: str

    def __repr__(self) -> str:
        return "TlsIdentity(…)"

    @classmethod
    def generate(cls, *, now: datetime.datetime) -> TlsIdentity:
        """Make a self-signed P-256 certificate, valid for a year, to be pinned by those who are told of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        # No two have one name: who is asked to accept several looks a certificate up by its issuer's.
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, _SERVER_NAME),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(16)),
            ]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName(_SERVER_NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        return cls(
            certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            private_key=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ).decode(),
        )


class RunningServer:
    """A gRPC server that listens; ``stop`` it, or use it as a context."""

    def __init__(self, server: grpc.Server, endpoint: Endpoint) -> None:
        self._server = server
        self.endpoint = endpoint

    def stop(self, grace_s: float = 0.5) -> None:
        """Refuse new calls and end the running ones within ``grace_s`` seconds."""
        self._server.stop(grace_s).wait()

    def wait(self) -> None:
        """Block until the server is stopped."""
        self._server.wait_for_termination()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(
    register: Callable[[grpc.Server], None],
    *,
    listen: str,
    tls: TlsIdentity | None,
    threads: int = 8,
    callers: Sequence[str] = (),
) -> RunningServer:
    """Start a server at ``listen`` (``127.0.0.1:0`` for a free port, or ``unix:PATH``) and return it, listening.

    With ``callers`` (PEM certificates) only who holds the key of one of them, or of one that such a key has signed,
    gets a connection over the network; whose it is says ``caller_digest``.

    Raises:
        PortInUseError: the address cannot be bound.
        EncodingError: a network address without TLS.
    """
    server = grpc.server(ThreadPoolExecutor(max_workers=threads), options=_OPTIONS)
    register(server)
    try:
        if tls is None:
            if not listen.startswith("unix:"):
                raise EncodingError("listen", expected="TLS for a network address", got=listen)
            port = server.add_insecure_port(listen)
        else:
            pair = (tls.private_key.encode(), tls.certificate.encode())
            roots = "".join(callers).encode() or None
            credentials = grpc.ssl_server_credentials([pair], roots, require_client_auth=bool(callers))
            port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise PortInUseError("listen", expected="a free address", got=listen) from error
    if port == 0:
        raise PortInUseError("listen", expected="a free address", got=listen)
    server.start()
    target = listen if listen.startswith("unix:") else f"{listen.rsplit(':', 1)[0]}:{port}"
    return RunningServer(server, Endpoint(target=target, certificate=tls.certificate if tls else ""))


def open_channel(endpoint: Endpoint) -> grpc.Channel:
    """Return a channel to a service; it connects when first used."""
    if not endpoint.certificate:
        return grpc.insecure_channel(endpoint.target, options=_OPTIONS)
    own = endpoint.identity
    credentials = grpc.ssl_channel_credentials(
        endpoint.certificate.encode(),
        own.private_key.encode() if own else None,
        own.certificate.encode() if own else None,
    )
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", _SERVER_NAME)]
    return grpc.secure_channel(endpoint.target, credentials, options=options)


@functools.lru_cache(maxsize=4096)
def certificate_digest(certificate: str | bytes) -> str:
    """Return the SHA-256 of a PEM certificate's DER, in hexadecimal.

    Raises:
        EncodingError: not a certificate.
    """
    pem = certificate if isinstance(certificate, bytes) else certificate.encode()
    try:
        return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    except ValueError as error:
        raise EncodingError("certificate", expected="PEM", got="something else") from error


def caller_digest(context: grpc.ServicerContext) -> str:
    """Return the digest of the certificate whose key the caller has shown in TLS; empty where it was not asked for."""
    shown: list[bytes] = context.auth_context().get("x509_pem_cert", [])  # pyright: ignore[reportAssignmentType]
    return certificate_digest(shown[0]) if shown else ""


@contextmanager
def reaching(service: str) -> Generator[None]:
    """Turn a gRPC failure inside the block into ``UnreachableError`` naming the service: down means refused.

    Raises:
        UnreachableError: the call did not complete.
    """
    try:
        yield
    except grpc.RpcError as error:
        status = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
        raise UnreachableError(service, expected="an answer", got=status) from error


def pack(signed: Signed) -> pb.Signed:
    """Return a statement as its message."""
    return pb.Signed(payload=signed.payload, signer=signed.signer, signature=signed.signature)


def unpack(message: pb.Signed) -> Signed:
    """Return the statement of a message; nothing is verified yet."""
    return Signed(payload=message.payload, signer=message.signer, signature=message.signature)


def refusal(error: ConfedError) -> pb.Refusal:
    """Return an error as what may cross a trust boundary: its code."""
    return pb.Refusal(code=error.code)


def raise_if_refused(message: object, *, who: str) -> None:
    """Raise the error that a reply's ``refusal`` field names, if it is set.

    Raises:
        ConfedError: the class of the refusal's code, with ``who`` as its field.
    """
    if message.HasField("refusal"):  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        raise error_for(message.refusal.code, who)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
