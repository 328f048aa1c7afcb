"""vTPMs of Google Compute Engine: is a quote genuine, and of which instance?

1. The quote's signature, structure, registers and nonce hold under the attestation key (``tpm_quote``). Of a
   go-tpm-tools attestation every quote over a bank of SHA-256 or better has to hold; SHA-1's is not looked at.
2. The key's certificate chains to a pinned root of Google's; its revocation is checked where lists came along.
3. The certificate is of a key that signs, is no authority's, and of exactly the key that signed.
4. The key is restricted to attesting. The certificate covers the key and not its attributes: that Google certifies no
   other keys is Google's word.
5. The certificate names the instance (``gcp_instance``).
6. The firmware's event log replays; only then is it read (``tpm_claims``): Google's firmware measures its version and
   how the machine's memory is protected into PCR0. It ends its part with a separator, which is known by its digest:
   what follows anybody in the machine has extended, and the types of events, which no digest covers, are as whoever
   shows the log has written them.

A vTPM is software of Google's host. What it says is Google's word, not hardware's: evidence of this kind is not rooted
in hardware. A confidential VM has a report of its processor too (``sev_snp``, ``tdx``), which is.

Source: github.com/google/go-tpm-tools, server/verify.go and server/policy_constants.go (events of the firmware);
github.com/google/go-attestation, docs/event-log-disclosure.md (types and separators); Google Cloud documentation,
"Shielded VM" (endorsement and attestation key certificates).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.resources
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from cryptography import x509

from confed.attestation.certificates import Certificate, load_certificate, load_certificates
from confed.attestation.evidence import Envelope, Expectation, Report
from confed.attestation.revocation import issuer_of, lists_of_this_time, load_crl, require_not_revoked
from confed.attestation.tee.event_log import EV_S_CRTM_VERSION, MeasuredEvent, before_separator
from confed.attestation.tee.gcp_attestation import GcpAttestation, GcpQuote, parse_attestation
from confed.attestation.tee.gcp_instance import INSTANCE_EXTENSION, GcpInstance, parse_instance
from confed.attestation.tee.tpm import only_log, report_of, verify_bound_quote
from confed.attestation.tee.tpm_certificates import require_leaf, require_path
from confed.attestation.tee.tpm_claims import AK_CERTIFICATE, KeyRoot, TpmClaims, claims_of, key_digest
from confed.attestation.tee.tpm_evidence import BANK, TpmEvidence
from confed.attestation.tee.tpm_files import is_event_log, sort_hints
from confed.attestation.tee.tpm_quote import require_attestation_key, require_data, verify_quote
from confed.attestation.tee.tpm_structures import TpmPublic, TpmQuote, parse_public
from confed.errors import (
    AlgorithmError,
    EndorsementFormatError,
    EvidenceSizeError,
    KeyBindingError,
    MissingClaimError,
    MissingEndorsementError,
    NonceError,
)

PROFILE = "gcp-tpm/1"
TECHNOLOGIES = ("none", "amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx")
"""How a machine's memory is protected, as its firmware has measured."""

_EVIDENCE_CLASS = "gcp-vtpm"
# The banks that count, the first one that is there is told.
_BANKS = ("sha256", "sha384", "sha512")
_ENDORSEMENTS_LIMIT = 32

_DISTRIBUTION_POINTS = x509.CRLDistributionPoints.oid.dotted_string

# TCG PC Client Platform Firmware Profile 1.06, section 10.4.1.
_EV_NONHOST_INFO = 0x11
# go-tpm-tools, server/policy_constants.go; go-eventlog, proto/state.proto (GCEConfidentialTechnology).
_NONHOST_PREFIX, _NONHOST_BYTES = b"GCE NonHostInfo\x00", 32
_TECHNOLOGY_NUMBERS = {0: "none", 1: "amd-sev", 2: "amd-sev-es", 3: "intel-tdx", 4: "amd-sev-snp"}
_FIRMWARE = re.compile(r"GCE Virtual Firmware v([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpTpmClaims:
    """What a genuine quote of a Google vTPM says.

    Attributes:
        tpm: the quote and its key.
        instance: which instance the key's certificate is of.
        certificate, root: SHA-256 of that certificate and of the root that it chains to.
        revocation_checked: every certificate below the root that names a revocation list was looked up in its issuer's,
            and at least one was; an issuer that publishes none revokes nothing.
        technology: one of ``TECHNOLOGIES``; empty where no event of the firmware's own shows it.
        firmware: the version of Google's firmware in decimal; empty where no event of the firmware's own shows it.
        unread: parts of the attestation that are there and not verified here.
    """

    tpm: TpmClaims
    instance: GcpInstance
    certificate: bytes
    root: bytes
    revocation_checked: bool
    technology: str
    firmware: str
    unread: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Files:
    """Endorsement files, sorted by what they are."""

    certificates: list[Certificate] = field(default_factory=list[Certificate])
    crls: list[x509.CertificateRevocationList] = field(default_factory=list[x509.CertificateRevocationList])
    event_logs: list[bytes] = field(default_factory=list[bytes])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rooted:
    """A key's certificate whose chain holds."""

    certificate: Certificate
    root: Certificate
    revocation_checked: bool


def verify_files(
    evidence: bytes,
    endorsements: Sequence[bytes],
    *,
    expectation: Expectation,
    now: datetime.datetime,
    anchors: Sequence[bytes] | None,
) -> GcpTpmClaims:
    """Return the claims of a go-tpm-tools attestation (protobuf), or of the evidence of one of confed's envelopes.

    Args:
        evidence: the file.
        endorsements: intermediate certificates, revocation lists, and for confed's form the event log; in any order.
        expectation: ``nonce`` is compared with the qualifying data exactly, ``report_data`` padded to 64 bytes.
        now: aware time to judge at.
        anchors: roots in DER; ``None`` for Google's, which are pinned.

    Raises:
        AttestationError: of the class that says why.
    """
    files = _sorted(endorsements)
    if evidence.startswith(b"{"):
        attestation = _from_envelope(TpmEvidence.decode(evidence), only_log(files.event_logs))
    else:
        attestation = parse_attestation(evidence)
        _require_no_logs(files)
    public = parse_public(attestation.ak_public)
    # 1.
    quote, bank, pcrs = _verified_quote(attestation, public, nonce=expectation.nonce)
    require_data(quote, expectation.report_data)
    # 2., 3. and 4.
    hints = [*files.certificates, *_loaded(attestation.intermediates)]
    rooted = _require_rooted(
        attestation.ak_certificate, public, hints=hints, crls=files.crls, anchors=_anchors(anchors), now=now
    )
    return _claims(
        claims_of(
            quote,
            root=_key_root(public),
            pcrs=pcrs,
            bank=bank,
            nonce_checked=bool(expectation.nonce),
            event_log=attestation.event_log or None,
            evidence_class=_EVIDENCE_CLASS,
            hardware_rooted=False,
        ),
        rooted,
        unread=attestation.unread,
    )


class GcpTpmVerifier:
    """The driver for ``gcp-tpm/1``; how a report follows from a quote: ``tpm_evidence``."""

    PROFILE: ClassVar[str] = PROFILE
    EVIDENCE_CLASS: ClassVar[str] = _EVIDENCE_CLASS
    HARDWARE_ROOTED: ClassVar[bool] = False

    def verify(
        self, envelope: Envelope, *, endorsements: Sequence[bytes], now_ms: int, anchors: Sequence[bytes]
    ) -> Report:
        """Return the report of a quote that is genuine at ``now_ms`` and answers the envelope's binding.

        Raises:
            NonceError: a quote for another binding.
            MissingEndorsementError: no certificate of the attestation key.
            AttestationError: of the class that says why.
        """
        found = TpmEvidence.decode(envelope.evidence)
        found.require_only("ak_certificate")
        public = parse_public(found.ak_public)
        now = datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC)
        # 1.
        quote, report_data, binding = verify_bound_quote(envelope, found, public)
        # 2., 3. and 4.
        hints = sort_hints((*envelope.endorsements, *endorsements))
        roots = tuple(load_certificate(anchor, what="Google trust anchor") for anchor in anchors)
        rooted = _require_rooted(
            found.ak_certificate or b"", public, hints=hints.certificates, crls=hints.crls, anchors=roots, now=now
        )
        claims = claims_of(
            quote,
            root=_key_root(public),
            pcrs=found.pcrs,
            bank=BANK,
            nonce_checked=True,
            event_log=only_log(envelope.event_logs),
            evidence_class=self.EVIDENCE_CLASS,
            hardware_rooted=self.HARDWARE_ROOTED,
        )
        details = _claims(claims, rooted, unread=())
        return report_of(found, binding, report_data=report_data, details=details)


@functools.cache
def pinned_roots() -> tuple[Certificate, ...]:
    """Return Google's published roots."""
    return tuple(found for found in _bundle() if found.parsed.subject == found.parsed.issuer)


@functools.cache
def _bundle() -> tuple[Certificate, ...]:
    bundle = importlib.resources.files("confed.attestation").joinpath("roots/google.pem").read_bytes()
    return load_certificates(bundle[bundle.index(b"-----BEGIN") :], what="Google certificate")


def _anchors(anchors: Sequence[bytes] | None) -> tuple[Certificate, ...]:
    if anchors is None:
        return pinned_roots()
    return tuple(load_certificate(anchor, what="Google trust anchor") for anchor in anchors)


def _verified_quote(
    attestation: GcpAttestation, public: TpmPublic, *, nonce: bytes | None
) -> tuple[TpmQuote, str, Mapping[int, bytes]]:
    """Check every quote of a bank that counts, and return the first of them with its bank and registers."""
    quotes = {quote.bank: quote for quote in attestation.quotes if quote.bank in _BANKS}
    if not quotes:
        raise AlgorithmError("quoted banks", expected="SHA-256 or better", got="none")
    verified = {
        bank: verify_quote(quote.message, quote.signature, public.key, pcrs=quote.pcrs, bank=bank, nonce=nonce)
        for bank, quote in quotes.items()
    }
    if len({quote.nonce for quote in verified.values()}) > 1:
        raise NonceError("quotes of one attestation", expected="one nonce", got="several")
    bank = next(bank for bank in _BANKS if bank in verified)
    return verified[bank], bank, quotes[bank].pcrs


def _require_rooted(
    certificate: bytes,
    public: TpmPublic,
    *,
    hints: Sequence[Certificate],
    crls: Sequence[x509.CertificateRevocationList],
    anchors: Sequence[Certificate],
    now: datetime.datetime,
) -> _Rooted:
    if not certificate:
        raise MissingEndorsementError("AK certificate", expected="one", got="none")
    leaf = load_certificate(certificate, what="AK")
    # 2.
    path = require_path(leaf, intermediates=(*hints, *_bundle()), anchors=anchors, now=now, what="AK")
    revocation_checked = _revocation_checked(path, crls, now)
    # 3.
    require_leaf(leaf, signs=True, what="AK")
    if hashlib.sha256(leaf.spki).digest() != key_digest(public.key):
        raise KeyBindingError("attestation key", expected="the certificate's", got="another")
    # 4.
    require_attestation_key(public)
    return _Rooted(certificate=leaf, root=path[-1], revocation_checked=revocation_checked)


def _revocation_checked(
    path: Sequence[Certificate], crls: Sequence[x509.CertificateRevocationList], now: datetime.datetime
) -> bool:
    """Look certificates up in their issuers' lists, and say whether none that names a list was left out."""
    found: list[bool] = []
    for subject, issuer in itertools.pairwise(path):
        lists = [crl for crl in crls if issuer_of(crl) == issuer.parsed.subject]
        for crl in lists_of_this_time(lists, now):
            require_not_revoked(subject, issuer=issuer, crl=crl, now=now, what="AK")
        if lists or subject.extension(_DISTRIBUTION_POINTS) is not None:
            found.append(bool(lists))
    return bool(found) and all(found)


def _claims(tpm: TpmClaims, rooted: _Rooted, *, unread: tuple[str, ...]) -> GcpTpmClaims:
    # 5.
    extension = rooted.certificate.extension(INSTANCE_EXTENSION)
    if extension is None:
        raise MissingClaimError("AK certificate", expected="the instance that it is of", got="none")
    # 6.
    measured = before_separator(tpm.events, register=0, algorithm=tpm.bank)
    return GcpTpmClaims(
        tpm=tpm,
        instance=parse_instance(extension),
        certificate=hashlib.sha256(rooted.certificate.der).digest(),
        root=hashlib.sha256(rooted.root.der).digest(),
        revocation_checked=rooted.revocation_checked,
        technology=_technology(measured),
        firmware=_firmware(measured),
        unread=unread,
    )


def _technology(events: Sequence[MeasuredEvent]) -> str:
    """Return how memory is protected, from the one event that says so; empty if there is not exactly one."""
    found = [
        event.data[len(_NONHOST_PREFIX)]
        for event in events
        if event.type == _EV_NONHOST_INFO
        and event.data is not None
        and len(event.data) == _NONHOST_BYTES
        and event.data.startswith(_NONHOST_PREFIX)
    ]
    return _TECHNOLOGY_NUMBERS.get(found[0], "") if len(found) == 1 else ""


def _firmware(events: Sequence[MeasuredEvent]) -> str:
    """Return the version of Google's firmware, from the one event that says so; empty if there is not exactly one."""
    found = [
        event.data.decode("utf-16-le", errors="replace").removesuffix("\x00")
        for event in events
        if event.type == EV_S_CRTM_VERSION and event.data is not None
    ]
    version = _FIRMWARE.fullmatch(found[0]) if len(found) == 1 else None
    return version[1] if version else ""


def _key_root(public: TpmPublic) -> KeyRoot:
    return KeyRoot(by=AK_CERTIFICATE, key=public.key, public=public, endorsement_key=None)


def _from_envelope(evidence: TpmEvidence, event_log: bytes | None) -> GcpAttestation:
    evidence.require_only("ak_certificate")
    quote = GcpQuote(message=evidence.quote, signature=evidence.signature, bank=BANK, pcrs=evidence.pcrs)
    return GcpAttestation(
        ak_public=evidence.ak_public,
        quotes=(quote,),
        event_log=event_log or b"",
        ak_certificate=evidence.ak_certificate or b"",
        intermediates=(),
        unread=(),
    )


def _loaded(certificates: Sequence[bytes]) -> list[Certificate]:
    return [load_certificate(data, what="attestation: intermediate") for data in certificates]


def _sorted(files: Sequence[bytes]) -> _Files:
    if len(files) > _ENDORSEMENTS_LIMIT:
        raise EvidenceSizeError("endorsements", expected=f"at most {_ENDORSEMENTS_LIMIT}", got=len(files))
    found = _Files()
    for data in files:
        if is_event_log(data):
            found.event_logs.append(data)
        else:
            _sort(data, found)
    return found


def _sort(data: bytes, found: _Files) -> None:
    if b"-----BEGIN X509 CRL" in data[:64]:
        found.crls.append(load_crl(data, what="revocation list"))
        return
    try:
        found.certificates += load_certificates(data, what="endorsement")
    except EndorsementFormatError:
        found.crls.append(load_crl(data, what="endorsement"))


def _require_no_logs(files: _Files) -> None:
    if files.event_logs:
        raise EndorsementFormatError("endorsements", expected="no event log beside the attestation's", got="one")
