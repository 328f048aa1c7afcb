"""What every attester does around its device: the binding checked, other devices asked first, the envelope made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from confed.attestation.evidence import Binding, Envelope
from confed.errors import EvidenceFormatError, EvidenceUnavailableError

DeviceEvidence = Callable[[bytes], Sequence[bytes]]
"""Makes the evidence of devices beside the TEE (GPUs), fresh under a nonce of 32 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An envelope without its evidence yet, and the 64 bytes that the TEE has to sign for it."""

    envelope: Envelope
    report_data: bytes

    def completed(
        self, evidence: bytes, *, endorsements: Sequence[bytes] = (), event_logs: Sequence[bytes] = ()
    ) -> Envelope:
        """Return the envelope with the vendor's bytes in it, untouched.

        Raises:
            EvidenceFormatError: more attachments than an envelope holds.
        """
        return dataclasses.replace(
            self.envelope, evidence=evidence, endorsements=tuple(endorsements), event_logs=tuple(event_logs)
        )


def draft(binding: Binding, *, profile: str, devices: DeviceEvidence | None) -> Draft:
    """Return the draft for a binding: devices first, since REPORT_DATA covers the digest of their evidence.

    Args:
        binding: what the evidence is for.
        profile: the attester's own.
        devices: evidence of devices that goes along; ``None`` where there are none.

    Raises:
        EvidenceFormatError: a binding for another profile, or more device evidence than an envelope holds.
        EvidenceUnavailableError: devices that were named and gave nothing.
    """
    if binding.profile != profile:
        raise EvidenceFormatError("binding.profile", expected=profile, got=binding.profile)
    attached = () if devices is None else tuple(devices(binding.device_nonce))
    if devices is not None and not attached:
        raise EvidenceUnavailableError("device evidence", expected="at least one device's", got="none")
    envelope = Envelope(profile=profile, evidence=b"", binding=binding.encoded, device_evidence=attached)
    return Draft(envelope=envelope, report_data=binding.report_data(envelope.device_digest))
