"""Who may call the courier, and how much it holds for each: told by the key that they show in TLS."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confed import record
from confed.errors import ConfedError, ConfigError, EncodingError, MissingFileError, QuotaError, UnreachableError
from confed.governor.callers import Caller, Callers
from confed.governor.courier import Courier, serve_courier
from confed.wire.channel import RunningServer, TlsIdentity
from confed.wire.courier_client import CourierClient

MIB = 1024 * 1024
NOW = datetime.datetime.now(datetime.UTC)
NORTH, SOUTH, READER, STRANGER = (TlsIdentity.generate(now=NOW) for _ in range(4))
SHARE = 4 * MIB


def callers() -> Callers:
    shares = {"north": (NORTH, SHARE), "south": (SOUTH, SHARE), "reader": (READER, 0)}
    return Callers(
        callers=tuple(
            Caller(name=name, certificate=identity.certificate, share_bytes=share)
            for name, (identity, share) in shares.items()
        )
    )


@pytest.fixture
def courier(tmp_path: Path) -> Courier:
    return Courier(tmp_path / "courier", durable=False)


@pytest.fixture
def server(courier: Courier) -> Iterator[RunningServer]:
    with serve_courier(courier, listen="127.0.0.1:0", tls=TlsIdentity.generate(now=NOW), callers=callers()) as running:
        yield running


@pytest.fixture
def client_of(server: RunningServer) -> Iterator[Callable[[TlsIdentity | None], CourierClient]]:
    opened: list[CourierClient] = []

    def client(identity: TlsIdentity | None) -> CourierClient:
        endpoint = replace(server.endpoint, identity=identity)
        opened.append(CourierClient(endpoint, sleep=lambda _: None))
        return opened[-1]

    yield client
    for entry in opened:
        entry.close()


Clients = Callable[[TlsIdentity | None], CourierClient]


def test_one_site_can_fill_its_own_share_and_nobody_elses(client_of: Clients, courier: Courier) -> None:
    north, south = client_of(NORTH), client_of(SOUTH)
    first = north.put(os.urandom(3 * MIB))
    with pytest.raises(QuotaError) as refused:
        north.put(os.urandom(2 * MIB))
    assert refused.value.code == "quota"
    assert north.put(os.urandom(MIB))
    for call in (lambda: north.put(b"x"), lambda: north.post("topic", b"x")):
        with pytest.raises(QuotaError):
            call()
    assert south.put(os.urandom(4 * MIB))
    # Everybody reads everything, and what is there may be put again: it is counted for whoever brought it.
    assert len(south.get(first)) == 3 * MIB
    assert south.put(bytes(north.get(first))) == first
    # What is removed, by expiry for one, is room again.
    courier.remove(first)
    assert north.put(os.urandom(3 * MIB))


def test_shares_are_counted_from_the_disk_after_a_restart(client_of: Clients, courier: Courier, tmp_path: Path) -> None:
    client_of(NORTH).put(os.urandom(3 * MIB))
    again = Courier(tmp_path / "courier", durable=False)
    (north, south, _) = callers().callers
    assert again.shares.held_bytes(north) == courier.shares.held_bytes(north) == 3 * MIB
    assert again.shares.held_bytes(south) == 0


def test_uploads_in_progress_count_whole_and_what_is_left_of_them_as_it_is(courier: Courier) -> None:
    (north, _, _) = callers().callers
    digest, other = "a" * 64, "b" * 64
    with courier.shares.uploading(north, digest, 3 * MIB):
        assert courier.shares.held_bytes(north) == 3 * MIB
        with pytest.raises(QuotaError), courier.shares.uploading(north, other, 2 * MIB):
            pytest.fail("there is no room")
        with courier.shares.uploading(north, other, MIB):
            assert courier.shares.held_bytes(north) == 4 * MIB
    assert courier.shares.held_bytes(north) == 0
    (courier.objects._partial / digest).write_bytes(bytes(5))  # pyright: ignore[reportPrivateUsage]
    with courier.shares.uploading(north, digest, MIB):
        pass
    assert courier.shares.held_bytes(north) == 5


def test_letters_count_too(client_of: Clients) -> None:
    north = client_of(NORTH)
    for number in range(4):
        north.post(f"topic/{number}", bytes(MIB - number))
    with pytest.raises(QuotaError):
        north.post("topic/5", bytes(100_000))
    client_of(SOUTH).post("topic/5", b"of another")


def test_who_has_no_share_may_only_read(client_of: Clients) -> None:
    digest = client_of(NORTH).put(b"an object")
    client_of(NORTH).post("topic", b"a letter")
    reader = client_of(READER)
    assert reader.get(digest) == b"an object"
    assert reader.collect("topic") == [b"a letter"]
    for call in (lambda: reader.put(b"x"), lambda: reader.post("topic", b"x")):
        with pytest.raises(QuotaError):
            call()


@pytest.mark.parametrize("identity", [None, STRANGER], ids=["no-certificate", "unknown-certificate"])
def test_a_stranger_gets_no_connection(client_of: Clients, identity: TlsIdentity | None) -> None:
    stranger = client_of(identity)
    for call in (lambda: stranger.put(b"x"), lambda: stranger.collect("topic"), lambda: stranger.get("a" * 64)):
        with pytest.raises(UnreachableError):
            call()


def signed_by(issuer: TlsIdentity) -> TlsIdentity:
    """A certificate of a new key that a caller's key has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    signer = serialization.load_pem_private_key(issuer.private_key.encode(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another")]))
        .issuer_name(x509.load_pem_x509_certificate(issuer.certificate.encode()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(minutes=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .sign(signer, hashes.SHA256())
    )
    return TlsIdentity(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        private_key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


def test_a_certificate_that_a_site_has_issued_itself_stores_nothing(client_of: Clients, courier: Courier) -> None:
    cousin = client_of(signed_by(NORTH))
    for call in (lambda: cousin.put(b"x"), lambda: cousin.post("topic", b"x")):
        with pytest.raises(ConfedError):
            call()
    assert courier.used_bytes == 0


def test_callers_are_read_from_a_file_and_their_mistakes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "callers.json"
    path.write_text(json.dumps(record.to_json(callers())))
    assert Callers.read(path) == callers()
    good = record.to_json(callers())["callers"]
    for wrong in (
        [],
        [good[0], good[0]],
        [good[0], {**good[1], "name": "north"}],
        [{**good[0], "share_bytes": -1}],
        [{**good[0], "name": ""}],
        [{key: value for key, value in good[0].items() if key != "share_bytes"}],
    ):
        path.write_text(json.dumps({"callers": wrong}))
        with pytest.raises(ConfigError):
            Callers.read(path)
    path.write_text(json.dumps({"callers": [{**good[0], "certificate": "none"}]}))
    with pytest.raises(EncodingError):
        Callers.read(path)
    path.write_text("{")
    with pytest.raises(ConfigError):
        Callers.read(path)
    with pytest.raises(MissingFileError):
        Callers.read(tmp_path / "nowhere")


def test_callers_cannot_be_told_without_tls(tmp_path: Path) -> None:
    with pytest.raises(EncodingError):
        serve_courier(tmp_path / "courier", listen=f"unix:{tmp_path}/socket", tls=None, callers=callers())
