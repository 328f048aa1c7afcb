"""TPM 2.0: is a quote genuine, and whose is it?

1. The quote's signature, structure, registers and nonce hold under the attestation key (``tpm_quote``).
2. The EK certificate, where there is one, chains to an anchor (``tpm_certificates``).
3. The key is restricted to attesting, as far as its public area came along.
4. The key is rooted: the caller named it, or an enrolment by a named authority says that credential activation has
   shown it to live in the TPM of that EK certificate (``tpm_enrolment``). An EK certificate alone roots nothing: it
   says that a TPM exists, not that this key is in it.
5. The firmware's event log, where there is one, replays; only then is it read (``tpm_claims``).

No TPM vendor's root is pinned here, so nothing tells a chip from a program: whatever anchors an owner names, evidence
of this kind counts as a software TPM's, which production refuses. TPMs of confidential machines have drivers of their
own (``azure``, ``gcp_tpm``).
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from confed.attestation.certificates import Certificate, load_certificate
from confed.attestation.evidence import Binding, Envelope, Expectation, Report
from confed.attestation.tee.tpm_certificates import (
    EndorsementKeyClaims,
    is_endorsement_certificate,
    verify_endorsement_certificate,
)
from confed.attestation.tee.tpm_claims import ENROLMENT, PINNED_KEY, KeyRoot, TpmClaims, claims_of
from confed.attestation.tee.tpm_enrolment import verify_enrolment
from confed.attestation.tee.tpm_evidence import (
    BANK,
    TpmEvidence,
    configuration_of,
    measurement_of,
    nonce_of,
)
from confed.attestation.tee.tpm_files import AttestationKey, Supplied, read_evidence, sort_endorsements, sort_hints
from confed.attestation.tee.tpm_quote import require_attestation_key, require_data, verify_quote
from confed.attestation.tee.tpm_structures import TpmPublic, TpmQuote, parse_public, parse_quote
from confed.errors import (
    AttestationError,
    EndorsementFormatError,
    EvidenceFormatError,
    KeyBindingError,
    MissingEndorsementError,
    TrustAnchorError,
)

__all__ = [
    "TpmClaims",
    "TpmPublic",
    "TpmQuote",
    "TpmVerifier",
    "parse_public",
    "parse_quote",
    "require_attestation_key",
    "verify_files",
    "verify_quote",
]

PROFILE = "tpm/1"
_EVIDENCE_CLASS = "software-tpm"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Anchors:
    """What is trusted from outside: roots of EK certificates, and raw keys of enrolment authorities."""

    roots: tuple[Certificate, ...]
    authorities: tuple[bytes, ...] = field(default=())

    @classmethod
    def load(cls, anchors: Sequence[bytes]) -> _Anchors:
        """Return anchors by what they are: DER certificates, and DER public keys (Ed25519)."""
        roots: list[Certificate] = []
        authorities: list[bytes] = []
        for data in anchors:
            key = _public_key(data)
            if isinstance(key, ed25519.Ed25519PublicKey):
                authorities.append(key.public_bytes_raw())
            else:
                roots.append(load_certificate(data, what="TPM trust anchor"))
        return cls(roots=tuple(roots), authorities=tuple(authorities))

    @classmethod
    def given(cls, supplied: Supplied) -> _Anchors:
        """Return the anchors that a caller gave among endorsements: certificates that issued themselves, and keys."""
        roots = [found for found in supplied.certificates if found.parsed.subject == found.parsed.issuer]
        return cls(roots=tuple(roots), authorities=tuple(supplied.authorities))


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> TpmClaims:
    """Return the claims of a quote in files (``tpm_files`` says which).

    What the caller gives as an endorsement is trusted as what it is: a public key or a TPM's public area names the
    attestation key, an Ed25519 key an enrolment authority, and a certificate that issued itself is a root, unless
    ``anchors`` says which roots there are.

    Args:
        evidence: the quote.
        endorsements: what belongs to it, in any order.
        expectation: ``nonce`` is compared with the qualifying data exactly, ``report_data`` padded to 64 bytes.
        now: aware time to judge at.
        anchors: DER certificates and DER Ed25519 keys; ``None`` for those among the endorsements.

    Raises:
        TrustAnchorError: nothing vouches for the attestation key.
        BindingMismatchError: other qualifying data than expected.
        AttestationError: of the class that says why.
    """
    supplied = sort_endorsements(endorsements)
    trusted = _Anchors.given(supplied) if anchors is None else _Anchors.load(anchors)
    files = read_evidence(evidence, supplied)
    if files.evidence is not None:
        files.evidence.require_only("ek_certificate", "enrolment")
    key = files.key or _named_key(supplied)
    # 1.
    quote = verify_quote(files.message, files.signature, key, pcrs=files.pcrs, bank=files.bank, nonce=expectation.nonce)
    require_data(quote, expectation.report_data)
    # 2.
    leaf, others = _leaf_among(supplied.certificates, files.evidence)
    endorsement_key = None if leaf is None else _endorsement_key(leaf, others, trusted, now)
    # 3. and 4.
    root = _root_of(
        key,
        _public_of(key, files.public, supplied),
        named=[*supplied.keys, *(named.key for named in supplied.publics)],
        endorsement_key=endorsement_key,
        enrolments=[*supplied.enrolments, *_present(files.evidence.enrolment if files.evidence else None)],
        authorities=trusted.authorities,
        now=now,
    )
    # 5.
    return claims_of(
        quote,
        root=root,
        pcrs=files.pcrs,
        bank=files.bank,
        nonce_checked=bool(expectation.nonce),
        event_log=only_log(supplied.event_logs),
        evidence_class=_EVIDENCE_CLASS,
        hardware_rooted=False,
    )


class TpmVerifier:
    """The driver for ``tpm/1``: a quote, an EK certificate, and an enrolment after credential activation.

    Anchors are DER certificates (roots of EK certificates) and DER Ed25519 keys (authorities that enrol); both kinds
    are needed. How REPORT_DATA, measurement and configuration follow from a quote: ``tpm_evidence``.
    """

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = _EVIDENCE_CLASS
    HARDWARE_ROOTED: ClassVar[bool] = False

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of a quote that is genuine at ``now_ms`` and answers the envelope's binding.

        Raises:
            NonceError: a quote for another binding.
            MissingEndorsementError: no EK certificate, or no enrolment.
            AttestationError: of the class that says why.
        """
        found = TpmEvidence.decode(envelope.evidence)
        found.require_only("ek_certificate", "enrolment")
        trusted = _Anchors.load(anchors)
        hints = sort_hints((*envelope.endorsements, *endorsements))
        public = parse_public(found.ak_public)
        now = datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC)
        # 1.
        quote, report_data, binding = verify_bound_quote(envelope, found, public)
        # 2.
        if found.ek_certificate is None:
            raise MissingEndorsementError("EK certificate", expected="one", got="none")
        leaf = load_certificate(found.ek_certificate, what="EK")
        # 3. and 4.
        root = _root_of(
            public.key,
            public,
            named=(),
            endorsement_key=_endorsement_key(leaf, hints.certificates, trusted, now),
            enrolments=[*_present(found.enrolment), *hints.enrolments],
            authorities=trusted.authorities,
            now=now,
        )
        # 5.
        claims = claims_of(
            quote,
            root=root,
            pcrs=found.pcrs,
            bank=BANK,
            nonce_checked=True,
            event_log=only_log(envelope.event_logs),
            evidence_class=self.EVIDENCE_CLASS,
            hardware_rooted=self.HARDWARE_ROOTED,
        )
        return report_of(found, binding, report_data=report_data, details=claims)


def verify_bound_quote(envelope: Envelope, evidence: TpmEvidence, public: TpmPublic) -> tuple[TpmQuote, bytes, Binding]:
    """Return a quote that answers the envelope's own binding, the REPORT_DATA that it answers, and the binding.

    Raises:
        NonceError: a quote for something else.
        AttestationError: see ``verify_quote``.
    """
    binding = Binding.decode(envelope.binding)
    report_data = binding.report_data(envelope.device_digest)
    quote = verify_quote(
        evidence.quote,
        evidence.signature,
        public.key,
        pcrs=evidence.pcrs,
        bank=BANK,
        nonce=nonce_of(report_data),
    )
    return quote, report_data, binding


def report_of(evidence: TpmEvidence, binding: Binding, *, report_data: bytes, details: object) -> Report:
    """Return the report of verified evidence; a TPM knows of no debugging and no environment.

    Raises:
        MissingClaimError: the quote leaves out the configuration, or everything else.
    """
    return Report(
        report_data=report_data,
        measurement=measurement_of(evidence.pcrs),
        configuration=configuration_of(evidence.pcrs, binding),
        environment="",
        debug=False,
        shared=False,
        layers=(),
        details=details,
    )


def only_log(logs: Sequence[bytes]) -> bytes | None:
    """Return the one event log, or ``None`` where there is none.

    Raises:
        EvidenceFormatError: more than one.
    """
    if len(logs) > 1:
        raise EvidenceFormatError("event logs of a TPM", expected="at most one", got=len(logs))
    return logs[0] if logs else None


def _root_of(
    key: AttestationKey,
    public: TpmPublic | None,
    *,
    named: Sequence[AttestationKey],
    endorsement_key: EndorsementKeyClaims | None,
    enrolments: Sequence[bytes],
    authorities: Sequence[bytes],
    now: datetime.datetime,
) -> KeyRoot:
    """Return what an attestation key is rooted in."""
    if named and key not in named:
        raise KeyBindingError("attestation key", expected="the one that the caller named", got="another")
    # 3.
    if public is not None:
        if public.key != key:
            raise KeyBindingError("public area", expected="the attestation key's", got="another key's")
        require_attestation_key(public)
    # 4.
    if enrolments:
        if public is None or endorsement_key is None:
            raise MissingEndorsementError(
                "enrolment", expected="a public area and an EK certificate with it", got="not"
            )
        now_ms = int(now.timestamp() * 1000)
        _require_enrolled(enrolments, authorities, public=public, endorsement_key=endorsement_key, now_ms=now_ms)
        activated = dataclasses.replace(endorsement_key, activated=True)
        return KeyRoot(by=ENROLMENT, key=key, public=public, endorsement_key=activated)
    if named:
        return KeyRoot(by=PINNED_KEY, key=key, public=public, endorsement_key=endorsement_key)
    if authorities and endorsement_key is not None:
        raise MissingEndorsementError("enrolment", expected="one of an authority that was named", got="none")
    raise TrustAnchorError("attestation key", expected="named by the caller, or enrolled", got="neither")


def _require_enrolled(
    enrolments: Sequence[bytes],
    authorities: Sequence[bytes],
    *,
    public: TpmPublic,
    endorsement_key: EndorsementKeyClaims,
    now_ms: int,
) -> None:
    """Check that one of the enrolments is of these keys; the last refusal is told where none is."""
    refusal: AttestationError | None = None
    for data in enrolments:
        try:
            verify_enrolment(
                data,
                authorities=authorities,
                attestation_key=public.name,
                endorsement_key=endorsement_key.key,
                now_ms=now_ms,
            )
        except AttestationError as error:
            refusal = error
        else:
            return
    if refusal is not None:
        raise refusal


def _leaf_among(
    certificates: Sequence[Certificate], evidence: TpmEvidence | None
) -> tuple[Certificate | None, Sequence[Certificate]]:
    """Return the EK certificate of files, if there is any certificate, and all others."""
    if evidence is not None and evidence.ek_certificate is not None:
        return load_certificate(evidence.ek_certificate, what="EK"), certificates
    if not certificates:
        return None, ()
    leaves = {found.der: found for found in certificates if is_endorsement_certificate(found)}
    if len(leaves) != 1:
        raise EndorsementFormatError("EK certificates among the certificates", expected=1, got=len(leaves))
    (leaf,) = leaves.values()
    return leaf, [found for found in certificates if found.der != leaf.der]


def _endorsement_key(
    leaf: Certificate, others: Sequence[Certificate], trusted: _Anchors, now: datetime.datetime
) -> EndorsementKeyClaims:
    # 2.
    return verify_endorsement_certificate(leaf, intermediates=others, anchors=trusted.roots, now=now)


def _public_of(key: AttestationKey, presented: TpmPublic | None, supplied: Supplied) -> TpmPublic | None:
    """Return the key's public area: the caller's where there is one, which the evidence cannot replace."""
    named = [public for public in supplied.publics if public.key == key]
    found = [*named, *(() if presented is None else (presented,))]
    if any(public.name != found[0].name for public in found):
        raise KeyBindingError("attestation key name", expected=found[0].name.hex()[:20], got="another")
    return found[0] if found else None


def _named_key(supplied: Supplied) -> AttestationKey:
    named = [*supplied.keys, *(public.key for public in supplied.publics)]
    if not named:
        raise MissingEndorsementError("attestation key", expected="a public key or public area", got="none")
    if any(key != named[0] for key in named):
        raise EndorsementFormatError("attestation key", expected="one", got="several")
    return named[0]


def _present(data: bytes | None) -> tuple[bytes, ...]:
    return () if data is None else (data,)


def _public_key(data: bytes) -> object:
    try:
        return serialization.load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        return None
