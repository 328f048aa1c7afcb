"""What servers on this machine's loopback interface need: free ports, TLS certificates, and files with secrets."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

LOOPBACK = "127.0.0.1"


class Ports:
    """Free ports of the loopback interface, none of them given out twice.

    Not promised: that no other process takes a port between ``take`` and its use.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def take(self) -> int:
        """Return a port that is free now.

        Raises:
            OSError: there is none.
        """
        while True:
            with socket.create_server((LOOPBACK, 0)) as held:
                port = int(held.getsockname()[1])
            if port not in self._taken:
                self._taken.add(port)
                return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """The paths of PEM files for TLS on 127.0.0.1."""

    root: Path
    server: Path
    server_key: Path

    @classmethod
    def generate(cls, folder: Path) -> Certificates:
        """Make a root and a server certificate for 127.0.0.1, valid for a day, in ``folder``.

        Raises:
            OSError: the files cannot be written.
        """
        root_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = _certificate("confed loopback root", root_key, issuer=None, issuer_key=root_key)
        server = _certificate("localhost", server_key, issuer=root, issuer_key=root_key)
        made = cls(root=folder / "root.pem", server=folder / "server.pem", server_key=folder / "server-key.pem")
        made.root.write_bytes(root.public_bytes(Encoding.PEM))
        made.server.write_bytes(server.public_bytes(Encoding.PEM))
        write_secret(made.server_key, private_pem(server_key, PrivateFormat.PKCS8))
        return made


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone may read, in place of one that is there.

    Raises:
        OSError: it cannot be written.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def private_pem(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    """Encode a private key as PEM, unencrypted.

    Raises:
        Nothing.
    """
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, is_root = dt.datetime.now(dt.UTC), issuer is None
    names = [x509.IPAddress(ipaddress.ip_address(LOOPBACK)), x509.DNSName("localhost")]
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_root,
        crl_sign=is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
