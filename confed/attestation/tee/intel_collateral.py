"""Intel's collateral for a DCAP quote: read within bounds, chosen by platform, and never outside its time.

One collateral is one JSON object in the form that dcap-qvl writes: TCB info and QE identity as Intel signed them, their
issuers' chains, and the two revocation lists. It is taken whole or not at all: parts of two are never mixed. Reading it
proves nothing; ``intel_dcap`` has its signatures checked.

1. Bounded JSON with exactly the known keys; a PCK certificate chain beside them is left unread, since the quote has it.
2. TCB info and QE identity say of which TEE, platform family and provisioning enclave (PCE) they are; the last is not
   compared by dcap-qvl.
3. The issuers' chains begin with Intel's certificate for signing TCB data.
4. The collateral's time is the time in which every part of it is valid.

Collateral is the same for thousands of quotes, so what was parsed is kept by its bytes (32 of them, of at most 128 KiB
each, so that nobody fills the memory with hints); its time is compared at every use.

Source: Intel PCS API version 4 (TCB info version 3, enclave identity version 2); dcap-qvl 0.7, QuoteCollateralV3.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import dcap_qvl
from cryptography import x509
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate, load_certificates
from confed.attestation.revocation import load_crl
from confed.attestation.tee.intel_quote import TeeKind
from confed.errors import (
    EndorsementFormatError,
    EndorsementMismatchError,
    MissingEndorsementError,
    StaleEndorsementError,
)

COLLATERAL_LIMIT_BYTES = 1024 * 1024
"""Largest collateral; today's are 20 KiB, revocation lists in hexadecimal included."""

CANDIDATE_LIMIT = 32
"""Most collaterals to choose from."""

_KEPT_LIMIT_BYTES = 128 * 1024
_TEXTS = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "tcb_info", "qe_identity_issuer_chain", "qe_identity")
_BYTES = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
_UNREAD = "pck_certificate_chain"
_SIGNATURE_BYTES = 64
_CHAIN_LIMIT = 2
# Intel SGX PCK Certificate and CRL Profile Specification, section 1.2: who signs TCB info and enclave identities.
_TCB_SIGNER = "Intel SGX TCB Signing"
# Intel PCS API version 4: the identifiers of TCB info and enclave identity, by TEE.
_IDENTITIES = {TeeKind.SGX: "QE", TeeKind.TDX: "TD_QE"}
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")
_HEX = re.compile(r"[0-9a-fA-F]+")
_MOST_EVALUATION = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A text that Intel signed: as received, as JSON, with its signature (two numbers, 64 bytes) and issuer's chain."""

    text: bytes
    value: Mapping[str, Any]
    signature: bytes
    chain: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """A collateral as read.

    Attributes:
        tee, fmspc, pce_id: what it is for.
        evaluation_number: tcbEvaluationDataNumber, the smaller of TCB info and QE identity.
        begins, ends: the time in which every part is valid.
        tcb_info, qe_identity: as Intel signed them.
        root_crl, pck_crl: revocation lists of the root, and of the authority that certified the platform.
        pck_crl_chain: that authority's certificate, and its root's where it came along.
        source: the same for dcap-qvl.
    """

    tee: TeeKind
    fmspc: bytes
    pce_id: bytes
    evaluation_number: int
    begins: datetime.datetime
    ends: datetime.datetime
    tcb_info: Signed
    qe_identity: Signed
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    pck_crl_chain: tuple[Certificate, ...]
    source: dcap_qvl.QuoteCollateralV3


def choose_collateral(
    candidates: Sequence[bytes], *, tee: TeeKind, fmspc: bytes, pce_id: bytes, now: datetime.datetime
) -> Collateral:
    """Return the first collateral of this TEE, platform family and PCE whose time is now.

    Raises:
        MissingEndorsementError: there is none at all.
        EndorsementMismatchError: only for another TEE, platform family or PCE.
        StaleEndorsementError: the right one is outside its time.
        EndorsementFormatError: one that had to be looked at is not a collateral, or there are too many.
    """
    if not candidates:
        raise MissingEndorsementError("collateral", expected=f"that of platform {fmspc.hex()}", got="none")
    if len(candidates) > CANDIDATE_LIMIT:
        raise EndorsementFormatError("collateral", expected=f"at most {CANDIDATE_LIMIT}", got=len(candidates))
    wanted = f"{tee} {fmspc.hex()} {pce_id.hex()}"
    others: list[str] = []
    stale: StaleEndorsementError | None = None
    for candidate in candidates:
        collateral = parse_collateral(candidate)
        found = f"{collateral.tee} {collateral.fmspc.hex()} {collateral.pce_id.hex()}"
        if found != wanted:
            others.append(found)
            continue
        try:
            require_current(collateral, now=now)
        except StaleEndorsementError as error:
            stale = stale or error
        else:
            return collateral
    raise stale or EndorsementMismatchError("collateral", expected=wanted, got=", ".join(others))


def require_current(collateral: Collateral, *, now: datetime.datetime) -> None:
    """Refuse a collateral of which a part is not valid yet, or no longer.

    Raises:
        StaleEndorsementError: before it begins, or when it has ended.
    """
    if not collateral.begins <= now < collateral.ends:
        raise StaleEndorsementError(
            "collateral", expected=f"{collateral.begins:%F %T} to {collateral.ends:%F %T}", got=f"{now:%F %T}"
        )


def common_name(certificate: Certificate) -> str | None:
    """Return the subject's only common name; ``None`` where it has none or several."""
    found = [str(name.value) for name in certificate.parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return found[0] if len(found) == 1 else None


def parse_collateral(data: bytes) -> Collateral:
    """Return a collateral of JSON in dcap-qvl's form.

    Raises:
        EndorsementFormatError: anything else.
    """
    return _kept(data) if len(data) <= _KEPT_LIMIT_BYTES else _read(data)


@functools.lru_cache(maxsize=32)
def _kept(data: bytes) -> Collateral:
    return _read(data)


def _read(data: bytes) -> Collateral:
    # 1.
    fields = _object("collateral", data)
    keys = set(fields) - {_UNREAD}
    if keys != {*_TEXTS, *_BYTES} or not all(isinstance(fields[name], str) for name in keys):
        raise EndorsementFormatError("collateral", expected=", ".join((*_TEXTS, *_BYTES)), got="other fields")
    raw = {name: _bytes(name, fields[name]) for name in _BYTES}
    texts = {name: _text(name, fields[name]) for name in _TEXTS}
    # 2. and 3.
    tcb_info = _signed("tcb_info", texts, raw["tcb_info_signature"])
    qe_identity = _signed("qe_identity", texts, raw["qe_identity_signature"])
    tee = _tee(tcb_info.value, qe_identity.value)
    crls = [load_crl(raw[name], what=f"collateral.{name}") for name in ("root_ca_crl", "pck_crl")]
    crl_chain = _chain("pck_crl_issuer_chain", texts)
    # 4.
    spans = [
        *(_span(name, signed.value) for name, signed in (("tcb_info", tcb_info), ("qe_identity", qe_identity))),
        *(_crl_span(crl) for crl in crls),
        *(
            (certificate.parsed.not_valid_before_utc, certificate.parsed.not_valid_after_utc)
            for certificate in (*tcb_info.chain, *qe_identity.chain, *crl_chain)
        ),
    ]
    return Collateral(
        tee=tee,
        fmspc=_field(tcb_info.value, "fmspc", 6),
        pce_id=_field(tcb_info.value, "pceId", 2),
        evaluation_number=min(_evaluation(signed.value) for signed in (tcb_info, qe_identity)),
        begins=max(begins for begins, _ in spans),
        ends=min(ends for _, ends in spans),
        tcb_info=tcb_info,
        qe_identity=qe_identity,
        root_crl=crls[0],
        pck_crl=crls[1],
        pck_crl_chain=crl_chain,
        source=dcap_qvl.QuoteCollateralV3(**{name: str(fields[name]) for name in _TEXTS}, **raw),  # pyright: ignore[reportArgumentType]
    )


def _signed(name: str, texts: Mapping[str, bytes], signature: bytes) -> Signed:
    chain = _chain(f"{name}_issuer_chain", texts)
    if len(signature) != _SIGNATURE_BYTES:
        raise EndorsementFormatError(
            f"collateral.{name}_signature in bytes", expected=_SIGNATURE_BYTES, got=len(signature)
        )
    if common_name(chain[0]) != _TCB_SIGNER:
        raise EndorsementFormatError(f"collateral.{name} signer", expected=_TCB_SIGNER, got=chain[0].subject[:120])
    # A root issues that certificate itself: no authority for platforms may sign what platforms are judged by.
    issuer = chain[0].parsed.issuer
    if not all(root.parsed.subject == root.parsed.issuer == issuer for root in chain[1:]):
        raise EndorsementFormatError(f"collateral.{name} signer", expected="issued by a root", got="by another")
    return Signed(text=texts[name], value=_object(f"collateral.{name}", texts[name]), signature=signature, chain=chain)


def _tee(tcb_info: Mapping[str, Any], qe_identity: Mapping[str, Any]) -> TeeKind:
    tee = next((kind for kind in TeeKind if kind == tcb_info.get("id")), None)
    if tee is None:
        raise EndorsementFormatError("collateral.tcb_info.id", expected="SGX or TDX", got=str(tcb_info.get("id"))[:40])
    if qe_identity.get("id") != _IDENTITIES[tee]:
        raise EndorsementFormatError(
            "collateral.qe_identity.id", expected=_IDENTITIES[tee], got=str(qe_identity.get("id"))[:40]
        )
    return tee


def _field(tcb_info: Mapping[str, Any], key: str, size: int) -> bytes:
    text = tcb_info.get(key)
    if not isinstance(text, str) or not _HEX.fullmatch(text) or len(text) != 2 * size:
        raise EndorsementFormatError(f"collateral.tcb_info.{key}", expected=f"{size} bytes", got=str(text)[:40])
    return bytes.fromhex(text)


def _evaluation(value: Mapping[str, Any]) -> int:
    number = value.get("tcbEvaluationDataNumber")
    if type(number) is not int or not 0 <= number < _MOST_EVALUATION:
        raise EndorsementFormatError(
            "collateral: tcbEvaluationDataNumber", expected="a whole number", got=str(number)[:40]
        )
    return number


def _span(name: str, value: Mapping[str, Any]) -> tuple[datetime.datetime, datetime.datetime]:
    return _time(name, value, "issueDate"), _time(name, value, "nextUpdate")


def _time(name: str, value: Mapping[str, Any], key: str) -> datetime.datetime:
    text = value.get(key)
    try:
        if isinstance(text, str) and _TIME.match(text):
            return datetime.datetime.fromisoformat(text)
    except ValueError:
        pass
    raise EndorsementFormatError(f"collateral.{name}.{key}", expected="a time in UTC", got=str(text)[:40])


def _crl_span(crl: x509.CertificateRevocationList) -> tuple[datetime.datetime, datetime.datetime]:
    if crl.next_update_utc is None:
        raise EndorsementFormatError("collateral: revocation list", expected="one that ends", got="no end")
    return crl.last_update_utc, crl.next_update_utc


def _chain(name: str, texts: Mapping[str, bytes]) -> tuple[Certificate, ...]:
    text = texts[name]
    if not text.lstrip().startswith(b"-----BEGIN"):
        raise EndorsementFormatError(f"collateral.{name}", expected="certificates in PEM", got="something else")
    return load_certificates(text, what=f"collateral.{name}", limit=_CHAIN_LIMIT)


def _text(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise EndorsementFormatError(f"collateral.{name}", expected="text", got="half a character") from error


def _bytes(name: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise EndorsementFormatError(f"collateral.{name}", expected="hexadecimal text", got="something else") from error


def _object(name: str, data: bytes) -> Mapping[str, Any]:
    if len(data) > COLLATERAL_LIMIT_BYTES:
        raise EndorsementFormatError(name, expected=f"at most {COLLATERAL_LIMIT_BYTES} bytes", got=len(data))
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise EndorsementFormatError(name, expected="JSON", got="something else") from error
    if not isinstance(value, dict):
        raise EndorsementFormatError(name, expected="a JSON object", got="something else")
    return cast("dict[str, Any]", value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two readers of JSON need not agree on which of two equal keys counts.
        raise ValueError
    return found
