"""TPM 2.0: quotes of a TPM that this process can reach.

1. ``configure``: PCR15 is zero, and is extended with the manifest's digest, once; or it has been already. Any other
   value is refused: something else was measured there, and only a restart clears it.
2. Enrolment, once in a key's life: ``enrolment_request`` says which keys the TPM has, ``activate`` opens the
   verifier's credential, and the enrolment that the verifier then signs goes along with each evidence. A vTPM of
   Google's has a certificate of its attestation key instead.
3. ``attest``: registers and a quote over them, with the nonce that derives from the binding. Registers that change
   between the two are read again.

Whether the quote is genuine, and what it is worth, is the verifier's question.

Source: ``tee.tpm_evidence`` (how a quote carries a binding); go-tpm-tools, client/handles.go (NV indices of Google's
attestation keys).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from confed.attestation.attesters.draft import DeviceEvidence, draft
from confed.attestation.attesters.tpm_device import TpmDevice, certificate_in
from confed.attestation.evidence import Binding, Envelope, require_digest
from confed.attestation.tee import gcp_tpm, tpm
from confed.attestation.tee.credential import Credential
from confed.attestation.tee.event_log import LOG_LIMIT_BYTES
from confed.attestation.tee.tpm_evidence import CONFIGURATION_REGISTER, TpmEvidence, configuration_value, nonce_of
from confed.attestation.tee.tpm_structures import LAST_REGISTER, parse_quote
from confed.errors import ConfigError, EvidenceUnavailableError, SessionError

# go-tpm-tools, client/handles.go: certificate and template of Google's attestation keys.
_GOOGLE_KEYS = {"rsa": (0x01C10000, 0x01C10001), "ecc": (0x01C10002, 0x01C10003)}
_ATTEMPTS = 3
_ZERO = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentRequest:
    """Which keys a TPM has: public areas, and the EK's certificate in DER."""

    attestation_key: bytes
    endorsement_key: bytes
    certificate: bytes


class TpmAttester:
    """Makes quotes of a TPM; ``own`` and ``google`` say whose attestation key signs.

    Args:
        device: the TPM.
        profile: ``tpm/1`` or ``gcp-tpm/1``.
        selection: registers to quote; PCR15 among them.
        certificates: fields of the evidence that stay the same (``TpmEvidence``), by name.
        endorsements: certificates between a key's and its vendor's root.
        event_log: the firmware's log, if one goes along.
        devices: evidence of devices that goes along.

    Raises:
        ConfigError: a selection with a register twice, one that there is not, or without PCR15.
    """

    def __init__(
        self,
        device: TpmDevice,
        *,
        profile: str,
        selection: Sequence[int],
        certificates: dict[str, bytes],
        endorsements: Sequence[bytes] = (),
        event_log: Path | None = None,
        devices: DeviceEvidence | None = None,
    ) -> None:
        known = all(0 <= number <= LAST_REGISTER for number in selection)
        if CONFIGURATION_REGISTER not in selection or not known or len(set(selection)) != len(selection):
            raise ConfigError("registers to quote", expected=f"PCR{CONFIGURATION_REGISTER} among them", got=selection)
        self._device = device
        self._profile = profile
        self._selection = tuple(sorted(selection))
        self._certificates = dict(certificates)
        self._endorsements = tuple(endorsements)
        self._event_log = event_log
        self._devices = devices
        self._configured: str | None = None

    @classmethod
    def own(
        cls,
        tcti: str,
        *,
        enrolment: bytes,
        selection: Sequence[int],
        intermediates: Sequence[bytes] = (),
        event_log: Path | None = None,
        devices: DeviceEvidence | None = None,
    ) -> TpmAttester:
        """Return the attester of ``tpm/1``: confed's own attestation key, enrolled by a verifier.

        Args:
            tcti: how to reach the TPM, in full.
            enrolment: what the verifier signed after activation.
            selection: registers to quote.
            intermediates: certificates between the EK's and its vendor's root, in DER.
            event_log: the firmware's log, if one goes along.
            devices: evidence of devices that goes along.

        Raises:
            ConfigError: a TCTI that is not named in full, or a selection that cannot be.
            EvidenceUnavailableError: no TPM, or none with an EK certificate.
        """
        device = TpmDevice(tcti)
        return cls(
            device,
            profile=tpm.PROFILE,
            selection=selection,
            certificates={"ek_certificate": device.endorsement_certificate(), "enrolment": enrolment},
            endorsements=intermediates,
            event_log=event_log,
            devices=devices,
        )

    @classmethod
    def google(
        cls,
        tcti: str,
        *,
        algorithm: str,
        selection: Sequence[int],
        intermediates: Sequence[bytes] = (),
        event_log: Path | None = None,
        devices: DeviceEvidence | None = None,
    ) -> TpmAttester:
        """Return the attester of ``gcp-tpm/1``: the attestation key that Google has certified.

        Args:
            tcti: how to reach the vTPM, in full.
            algorithm: which of Google's keys: ``rsa`` or ``ecc``.
            selection: registers to quote.
            intermediates: certificates between the key's and Google's root, in DER.
            event_log: the firmware's log, if one goes along.
            devices: evidence of devices that goes along.

        Raises:
            ConfigError: another algorithm, a TCTI that is not named in full, or a selection that cannot be.
            EvidenceUnavailableError: no TPM, or none of Google's.
        """
        if algorithm not in _GOOGLE_KEYS:
            raise ConfigError("algorithm", expected=", ".join(_GOOGLE_KEYS), got=algorithm)
        certificate, template = _GOOGLE_KEYS[algorithm]
        device = TpmDevice(tcti, ak_template=template)
        return cls(
            device,
            profile=gcp_tpm.PROFILE,
            selection=selection,
            certificates={"ak_certificate": certificate_in(device.stored(certificate))},
            endorsements=intermediates,
            event_log=event_log,
            devices=devices,
        )

    @property
    def profile(self) -> str:
        """``tpm/1`` or ``gcp-tpm/1``."""
        return self._profile

    def configure(self, manifest_digest: str) -> None:
        """Put the manifest's digest into PCR15: once, when the TEE starts.

        Raises:
            EvidenceFormatError: not a digest.
            EvidenceUnavailableError: no TPM, or PCR15 with another value.
        """
        require_digest("manifest digest", manifest_digest)
        digest = bytes.fromhex(manifest_digest)
        # 1.
        if self._configuration() == _ZERO:
            self._device.extend(CONFIGURATION_REGISTER, digest)
        found, expected = self._configuration(), configuration_value(digest)
        if found != expected:
            raise EvidenceUnavailableError(
                f"PCR{CONFIGURATION_REGISTER}",
                expected=f"that of the manifest ({expected.hex()[:16]})",
                got=found.hex(),
            )
        self._configured = manifest_digest

    def attest(self, binding: Binding) -> Envelope:
        """Return a quote with the nonce that derives from ``binding``.

        Without ``configure`` PCR15 does not name the manifest, which a verifier refuses.

        Raises:
            EvidenceFormatError: a binding for another profile.
            SessionError: a binding for another manifest than the TPM was configured with.
            EvidenceUnavailableError: no TPM, one that refuses, or registers that change all the time.
        """
        if self._configured not in {None, binding.manifest}:
            raise SessionError("binding.manifest", expected=self._configured, got=binding.manifest)
        request = draft(binding, profile=self._profile, devices=self._devices)
        evidence = self._quoted(nonce_of(request.report_data))
        logs = () if self._event_log is None else (_read(self._event_log),)
        return request.completed(evidence.encode(), endorsements=self._endorsements, event_logs=logs)

    def _quoted(self, nonce: bytes) -> TpmEvidence:
        # 3.
        public = self._device.attestation_key()
        for _ in range(_ATTEMPTS):
            pcrs = self._device.registers(self._selection)
            message, signature = self._device.quote(self._selection, nonce)
            digest = hashlib.sha256(b"".join(pcrs[number] for number in self._selection)).digest()
            if parse_quote(message).pcr_digest == digest:
                return TpmEvidence(
                    quote=message, signature=signature, ak_public=public, pcrs=pcrs, **self._certificates
                )
        raise EvidenceUnavailableError("registers", expected="unchanged while they are quoted", got="changing")

    def _configuration(self) -> bytes:
        return self._device.registers((CONFIGURATION_REGISTER,))[CONFIGURATION_REGISTER]


def enrolment_request(tcti: str) -> EnrolmentRequest:
    """Return which keys a TPM has, for a verifier to enrol its attestation key.

    Raises:
        ConfigError: a TCTI that is not named in full.
        EvidenceUnavailableError: no TPM, or none with an EK certificate.
    """
    # 2.
    device = TpmDevice(tcti)
    return EnrolmentRequest(
        attestation_key=device.attestation_key(),
        endorsement_key=device.endorsement_key(),
        certificate=device.endorsement_certificate(),
    )


def activate_credential(tcti: str, credential: Credential) -> bytes:
    """Return the secret of a verifier's credential, as its answer.

    Raises:
        ConfigError: a TCTI that is not named in full.
        EvidenceUnavailableError: no TPM, or a credential for other keys than this TPM's.
    """
    # 2.
    return TpmDevice(tcti).activate(credential)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LOG_LIMIT_BYTES + 1)
    except OSError as error:
        raise EvidenceUnavailableError("event log", expected=f"a file at {path}", got=error.strerror) from error
    if len(data) > LOG_LIMIT_BYTES:
        raise EvidenceUnavailableError("event log in bytes", expected=f"at most {LOG_LIMIT_BYTES}", got="more")
    return data
