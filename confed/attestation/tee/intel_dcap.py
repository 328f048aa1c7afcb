"""Is a DCAP quote of Intel genuine? What SGX and TDX share, with dcap-qvl deciding.

``verify_quote`` goes this way:

1. the quote is read strictly, and is of the TEE that was asked for;
2. its PCK certificate says which platform it is of;
3. a collateral of that platform family is chosen whose time is now;
4. trust anchors are required, and valid now; the roots that stand in the quote and in the collateral are one of them,
   byte for byte: dcap-qvl reads over them, and what nobody reads could be anything;
5. dcap-qvl verifies chains, revocation lists, TCB info, QE identity and signatures, and evaluates the TCB;
6. what it has read is compared with what was read here, byte for byte: two readers of a quote may not differ;
7. where dcap-qvl refuses, ``intel_links`` looks at every link from the anchors to the quote. A broken one is the
   reason. If all hold, the quote is genuine, and dcap-qvl has refused what the TEE's report says or its TCB level: the
   claims then carry a TCB status that no policy can accept (``UNACCEPTABLE``).

So debug evidence with a valid signature is genuine, with a broken one it is not, whatever order dcap-qvl checks in, and
evidence that dcap-qvl has refused is never accepted.

Source: dcap-qvl 0.7 (Phala Network), whose ``claims_only`` policy leaves every appraisal to its caller.
"""

from __future__ import annotations

import datetime
import functools
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import dcap_qvl

from confed.attestation.certificates import Certificate, load_certificate, load_certificates, require_valid
from confed.attestation.evidence import Expectation
from confed.attestation.tee.intel_collateral import Collateral, choose_collateral, common_name
from confed.attestation.tee.intel_links import require_links
from confed.attestation.tee.intel_quote import Quote, TeeKind, parse_quote
from confed.errors import (
    BindingMismatchError,
    CertificateChainError,
    EndorsementFormatError,
    EvidenceFormatError,
    EvidenceSignatureError,
    EvidenceVersionError,
    NonceError,
    TrustAnchorError,
)

NO_MATCHING_LEVEL = "NoMatchingLevel"
"""A platform, quoting enclave or TDX module below every TCB level."""

UNKNOWN_MODULE = "UnknownModule"
"""A TDX module whose signer, attributes or version TCB info does not know."""

NOT_EVALUATED = "NotEvaluated"
"""A report that dcap-qvl refuses for what it says, before it tells the TCB status."""

REVOKED = "Revoked"

UNACCEPTABLE = frozenset({NO_MATCHING_LEVEL, UNKNOWN_MODULE, NOT_EVALUATED, REVOKED})
"""Statuses that no policy can accept."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_ANCHOR_LIMIT = 4
_REPORT_DATA_BYTES = 64
# What dcap-qvl 0.7 says when every signature held (src/verify.rs: match_platform_tcb, validate_attrs and the end of
# verify_impl), and of a quoting enclave below every level (match_qe_tcb_level), by what it means.
_REFUSALS = (
    (re.compile(r"No matching TCB level found"), NO_MATCHING_LEVEL),
    (re.compile(r"QE ISVSVN \d+ is below minimum required \d+ from QE Identity"), NO_MATCHING_LEVEL),
    (re.compile(r"TDX module TCB level check"), NO_MATCHING_LEVEL),
    (re.compile(r"Failed to evaluate the current TDX TCB"), NO_MATCHING_LEVEL),
    (re.compile(r"TDX module identity check"), UNKNOWN_MODULE),
    (re.compile(r"TCB status is invalid: Revoked"), REVOKED),
    (re.compile(r"Debug mode is enabled"), NOT_EVALUATED),
    (re.compile(r"TD profiling is enabled"), NOT_EVALUATED),
    (re.compile(r"TD migration is enabled"), NOT_EVALUATED),
    (re.compile(r"SERVTD_EXT is enabled"), NOT_EVALUATED),
    (re.compile(r"Reserved bits in TD attributes are set"), NOT_EVALUATED),
    (re.compile(r"SEPT_VE_DISABLE is not enabled"), NOT_EVALUATED),
    (re.compile(r"Invalid MR service TD"), NOT_EVALUATED),
)
# What it says of TCB info and QE identity that are signed and still not of the form that it knows.
_MALFORMED = re.compile(
    r"Failed to (decode|parse)|Unsupported QE Identity|No TCB levels|.* component count mismatch|.* TCB info in the"
)
_REFUSAL_PREFIX = "Verification failed: "
# Intel SGX PCK Certificate and CRL Profile Specification, section 1.2: who issues PCK certificates.
_PCK_CHAIN = (
    ("Intel SGX PCK Certificate",),
    ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"),
    ("Intel SGX Root CA",),
)
# The same, section 1.3.5: SGX Type.
_SGX_TYPES = {0: "standard", 1: "scalable", 2: "scalable-with-integrity"}
_NUMBER_SIZES = {"misc_select": 4, "isv_prod_id": 2, "isv_svn": 2}
_PEM_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
# Intel's quoting enclaves end the text with a zero.
_BETWEEN_BLOCKS = b" \t\r\n\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformClaims:
    """What Intel certified about the platform, from the PCK certificate.

    Attributes:
        fmspc: family, model, stepping, platform type and custom SKU.
        ppid: the processor package's identifier.
        platform_instance_id: of a platform with several packages; empty where it has none.
        pce_id, pce_svn, cpu_svn: the provisioning enclave, and the TCB that the certificate is for.
        sgx_type: ``standard``, ``scalable`` or ``scalable-with-integrity``.
    """

    fmspc: bytes
    ppid: bytes
    platform_instance_id: bytes
    pce_id: bytes
    pce_svn: int
    cpu_svn: bytes
    sgx_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbClaims:
    """How Intel judges the platform's TCB, as of the collateral.

    Attributes:
        status: the worst of platform, TDX module and quoting enclave; one of Intel's, or of ``UNACCEPTABLE``.
        platform_status, qe_status: apart; empty where dcap-qvl has refused.
        advisory_ids: Intel's advisories that are not mitigated, without those of a refused report.
        tcb_date, qe_tcb_date: the dates of the TCB levels that matched; empty where dcap-qvl has refused.
        evaluation_number: tcbEvaluationDataNumber, the smaller of TCB info and QE identity.
        collateral_begins, collateral_ends: when the collateral is valid, as ISO 8601 in UTC.
        refusal: dcap-qvl's words where it has refused; otherwise empty.
    """

    status: str
    platform_status: str
    qe_status: str
    advisory_ids: tuple[str, ...]
    tcb_date: str
    qe_tcb_date: str
    evaluation_number: int
    collateral_begins: str
    collateral_ends: str
    refusal: str


class Verified(NamedTuple):
    """A genuine quote, and what Intel says about its platform."""

    quote: Quote
    platform: PlatformClaims
    tcb: TcbClaims


def verify_quote(
    data: bytes,
    *,
    tee: TeeKind,
    collateral: Sequence[bytes],
    anchors: Sequence[bytes],
    now: datetime.datetime,
) -> Verified:
    """Return a quote that is genuine, whether or not it is acceptable.

    Args:
        data: the quote, zero padding allowed.
        tee: which TEE it must be of.
        collateral: JSON in dcap-qvl's form; the first one of the quote's platform family that is of this time is used.
        anchors: Intel's root, or a test's, in DER; at most 4.
        now: aware time to judge at.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError, EvidenceVersionError, AlgorithmError: the form.
        MissingEndorsementError, EndorsementMismatchError, StaleEndorsementError, EndorsementFormatError: collateral.
        TrustAnchorError, CertificateChainError, CertificateValidityError, RevokedError, RevocationUnknownError,
        EvidenceSignatureError, KeyBindingError: see ``intel_links``.
    """
    # 1.
    quote = parse_quote(data)
    if quote.tee is not tee:
        raise EvidenceVersionError("quote TEE type", expected=tee, got=quote.tee)
    # 2.
    platform, chain = _read_chain(quote.pck_chain)
    # 3.
    chosen = choose_collateral(collateral, tee=tee, fmspc=platform.fmspc, pce_id=platform.pce_id, now=now)
    # 4.
    root = _require_root(chain, chosen, _roots(anchors, now))
    # 5.
    try:
        claims = _dcap_qvl(quote, chosen, root, int(now.timestamp()))
    except ValueError as error:
        # 7.
        require_links(quote, collateral=chosen, anchors=(root,), now=now)
        status, refusal = _refused(str(error).removeprefix(_REFUSAL_PREFIX))
        return Verified(quote, platform, _tcb_of(chosen, status=status, refusal=refusal))
    # 6.
    _require_same(claims, quote, platform)
    return Verified(quote, platform, _tcb(claims, chosen))


@functools.cache
def pinned_roots() -> tuple[bytes, ...]:
    """Return Intel's SGX Root CA in DER."""
    data = importlib.resources.files("confed.attestation.roots").joinpath("intel.pem").read_bytes()
    return (load_certificate(data[data.index(b"-----BEGIN") :], what="Intel's root").der,)


def require_expected(report_data: bytes, expectation: Expectation) -> None:
    """Compare the 64 bytes of a report with what the caller expects; a nonce must be their beginning.

    Raises:
        NonceError: another nonce, none, or one that does not fit.
        BindingMismatchError: other report data.
    """
    nonce, expected = expectation.nonce, expectation.report_data
    if nonce is not None and not (0 < len(nonce) <= _REPORT_DATA_BYTES and report_data.startswith(nonce)):
        raise NonceError("nonce at the beginning of report_data", expected=nonce.hex()[:32], got=report_data.hex()[:32])
    if expected is not None and expected.ljust(_REPORT_DATA_BYTES, b"\x00") != report_data:
        raise BindingMismatchError("report_data", expected=expected.hex()[:32], got=report_data.hex()[:32])


def configuration_of(field: bytes) -> str:
    """Return a measured configuration in hexadecimal: 32 bytes where the rest is zeros, as confed sets it, else all."""
    return field[:32].hex() if not any(field[32:]) else field.hex()


def time_of(now_ms: int) -> datetime.datetime:
    """Return the aware time of Unix milliseconds."""
    return _EPOCH + datetime.timedelta(milliseconds=now_ms)


def _dcap_qvl(quote: Quote, collateral: Collateral, root: Certificate, now_s: int) -> Mapping[str, Any]:
    policy = dcap_qvl.QuotePolicy.claims_only(now_s)
    verifier = dcap_qvl.QuoteVerifier(root.der)
    return json.loads(verifier.verify_with_policy(quote.data, collateral.source, now_s, policy).to_json())


def _refused(refusal: str) -> tuple[str, str]:
    """Return the status that dcap-qvl's words stand for, once every link has held."""
    for words, status in _REFUSALS:
        if words.match(refusal):
            return status, refusal[:200]
    if _MALFORMED.match(refusal):
        raise EndorsementFormatError("collateral", expected="a form that dcap-qvl knows", got=refusal[:200])
    # dcap-qvl has seen something that was not seen here: it decides.
    raise EvidenceSignatureError("dcap-qvl", expected="a quote that it accepts", got=refusal[:200])


def _require_same(claims: Mapping[str, Any], quote: Quote, platform: PlatformClaims) -> None:
    (body,) = claims["report"].values()
    pck = claims["platform"]["pck"]
    if _flat(body) != quote.body or (bytes(pck["fmspc"]), bytes(pck["ppid"])) != (platform.fmspc, platform.ppid):
        raise EvidenceFormatError("quote", expected="one reading of it", got="two")


def _flat(fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a report that dcap-qvl tells field by field, in their order."""
    parts: list[bytes] = []
    for name, value in fields.items():
        if isinstance(value, int):
            parts.append(value.to_bytes(_NUMBER_SIZES[name], "little"))
        else:
            parts.append(bytes.fromhex(value) if isinstance(value, str) else _flat(value))
    return b"".join(parts)


def _tcb(claims: Mapping[str, Any], collateral: Collateral) -> TcbClaims:
    platform, qe = claims["platform"]["tcb_level"], claims["qe"]["tcb_level"]
    return _tcb_of(
        collateral,
        status=claims["tcb"]["status"],
        platform_status=platform["tcbStatus"],
        qe_status=qe["tcbStatus"],
        advisory_ids=tuple(claims["tcb"]["advisory_ids"]),
        tcb_date=platform["tcbDate"],
        qe_tcb_date=qe["tcbDate"],
    )


def _tcb_of(
    collateral: Collateral,
    *,
    status: str,
    platform_status: str = "",
    qe_status: str = "",
    advisory_ids: tuple[str, ...] = (),
    tcb_date: str = "",
    qe_tcb_date: str = "",
    refusal: str = "",
) -> TcbClaims:
    return TcbClaims(
        status=status,
        platform_status=platform_status,
        qe_status=qe_status,
        advisory_ids=advisory_ids,
        tcb_date=tcb_date,
        qe_tcb_date=qe_tcb_date,
        evaluation_number=collateral.evaluation_number,
        collateral_begins=f"{collateral.begins:%FT%TZ}",
        collateral_ends=f"{collateral.ends:%FT%TZ}",
        refusal=refusal,
    )


def _require_root(chain: Sequence[Certificate], collateral: Collateral, roots: Sequence[Certificate]) -> Certificate:
    """Return the anchor that a PCK chain ends with, and the collateral's chains too where they name a root."""
    root = next((root for root in roots if len(chain) == len(_PCK_CHAIN) and root.der == chain[-1].der), None)
    if root is None:
        raise TrustAnchorError(
            "PCK chain", expected="a pinned root at its end", got=f"another {chain[-1].subject[:80]}"
        )
    for name, issuers in (
        ("TCB info", collateral.tcb_info.chain),
        ("QE identity", collateral.qe_identity.chain),
        ("PCK revocation list", collateral.pck_crl_chain),
    ):
        if any(issuer.der != root.der for issuer in issuers[1:]):
            raise TrustAnchorError(f"{name} issuers", expected="the quote's root at their end", got="another")
    return root


@functools.lru_cache(maxsize=64)
def _read_chain(pck_chain: bytes) -> tuple[PlatformClaims, tuple[Certificate, ...]]:
    """Return what the first certificate of a chain says about its platform, and the chain; kept by the chain's bytes.

    The chain must be in its one form: the PCK certificate, one of Intel's two authorities for platforms, and the root,
    with nothing written between them. Whether it holds is decided with the signatures.
    """
    chain = load_certificates(pck_chain, what="PCK chain", limit=len(_PCK_CHAIN))
    if _PEM_BLOCK.sub(b"", pck_chain).strip(_BETWEEN_BLOCKS):
        raise EndorsementFormatError("PCK chain", expected="certificates in PEM alone", got="other text beside them")
    for certificate, names in zip(chain, _PCK_CHAIN, strict=False):
        if common_name(certificate) not in names:
            raise CertificateChainError("PCK chain", expected=" or ".join(names), got=certificate.subject[:120])
    try:
        extension = dcap_qvl.parse_pck_extension_from_pem(pck_chain)
    except ValueError as error:
        raise EvidenceFormatError("PCK certificate", expected="one of a platform", got=str(error)[:120]) from error
    platform = PlatformClaims(
        fmspc=bytes(extension.fmspc),
        ppid=bytes(extension.ppid),
        platform_instance_id=bytes(extension.platform_instance_id or b""),
        pce_id=bytes(extension.pce_id),
        pce_svn=extension.pce_svn,
        cpu_svn=bytes(extension.cpu_svn),
        sgx_type=_SGX_TYPES.get(extension.sgx_type, str(extension.sgx_type)),
    )
    return platform, chain


def _roots(anchors: Sequence[bytes], now: datetime.datetime) -> tuple[Certificate, ...]:
    if not 1 <= len(anchors) <= _ANCHOR_LIMIT:
        raise TrustAnchorError("trust anchors", expected=f"1 to {_ANCHOR_LIMIT}", got=len(anchors))
    roots = tuple(_root(anchor) for anchor in anchors)
    for root in roots:
        require_valid(root, now=now, what="trust anchor")
    return roots


@functools.lru_cache(maxsize=8)
def _root(anchor: bytes) -> Certificate:
    return load_certificate(anchor, what="trust anchor")
