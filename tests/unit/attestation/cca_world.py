"""A small Arm CCA platform of the test's own: its key, a Realm's key, and tokens in which every part can be replaced."""

import base64
import hashlib
import json

import cbor2
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from confed.attestation.evidence import Expectation
from confed.attestation.tee import arm_cca

UNCHECKED = Expectation(nonce=None, report_data=None)
REMOVED = object()
CPAK, RAK, OTHER_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
HASHES = {-7: hashes.SHA256(), -35: hashes.SHA384(), -36: hashes.SHA512()}
CURVES = {"secp256r1": (-7, 1, "P-256"), "secp384r1": (-35, 2, "P-384"), "secp521r1": (-36, 3, "P-521")}
IMPLEMENTATION = b"\x1a" * 32
INSTANCE = b"\x01" + b"\x1b" * 32
CHALLENGE = b"c" * 64
PERSONALIZATION = b"\x2b" * 32 + bytes(32)
RIM = b"\x3c" * 64
PLATFORM_PROFILE = "tag:arm.com,2023:cca_platform#1.0.0"
OLD_PLATFORM_PROFILE = "http://arm.com/CCA-SSD/1.0.0"
REALM_PROFILE = "tag:arm.com,2023:realm#1.0.0"
COMPONENTS = [
    {1: "BL", 2: b"\x4d" * 32, 4: "3.4.2", 5: b"\x5e" * 32, 6: "sha-256"},
    {1: "RMM", 2: b"\x4e" * 32, 5: b"\x5e" * 32},
]


def coordinates(key):
    numbers, size = key.public_key().public_numbers(), (key.curve.key_size + 7) // 8
    return numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")


def cose_key(key=RAK, **changes):
    """Return a COSE_Key; changes by the names of its labels, ``REMOVED`` leaves one out."""
    x, y = coordinates(key)
    fields = {1: 2, -1: CURVES[key.curve.name][1], -2: x, -3: y}
    labels = {"kty": 1, "alg": 3, "crv": -1, "x": -2, "y": -3, "extra": 2}
    fields |= {labels[name]: value for name, value in changes.items()}
    return cbor2.dumps({label: value for label, value in fields.items() if value is not REMOVED})


def point(key=RAK):
    return b"\x04" + b"".join(coordinates(key))


def jwk(key=CPAK, **changes):
    x, y = (base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in coordinates(key))
    fields = {"kty": "EC", "crv": CURVES[key.curve.name][2], "x": x, "y": y, **changes}
    return {name: value for name, value in fields.items() if value is not REMOVED}


def entry(key=CPAK, **changes):
    """Return an entry of a list of platform keys."""
    return {"pkey": jwk(key), "implementation-id": IMPLEMENTATION.hex(), "instance-id": INSTANCE.hex(), **changes}


def spki(key=CPAK, form="DER"):
    return key.public_key().public_bytes(
        getattr(serialization.Encoding, form), serialization.PublicFormat.SubjectPublicKeyInfo
    )


KEY = json.dumps(jwk()).encode()


def realm(**changes):
    """Return a Realm's claims by Arm's labels; changes by name."""
    labels = {
        "profile": 265, "challenge": 10, "personalization": 44235, "hash": 44236, "key": 44237, "rim": 44238,
        "rems": 44239, "key_hash": 44240, "extra": 1,
    }  # fmt: skip
    claims = {
        265: REALM_PROFILE, 10: CHALLENGE, 44235: PERSONALIZATION, 44236: "sha-512", 44237: cose_key(), 44238: RIM,
        44239: [bytes([index + 1]) * 64 for index in range(4)], 44240: "sha-256",
    }  # fmt: skip
    claims |= {labels[name]: value for name, value in changes.items()}
    return {label: value for label, value in claims.items() if value is not REMOVED}


def platform(bound, **changes):
    """Return a platform's claims for a Realm's; changes by name."""
    labels = {
        "profile": 265, "challenge": 10, "implementation": 2396, "instance": 256, "config": 2401, "lifecycle": 2395,
        "software": 2399, "service": 2400, "hash": 2402, "extra": 1,
    }  # fmt: skip
    names = {"sha-384": "sha384", "sha-512": "sha512"}
    algorithm = next((name for value, name in names.items() if value == bound.get(44240)), "sha256")
    key = bound.get(44237)
    claims = {
        265: PLATFORM_PROFILE, 10: hashlib.new(algorithm, key if isinstance(key, bytes) else b"").digest(),
        2396: IMPLEMENTATION, 256: INSTANCE, 2401: b"\x01\x02", 2395: 0x3003, 2399: COMPONENTS, 2402: "sha-256",
        2400: "https://verifier.example",
    }  # fmt: skip
    claims |= {labels[name]: value for name, value in changes.items()}
    return {label: value for label, value in claims.items() if value is not REMOVED}


def sign(claims, key, *, tag=b"\xd2", protected=None, unprotected=None):
    """Return a COSE_Sign1 of claims, or of bytes as they are."""
    body = claims if isinstance(claims, bytes) else cbor2.dumps(claims)
    algorithm = CURVES[key.curve.name][0]
    header = cbor2.dumps({1: algorithm}) if protected is None else protected
    signed = cbor2.dumps(["Signature1", header, b"", body])
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(HASHES[algorithm])))
    size = (key.curve.key_size + 7) // 8
    signature = r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return tag + cbor2.dumps([header, {} if unprotected is None else unprotected, body, signature])


def collection(platform_token, realm_token, *, tag=b"\xd9\x01\x8f", **extra):
    parts = {44234: platform_token, 44241: realm_token} | {int(label): value for label, value in extra.items()}
    return tag + cbor2.dumps(parts)


def token(*, realm_key=RAK, platform_key=CPAK, platform_changes=None, **realm_changes):
    """Return a token with some of its claims changed; the platform vouches for whatever key the Realm carries."""
    bound = realm(**realm_changes)
    return collection(sign(platform(bound, **(platform_changes or {})), platform_key), sign(bound, realm_key))


def platform_token(**changes):
    """Return a token with some of the platform's claims changed."""
    return token(platform_changes=changes)


def verify(data, *, endorsements=(KEY,), expectation=UNCHECKED, anchors=None):
    return arm_cca.verify_files(data, endorsements, expectation=expectation, now=None, anchors=anchors)
