"""A small Google in it: authorities, certificates of attestation keys with an instance, go-tpm-tools attestations."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from tpm_world import (
    AK,
    DAY,
    NONCE,
    NOW,
    SHA1,
    SHA256,
    SHA384,
    Authority,
    attest,
    event,
    event_log,
    extended,
    pcr_digest,
    public_area,
    registers,
    signed,
)

from confed.attestation.tee.gcp_instance import INSTANCE_EXTENSION

POINT = x509.DistributionPoint([x509.UniformResourceIdentifier("http://pki.test/list.crl")], None, None, None)
DISTRIBUTION_POINTS = x509.CRLDistributionPoints([POINT])
GCP_ROOT = Authority("Google root")
GCP_INTERMEDIATE = Authority("Google intermediate", GCP_ROOT, extensions=((DISTRIBUTION_POINTS, False),))
OTHER_GCP_ROOT = Authority("another Google root")


# DER.


def der(tag: int, *contents: bytes) -> bytes:
    body = b"".join(contents)
    size = bytes([len(body)]) if len(body) < 128 else b"\x82" + len(body).to_bytes(2, "big")
    if 128 <= len(body) < 256:
        size = b"\x81" + bytes([len(body)])
    return bytes([tag]) + size + body


def text(value: str) -> bytes:
    return der(0x0C, value.encode())


def number(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def flag(value: bool) -> bytes:
    return der(0x01, b"\xff" if value else b"\x00")


def security(version: int | None = 3, production: bool | None = True, *flags: bool) -> bytes:
    parts = [] if version is None else [der(0xA0, number(version))]
    parts += [] if production is None else [der(0xA1, flag(production))]
    parts += [der(0xA2 + index, flag(value)) for index, value in enumerate(flags)]
    return der(0xA0, der(0x30, *parts))


def instance(
    zone: str = "europe-west4-a",
    project_number: int = 2**40,
    project: str = "hospital",
    instance_id: int = 2**63 + 1,
    name: str = "trainer-1",
    properties: bytes | None = None,
) -> bytes:
    tail = security(3, True, True, False, False, False) if properties is None else properties
    return der(0x30, text(zone), number(project_number), text(project), number(instance_id), text(name), tail)


def ak_certificate(
    key: Any,
    issuer: Authority = GCP_INTERMEDIATE,
    *,
    extension: bytes | None = None,
    lists: bool = True,
    **changes: Any,
) -> bytes:
    found = instance() if extension is None else extension
    oid = x509.ObjectIdentifier(INSTANCE_EXTENSION)
    extensions = ((x509.UnrecognizedExtension(oid, found), False),) if found else ()
    if lists:
        extensions = (*extensions, (DISTRIBUTION_POINTS, False))
    options = {"usage": "digital_signature", "extensions": extensions} | changes
    public = key.public_key() if hasattr(key, "public_key") else key
    return issuer.issue(public, **options).public_bytes(serialization.Encoding.DER)


def revocation_list(issuer: Authority, *serials: int, since=NOW - DAY, until=NOW + DAY) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.name).last_update(since).next_update(until)
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


# What Google's firmware measures.

FIRMWARE = "GCE Virtual Firmware v7\x00".encode("utf-16-le")
NONHOST = b"GCE NonHostInfo\x00" + bytes([4]) + bytes(15)
# EV_S_CRTM_VERSION, EV_NONHOST_INFO, EV_SEPARATOR and EV_POST_CODE.
VERSION_TYPE, NONHOST_TYPE, SEPARATOR_TYPE, POST_CODE_TYPE = 0x08, 0x11, 0x04, 0x01
SEPARATOR = (SEPARATOR_TYPE, bytes(4))


def measured(
    *,
    firmware: bytes = FIRMWARE,
    nonhost: bytes = NONHOST,
    bank: int = SHA256,
    end: tuple[tuple[int, bytes], ...] = (SEPARATOR,),
    told: dict[int, tuple[int, bytes]] | None = None,
) -> tuple[bytes, dict[int, bytes]]:
    """Return a log, and the registers that it gives.

    ``end`` is what PCR0 is extended with after Google's own events; ``told`` says of events by their place what the log
    says they were (type and data), whatever was extended.
    """
    name, size = ("sha256", 32) if bank == SHA256 else ("sha384", 48)
    true = [(VERSION_TYPE, firmware), (NONHOST_TYPE, nonhost), *end]
    log = event_log(
        *(
            event(0, *(told or {}).get(place, entry), digest=hashlib.new(name, entry[1]).digest(), bank=bank)
            for place, entry in enumerate(true)
        ),
        bank=bank,
    )
    pcrs = registers(4, 7, 10, size=size) | {0: extended(*(data for _, data in true), bank=name), 23: bytes(size)}
    return log, pcrs


# Protobuf.


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def item(field: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(field << 3) + varint(value)
    return varint(field << 3 | 2) + varint(len(value)) + value


def quote(
    pcrs: dict[int, bytes],
    *,
    bank: int = SHA256,
    key: Any = AK,
    nonce: bytes = NONCE,
    message: bytes | None = None,
    **changes: Any,
) -> bytes:
    found = attest(pcrs, bank=bank, nonce=nonce, digest=pcr_digest(pcrs)) if message is None else message
    values = {
        "message": item(1, found),
        "signature": item(2, signed(found, key)),
        "values": item(3, item(1, bank) + b"".join(item(2, entry(*pair)) for pair in pcrs.items())),
    } | changes
    return b"".join(values.values())


def entry(register: int, value: bytes) -> bytes:
    return (item(1, register) if register else b"") + item(2, value)


LOG, GCP_PCRS = measured()
SHA384_PCRS = registers(0, 7, size=48)
SHA1_PCRS = registers(0, 7, size=20)
CERTIFICATE = ak_certificate(AK)


def attestation(*quotes: bytes, **changes: bytes) -> bytes:
    """Return an Attestation; each part can be replaced by name, or left out by nothing."""
    parts = {
        "ak_pub": item(1, public_area(AK)),
        "quotes": b"".join(item(2, found) for found in quotes or (quote(GCP_PCRS),)),
        "event_log": item(3, LOG),
        "ak_cert": item(6, CERTIFICATE),
        "intermediates": item(7, GCP_INTERMEDIATE.der),
    } | changes
    return b"".join(parts.values())


THREE_QUOTES = (
    quote(SHA1_PCRS, bank=SHA1),
    quote(GCP_PCRS),
    quote(SHA384_PCRS, bank=SHA384),
)
