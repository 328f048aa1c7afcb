"""A small AWS of the test's own: a root, its authorities, and documents in which every part can be replaced."""

import datetime
import functools

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from confed.attestation.evidence import Expectation
from confed.attestation.tee import nitro

TIME = datetime.datetime(2026, 6, 1, 12, 0, 3, 250_000, tzinfo=datetime.UTC)
SECOND, HOUR, DAY = datetime.timedelta(seconds=1), datetime.timedelta(hours=1), datetime.timedelta(days=1)
START = TIME.replace(second=0, microsecond=0)
MODULE = "i-0123456789abcdef0-enc0123456789abcdef"
REPORT_DATA = b"r" * 64
NONCE = b"n" * 32
UNCHECKED = Expectation(nonce=None, report_data=None)
REMOVED = object()


def new_key(curve=None):
    return ec.generate_private_key(curve or ec.SECP384R1())


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    subject, key, *, issuer, by, ca=True, path_length=None, signs_certificates=None, signs=None, start=START - HOUR,
    end=START + DAY, algorithm=None, plain=False, critical=None,
):  # fmt: skip
    """Return a certificate in DER; ``plain`` leaves basic constraints and key usage out."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if not plain:
        certifies = ca if signs_certificates is None else signs_certificates
        usage = x509.KeyUsage(
            not ca if signs is None else signs, False, False, False, False, certifies, False, False, False
        )
        constraints = x509.BasicConstraints(ca=ca, path_length=path_length)
        builder = builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)
    if critical:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(critical), b"\x05\x00"), True)
    return builder.sign(by, algorithm or hashes.SHA384()).public_bytes(serialization.Encoding.DER)


ROOT_KEY, REGION_KEY, ZONE_KEY, INSTANCE_KEY, LEAF_KEY, OTHER_KEY = (new_key() for _ in range(6))
ROOT = issue(
    "aws.nitro-enclaves",
    ROOT_KEY,
    issuer="aws.nitro-enclaves",
    by=ROOT_KEY,
    start=START - 900 * DAY,
    end=START + 900 * DAY,
)
OTHER_ROOT = issue(
    "aws.nitro-enclaves",
    OTHER_KEY,
    issuer="aws.nitro-enclaves",
    by=OTHER_KEY,
    start=START - 900 * DAY,
    end=START + 900 * DAY,
)
REGION = issue("region", REGION_KEY, issuer="aws.nitro-enclaves", by=ROOT_KEY, path_length=2, end=START + 20 * DAY)
ZONE = issue("zone", ZONE_KEY, issuer="region", by=REGION_KEY, path_length=1, end=START + 6 * DAY)
INSTANCE = issue("instance", INSTANCE_KEY, issuer="zone", by=ZONE_KEY, path_length=0)
CABUNDLE = [ROOT, REGION, ZONE, INSTANCE]


def leaf(key=None, **changes):
    """Return the leaf certificate: an enclave's, for three hours from ``START``."""
    changes = {
        "issuer": "instance",
        "by": INSTANCE_KEY,
        "ca": False,
        "start": START,
        "end": START + 3 * HOUR,
        **changes,
    }
    return issue("enclave", key or LEAF_KEY, **changes)


LEAF = leaf()
PCRS = {index: bytes([0x10 + index]) * 48 for index in (0, 1, 2, 3, 4)} | {index: bytes(48) for index in range(5, 16)}
PCRS |= {8: b"\x18" * 48, 16: nitro.configuration_pcr(b"\x2b" * 32)}


def payload(**changes):
    """Return a document's fields; ``REMOVED`` leaves one out."""
    fields = {
        "module_id": MODULE,
        "digest": "SHA384",
        "timestamp": round(TIME.timestamp() * 1000),
        "pcrs": PCRS,
        "certificate": LEAF,
        "cabundle": CABUNDLE,
        "public_key": None,
        "user_data": REPORT_DATA,
        "nonce": NONCE,
        **changes,
    }
    return {key: value for key, value in fields.items() if value is not REMOVED}


def sign(body, *, key=LEAF_KEY, protected=None, unprotected=None, tag=b"", digest=None, algorithm=-35):
    """Return a COSE_Sign1 document over these bytes."""
    header = cbor2.dumps({1: algorithm}) if protected is None else protected
    signed = cbor2.dumps(["Signature1", header, b"", body])
    size = (key.curve.key_size + 7) // 8
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(digest or hashes.SHA384())))
    signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return tag + cbor2.dumps([header, {} if unprotected is None else unprotected, body, signature])


def document(*, key=LEAF_KEY, indefinite=False, **changes):
    """Return a signed document with some of its fields changed."""
    return sign(cbor2.dumps(payload(**changes), indefinite_containers=indefinite), key=key)


@functools.cache
def good():
    return document()


def verify(data, *, now=TIME + SECOND, anchors=(ROOT,), expectation=UNCHECKED, endorsements=()):
    return nitro.verify_files(data, endorsements, expectation=expectation, now=now, anchors=anchors)


def claims(**changes):
    """Return the claims of a document with some of its fields changed."""
    return verify(document(**changes))
