"""A small Azure: a paravisor's report around the small AMD's and the small Intel's, and a virtual TPM's quote."""

import base64
import functools
import hashlib
import json
import struct

import intel_world as intel
import sev_snp_world as amd
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from confed.attestation.evidence import Expectation
from confed.attestation.tee import azure
from confed.attestation.tee.azure_evidence import AzureEvidence

UNCHECKED = Expectation(nonce=None, report_data=None)
REMOVED = object()
NONCE = b"a nonce of the verifier's"
USER_DATA = b"u" * 64
VM_ID = "26F8BC30-774E-4290-8E7A-535F3B672AEE"
PCRS = {number: bytes([0x40 + number]) * 32 for number in range(24)} | {16: bytes(32), 23: bytes(32)}
SNP_ANCHORS, TDX_ANCHORS = amd.ROOTS, intel.ANCHORS
SNP_ENDORSEMENTS, TDX_ENDORSEMENTS = (amd.VCEK, amd.ASK), (intel.good(),)
NOW = amd.NOW
SETTINGS = {
    "console-enabled": True,
    "interactive-console-enabled": False,
    "root-cert-thumbprint": "6nZZnYaJc4KqUZ",
    "secure-boot": True,
    "tpm-enabled": True,
    "tpm-persisted": True,
    "filtered-vpci-devices-allowed": False,
    "vmUniqueId": VM_ID,
}


@functools.cache
def tpm_key(owner="vTPM"):
    return rsa.generate_private_key(65537, 2048)


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def changed(value, changes):
    return {name: found for name, found in (value | changes).items() if found is not REMOVED}


def jwk(key=None, **changes):
    number = (key or tpm_key()).public_key().public_numbers().n
    modulus = number.to_bytes((number.bit_length() + 7) // 8, "big")
    fields = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": base64url(modulus)}
    return changed(fields, changes)


def runtime(*, keys=None, settings=None, **changes):
    """Return runtime data; ``settings`` changes the machine's, ``REMOVED`` leaves something out."""
    found = {
        "keys": [jwk(), jwk(tpm_key("EK"), kid="HCLEkPub", key_ops=["encrypt"])] if keys is None else keys,
        "vm-configuration": changed(SETTINGS, settings or {}),
        "user-data": USER_DATA.hex(),
    }
    return json.dumps(changed(found, changes), separators=(",", ":")).encode()


def digest(data, name="sha256"):
    return hashlib.new(name, data).digest().ljust(64, b"\x00")


def hcl(
    hardware, data, *, kind=2, signature=b"HCLA", version=2, request=2, status=0, reserved=bytes(12), data_version=1,
    hash_type=1, size=None, data_size=None, total=None, pad=100,
):  # fmt: skip
    """Return a paravisor's report; every field of its headers can be replaced."""
    size = len(data) if size is None else size
    data_size = 20 + size if data_size is None else data_size
    total = 1216 + data_size if total is None else total
    head = struct.pack("<4sIIII12s", signature, version, total, request, status, reserved)
    middle = struct.pack("<IIIII", data_size, data_version, kind, hash_type, size)
    return head + hardware.ljust(1184, b"\x00") + middle + data + bytes(pad)


def quote_message(*, nonce=NONCE, numbers=range(24), pcrs=PCRS, bank=0x000B, magic=0xFF544347, kind=0x8018):
    bitmap = sum(1 << number for number in numbers).to_bytes(3, "little")
    values = hashlib.sha256(b"".join(pcrs[number] for number in numbers)).digest()
    return (
        struct.pack(">IH", magic, kind)
        + struct.pack(">H", 34) + b"\x00\x0b" + b"q" * 32
        + struct.pack(">H", len(nonce)) + nonce
        + struct.pack(">QIIBQ", 7, 1, 2, 1, 0x2020031200120003)
        + struct.pack(">IHB", 1, bank, 3) + bitmap
        + struct.pack(">H", 32) + values
    )  # fmt: skip


def sign(message, key=None):
    return (key or tpm_key()).sign(message, padding.PKCS1v15(), hashes.SHA256())


def snp_report(data, **changes):
    return amd.report(report_data=digest(data), **changes)


def snp(*, data=None, report=None, hcl_changes=None, message=None, signature=None, pcrs=PCRS, nonce=NONCE, **changes):
    """Return evidence of SEV-SNP; the hardware signs whatever runtime data there is, unless ``report`` is given."""
    data = runtime() if data is None else data
    report = snp_report(data, **changes) if report is None else report
    message = quote_message(nonce=nonce, pcrs=pcrs, numbers=sorted(pcrs)) if message is None else message
    return AzureEvidence(
        hcl_report=hcl(report, data, **(hcl_changes or {})),
        quote=message,
        signature=sign(message) if signature is None else signature,
        pcrs=pcrs,
    )


def tdx(*, data=None, quote=None, hcl_changes=None, message=None, pcrs=PCRS, nonce=NONCE, **changes):
    """Return evidence of TDX, likewise."""
    data = runtime() if data is None else data
    quote = intel.td_quote(report_data=digest(data), **changes) if quote is None else quote
    message = quote_message(nonce=nonce, pcrs=pcrs, numbers=sorted(pcrs)) if message is None else message
    return AzureEvidence(
        hcl_report=hcl(b"TD report", data, **{"kind": 4, **(hcl_changes or {})}),
        quote=message,
        signature=sign(message),
        pcrs=pcrs,
        td_quote=quote,
    )


def verify_snp(evidence, *, endorsements=SNP_ENDORSEMENTS, event_logs=(), nonce=NONCE, now=NOW, anchors=SNP_ANCHORS):
    return azure.verify_snp(
        evidence, endorsements=endorsements, event_logs=event_logs, nonce=nonce, now=now, anchors=anchors
    )


def verify_tdx(
    evidence, *, endorsements=TDX_ENDORSEMENTS, event_logs=(), nonce=NONCE, now=intel.NOW, anchors=TDX_ANCHORS
):
    return azure.verify_tdx(
        evidence, endorsements=endorsements, event_logs=event_logs, nonce=nonce, now=now, anchors=anchors
    )


def version_0(evidence, **changes):
    """Return Trustee's form without a version, as a JSON value."""
    quote = {
        "message": list(evidence.quote),
        "pcrs": [list(evidence.pcrs[number]) for number in sorted(evidence.pcrs)],
        "signature": list(evidence.signature),
    }
    if evidence.td_quote:
        found = {"tpm_quote": quote, "hcl_report": list(evidence.hcl_report), "td_quote": list(evidence.td_quote)}
    else:
        pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(amd.VCEK) + b"-----END CERTIFICATE-----\n"
        found = {"quote": quote, "report": list(evidence.hcl_report), "vcek": pem.decode()}
    return changed(found, changes)


def version_1(evidence, **changes):
    """Return Trustee's form of version 1, as a JSON value."""
    quote = {
        "message": evidence.quote.hex(),
        "pcrs": [evidence.pcrs[number].hex() for number in sorted(evidence.pcrs)],
        "signature": evidence.signature.hex(),
    }
    found = {"version": 1, "tpm_quote": quote, "hcl_report": base64url(evidence.hcl_report)}
    found |= {"td_quote": base64url(evidence.td_quote)} if evidence.td_quote else {"vcek": base64url(amd.VCEK)}
    return changed(found, changes)


def file(value):
    return json.dumps(value).encode()
