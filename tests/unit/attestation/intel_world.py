"""A small Intel of the test's own: a root, its authorities, platforms and quoting enclaves, every part replaceable."""

import datetime
import functools
import hashlib
import json

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from confed.attestation.evidence import Expectation

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
SECOND, HOUR, DAY = datetime.timedelta(seconds=1), datetime.timedelta(hours=1), datetime.timedelta(days=1)
YEAR = 365 * DAY
UNCHECKED = Expectation(nonce=None, report_data=None)
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER

FMSPC = bytes.fromhex("90c06f000000")
OTHER_FMSPC = bytes.fromhex("00806f050000")
PPID, INSTANCE = bytes(range(16)), bytes(range(16, 32))
CPU_SVN, PCE_SVN = bytes([5] * 16), 11
QE_SIGNER = b"\xdc" * 32
QE_SVN = 8
MODULE_SVN = bytes([5, 1, 2]) + bytes(13)
REPORT_DATA = b"n" * 32 + b"d" * 32
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
SGX_OID = "1.2.840.113741.1.13.1"


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    subject, key, *, issuer, by, ca=True, path_length=None, start=NOW - YEAR, end=NOW + YEAR, serial=7, extra=None,
    algorithm=None,
):  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False), critical=True)
    )
    if extra is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_OID), extra), False)
    return builder.sign(by, algorithm or hashes.SHA256())


def crl(issuer, by, *, revoked=(), start=NOW - DAY, end=NOW + 30 * DAY, number=1):
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name(issuer))
        .last_update(start)
        .next_update(end)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
        )
    return builder.sign(by, hashes.SHA256()).public_bytes(DER)


def tlv(tag, value):
    size = len(value).to_bytes(2).lstrip(b"\x00") or b"\x00"
    length = size if len(value) < 128 else bytes([0x80 | len(size)]) + size
    return bytes([tag]) + length + value


def item(suffix, value):
    oid = x509.ObjectIdentifier(f"{SGX_OID}{suffix}")
    # cryptography writes the identifier of an extension; the rest of that extension is cut off.
    built = x509.Extensions([x509.Extension(oid, False, x509.UnrecognizedExtension(oid, b""))])
    return tlv(0x30, _encoded_oid(built[0].oid.dotted_string) + value)


def _encoded_oid(dotted):
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray([40 * first + second])
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        out += bytes(reversed(groups))
    return tlv(0x06, bytes(out))


def _number(value):
    return tlv(0x02, value.to_bytes(2) if value > 127 else bytes([value]))


def sgx_extension(*, fmspc=FMSPC, ppid=PPID, instance=INSTANCE, cpu_svn=CPU_SVN, pce_svn=PCE_SVN, sgx_type=1):
    parts = [item(f".2.{index + 1}", _number(svn)) for index, svn in enumerate(cpu_svn)]
    parts += [item(".2.17", _number(pce_svn)), item(".2.18", tlv(0x04, cpu_svn))]
    body = item(".1", tlv(0x04, ppid)) + item(".2", tlv(0x30, b"".join(parts))) + item(".3", tlv(0x04, b"\x00\x00"))
    body += item(".4", tlv(0x04, fmspc)) + item(".5", tlv(0x0A, bytes([sgx_type])))
    if instance is not None:
        flags = b"".join(item(f".7.{index}", tlv(0x01, b"\xff")) for index in (1, 2, 3))
        body += item(".6", tlv(0x04, instance)) + item(".7", tlv(0x30, flags))
    return tlv(0x30, body)


ROOT_NAME, PLATFORM_NAME, TCB_NAME = "Intel SGX Root CA", "Intel SGX PCK Platform CA", "Intel SGX TCB Signing"
PCK_NAME = "Intel SGX PCK Certificate"
ROOT_KEY, PLATFORM_KEY, TCB_KEY, PCK_KEY, ATTESTATION_KEY, OTHER_KEY = (new_key() for _ in range(6))
ROOT = issue(ROOT_NAME, ROOT_KEY, issuer=ROOT_NAME, by=ROOT_KEY, path_length=1, end=NOW + 20 * YEAR, serial=1)
OTHER_ROOT = issue(ROOT_NAME, OTHER_KEY, issuer=ROOT_NAME, by=OTHER_KEY, path_length=1, end=NOW + 20 * YEAR, serial=1)
PLATFORM = issue(PLATFORM_NAME, PLATFORM_KEY, issuer=ROOT_NAME, by=ROOT_KEY, path_length=0, serial=2)
TCB_SIGNER = issue(TCB_NAME, TCB_KEY, issuer=ROOT_NAME, by=ROOT_KEY, ca=False, serial=3)
ANCHORS = (ROOT.public_bytes(DER),)


def pck_certificate(*, key=PCK_KEY, issuer=PLATFORM_NAME, by=PLATFORM_KEY, serial=9, extra=None, **options):
    times = {name: options.pop(name) for name in ("start", "end") if name in options}
    extension = sgx_extension(**options) if extra is None else extra
    return issue(PCK_NAME, key, issuer=issuer, by=by, ca=False, serial=serial, extra=extension, **times)


def pem(*certificates):
    return b"".join(certificate.public_bytes(PEM) for certificate in certificates)


PCK = pck_certificate()
PCK_CHAIN = pem(PCK, PLATFORM, ROOT)


def raw_signature(key, data):
    numbers = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return b"".join(number.to_bytes(32) for number in numbers)


def public_point(key):
    return key.public_key().public_bytes(DER.X962, serialization.PublicFormat.UncompressedPoint)[1:]


def fill(layout, fields):
    """Return the bytes of fields by name, each of its size; a field that is not named is zeros."""
    unknown = set(fields) - {field for field, _ in layout}
    assert not unknown, unknown
    parts = [fields.get(field, b"") for field, _ in layout]
    assert all(len(part) <= size for part, (_, size) in zip(parts, layout, strict=True))
    return b"".join(part.ljust(size, b"\x00") for part, (_, size) in zip(parts, layout, strict=True))


ENCLAVE_LAYOUT = (
    ("cpu_svn", 16), ("misc_select", 4), ("reserved1", 12), ("isv_ext_prod_id", 16), ("attributes", 8), ("xfrm", 8),
    ("mr_enclave", 32), ("reserved2", 32), ("mr_signer", 32), ("reserved3", 32), ("config_id", 64),
    ("isv_prod_id", 2), ("isv_svn", 2), ("config_svn", 2), ("reserved4", 42), ("isv_family_id", 16),
    ("report_data", 64),
)  # fmt: skip
TD_LAYOUT = (
    ("tee_tcb_svn", 16), ("mr_seam", 48), ("mr_signer_seam", 48), ("seam_attributes", 8), ("td_attributes", 8),
    ("xfam", 8), ("mr_td", 48), ("mr_config_id", 48), ("mr_owner", 48), ("mr_owner_config", 48), ("rtmr0", 48),
    ("rtmr1", 48), ("rtmr2", 48), ("rtmr3", 48), ("report_data", 64),
)  # fmt: skip
TD_LAYOUT_15 = (*TD_LAYOUT, ("tee_tcb_svn2", 16), ("mr_service_td", 48))


def enclave_report(**fields):
    found = {
        "cpu_svn": CPU_SVN, "attributes": b"\x05", "xfrm": b"\xe7", "mr_enclave": b"\xe1" * 32,
        "mr_signer": b"\x51" * 32, "isv_prod_id": b"\x07", "isv_svn": b"\x03", "report_data": REPORT_DATA,
    }  # fmt: skip
    return fill(ENCLAVE_LAYOUT, found | fields)


def td_report(*, version=4, **fields):
    found = {
        "tee_tcb_svn": MODULE_SVN, "mr_seam": b"\x5e" * 48, "td_attributes": bytes.fromhex("0000001000000000"),
        "xfam": bytes.fromhex("e702060000000000"), "mr_td": b"\x7d" * 48, "rtmr0": b"\x00" * 48,
        "report_data": REPORT_DATA,
    }  # fmt: skip
    if version == 5:
        found |= {"tee_tcb_svn2": MODULE_SVN}
    return fill(TD_LAYOUT_15 if version == 5 else TD_LAYOUT, found | fields)


def qe_report(*, key=ATTESTATION_KEY, authentication=bytes(range(32)), product=2, **fields):
    bound = hashlib.sha256(public_point(key) + authentication).digest()
    found = {
        "cpu_svn": CPU_SVN, "attributes": b"\x15", "xfrm": b"\xe7", "mr_enclave": b"\xe5" * 32,
        "mr_signer": QE_SIGNER, "isv_prod_id": bytes([product]), "isv_svn": bytes([QE_SVN]), "report_data": bound,
    }  # fmt: skip
    return fill(ENCLAVE_LAYOUT, found | fields)


def quote(
    body, *, version=4, tee=0x81, algorithm=2, vendor=VENDOR, body_type=None, chain=PCK_CHAIN, key=ATTESTATION_KEY,
    bound_key=None, pck_key=PCK_KEY, qe=None, qe_fields=None, authentication=bytes(range(32)), certification=5,
    outer=6, tail=b"",
):  # fmt: skip
    """Return a quote around a report; what is signed is signed after every change."""
    signed = version.to_bytes(2, "little") + algorithm.to_bytes(2, "little") + tee.to_bytes(4, "little")
    signed += bytes(4) + vendor + bytes(20)
    if version == 5:
        kind = body_type or (3 if len(body) == 648 else 2)
        signed += kind.to_bytes(2, "little") + len(body).to_bytes(4, "little")
    signed += body
    report = qe or qe_report(
        key=bound_key or key, authentication=authentication, product=2 if tee else 1, **(qe_fields or {})
    )
    inner = report + raw_signature(pck_key, report) + len(authentication).to_bytes(2, "little") + authentication
    inner += certification.to_bytes(2, "little") + len(chain).to_bytes(4, "little") + chain
    if version != 3:
        inner = outer.to_bytes(2, "little") + len(inner).to_bytes(4, "little") + inner
    data = raw_signature(key, signed) + public_point(key) + inner
    return signed + len(data).to_bytes(4, "little") + data + tail


def td_quote(*, version=4, options=None, **fields):
    return quote(td_report(version=version, **fields), version=version, **(options or {}))


def sgx_quote(*, options=None, **fields):
    return quote(enclave_report(**fields), version=3, tee=0, **(options or {}))


def stamp(time):
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def level(svn, status, *, pce_svn=PCE_SVN, tdx=None, advisories=(), date="2026-03-01T00:00:00Z"):
    tcb = {"sgxtcbcomponents": [{"svn": svn}] * 16, "pcesvn": pce_svn}
    if tdx is not None:
        tcb["tdxtcbcomponents"] = [{"svn": byte} for byte in tdx]
    found = {"tcb": tcb, "tcbDate": date, "tcbStatus": status}
    return found | ({"advisoryIDs": list(advisories)} if advisories else {})


ZEROS = "00" * 48


def tcb_info(tee="TDX", *, levels=None, **changes):
    found = {
        "id": tee,
        "version": 3,
        "issueDate": stamp(NOW - DAY),
        "nextUpdate": stamp(NOW + 20 * DAY),
        "fmspc": FMSPC.hex().upper(),
        "pceId": "0000",
        "tcbType": 0,
        "tcbEvaluationDataNumber": 18,
    }
    module = {"mrsigner": ZEROS, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    if tee == "TDX":
        found["tdxModule"] = module
        found["tdxModuleIdentities"] = [
            {
                "id": "TDX_01",
                **module,
                "tcbLevels": [
                    {"tcb": {"isvsvn": 4}, "tcbDate": "2026-03-01T00:00:00Z", "tcbStatus": "UpToDate"},
                    {
                        "tcb": {"isvsvn": 2},
                        "tcbDate": "2025-03-01T00:00:00Z",
                        "tcbStatus": "OutOfDate",
                        "advisoryIDs": ["INTEL-SA-01036"],
                    },
                ],
            }
        ]
    found["tcbLevels"] = levels or [
        level(5, "UpToDate", tdx=bytes([0, 0, 2]) + bytes(13)),
        level(3, "OutOfDate", tdx=bytes(16), pce_svn=5, advisories=["INTEL-SA-00960"], date="2024-03-01T00:00:00Z"),
    ]
    return found | changes


def qe_identity(tee="TDX", **changes):
    found = {
        "id": "TD_QE" if tee == "TDX" else "QE",
        "version": 2,
        "issueDate": stamp(NOW - DAY),
        "nextUpdate": stamp(NOW + 25 * DAY),
        "tcbEvaluationDataNumber": 18,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11" + "00" * 15,
        "attributesMask": "FB" + "FF" * 7 + "00" * 8,
        "mrsigner": QE_SIGNER.hex().upper(),
        "isvprodid": 2 if tee == "TDX" else 1,
        "tcbLevels": [
            {"tcb": {"isvsvn": QE_SVN}, "tcbDate": "2026-03-01T00:00:00Z", "tcbStatus": "UpToDate"},
            {
                "tcb": {"isvsvn": 4},
                "tcbDate": "2025-01-01T00:00:00Z",
                "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-00615"],
            },
        ],
    }
    return found | changes


def collateral_fields(
    tee="TDX", *, tcb=None, qe=None, key=TCB_KEY, chain=None, root_crl=None, pck_crl=None, crl_chain=None, **changes
):  # fmt: skip
    texts = {
        name: json.dumps(value, separators=(",", ":"))
        for name, value in (("tcb_info", tcb or tcb_info(tee)), ("qe_identity", qe or qe_identity(tee)))
    }
    issuers = pem(*(chain or (TCB_SIGNER, ROOT))).decode()
    found = {
        "pck_crl_issuer_chain": pem(*(crl_chain or (PLATFORM, ROOT))).decode(),
        "root_ca_crl": (root_crl or crl(ROOT_NAME, ROOT_KEY)).hex(),
        "pck_crl": (pck_crl or crl(PLATFORM_NAME, PLATFORM_KEY)).hex(),
        "tcb_info_issuer_chain": issuers,
        "tcb_info": texts["tcb_info"],
        "tcb_info_signature": raw_signature(key, texts["tcb_info"].encode()).hex(),
        "qe_identity_issuer_chain": issuers,
        "qe_identity": texts["qe_identity"],
        "qe_identity_signature": raw_signature(key, texts["qe_identity"].encode()).hex(),
    }
    return found | changes


def collateral(tee="TDX", **changes):
    return json.dumps(collateral_fields(tee, **changes)).encode()


@functools.cache
def good(tee="TDX"):
    """Return the collateral under which the world's platforms are up to date."""
    return collateral(tee)
