"""Chains under roots that the test makes: each link, each validity, each revocation."""

import datetime
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from confed.attestation import certificates, revocation
from confed.errors import (
    AlgorithmError,
    AttestationError,
    CertificateChainError,
    CertificateValidityError,
    EndorsementFormatError,
    EvidenceSignatureError,
    RevocationUnknownError,
    RevokedError,
    TrustAnchorError,
)

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
DER = serialization.Encoding.DER


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    subject,
    key,
    *,
    issuer,
    by,
    ca=True,
    path_length=None,
    usage=True,
    algorithm=None,
    start=NOW - DAY,
    end=NOW + DAY,
    serial=7,
    critical=None,
):
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
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if usage is not None:
        builder = builder.add_extension(
            x509.KeyUsage(True, False, False, False, False, usage, usage, False, False), critical=True
        )
    if critical:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(critical), b"\x05\x00"), critical=True
        )
    made = builder.sign(by, None if isinstance(by, ed25519.Ed25519PrivateKey) else algorithm or hashes.SHA384())
    return certificates.load_certificate(made.public_bytes(DER), what=subject)


ROOT_KEY, MIDDLE_KEY, LEAF_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(4))
ROOT = issue("root", ROOT_KEY, issuer="root", by=ROOT_KEY)
MIDDLE = issue("middle", MIDDLE_KEY, issuer="root", by=ROOT_KEY, path_length=0)
LEAF = issue("leaf", LEAF_KEY, issuer="middle", by=MIDDLE_KEY, ca=False, usage=False)


def check(path, *, anchors=(ROOT,), now=NOW, **options):
    certificates.require_chain(path, anchors=anchors, now=now, what="test", **options)


@pytest.mark.parametrize("path", [[LEAF, MIDDLE, ROOT], [LEAF, MIDDLE], [MIDDLE], [ROOT]], ids=len)
def test_a_chain_that_ends_at_a_pinned_root_holds(path):
    check(path)


def test_the_right_one_of_two_roots_of_one_name_is_taken():
    check([LEAF, MIDDLE], anchors=(issue("root", OTHER_KEY, issuer="root", by=OTHER_KEY), ROOT))


MIDDLE_BY_LEAF = issue("deep", OTHER_KEY, issuer="leaf", by=LEAF_KEY)
REFUSED = {
    "no certificate": (lambda: check([]), TrustAnchorError),
    "no anchor": (lambda: check([LEAF, MIDDLE, ROOT], anchors=()), TrustAnchorError),
    "another root of the same name": (
        lambda: check([LEAF, MIDDLE, issue("root", OTHER_KEY, issuer="root", by=OTHER_KEY)]),
        CertificateChainError,
    ),
    "another root of another name": (
        lambda: check([LEAF, MIDDLE], anchors=(issue("other", OTHER_KEY, issuer="other", by=OTHER_KEY),)),
        TrustAnchorError,
    ),
    "only the root of somebody else": (
        lambda: check([issue("other", OTHER_KEY, issuer="other", by=OTHER_KEY)]),
        TrustAnchorError,
    ),
    "a missing middle": (lambda: check([LEAF, ROOT]), CertificateChainError),
    "the wrong order": (lambda: check([MIDDLE, LEAF, ROOT]), CertificateChainError),
    "a leaf that another key signed": (
        lambda: check([issue("leaf", LEAF_KEY, issuer="middle", by=OTHER_KEY), MIDDLE]),
        CertificateChainError,
    ),
    "an issuer that is no authority": (
        lambda: check([MIDDLE_BY_LEAF, LEAF, MIDDLE]),
        CertificateChainError,
    ),
    "an issuer without basic constraints": (
        lambda: check([issue("leaf", LEAF_KEY, issuer="m", by=MIDDLE_KEY), issue("m", MIDDLE_KEY, issuer="root", by=ROOT_KEY, ca=None)]),
        CertificateChainError,
    ),
    "an issuer whose key may not sign certificates": (
        lambda: check([issue("leaf", LEAF_KEY, issuer="m", by=MIDDLE_KEY), issue("m", MIDDLE_KEY, issuer="root", by=ROOT_KEY, usage=False)]),
        CertificateChainError,
    ),
    "a path longer than its length": (
        lambda: check([
            issue("leaf", LEAF_KEY, issuer="deep", by=OTHER_KEY), issue("deep", OTHER_KEY, issuer="middle", by=MIDDLE_KEY), MIDDLE,
        ]),
        CertificateChainError,
    ),
    "SHA-1 in a link": (lambda: check([sha1_leaf(), MIDDLE]), AlgorithmError),
    "a short RSA key": (lambda: check([issue("leaf", LEAF_KEY, issuer="short", by=SHORT), short_middle()]), AlgorithmError),
    "an unknown critical extension": (
        lambda: check([issue("leaf", LEAF_KEY, issuer="middle", by=MIDDLE_KEY, critical="1.2.3.4"), MIDDLE]),
        CertificateChainError,
    ),
    "a day past expiry": (lambda: check([LEAF, MIDDLE], now=NOW + 2 * DAY), CertificateValidityError),
    "a day before validity": (lambda: check([LEAF, MIDDLE], now=NOW - 2 * DAY), CertificateValidityError),
    "a root that has expired": (
        lambda: check([LEAF, MIDDLE], anchors=(issue("root", ROOT_KEY, issuer="root", by=ROOT_KEY, end=NOW - DAY / 2),)),
        CertificateValidityError,
    ),
}  # fmt: skip
SHORT = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505


def short_middle():
    return issue("short", SHORT, issuer="root", by=ROOT_KEY)


def sha1_leaf():
    # pyca signs no SHA-1: the algorithm's identifier is changed in both places (ecdsa-with-SHA256 to ecdsa-with-SHA1).
    made = issue("leaf", LEAF_KEY, issuer="middle", by=MIDDLE_KEY, algorithm=hashes.SHA256())
    old, new = bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401")
    inner = made.tbs[made.tbs.index(b"\xa0\x03\x02\x01\x02") :].replace(old, new)
    rest = made.der[made.der.index(made.tbs) + len(made.tbs) :].replace(old, new)
    return certificates.load_certificate(sequence(sequence(inner) + rest), what="leaf")


def sequence(content):
    size = len(content)
    return b"\x30" + (bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")) + content


@pytest.mark.parametrize(("attempt", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_a_chain_is_refused_for(attempt, error):
    with pytest.raises(error) as caught:
        attempt()
    assert type(caught.value) is error


def test_a_critical_extension_that_the_caller_knows_is_accepted():
    check(
        [issue("leaf", LEAF_KEY, issuer="middle", by=MIDDLE_KEY, critical="1.2.3.4"), MIDDLE],
        known_critical=["1.2.3.4"],
    )


def zero_serial(certificate):
    # Only a certificate authority that ignores RFC 5280 signs this: the serial is patched and the whole signed again.
    tbs = certificate.tbs.replace(b"\x02\x01\x07", b"\x02\x01\x00", 1)
    signature = MIDDLE_KEY.sign(tbs, ec.ECDSA(hashes.SHA384()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")
    body = tbs + algorithm + b"\x03" + bytes([len(signature) + 1]) + b"\x00" + signature
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


def test_a_certificate_with_serial_0_is_read_without_a_warning_and_its_signature_holds():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = certificates.load_certificate(zero_serial(LEAF), what="VCEK")
        pem = x509.load_der_x509_certificate(LEAF.der).public_bytes(serialization.Encoding.PEM)
        assert certificates.load_certificate(pem, what="leaf").der == LEAF.der
    assert found.serial == 0
    check([found, MIDDLE])


def test_a_changed_certificate_with_serial_0_is_refused():
    der = bytearray(zero_serial(LEAF))
    position = der.index(b"leaf")
    der[position] ^= 1
    with pytest.raises(CertificateChainError):
        check([certificates.load_certificate(bytes(der), what="VCEK"), MIDDLE])


PEM = b"".join(
    x509.load_der_x509_certificate(c.der).public_bytes(serialization.Encoding.PEM) for c in (LEAF, MIDDLE, ROOT)
)


def test_a_bundle_keeps_its_order():
    found = certificates.load_certificates(b"a comment\n".join([b"", PEM]).lstrip(b"a comment\n"), what="bundle")
    assert [certificate.der for certificate in found] == [LEAF.der, MIDDLE.der, ROOT.der]


UNREADABLE = {
    "nothing": b"",
    "trailing bytes": LEAF.der + b"\x00",
    "truncated": LEAF.der[:-1],
    "text": b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n",
    "a private key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "too large": b"\x30" * (certificates.BUNDLE_LIMIT_BYTES + 1),
    "a large certificate": b"\x30\x83\x00\x50\x00" + b"\x00" * 0x5000,
    "a negative serial number": LEAF.der.replace(b"\x02\x01\x07", b"\x02\x01\xff", 1),
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_certificate_is_not_read_from(data):
    with pytest.raises(EndorsementFormatError):
        certificates.load_certificate(data, what="test")


def test_more_certificates_than_the_limit_are_refused():
    with pytest.raises(EndorsementFormatError):
        certificates.load_certificates(PEM, what="bundle", limit=2)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(LEAF.der) - 1), flip=st.integers(1, 255))
def test_a_flipped_byte_never_passes_and_never_raises_anything_else(position, flip):
    changed = bytearray(LEAF.der)
    changed[position] ^= flip
    try:
        check([certificates.load_certificate(bytes(changed), what="leaf"), MIDDLE])
    except AttestationError:
        return
    pytest.fail("accepted")


def revocation_list(*serials, by=MIDDLE_KEY, issuer="middle", start=NOW - DAY, end=NOW + DAY):
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer)).last_update(start).next_update(end)
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start).build()
        )
    return revocation.load_crl(builder.sign(by, hashes.SHA384()).public_bytes(DER), what="test")


def not_revoked(crl, now=NOW):
    revocation.require_not_revoked(LEAF, issuer=MIDDLE, crl=crl, now=now, what="leaf")


def test_a_certificate_that_is_not_listed_is_accepted():
    not_revoked(revocation_list(8))


@pytest.mark.parametrize(
    ("crl", "now", "error"),
    [
        (revocation_list(7), NOW, RevokedError),
        (revocation_list(8, by=OTHER_KEY), NOW, RevocationUnknownError),
        (revocation_list(8, issuer="other"), NOW, RevocationUnknownError),
        (revocation_list(8), NOW + 2 * DAY, RevocationUnknownError),
        (revocation_list(8), NOW - 2 * DAY, RevocationUnknownError),
    ],
    ids=["listed", "signed by another", "another issuer's", "past its time", "before its time"],
)
def test_revocation_is_refused_where(crl, now, error):
    with pytest.raises(error) as caught:
        not_revoked(crl, now)
    assert type(caught.value) is error


def extended(extension, *, critical):
    builder = x509.CertificateRevocationListBuilder().issuer_name(name("middle")).last_update(NOW - DAY)
    builder = builder.next_update(NOW + DAY).add_extension(extension, critical=critical)
    return revocation.load_crl(builder.sign(MIDDLE_KEY, hashes.SHA384()).public_bytes(DER), what="test")


def distribution(**part):
    flags = dict.fromkeys(
        ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs"), False
    )
    where = None if part else [x509.UniformResourceIdentifier("http://example.org/crl")]
    return x509.IssuingDistributionPoint(
        full_name=where, relative_name=None, **{"only_some_reasons": None, **flags, **part}
    )


PARTS = {
    "what changed since another list": (x509.DeltaCRLIndicator(1), True),
    "the same, not critical": (x509.DeltaCRLIndicator(1), False),
    "authorities alone": (distribution(only_contains_ca_certs=True), True),
    "users alone": (distribution(only_contains_user_certs=True), True),
    "users alone, not critical": (distribution(only_contains_user_certs=True), False),
    "attributes alone": (distribution(only_contains_attribute_certs=True), True),
    "one reason alone": (distribution(only_some_reasons=frozenset({x509.ReasonFlags.superseded})), True),
    "others' certificates": (distribution(indirect_crl=True), True),
    "something critical that nobody knows": (
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("extension", "critical"), PARTS.values(), ids=PARTS.keys())
def test_a_list_proves_nothing_that_is_of(extension, critical):
    with pytest.raises(RevocationUnknownError):
        not_revoked(extended(extension, critical=critical))


def test_a_list_may_have_a_number_and_say_where_it_is_published():
    not_revoked(extended(x509.CRLNumber(7), critical=False))
    not_revoked(extended(distribution(), critical=True))


def test_a_list_under_a_weak_hash_is_refused():
    crl = x509.CertificateRevocationListBuilder().issuer_name(name("middle")).last_update(NOW - DAY)
    der = crl.next_update(NOW + DAY).sign(MIDDLE_KEY, hashes.SHA256()).public_bytes(DER)
    inner = der[2 : len(der)] if der[1] < 0x80 else der[3:]
    # As in ``sha1_leaf``: the identifier is changed in both places.
    old, new = bytes.fromhex("300a06082a8648ce3d040302"), bytes.fromhex("300906072a8648ce3d0401")
    size = inner[1]
    assert size < 0x80
    tbs = inner[2 : 2 + size].replace(old, new)
    weak = sequence(b"\x30" + bytes([len(tbs)]) + tbs + inner[2 + size :].replace(old, new))
    with pytest.raises(AlgorithmError):
        not_revoked(revocation.load_crl(weak, what="test"))


def test_a_list_that_was_signed_by_a_key_for_something_else_is_refused():
    issuer = issue("middle", MIDDLE_KEY, issuer="root", by=ROOT_KEY, usage=False)
    with pytest.raises(RevocationUnknownError):
        revocation.require_not_revoked(LEAF, issuer=issuer, crl=revocation_list(8), now=NOW, what="leaf")
    unrestricted = issue("middle", MIDDLE_KEY, issuer="root", by=ROOT_KEY, usage=None)
    revocation.require_not_revoked(LEAF, issuer=unrestricted, crl=revocation_list(8), now=NOW, what="leaf")


def test_a_list_that_is_no_list_is_refused():
    for data in (b"", b"\x30\x00", b"-----BEGIN X509 CRL-----\n", b"\x00" * (revocation.CRL_LIMIT_BYTES + 1)):
        with pytest.raises(EndorsementFormatError):
            revocation.load_crl(data, what="test")


def test_a_signature_of_a_weak_hash_or_another_key_is_refused():
    key = ed25519.Ed25519PrivateKey.generate()
    certificates.verify_signature(key.public_key(), key.sign(b"x"), b"x", algorithm=None, what="test")
    with pytest.raises(EvidenceSignatureError):
        certificates.verify_signature(key.public_key(), key.sign(b"y"), b"x", algorithm=None, what="test")
    with pytest.raises(AlgorithmError):
        certificates.verify_signature(LEAF_KEY.public_key(), b"", b"x", algorithm=hashes.SHA1(), what="test")  # noqa: S303
    with pytest.raises(AlgorithmError):
        certificates.verify_signature(LEAF_KEY.public_key(), b"", b"x", algorithm=None, what="test")
