"""From the ``[tee]`` table of an experiment file to the manifest's policies and anchors, and to who makes evidence.

A profile is one that the verifier's registry knows. The simulated TEE needs nothing more: its measurement is that of
the code here. Any other needs its measurements, an appraisal policy for each profile, and anchors where its roots are
not pinned in this release.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from confed.attestation.anchors import pinned_anchors
from confed.attestation.attesters.launch import MADE_HERE, AttesterTerms
from confed.attestation.certificates import load_certificates
from confed.attestation.policy import document, ready
from confed.attestation.tee.simulated import PROFILE as SIMULATED_PROFILE
from confed.attestation.vendor_files import parts_of
from confed.attestation.verifier import default_registry
from confed.errors import AttestationError, ConfigError, MissingFileError, PolicyExpiredError
from confed.experiment.config import TeeTable
from confed.journey import Role
from confed.manifest import TeePolicy

_MEASUREMENT = re.compile(r"(?:[0-9a-f]{2})+\Z")
_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def tee_policy(table: TeeTable, directory: Path, *, role: Role, code: str, now: datetime.datetime) -> TeePolicy:
    """Return what the manifest says of one role's TEE.

    Args:
        table: the experiment's table.
        directory: where the experiment file is; policies are found beside it.
        role: whose.
        code: the measurement of the role's code here, which a simulated TEE runs.
        now: when the run starts, with its time zone; policies must not have expired then.

    Raises:
        ConfigError: a profile that no verifier knows, measurements or policies that are missing or too many, a
            measurement that is none, or a policy past its last day.
        PolicyFormatError: a policy that is not of its one form.
        MissingFileError: a policy that is neither a file nor a ready one.
    """
    _require_known(table)
    given = table.client_measurements if role is Role.CLIENT else table.aggregator_measurements
    simulated = table.profile == SIMULATED_PROFILE
    if simulated == bool(given):
        expected = "none: a simulated TEE runs the code here" if simulated else "at least one (confed measure)"
        raise ConfigError(f"tee.{role}_measurements", expected=expected, got=len(given))
    for entry in given:
        if not _MEASUREMENT.match(entry) or not entry.strip("0"):
            expected = "lower-case hexadecimal digits, and not zeros"
            raise ConfigError(f"tee.{role}_measurements", expected=expected, got=entry[:40])
    return TeePolicy(
        profiles=(table.profile,),
        measurements=(code,) if simulated else given,
        devices=table.devices,
        appraisal={found.profile: found.to_table() for found in _policies(table, directory, now)},
        max_age_s=table.max_age_s,
        reattest_rounds=table.reattest_rounds,
        reattest_s=table.reattest_s,
    )


def trust_anchors(table: TeeTable, directory: Path, *, simulated: bytes) -> Mapping[str, tuple[bytes, ...]]:
    """Return the trust anchors (DER) by profile: the platform's here, a file's, or those pinned in this release.

    Raises:
        ConfigError: a profile without anchors, or a file for a profile that is not used.
        MissingFileError: a file that is not there.
    """
    profiles = (table.profile, *table.devices)
    for profile in table.anchors:
        if profile not in profiles or profile == SIMULATED_PROFILE:
            raise ConfigError(f"tee.anchors.{profile}", expected="a profile that the table names", got="another")
    return {profile: _anchors(table, directory, profile, simulated) for profile in profiles}


def attester_terms(table: TeeTable, directory: Path) -> AttesterTerms:
    """Return how TEEs of the table's profile, which is not the simulated one, make their evidence on this machine.

    Raises:
        ConfigError: a profile that there is no attester for.
        MissingFileError: a file that is not there.
    """
    if table.profile not in MADE_HERE:
        raise ConfigError("tee.profile", expected=f"an attester's: {', '.join(MADE_HERE)}", got=table.profile)
    host = table.attester
    files = [_read(directory / name, "tee.attester.endorsements") for name in host.endorsements]
    return AttesterTerms(
        profile=table.profile,
        privilege_level=host.privilege_level,
        event_logs=host.event_logs,
        tcti=host.tcti,
        registers=host.registers,
        enrolment=_read(directory / host.enrolment, "tee.attester.enrolment") if host.enrolment else b"",
        algorithm=host.algorithm,
        gpus=host.gpus,
        endorsements=tuple(part for data in files for part in parts_of(data)),
    )


def _anchors(table: TeeTable, directory: Path, profile: str, simulated: bytes) -> tuple[bytes, ...]:
    if profile == SIMULATED_PROFILE:
        return (simulated,)
    file = table.anchors.get(profile)
    if file is not None:
        return _from_pem(_read(directory / file, f"tee.anchors.{profile}"), f"tee.anchors.{profile}")
    anchors = pinned_anchors(profile)
    if not anchors:
        raise ConfigError(f"tee.anchors.{profile}", expected="a file of certificates: none are pinned", got="nothing")
    return anchors


def _from_pem(data: bytes, what: str) -> tuple[bytes, ...]:
    """Return the certificates and public keys of PEM text in DER, certificates first."""
    blocks = [block.strip() + b"\n" for block in _PUBLIC_KEY.findall(data)]
    try:
        keys = [load_pem_public_key(block) for block in blocks]
        rest = _PUBLIC_KEY.sub(b"", data)
        certificates = load_certificates(rest, what=what) if rest.strip() else ()
    except (AttestationError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(what, expected="certificates and public keys in PEM", got="something else") from error
    der = [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    if not certificates and not der:
        raise ConfigError(what, expected="certificates and public keys in PEM", got="nothing")
    return (*(certificate.der for certificate in certificates), *der)


def _require_known(table: TeeTable) -> None:
    registry = default_registry()
    for key, names, known in (
        ("tee.profile", (table.profile,), registry.profiles),
        ("tee.devices", table.devices, registry.device_profiles),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(key, expected=" or ".join(known), got=name)
    if len(set(table.devices)) != len(table.devices):
        raise ConfigError("tee.devices", expected="each profile once", got=", ".join(table.devices))


def _policies(table: TeeTable, directory: Path, now: datetime.datetime) -> tuple[document.PolicyDocument, ...]:
    found = tuple(_policy(name, directory) for name in table.policies)
    wanted = [profile for profile in (table.profile, *table.devices) if profile != SIMULATED_PROFILE]
    got = [policy.profile for policy in found]
    if sorted(got) != sorted(wanted):
        expected = "one for each of " + ", ".join(wanted) if wanted else "none for a simulated TEE"
        raise ConfigError("tee.policies", expected=expected, got=", ".join(got) or "none")
    for policy in found:
        try:
            policy.require_current(now)
        except PolicyExpiredError as error:
            expected = f"a policy that has not expired (confed evidence policies), {policy.name} did"
            raise ConfigError("tee.policies", expected=expected, got=f"{policy.expires} as its last day") from error
    return found


def _policy(name: str, directory: Path) -> document.PolicyDocument:
    if name in ready.ready_names() and not (directory / name).exists():
        return document.load(ready.ready_policy(name))
    return document.load(_read(directory / name, "tee.policies"))


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingFileError(what, expected="a file that can be read", got=path) from error
