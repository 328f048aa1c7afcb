"""A small AMD: roots and authorities of its products, keys of chips and clouds, and reports signed by them."""

from __future__ import annotations

import datetime
import functools

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from confed.attestation.certificates import load_certificate
from confed.attestation.tee.sev_snp import SnpClaims, verify_report

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
START, END = NOW - 100 * DAY, NOW + 100 * DAY
CHIP = bytes(range(1, 65))
TURIN_CHIP = b"\x0b\xad\xca\xfe\0\0\0\x01"
CSP = "CN=cc-us-east-2.amazonaws.com"
REPORT_DATA = bytes(range(64, 128))
MEASUREMENT = b"\x5f" * 48
HOST_DATA = b"\x4f" * 32
ID_KEY = b"\x1d" * 48
AUTHOR_KEY = b"\xa0" * 48
BASE = "1.3.6.1.4.1.3704.1"

# TCB_VERSION, lowest byte first: boot loader, TEE, SNP, microcode where each product has them.
TCB = {
    "Milan": bytes([4, 0, 0, 0, 0, 0, 24, 219]),
    "Genoa": bytes([10, 1, 0, 0, 0, 0, 25, 84]),
    "Turin": bytes([2, 1, 3, 4, 0, 0, 0, 71]),
}
TCB_EXTENSIONS = {
    "Milan": (1, 2, 4, 5, 6, 7, 3, 8),
    "Genoa": (1, 2, 4, 5, 6, 7, 3, 8),
    "Turin": (9, 1, 2, 3, 5, 6, 7, 8),
}
PROCESSOR = {"Milan": b"\x19\x01\x01", "Genoa": b"\x19\x11\x01", "Turin": b"\x1a\x02\x01"}

# Every field of a report: where it begins and how long it is.
FIELDS = {
    "version": (0x00, 4),
    "guest_svn": (0x04, 4),
    "policy": (0x08, 8),
    "family_id": (0x10, 16),
    "image_id": (0x20, 16),
    "vmpl": (0x30, 4),
    "signature_algo": (0x34, 4),
    "current_tcb": (0x38, 8),
    "platform_info": (0x40, 8),
    "key_flags": (0x48, 4),
    "reserved_4c": (0x4C, 4),
    "report_data": (0x50, 64),
    "measurement": (0x90, 48),
    "host_data": (0xC0, 32),
    "id_key_digest": (0xE0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "cpuid": (0x188, 3),
    "reserved_18b": (0x18B, 21),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_version": (0x1E8, 3),
    "reserved_1eb": (0x1EB, 1),
    "committed_version": (0x1EC, 3),
    "reserved_1ef": (0x1EF, 1),
    "launch_tcb": (0x1F0, 8),
    "launch_mitigations": (0x1F8, 8),
    "current_mitigations": (0x200, 8),
    "reserved_208": (0x208, 152),
    "r": (0x2A0, 48),
    "r_upper": (0x2D0, 24),
    "s": (0x2E8, 48),
    "s_upper": (0x318, 24),
    "reserved_330": (0x330, 368),
}

SMT, MUST_BE_ONE, MIGRATE_MA, DEBUG, SINGLE_SOCKET = (1 << position for position in (16, 17, 18, 19, 20))
ALIAS_CHECK_COMPLETE = 1 << 5


def name(common_name):
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "A test that is not AMD"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name),
        ]
    )


@functools.cache
def rsa_key(owner):
    size = 1024 if owner[0] == "weak" else 2048
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


@functools.cache
def ec_key(owner, curve=ec.SECP384R1):
    return ec.generate_private_key(curve())


def issue(subject, key, *, issuer, issuer_key, serial=7, ca=None, extensions=(), start=START, end=END, critical=False):
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca is not None:
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=ca if ca >= 0 else None), critical=True
        )
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=ca < 0, **usage), critical=True)
    for oid, value in extensions:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=critical
        )
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    return builder.sign(issuer_key, hashes.SHA384(), rsa_padding=pss).public_bytes(Encoding.DER)


def root(product="Genoa", *, owner="AMD", **changes):
    subject = f"ARK-{product}"
    key = rsa_key((owner, subject))
    return issue(subject, key, issuer=subject, issuer_key=key, ca=-1, **changes)


def authority(product="Genoa", *, kind="VCEK", owner="AMD", signed_by="AMD", subject=None, issuer=None, **changes):
    subject = subject or ("SEV-VLEK-" if kind == "VLEK" else "SEV-") + product
    issuer = issuer or f"ARK-{product}"
    arguments = {"serial": 11 if kind == "VCEK" else 12, "ca": 0} | changes
    return issue(
        subject, rsa_key((owner, subject)), issuer=issuer, issuer_key=rsa_key((signed_by, issuer)), **arguments
    )


def number(value):
    return b"\x02\x01" + bytes([value]) if value < 128 else b"\x02\x02\x00" + bytes([value])


def text(value):
    return b"\x16" + bytes([len(value)]) + value.encode()


def hwid(product):
    return TURIN_CHIP if product == "Turin" else CHIP


def vek_extensions(product="Genoa", *, kind="VCEK", tcb=None):
    """Return the extensions of a VEK certificate by their last numbers."""
    found = {"1": number(1 if product == "Turin" else 0), "2": text("Milan-B0" if product == "Milan" else product)}
    for extension, value in zip(TCB_EXTENSIONS[product], tcb or TCB[product], strict=True):
        found[f"3.{extension}"] = number(value)
    return found | ({"4": hwid(product)} if kind == "VCEK" else {"5": text(CSP)})


def vek(
    product="Genoa",
    *,
    kind="VCEK",
    key=None,
    owner="AMD",
    subject=None,
    issuer=None,
    tcb=None,
    extensions=(),
    **changes,
):
    """Return a VEK certificate; ``extensions`` replaces some by their last numbers, ``None`` leaves one out."""
    found = vek_extensions(product, kind=kind, tcb=tcb) | dict(extensions)
    issuer = issuer or ("SEV-VLEK-" if kind == "VLEK" else "SEV-") + product
    return issue(
        subject or f"SEV-{kind}",
        key or ec_key((product, kind)),
        issuer=issuer,
        issuer_key=rsa_key((owner, issuer)),
        extensions=[(f"{BASE}.{number}", value) for number, value in found.items() if value is not None],
        **changes,
    )


def with_serial_0(certificate, *, owner="AMD"):
    """Return a certificate with the serial number 0, as AMD's VEKs have it, signed again; no builder makes one."""
    parsed = x509.load_der_x509_certificate(certificate)
    tbs = parsed.tbs_certificate_bytes.replace(b"\x02\x01\x07", b"\x02\x01\x00", 1)
    signer = rsa_key((owner, parsed.issuer.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value))
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    signature = signer.sign(tbs, pss, hashes.SHA384())
    start = certificate.index(parsed.tbs_certificate_bytes)
    between = certificate[start + len(tbs) : -len(signature)]
    return certificate[:start] + tbs + between + signature


def defaults(product="Genoa", *, kind="VCEK", version=5):
    vectors = {"launch_mitigations": 3, "current_mitigations": 7} if version >= 5 else {}
    chip = hwid(product).ljust(64, b"\0") if kind == "VCEK" else bytes(64)
    return vectors | {
        "version": version,
        "guest_svn": 2,
        "policy": MUST_BE_ONE | SMT | 0x1F,
        "family_id": b"\x01".ljust(16, b"\0"),
        "image_id": b"\x02".ljust(16, b"\0"),
        "signature_algo": 1,
        "current_tcb": TCB[product],
        "platform_info": ALIAS_CHECK_COMPLETE | 0b101,
        "key_flags": 4 if kind == "VLEK" else 0,
        "report_data": REPORT_DATA,
        "measurement": MEASUREMENT,
        "host_data": HOST_DATA,
        "id_key_digest": ID_KEY,
        "report_id": b"\x77" * 32,
        "report_id_ma": b"\xff" * 32,
        "reported_tcb": TCB[product],
        "cpuid": bytes(3) if version == 2 else PROCESSOR[product],
        "chip_id": chip,
        "committed_tcb": TCB[product],
        "current_version": b"\x2b\x37\x01",
        "committed_version": b"\x2b\x37\x01",
        "launch_tcb": TCB[product],
    }


def report(product="Genoa", *, kind="VCEK", version=5, key=None, signed=True, **changes):
    """Return a report signed by its VEK; ``changes`` replaces fields, as numbers or bytes, before it is signed."""
    data = bytearray(0x4A0)
    for field, value in (defaults(product, kind=kind, version=version) | changes).items():
        start, size = FIELDS[field]
        data[start : start + size] = value.to_bytes(size, "little") if isinstance(value, int) else value
    if signed:
        signature = (key or ec_key((product, kind))).sign(bytes(data[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        for start, scalar in zip((0x2A0, 0x2E8), decode_dss_signature(signature), strict=True):
            data[start : start + 48] = scalar.to_bytes(48, "little")
    return bytes(data)


def overwritten(data, field, value):
    """Return a report with a field replaced after it was signed."""
    start, size = FIELDS[field]
    value = value.to_bytes(size, "little") if isinstance(value, int) else value
    return data[:start] + value + data[start + size :]


def crl(product="Genoa", *, owner="AMD", issuer=None, revoked=(), start=NOW - DAY, end=NOW + DAY):
    issuer = issuer or f"ARK-{product}"
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer)).last_update(start).next_update(end)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - 2 * DAY).build()
        builder = builder.add_revoked_certificate(entry)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA384()), salt_length=48)
    return builder.sign(rsa_key((owner, issuer)), hashes.SHA384(), rsa_padding=pss).public_bytes(Encoding.DER)


ROOTS = tuple(root(product) for product in ("Milan", "Genoa", "Turin"))
ASK, ASVK, VCEK, VLEK = authority(), authority(kind="VLEK"), vek(), vek(kind="VLEK")
REPORT = report()


def verify(data=REPORT, certificates=(VCEK, ASK), *, crls=(), anchors=ROOTS, now=NOW) -> SnpClaims:
    return verify_report(
        data,
        certificates=[load_certificate(item, what="certificate") for item in certificates],
        crls=[x509.load_der_x509_crl(item) for item in crls],
        anchors=[load_certificate(item, what="root") for item in anchors],
        now=now,
    )
