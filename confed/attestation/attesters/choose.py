"""The attester of a TEE, chosen by name: never guessed from what is there, never fallen back from.

What a kind needs is asked for by name too, and an option of another kind is refused, since whoever gave it thinks of
another TEE than the one that would attest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from confed.attestation.attester import Attester
from confed.attestation.attesters import configfs_tsm, gramine, nsm
from confed.attestation.attesters.configfs_tsm import ConfigfsTsmAttester
from confed.attestation.attesters.device_files import unavailable
from confed.attestation.attesters.draft import DeviceEvidence
from confed.attestation.attesters.gramine import GramineAttester
from confed.attestation.attesters.nsm import NitroSecurityModule, NsmAttester
from confed.attestation.attesters.tpm import TpmAttester
from confed.errors import ConfigError

SIMULATED, SNP, TDX, SGX, NITRO = "simulated", "snp", "tdx", "sgx", "nitro"
TPM, GOOGLE_TPM = "tpm", "gcp-tpm"
KINDS = (SIMULATED, SNP, TDX, SGX, NITRO, TPM, GOOGLE_TPM)
"""The kinds of TEE that there is an attester for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmOptions:
    """What a TPM's attester has to be told.

    Attributes:
        tcti: how to reach it, in full: ``device:/dev/tpmrm0``.
        selection: registers to quote.
        enrolment: what a verifier signed after credential activation; for ``tpm``, and needed there.
        algorithm: which of Google's keys, ``rsa`` or ``ecc``; for ``gcp-tpm``, and needed there.
        intermediates: certificates between the key's and its vendor's root, in DER.
        event_log: the firmware's log, if it goes along.
    """

    tcti: str
    selection: tuple[int, ...]
    enrolment: bytes | None = None
    algorithm: str | None = None
    intermediates: tuple[bytes, ...] = ()
    event_log: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePaths:
    """Where the interfaces of TEEs are; only a test has them elsewhere."""

    tsm: Path = configfs_tsm.ROOT
    nsm: Path = nsm.PATH
    gramine: Path = gramine.DIRECTORY

    def of(self, kind: str) -> Path:
        """Return the path that has to be there for a kind.

        Raises:
            ConfigError: a kind without a device.
        """
        found = {
            SNP: self.tsm / "report",
            TDX: self.tsm / "report",
            SGX: self.gramine / "quote",
            NITRO: self.nsm,
        }.get(kind)
        if found is None:
            raise ConfigError("TEE", expected="one with a device", got=kind)
        return found


def attester_for(
    kind: str,
    *,
    simulated: Attester | None = None,
    privilege_level: int | None = None,
    event_logs: Sequence[Path] = (),
    tpm: TpmOptions | None = None,
    manifest_digest: str | None = None,
    devices: DeviceEvidence | None = None,
    paths: DevicePaths | None = None,
) -> Attester:
    """Return the attester of one kind of TEE.

    Args:
        kind: one of ``KINDS``.
        simulated: the attester of a simulated instance, which somebody launched; for ``simulated``, and needed there.
        privilege_level: the VMPL that reports are of; for ``snp``, and needed there.
        event_logs: files of event logs that go along; for ``tdx``.
        tpm: for ``tpm`` and ``gcp-tpm``, and needed there.
        manifest_digest: what this TEE runs: a Nitro enclave and a TPM put it into a register now, once and for good;
            every other TEE was told by who launched it (HOST_DATA, MRCONFIGID, CONFIGID), so nothing is done.
        devices: makes the evidence of GPUs that goes along; not for ``simulated``.
        paths: where the interfaces are.

    Raises:
        ConfigError: an unknown kind, an option that is missing, or one of another kind.
        EvidenceUnavailableError: the kind's device is not there, or refused the manifest's digest.
    """
    if kind not in KINDS:
        raise ConfigError("TEE", expected=f"one of {', '.join(KINDS)}", got=kind)
    _require_options(
        kind,
        simulated=simulated,
        privilege_level=privilege_level,
        event_logs=event_logs or None,
        tpm=tpm,
        devices=devices,
    )
    if kind == SIMULATED:
        return simulated if simulated is not None else _missing(kind, "simulated")
    if kind in {TPM, GOOGLE_TPM}:
        options = tpm if tpm is not None else _missing(kind, "tpm")
        return _configured(_tpm_attester(kind, options, devices), manifest_digest)
    places = paths or DevicePaths()
    _require_device(kind, places.of(kind))
    if kind == SNP:
        level = privilege_level if privilege_level is not None else _missing(kind, "privilege_level")
        return ConfigfsTsmAttester.sev_snp(privilege_level=level, devices=devices, root=places.tsm)
    if kind == TDX:
        return ConfigfsTsmAttester.tdx(event_logs=event_logs, devices=devices, root=places.tsm)
    if kind == SGX:
        return GramineAttester(directory=places.gramine, devices=devices)
    return _configured(NsmAttester(NitroSecurityModule(places.nsm), devices=devices), manifest_digest)


def _configured(attester: NsmAttester | TpmAttester, manifest_digest: str | None) -> Attester:
    if manifest_digest is not None:
        attester.configure(manifest_digest)
    return attester


def _tpm_attester(kind: str, options: TpmOptions, devices: DeviceEvidence | None) -> TpmAttester:
    shared: dict[str, Any] = {
        "selection": options.selection,
        "intermediates": options.intermediates,
        "event_log": options.event_log,
        "devices": devices,
    }
    if kind == TPM:
        _require_absent(kind, "tpm.algorithm", options.algorithm)
        enrolment = options.enrolment if options.enrolment is not None else _missing(kind, "tpm.enrolment")
        return TpmAttester.own(options.tcti, enrolment=enrolment, **shared)
    _require_absent(kind, "tpm.enrolment", options.enrolment)
    algorithm = options.algorithm if options.algorithm is not None else _missing(kind, "tpm.algorithm")
    return TpmAttester.google(options.tcti, algorithm=algorithm, **shared)


_OWNERS_OF_OPTIONS = {
    "simulated": (SIMULATED,),
    "privilege_level": (SNP,),
    "event_logs": (TDX,),
    "tpm": (TPM, GOOGLE_TPM),
    "devices": (SNP, TDX, SGX, NITRO, TPM, GOOGLE_TPM),
}


def _require_options(kind: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None and kind not in _OWNERS_OF_OPTIONS[name]:
            raise ConfigError(f"option {name}", expected=f"{', '.join(_OWNERS_OF_OPTIONS[name])}", got=kind)


def _require_absent(kind: str, option: str, value: object) -> None:
    if value is not None:
        raise ConfigError(f"option {option}", expected=f"none for {kind}", got="some")


def _missing(kind: str, option: str) -> NoReturn:
    raise ConfigError(f"option {option}", expected=f"a value for {kind}", got="none")


def _require_device(kind: str, path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        raise unavailable(path, error, expected=f"the device of {kind}") from error
