"""What a verified quote says, and the event log that explains its registers.

A log is replayed before anything in it is read (``event_log``): a register that the log extends has to end at the value
that was signed, or the evidence is refused. Registers that only later software extends are not explained by a
firmware's log; ``replayed`` lists the ones that are, and events of no others are told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from confed.attestation.tee.event_log import MeasuredEvent, parse_event_log, replay, verified_events
from confed.attestation.tee.tpm_certificates import EndorsementKeyClaims
from confed.attestation.tee.tpm_structures import TpmPublic, TpmQuote

PINNED_KEY, ENROLMENT, AK_CERTIFICATE = "pinned-key", "enrolment", "ak-certificate"
ROOTS = (PINNED_KEY, ENROLMENT, AK_CERTIFICATE)
"""What an attestation key can be rooted in: the caller named the key itself; an enrolment after credential activation;
a certificate of the key."""

RESETTABLE = (16, 23)
"""Registers that any software can reset (debug, application support): their values prove nothing.

Source: TCG PC Client Platform TPM Profile 1.05, section 4.6.2.
"""

_DYNAMIC = range(17, 23)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmRegister:
    """A register by its number, and its value."""

    number: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmClaims:
    """What a genuine quote says, and what vouches for its key.

    Attributes:
        evidence_class, hardware_rooted: of the verifier's class, never of the evidence.
        rooted_by: one of ``ROOTS``.
        attestation_key: SHA-256 of the key (SPKI).
        attestation_key_name: the key's name; empty where no public area came along.
        attributes: the key's attributes; empty where no public area came along.
        nonce: what the quote carries.
        nonce_checked: it was compared with a nonce of the verifier's that is not empty.
        bank: the bank of the registers.
        registers: exactly the signed ones, ascending.
        clock, firmware_version: 64-bit numbers in hexadecimal.
        reset_count, restart_count, safe: see ``TpmQuote``.
        replayed: registers whose value the event log explains, resettable ones left out; none without a log.
        events: the log's events of those registers.
        endorsement_key: of the certificate that came along; ``None`` without one.
    """

    evidence_class: str
    hardware_rooted: bool
    rooted_by: str
    attestation_key: bytes
    attestation_key_name: bytes
    attributes: tuple[str, ...]
    nonce: bytes
    nonce_checked: bool
    bank: str
    registers: tuple[TpmRegister, ...]
    clock: str
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: str
    replayed: tuple[int, ...]
    events: tuple[MeasuredEvent, ...]
    endorsement_key: EndorsementKeyClaims | None

    def register(self, number: int) -> bytes | None:
        """Return a register's value, or ``None`` where it was not signed."""
        return next((register.value for register in self.registers if register.number == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRoot:
    """An attestation key and what it is rooted in.

    Attributes:
        by: one of ``ROOTS``.
        key: the attestation key.
        public: its public area; ``None`` where the caller named the key alone.
        endorsement_key: of the EK certificate that came along.
    """

    by: str
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    public: TpmPublic | None
    endorsement_key: EndorsementKeyClaims | None


def claims_of(
    quote: TpmQuote,
    *,
    root: KeyRoot,
    pcrs: Mapping[int, bytes],
    bank: str,
    nonce_checked: bool,
    event_log: bytes | None,
    evidence_class: str,
    hardware_rooted: bool,
) -> TpmClaims:
    """Return the claims of a verified quote, after its event log has replayed.

    Args:
        quote: from ``verify_quote``.
        root: what its key is rooted in.
        pcrs: the registers that ``verify_quote`` accepted.
        bank: their bank.
        nonce_checked: whether it was given a nonce to compare.
        event_log: the firmware's log, if there is one.
        evidence_class: of the verifier's class.
        hardware_rooted: of the verifier's class.

    Raises:
        EventLogError: a log that does not replay to the signed registers.
        AlgorithmError, EvidenceFormatError: a log without digests of ``bank``, or no log.
    """
    replayed, events = _explained(event_log, pcrs, bank)
    return TpmClaims(
        evidence_class=evidence_class,
        hardware_rooted=hardware_rooted,
        rooted_by=root.by,
        attestation_key=key_digest(root.key),
        attestation_key_name=root.public.name if root.public else b"",
        attributes=root.public.attributes if root.public else (),
        nonce=quote.nonce,
        nonce_checked=nonce_checked,
        bank=bank,
        registers=tuple(TpmRegister(number=number, value=pcrs[number]) for number in sorted(pcrs)),
        clock=f"{quote.clock:016x}",
        reset_count=quote.reset_count,
        restart_count=quote.restart_count,
        safe=quote.safe,
        firmware_version=f"{quote.firmware_version:016x}",
        replayed=replayed,
        events=events,
        endorsement_key=root.endorsement_key,
    )


def key_digest(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """Return SHA-256 of a public key (SPKI)."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(encoding, form)).digest()


def _explained(
    event_log: bytes | None, pcrs: Mapping[int, bytes], bank: str
) -> tuple[tuple[int, ...], tuple[MeasuredEvent, ...]]:
    if event_log is None:
        return (), ()
    log = parse_event_log(event_log)
    extended = replay(log, algorithm=bank)
    explained = {
        number: value
        for number, value in pcrs.items()
        if number not in RESETTABLE and (number in extended or value == _after_reset(number, value))
    }
    # The log is compared as a whole: a register that it extends to another value than the signed one is refused there.
    return tuple(sorted(explained)), verified_events(log, algorithm=bank, registers=explained)


def _after_reset(number: int, value: bytes) -> bytes:
    return (b"\xff" if number in _DYNAMIC else b"\x00") * len(value)
