"""What a TEE is told, when it is launched, about how it makes its evidence; and the attester that comes of it.

The terms change no guarantee: evidence of another kind than the manifest names, or with anything missing, is refused by
those who verify it. The kind is the manifest's profile, and nothing else is tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confed.attestation.attester import Attester
from confed.attestation.evidence import Binding, Envelope
from confed.attestation.tee.simulated import PROFILE as SIMULATED_PROFILE
from confed.attestation.tee.simulated import SimulatedAttester, SimulatedInstance
from confed.errors import ConfigError

if TYPE_CHECKING:
    from confed.attestation.attesters.choose import TpmOptions

_BY_PROFILE = {
    "sev-snp/1": "snp",
    "tdx/1": "tdx",
    "sgx/1": "sgx",
    "aws-nitro/1": "nitro",
    "tpm/1": "tpm",
    "gcp-tpm/1": "gcp-tpm",
}
MADE_HERE = (SIMULATED_PROFILE, *_BY_PROFILE)
"""Profiles that there is an attester for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttesterTerms:
    """How one TEE makes its evidence.

    Attributes:
        profile: the manifest's.
        instance: the simulated TEE's instance (attestation key and certificate); a secret; empty for any other.
        privilege_level: the VMPL that SEV-SNP reports are of.
        event_logs: files of event logs that go along (TDX, TPM).
        tcti: how to reach a TPM, in full.
        registers: which of a TPM's registers are quoted.
        enrolment: what the verifier signed after it had enrolled the TPM's attestation key.
        algorithm: which of Google's attestation keys signs: ``rsa`` or ``ecc``.
        gpus: indices or UUIDs of the GPUs whose evidence goes along.
        endorsements: certificates, collateral and the like that go along, for verifiers that cannot fetch them.
    """

    profile: str
    instance: bytes = b""
    privilege_level: int = 0
    event_logs: tuple[str, ...] = ()
    tcti: str = ""
    registers: tuple[int, ...] = ()
    enrolment: bytes = b""
    algorithm: str = ""
    gpus: tuple[int | str, ...] = ()
    endorsements: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"AttesterTerms(profile={self.profile!r}, …)"


class _Stapled:
    """An attester whose envelopes carry endorsements beside those that the TEE itself gave."""

    def __init__(self, attester: Attester, endorsements: Sequence[bytes]) -> None:
        self._attester = attester
        self._endorsements = tuple(endorsements)

    @property
    def profile(self) -> str:
        return self._attester.profile

    def attest(self, binding: Binding) -> Envelope:
        envelope = self._attester.attest(binding)
        return dataclasses.replace(envelope, endorsements=(*envelope.endorsements, *self._endorsements))


def attester_of(terms: AttesterTerms, *, layers: Sequence[str], manifest_digest: str) -> Attester:
    """Return the attester of a TEE that was launched with these terms.

    Args:
        terms: from the launch document.
        layers: confinement that is active in this process; a simulated TEE reports it.
        manifest_digest: what this TEE runs; a TPM or a Nitro enclave measures it now.

    Raises:
        ConfigError: a profile that there is no attester for, or terms that do not fit it.
        EvidenceUnavailableError: the TEE's device is not there, or refuses.
    """
    attester = _attester(terms, layers, manifest_digest)
    return _Stapled(attester, terms.endorsements) if terms.endorsements else attester


def _attester(terms: AttesterTerms, layers: Sequence[str], manifest_digest: str) -> Attester:
    if terms.profile == SIMULATED_PROFILE:
        return SimulatedAttester(SimulatedInstance.from_bytes(terms.instance), layers=tuple(layers))
    if terms.instance:
        raise ConfigError("attester.instance", expected=f"none for {terms.profile}", got="a simulated TEE's")
    kind = _BY_PROFILE.get(terms.profile)
    if kind is None:
        raise ConfigError("attester.profile", expected=" or ".join(MADE_HERE), got=terms.profile)
    # What a simulated TEE does not need is not imported into it.
    from confed.attestation.attesters.choose import attester_for  # noqa: PLC0415
    from confed.attestation.attesters.nvml import NvmlAttester  # noqa: PLC0415

    tpm = kind in ("tpm", "gcp-tpm")
    return attester_for(
        kind,
        privilege_level=terms.privilege_level if kind == "snp" else None,
        event_logs=() if tpm else tuple(Path(path) for path in terms.event_logs),
        tpm=_tpm_options(terms) if tpm else None,
        manifest_digest=manifest_digest,
        devices=NvmlAttester(terms.gpus).collect if terms.gpus else None,
    )


def _tpm_options(terms: AttesterTerms) -> TpmOptions:
    from confed.attestation.attesters.choose import TpmOptions  # noqa: PLC0415

    if len(terms.event_logs) > 1:
        raise ConfigError("attester.event_logs", expected="at most one for a TPM", got=len(terms.event_logs))
    return TpmOptions(
        tcti=terms.tcti,
        selection=terms.registers,
        enrolment=terms.enrolment or None,
        algorithm=terms.algorithm or None,
        event_log=Path(terms.event_logs[0]) if terms.event_logs else None,
    )
