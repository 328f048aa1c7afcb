"""Is this an answer to that need at all? Asked before anything is kept, so that a wrong answer is not served for days.

Plausible is not genuine: no signature is checked and no root is known here. What is checked is that the bytes are of
the kind that was asked for and speak of the same chip, product, platform, firmware or certificate, and until when
their issuer vouches for them. They are read by the readers that verifiers use; a verifier checks all of it again, and
whether it is genuine.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from cryptography import x509
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate, load_certificate, load_certificates
from confed.attestation.endorsements import (
    AmdChain,
    AmdCrl,
    AmdVcek,
    Endorsement,
    IntelCollateral,
    Need,
    NvidiaOcsp,
    NvidiaRim,
)
from confed.attestation.revocation import issuer_of, load_crl
from confed.attestation.tee import ocsp, xmldsig
from confed.attestation.tee.intel_collateral import parse_collateral
from confed.attestation.tee.nvidia_identity import SWITCH, architecture_of
from confed.attestation.tee.nvidia_rim import unverified_name
from confed.attestation.tee.sev_snp_report import SigningKey
from confed.attestation.tee.sev_snp_vek import common_name, read_vek
from confed.errors import EndorsementFormatError, EndorsementMismatchError, StaleEndorsementError

_CHIP_ID_BYTES = 64
# Intel SGX PCK Certificate and CRL Profile Specification, section 1.2.
PCK_ISSUERS = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}
"""Who certifies a platform, by the name that Intel's service has for the authority."""

_INTEL_ROOT = "Intel SGX Root CA"
# How NVIDIA's service names manifests (tee.nvidia_opaque, manifest_ids).
_SWITCH_MANIFEST, _DRIVER_MANIFEST = "NV_SWITCH_", "_DRIVER_"


def examined(need: Need, data: bytes, *, fetched_at: int) -> Endorsement:
    """Return the endorsement that an answer is, with the time until which its issuer vouches for it.

    Raises:
        AttestationError: not of the kind that was asked for, by the class that its reader gives.
        EndorsementMismatchError: of another chip, product, platform, firmware or certificate.
    """
    match need:
        case AmdVcek():
            ends = _vcek(need, data)
        case AmdChain():
            ends = _amd_chain(need, data)
        case AmdCrl():
            ends = _list_end(load_crl(data, what="AMD revocation list"), issuer=f"ARK-{need.product}")
        case IntelCollateral():
            ends = _collateral(need, data)
        case NvidiaRim():
            ends = _rim(need, data)
        case NvidiaOcsp():
            ends = _ocsp(need, data)
    return Endorsement(need=need, data=data, fetched_at=fetched_at, expires_at=int(ends.timestamp() * 1000))


def require_current(endorsement: Endorsement, *, now_ms: int) -> None:
    """Refuse an endorsement for which its issuer no longer vouches.

    Raises:
        StaleEndorsementError: it has expired.
    """
    if now_ms > endorsement.expires_at:
        raise StaleEndorsementError(endorsement.need.KIND, expected="one that has not expired", got="one that has")


def rim_signers(data: bytes) -> tuple[Certificate, ...]:
    """Return the certificates that a manifest brings, leaf first, none of which is verified.

    Raises:
        ReferenceManifestError, AlgorithmError, EndorsementFormatError: not a manifest of the one form.
    """
    found = xmldsig.read_document(data, what="manifest").certificates
    return tuple(load_certificate(der, what="manifest certificate") for der in found)


def _vcek(need: AmdVcek, data: bytes) -> datetime.datetime:
    certificate = load_certificate(data, what="VCEK")
    if certificate.der != data:
        raise EndorsementFormatError("VCEK", expected="a certificate in DER", got="PEM")
    vek = read_vek(certificate)
    chip_id = bytes.fromhex(need.hwid).ljust(_CHIP_ID_BYTES, b"\0")
    _require_equal("VCEK kind and product", (SigningKey.VCEK, need.product), (vek.kind, vek.product))
    _require_equal("VCEK TCB", _tcb_bytes(need).hex(), vek.tcb.hex())
    _require_equal("VCEK chip", chip_id, vek.chip_id)
    return certificate.parsed.not_valid_after_utc


def _tcb_bytes(need: AmdVcek) -> bytes:
    """Return TCB_VERSION, lowest byte first. Source: AMD 56860, section 2.3."""
    if need.fmc is not None:
        return bytes((need.fmc, need.bootloader, need.tee, need.snp, 0, 0, 0, need.microcode))
    return bytes((need.bootloader, need.tee, 0, 0, 0, 0, need.snp, need.microcode))


def _amd_chain(need: AmdChain, data: bytes) -> datetime.datetime:
    chain = load_certificates(data, what="AMD chain")
    middle = f"SEV-VLEK-{need.product}" if need.key == "vlek" else f"SEV-{need.product}"
    _require_equal("AMD chain", (middle, f"ARK-{need.product}"), tuple(common_name(entry) for entry in chain))
    return _end_of(chain)


def _collateral(need: IntelCollateral, data: bytes) -> datetime.datetime:
    collateral = parse_collateral(data)
    found = (collateral.tee.lower(), collateral.fmspc.hex().upper())
    _require_equal("collateral", (need.tee, need.fmspc), found)
    _list_end(collateral.root_crl, issuer=_INTEL_ROOT)
    _list_end(collateral.pck_crl, issuer=PCK_ISSUERS[need.ca])
    return collateral.ends


def _rim(need: NvidiaRim, data: bytes) -> datetime.datetime:
    name = unverified_name(data)
    # The ids of drivers' manifests end in the version as it is, those of a VBIOS in capitals and without its dots.
    rest, asked = need.id.rsplit("_", 1)
    if asked.upper() not in (name.version, name.version.replace(".", "")):
        raise EndorsementMismatchError("manifest version", expected=asked, got=name.version)
    if need.id.startswith(_SWITCH_MANIFEST) != (name.device == SWITCH):
        raise EndorsementMismatchError("manifest", expected=need.id, got=f"one of a {name.device}")
    # NVIDIA's service gives a driver of one version for several chips, each in a manifest of its own.
    chip = architecture_of(rest.rsplit("_", 1)[-1])
    if _DRIVER_MANIFEST in need.id and chip != name.architecture:
        raise EndorsementMismatchError("manifest architecture", expected=chip, got=name.architecture)
    return _end_of(rim_signers(data))


def _ocsp(need: NvidiaOcsp, data: bytes) -> datetime.datetime:
    singles = ocsp.load_response(data).singles
    _require_equal("OCSP statuses", 1, len(singles))
    single = singles[0]
    found = (single.algorithm, single.issuer_name_hash.hex(), single.issuer_key_hash.hex(), f"{single.serial:x}")
    _require_equal("OCSP status", ("sha384", need.issuer_name, need.issuer_key, need.serial), found)
    if single.next_update is None:
        raise EndorsementFormatError("OCSP response", expected="a time of the next update", got="none")
    return single.next_update


def _list_end(crl: x509.CertificateRevocationList, *, issuer: str) -> datetime.datetime:
    names = [name.value for name in issuer_of(crl).get_attributes_for_oid(NameOID.COMMON_NAME)]
    _require_equal("revocation list issuer", [issuer], names)
    if crl.next_update_utc is None:
        raise EndorsementFormatError("revocation list", expected="a time of the next update", got="none")
    return crl.next_update_utc


def _end_of(certificates: Iterable[Certificate]) -> datetime.datetime:
    return min(certificate.parsed.not_valid_after_utc for certificate in certificates)


def _require_equal(field: str, expected: object, got: object) -> None:
    if expected != got:
        raise EndorsementMismatchError(field, expected=str(expected)[:120], got=str(got)[:120])
