"""The endorsements of SEV-SNP reports: AMD's certificates and revocation lists, as they come and as they are pinned.

Certificates that come along are hints: one is used only if its chain ends at a pinned root. AMD's own authorities are
pinned beside its roots so that a report and the certificate of its key are enough; they are not trusted by themselves.

What a certificate's bytes say does not change, so the last few that were read are kept; whether they hold, and hold
now, is checked every time.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509

from confed.attestation.certificates import CERTIFICATE_LIMIT_BYTES, Certificate, load_certificate, load_certificates
from confed.attestation.revocation import load_crl
from confed.attestation.tee.sev_snp_report import Product
from confed.attestation.tee.sev_snp_vek import common_name
from confed.errors import EndorsementFormatError

_LIMIT = 32
_CRL_LIMIT_BYTES = 64 * 1024
_CACHED = 128
_DER_SEQUENCE = b"\x30"
_PEM_BEGIN = b"-----BEGIN "
_CRL_BEGIN = b"-----BEGIN X509 CRL-----"
_CERTIFICATE_BEGIN = b"-----BEGIN CERTIFICATE-----"


class Endorsements(NamedTuple):
    """Certificates and revocation lists, in the order in which they came."""

    certificates: tuple[Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]


def read_endorsements(items: Sequence[bytes]) -> Endorsements:
    """Return the certificates and revocation lists among endorsements, told apart by content; each once.

    Raises:
        EndorsementFormatError: something else, or too many.
    """
    if len(items) > _LIMIT:
        raise EndorsementFormatError("endorsements", expected=f"at most {_LIMIT}", got=len(items))
    certificates: dict[bytes, Certificate] = {}
    crls: dict[bytes, x509.CertificateRevocationList] = {}
    for item in items:
        data = _from_pem_start(item)
        found, lists = _read_again(data) if len(data) <= CERTIFICATE_LIMIT_BYTES else _read(data)
        certificates |= {certificate.der: certificate for certificate in found}
        crls |= {crl.tbs_certlist_bytes: crl for crl in lists}
    if len(certificates) > _LIMIT:
        raise EndorsementFormatError("certificates", expected=f"at most {_LIMIT}", got=len(certificates))
    return Endorsements(tuple(certificates.values()), tuple(crls.values()))


def pinned_roots() -> tuple[Certificate, ...]:
    """Return AMD's roots (ARK) of Milan, Genoa and Turin."""
    names = {f"ARK-{product}" for product in Product}
    return tuple(certificate for certificate in pinned() if common_name(certificate) in names)


def read_anchors(anchors: Sequence[bytes]) -> tuple[Certificate, ...]:
    """Return the roots that a relying party has pinned.

    Raises:
        EndorsementFormatError: bytes that are no certificate.
    """
    return tuple(_read_anchor(bytes(anchor)) for anchor in anchors)


@functools.lru_cache(maxsize=_CACHED)
def _read_anchor(anchor: bytes) -> Certificate:
    return load_certificate(anchor, what="trust anchor")


@functools.cache
def pinned() -> tuple[Certificate, ...]:
    """Return AMD's roots, ASKs and ASVKs; only the roots are trusted."""
    data = importlib.resources.files("confed.attestation.roots").joinpath("amd.pem").read_bytes()
    return load_certificates(_from_pem_start(data), what="AMD's certificates")


@functools.lru_cache(maxsize=_CACHED)
def _read_again(data: bytes) -> Endorsements:
    """Return what is in a small endorsement: the same few come with every report of a fleet."""
    return _read(data)


def _read(data: bytes) -> Endorsements:
    if data.startswith(_PEM_BEGIN):
        lists = data.count(_CRL_BEGIN)
        if lists > 1:
            raise EndorsementFormatError("endorsement", expected="one revocation list in a file", got=lists)
        has_certificates = not lists or _CERTIFICATE_BEGIN in data
        certificates = load_certificates(data, what="endorsement") if has_certificates else ()
        return Endorsements(certificates, (_read_crl(data),) if lists else ())
    try:
        return Endorsements(load_certificates(data, what="endorsement"), ())
    except EndorsementFormatError:
        return Endorsements((), (_read_crl(data),))


def _read_crl(data: bytes) -> x509.CertificateRevocationList:
    """Return a revocation list that is small and of which every entry can be read."""
    if len(data) > _CRL_LIMIT_BYTES:
        raise EndorsementFormatError("revocation list", expected=f"at most {_CRL_LIMIT_BYTES} bytes", got=len(data))
    crl = load_crl(data, what="certificate or revocation list")
    try:
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc, [entry.serial_number for entry in crl]
    except (ValueError, TypeError) as error:
        raise EndorsementFormatError("revocation list", expected="entries", got="something else") from error
    return crl


def _from_pem_start(data: bytes) -> bytes:
    """Return PEM text without what stands before its first block; anything else as it is."""
    start = -1 if data.startswith(_DER_SEQUENCE) else data.find(_PEM_BEGIN)
    return data[max(start, 0) :]
