"""A small world with TPMs in it: authorities, keys, quotes, logs; every part can be replaced by name."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import hmac
import json
import struct
from typing import Any

from attestation_world import BINDING
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from confed import statement
from confed.attestation.certificates import load_certificate
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.tee import tpm
from confed.attestation.tee.tpm_claims import key_digest
from confed.attestation.tee.tpm_enrolment import TpmEnrolment, begin_enrolment, finish_enrolment
from confed.attestation.tee.tpm_evidence import TpmEvidence, configuration_value, nonce_of
from confed.attestation.tee.tpm_structures import parse_public

NOW = datetime.datetime(2027, 1, 15, 12, tzinfo=datetime.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
DAY = datetime.timedelta(days=1)
NONCE = b"n" * 32

RSA, ECC, SHA1, SHA256, SHA384, SHA512, NULL = 0x01, 0x23, 0x04, 0x0B, 0x0C, 0x0D, 0x10
RSASSA, RSAPSS, ECDSA = 0x14, 0x16, 0x18
HASHES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
AK_ATTRIBUTES = 0x00050072 | 1 << 10
EK_ATTRIBUTES = 0x000300B2
EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
EK_USE = x509.ObjectIdentifier("2.23.133.8.1")


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


# Keys and certificates.


@functools.cache
def ec_key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def spki(key: Any, encoding: serialization.Encoding = serialization.Encoding.DER) -> bytes:
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def named(name: str, *, long: bool = False) -> x509.Name:
    """Return a common name; a long one is one that X.520 does not have, and Google's authorities do."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name, _validate=not long)])


class Authority:
    """A certificate authority; an intermediate where ``parent`` is given."""

    def __init__(self, name: str, parent: Authority | None = None, *, long: bool = False, **changes: Any) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = named(name, long=long)
        self.certificate = (parent or self).issue(self.key.public_key(), subject=self.name, authority=True, **changes)
        self.der = self.certificate.public_bytes(serialization.Encoding.DER)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        key: Any,
        *,
        subject: x509.Name | None = None,
        authority: bool = False,
        since: datetime.datetime = NOW - 30 * DAY,
        until: datetime.datetime = NOW + 30 * DAY,
        usage: str = "key_cert_sign",
        extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
        digest: Any = None,
    ) -> x509.Certificate:
        uses = dict.fromkeys(
            ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
            False,
        ) | {"crl_sign": authority, usage: True}  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or x509.Name([]))
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**uses), critical=True)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, digest or hashes.SHA256())


ROOT = Authority("TPM root")
INTERMEDIATE = Authority("TPM intermediate", ROOT)
OTHER_ROOT = Authority("another TPM root")
# The same name as the real intermediate, and another key: chains are told apart by signature.
NAMESAKE = Authority("TPM intermediate", OTHER_ROOT)


def tpm_names(manufacturer: str = "id:00001014", model: str = "test-tpm", version: str = "id:00010002"):
    oids = ("2.23.133.2.1", "2.23.133.2.2", "2.23.133.2.3")
    attributes = [
        x509.NameAttribute(x509.ObjectIdentifier(oid), value)
        for oid, value in zip(oids, (manufacturer, model, version), strict=True)
    ]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(attributes))])


def ek_certificate(
    key: Any, issuer: Authority = INTERMEDIATE, *, use: Any = EK_USE, names: Any = None, **changes
) -> bytes:
    extensions = [(names or tpm_names(), True)]
    if use is not None:
        extensions.append((x509.ExtendedKeyUsage([use]), False))
    options = {"usage": "key_encipherment", "extensions": tuple(extensions)} | changes
    return issuer.issue(key.public_key(), **options).public_bytes(serialization.Encoding.DER)


# What a TPM says.


def public_area(
    key: Any,
    *,
    attributes: int = AK_ATTRIBUTES,
    name_algorithm: int = SHA256,
    policy: bytes = b"",
    symmetric: bytes = struct.pack(">H", NULL),
    scheme: bytes | None = None,
    curve: int | None = None,
    kdf: bytes = struct.pack(">H", NULL),
    bits: int | None = None,
    exponent: int = 0,
    kind: int | None = None,
) -> bytes:
    """Return a TPMT_PUBLIC."""
    numbers = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = struct.pack(">HH", RSASSA, SHA256) if scheme is None else scheme
        size = key.key_size // 8
        tail = (
            symmetric
            + scheme
            + struct.pack(">HI", bits or key.key_size, exponent)
            + sized(numbers.n.to_bytes(size, "big"))
        )
        kind = kind or RSA
    else:
        scheme = struct.pack(">HH", ECDSA, SHA256) if scheme is None else scheme
        width = (key.key_size + 7) // 8
        identifier = curve or {256: 3, 384: 4, 521: 5}[key.key_size]
        point = sized(numbers.x.to_bytes(width, "big")) + sized(numbers.y.to_bytes(width, "big"))
        tail = symmetric + scheme + struct.pack(">H", identifier) + kdf + point
        kind = kind or ECC
    return struct.pack(">HHI", kind, name_algorithm, attributes) + sized(policy) + tail


AES128_CFB = struct.pack(">HHH", 0x06, 128, 0x43)


def ek_public(key: Any, **changes: Any) -> bytes:
    options = {
        "attributes": EK_ATTRIBUTES,
        "policy": EK_POLICY,
        "symmetric": AES128_CFB,
        "scheme": struct.pack(">H", NULL),
    } | changes
    return public_area(key, **options)


def bitmap(numbers: Any, size: int = 3) -> bytes:
    return sum(1 << number for number in numbers).to_bytes(size, "little")


def selection(bank: int, numbers: Any, size: int = 3) -> bytes:
    return struct.pack(">HB", bank, size) + bitmap(numbers, size)


def pcr_digest(pcrs: dict[int, bytes], digest: int = SHA256) -> bytes:
    return hashlib.new(HASHES[digest], b"".join(pcrs[number] for number in sorted(pcrs))).digest()


def attest(
    pcrs: dict[int, bytes],
    *,
    nonce: bytes = NONCE,
    magic: int = 0xFF544347,
    kind: int = 0x8018,
    signer: bytes = b"\x00\x0b" + bytes(32),
    clock: bytes = struct.pack(">QIIB", 123456, 7, 1, 1),
    firmware: int = 0x2019102300163636,
    bank: int = SHA256,
    selections: list[bytes] | None = None,
    digest: bytes | None = None,
    trailing: bytes = b"",
) -> bytes:
    """Return a TPMS_ATTEST of a quote."""
    banks = [selection(bank, pcrs)] if selections is None else selections
    return (
        struct.pack(">IH", magic, kind)
        + sized(signer)
        + sized(nonce)
        + clock
        + struct.pack(">QI", firmware, len(banks))
        + b"".join(banks)
        + sized(pcr_digest(pcrs) if digest is None else digest)
        + trailing
    )


def signed(message: bytes, key: Any, *, digest: int = SHA256, scheme: int | None = None) -> bytes:
    """Return a TPMT_SIGNATURE."""
    algorithm = getattr(hashes, HASHES[digest].upper())()
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = scheme or RSASSA
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)
        value = sized(key.sign(message, pss if scheme == RSAPSS else padding.PKCS1v15(), algorithm))
    else:
        scheme = scheme or ECDSA
        width = (key.key_size + 7) // 8
        pair = decode_dss_signature(key.sign(message, ec.ECDSA(algorithm)))
        value = b"".join(sized(number.to_bytes(width, "big")) for number in pair)
    return struct.pack(">HH", scheme, digest) + value


def registers(*numbers: int, size: int = 32) -> dict[int, bytes]:
    return {number: bytes([number + 1]) * size for number in numbers}


# The two keys of one TPM, and those of others.
AK = ec_key("attestation key")
OTHER_AK = ec_key("another attestation key")
EK = rsa_key("endorsement key")
OTHER_EK = rsa_key("another endorsement key")
AUTHORITY = ed25519.Ed25519PrivateKey.generate()
OTHER_AUTHORITY = ed25519.Ed25519PrivateKey.generate()
EK_CERTIFICATE = ek_certificate(EK)
PCRS = registers(0, 1, 2, 3, 4, 5, 6, 7, 11)


# Event logs: crypto-agile, one bank.


def event(register: int, kind: int, data: bytes, *, digest: bytes | None = None, bank: int = SHA256) -> bytes:
    found = hashlib.new(HASHES[bank], data).digest() if digest is None else digest
    return struct.pack("<IIIH", register, kind, 1, bank) + found + struct.pack("<I", len(data)) + data


def event_log(*events: bytes, bank: int = SHA256) -> bytes:
    size = hashlib.new(HASHES[bank]).digest_size
    head = b"Spec ID Event03\x00" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, bank, size, 0)
    return struct.pack("<II20sI", 0, 3, bytes(20), len(head)) + head + b"".join(events)


def extended(*parts: bytes, bank: str = "sha256") -> bytes:
    value = bytes(hashlib.new(bank).digest_size)
    for part in parts:
        value = hashlib.new(bank, value + hashlib.new(bank, part).digest()).digest()
    return value


# Files.


def files_json(
    pcrs: dict[int, bytes] | None = None,
    *,
    key: Any = AK,
    public: bytes | None = None,
    positions: bool = True,
    message: bytes | None = None,
    signature: bytes | None = None,
    **changes: Any,
) -> bytes:
    """Return the JSON form, as Trustee's verifier reads it."""
    found = PCRS if pcrs is None else pcrs
    text = attest(found) if message is None else message
    value: dict[str, Any] = {
        "ak_public": base64.b64encode(spki(key)).decode(),
        "tpm_quote": {
            "message": base64.b64encode(text).decode(),
            "signature": base64.b64encode(signed(text, key) if signature is None else signature).decode(),
            "pcrs": [found[number].hex() for number in sorted(found)],
        },
    }
    if positions:
        value["claimed_selection_by_position"] = sorted(found)
    if public is not None:
        value["ak_tpm2b_public"] = base64.b64encode(public).decode()
    return json.dumps(value | changes).encode()


def register_file(pcrs: dict[int, bytes], *, bank: int = SHA256, banks: int = 1, count: int | None = None) -> bytes:
    """Return what ``tpm2_quote --pcr`` writes."""
    numbers = sorted(pcrs)
    head = struct.pack("<I", banks) + struct.pack("<HB", bank, 3) + bitmap(numbers) + b"\x00\x00"
    lists = [numbers[start : start + 8] for start in range(0, len(numbers), 8)]
    body = b""
    for entries in lists:
        part = struct.pack("<I", len(entries)) + b"".join(
            struct.pack("<H", len(pcrs[number])) + pcrs[number].ljust(64, b"\x00") for number in entries
        )
        body += part.ljust(532, b"\x00")
    return head.ljust(132, b"\x00") + struct.pack("<I", len(lists) if count is None else count) + body


# Enrolment, and envelopes.


class NotThisTpmError(Exception):
    """What a TPM answers where it does not hold both keys."""


def activated(credential: Any, endorsement_key: Any, name: bytes) -> bytes:
    """Do what a TPM does with a credential; only its own keys give the secret."""
    integrity, encrypted = unsized(unsized(credential.blob)[0])
    wrapped = unsized(credential.seed)[0]
    if isinstance(endorsement_key, rsa.RSAPrivateKey):
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\x00")
        try:
            seed = endorsement_key.decrypt(wrapped, oaep)
        except ValueError as error:
            raise NotThisTpmError from error
    else:
        seed = agreed(endorsement_key, wrapped)
    mac = hmac.digest(kdfa(seed, b"INTEGRITY\x00", b"", 256), encrypted + name, "sha256")
    if mac != integrity:
        raise NotThisTpmError
    decryptor = Cipher(algorithms.AES(kdfa(seed, b"STORAGE\x00", name, 128)), CFB(bytes(16))).decryptor()
    return unsized(decryptor.update(encrypted) + decryptor.finalize())[0]


def agreed(endorsement_key: ec.EllipticCurvePrivateKey, wrapped: bytes) -> bytes:
    x, rest = unsized(wrapped)
    y, _ = unsized(rest)
    point = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), endorsement_key.curve)
    shared = endorsement_key.exchange(ec.ECDH(), point.public_key())
    static = endorsement_key.public_key().public_numbers().x.to_bytes(len(x), "big")
    return hashlib.sha256(struct.pack(">I", 1) + shared + b"IDENTITY\x00" + x + static).digest()


def kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    text = struct.pack(">I", 1) + label + context + struct.pack(">I", bits)
    return hmac.digest(key, text, "sha256")[: bits // 8]


def unsized(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size], data[2 + size :]


def begun(**changes: Any):
    options = {
        "attestation_key": public_area(AK),
        "endorsement_key": ek_public(EK),
        "certificate": load_certificate(EK_CERTIFICATE, what="EK"),
        "intermediates": (load_certificate(INTERMEDIATE.der, what="intermediate"),),
        "anchors": (load_certificate(ROOT.der, what="root"),),
        "now": NOW,
    } | changes
    return begin_enrolment(**options)


def enrolled(*, authority: Any = AUTHORITY, now_ms: int = NOW_MS, lifetime_s: int = 3600) -> bytes:
    credential, pending = begun()
    answer = activated(credential, EK, pending.attestation_key)
    return finish_enrolment(pending, answer, authority=authority, now_ms=now_ms, lifetime_s=lifetime_s)


def enrolment(*, key: Any = AK, endorsement_key: Any = EK, authority: Any = AUTHORITY, **changes: Any) -> bytes:
    """Return an enrolment as an authority could sign it without having asked the TPM."""
    record = TpmEnrolment(**{
        "attestation_key": parse_public(public_area(key)).name,
        "endorsement_key": key_digest(endorsement_key.public_key()),
        "issued_at": NOW_MS,
        "expires_at": NOW_MS + 3_600_000,
    } | changes)  # fmt: skip
    return statement_bytes(statement.sign(record, authority))


def statement_bytes(found: statement.Signed) -> bytes:
    return json.dumps(found.to_json(), sort_keys=True, separators=(",", ":")).encode()


TPM_BINDING = Binding(**{name: getattr(BINDING, name) for name in BINDING.__slots__} | {"profile": tpm.PROFILE})
CONFIGURED = {15: configuration_value(bytes.fromhex(TPM_BINDING.manifest))}
ENVELOPE_PCRS = registers(0, 2, 4, 7) | CONFIGURED
ANCHORS = (ROOT.der, spki(AUTHORITY))


def evidence(
    *,
    key: Any = AK,
    pcrs: dict[int, bytes] | None = None,
    binding: Binding = TPM_BINDING,
    device_digest: bytes = b"",
    message: bytes | None = None,
    **changes: Any,
) -> TpmEvidence:
    found = ENVELOPE_PCRS if pcrs is None else pcrs
    nonce = nonce_of(binding.report_data(device_digest))
    text = attest(found, nonce=nonce) if message is None else message
    options = {
        "quote": text,
        "signature": signed(text, key),
        "ak_public": public_area(key),
        "pcrs": found,
        "ek_certificate": EK_CERTIFICATE,
        "enrolment": enrolment(),
    } | changes
    return TpmEvidence(**options)


def envelope(found: TpmEvidence | None = None, *, binding: Binding = TPM_BINDING, **changes: Any) -> Envelope:
    options = {
        "profile": binding.profile,
        "evidence": (evidence(binding=binding) if found is None else found).encode(),
        "binding": binding.encoded,
        "endorsements": (INTERMEDIATE.der,),
    } | changes
    return Envelope(**options)
