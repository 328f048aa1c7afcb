"""The links from Intel's root to a quote, one by one, each with the error that says which one broke.

dcap-qvl decides whether a quote is genuine. Where it refuses, it says so with one kind of error, and some of what it
refuses is genuine and merely unacceptable: a debug TD, for instance. So after each refusal every link is looked at
here, with other code and in no order that depends on dcap-qvl's; only if all hold can its refusal have been one of
those:

1. the PCK certificate's chain, validity and revocation;
2. chain, revocation and signature of TCB info and QE identity;
3. the PCK certificate's key signed the quoting enclave's report;
4. that report binds the attestation key;
5. the attestation key signed the quote;
6. the quoting enclave is the one of the QE identity, and not in debug mode.

Source: Intel SGX ECDSA QuoteLibReference DCAP API, appendix A.4; Intel SGX PCK Certificate and CRL Profile
Specification.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import CertificateRevocationList

from confed.attestation.certificates import Certificate, load_certificates, require_chain, verify_signature
from confed.attestation.revocation import require_not_revoked
from confed.attestation.tee.intel_collateral import Collateral, Signed
from confed.attestation.tee.intel_quote import Quote
from confed.attestation.tee.intel_reports import read_enclave_report
from confed.errors import (
    CertificateChainError,
    EndorsementFormatError,
    EvidenceSignatureError,
    KeyBindingError,
    TrustAnchorError,
)

_CHAIN_LIMIT = 4
_SGX_DEBUG = 0x02


def require_links(
    quote: Quote, *, collateral: Collateral, anchors: Sequence[Certificate], now: datetime.datetime
) -> None:
    """Check every link from the anchors to the quote, except for TCB levels and what the TEE's own report says.

    Raises:
        TrustAnchorError, CertificateChainError, CertificateValidityError, AlgorithmError, EndorsementFormatError: a
            certificate.
        RevokedError, RevocationUnknownError: its revocation.
        EvidenceSignatureError: the signature of TCB info, QE identity, the QE's report or the quote.
        KeyBindingError: an attestation key that Intel's quoting enclave does not vouch for.
    """
    # 1.
    chain = load_certificates(quote.pck_chain, what="PCK chain", limit=_CHAIN_LIMIT)
    _require_chain(chain, "PCK", (collateral.pck_crl, collateral.root_crl), anchors=anchors, now=now)
    # 2.
    for name, signed in (("TCB info", collateral.tcb_info), ("QE identity", collateral.qe_identity)):
        _require_signed(signed, name, collateral.root_crl, anchors=anchors, now=now)
    # 3.
    _verify(chain[0].public_key, quote.qe_report_signature, quote.qe_report, what="QE report")
    # 4.
    report = read_enclave_report(quote.qe_report)
    bound = hashlib.sha256(quote.attestation_key + quote.qe_authentication).digest()
    if report.report_data != bound + bytes(32):
        raise KeyBindingError("attestation key", expected="the one that the QE report binds", got="another")
    # 5.
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.attestation_key)
    except ValueError as error:
        raise EvidenceSignatureError("attestation key", expected="a point of P-256", got="another") from error
    _verify(key, quote.signature, quote.signed, what="quote")
    # 6.
    _require_quoting_enclave(quote.qe_report, collateral.qe_identity.value)


def _require_chain(
    chain: Sequence[Certificate],
    what: str,
    crls: Sequence[CertificateRevocationList],
    *,
    anchors: Sequence[Certificate],
    now: datetime.datetime,
) -> None:
    """Check a chain, and each certificate against its issuer's list: ``crls`` in the same order, the root's last."""
    last = chain[-1]
    anchored = any(last.der == anchor.der for anchor in anchors)
    if not anchored and last.parsed.subject == last.parsed.issuer:
        raise TrustAnchorError(f"{what} chain", expected="a pinned root at its end", got=f"another {last.subject[:80]}")
    require_chain(chain, anchors=anchors, now=now, what=what)
    full = list(chain)
    if not anchored:
        full.append(next(anchor for anchor in anchors if anchor.parsed.subject == full[-1].parsed.issuer))
    if len(full) != len(crls) + 1:
        raise CertificateChainError(f"{what} chain", expected=f"{len(crls) + 1} certificates", got=len(full))
    # The root has nobody above it: its own list says whether Intel has withdrawn it.
    links = [*itertools.pairwise(full), (full[-1], full[-1])]
    for (certificate, issuer), crl in zip(links, (*crls, crls[-1]), strict=True):
        require_not_revoked(certificate, issuer=issuer, crl=crl, now=now, what=what)


def _require_signed(
    signed: Signed,
    what: str,
    root_crl: CertificateRevocationList,
    *,
    anchors: Sequence[Certificate],
    now: datetime.datetime,
) -> None:
    _require_chain(signed.chain, f"{what} signer", (root_crl,), anchors=anchors, now=now)
    _verify(signed.chain[0].public_key, signed.signature, signed.text, what=what)


def _verify(key: PublicKeyTypes, signature: bytes, data: bytes, *, what: str) -> None:
    half = len(signature) // 2
    numbers = (int.from_bytes(signature[:half]), int.from_bytes(signature[half:]))
    verify_signature(key, encode_dss_signature(*numbers), data, algorithm=hashes.SHA256(), what=what)


def _require_quoting_enclave(qe_report: bytes, identity: Mapping[str, Any]) -> None:
    report = read_enclave_report(qe_report)
    selected, select_mask = (_bytes(identity, key, 4) for key in ("miscselect", "miscselectMask"))
    attributes, mask = (_bytes(identity, key, 16) for key in ("attributes", "attributesMask"))
    found = report.attributes + report.xfrm
    holds = {
        "MRSIGNER": report.mr_signer == _bytes(identity, "mrsigner", 32),
        "ISVPRODID": report.isv_prod_id == identity.get("isvprodid"),
        "MISCSELECT": _masked(report.misc_select, select_mask) == _masked(selected, select_mask),
        "ATTRIBUTES": _masked(found, mask) == _masked(attributes, mask),
        "DEBUG": not report.attributes[0] & _SGX_DEBUG,
    }
    failed = [name for name, held in holds.items() if not held]
    if failed:
        raise KeyBindingError("quoting enclave", expected="the one of the QE identity", got=f"another {failed[0]}")


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(byte & bits for byte, bits in zip(value, mask, strict=True))


def _bytes(identity: Mapping[str, Any], key: str, size: int) -> bytes:
    text = identity.get(key)
    try:
        found = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        found = b""
    if len(found) != size:
        raise EndorsementFormatError(f"collateral.qe_identity.{key}", expected=f"{size} bytes", got=str(text)[:40])
    return found
