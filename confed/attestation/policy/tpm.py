"""Is a TPM acceptable: a TPM of a site's own (``tpm/1``), or a vTPM of Google's (``gcp-tpm/1``)?

Floors hold whatever a policy says: a quote signs at least one register that not anybody can reset. Where nobody gave a
policy, Google's own word that a host is none of its production is believed, and the vTPM refused. The rest is the
owner's choice. That neither kind is rooted in hardware is in the claims; production refuses it (``appraisal``).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import ClassVar

from confed.attestation.policy.allow_lists import (
    Allowed,
    require_allow_list,
    require_allowed,
    require_text_list,
)
from confed.attestation.policy.tpm_quote import QuotePolicy, appraise_quote, require_quote_floors, require_true
from confed.attestation.tee import gcp_tpm, tpm
from confed.attestation.tee.gcp_tpm import TECHNOLOGIES, GcpTpmClaims
from confed.attestation.tee.tpm_claims import ENROLMENT, PINNED_KEY, TpmClaims
from confed.errors import (
    AttributesError,
    FirmwareError,
    LifecycleError,
    PlatformError,
    PlatformInfoError,
    PolicyFormatError,
    RevocationStatusError,
    SecurityModuleError,
    TcbError,
)
from confed.manifest import Unchecked

_KEY_BYTES, _VERSION_BYTES = 32, 8
_ROOTS = (PINNED_KEY, ENROLMENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmPolicy:
    """What an owner accepts of a TPM.

    Attributes:
        quote: which quotes.
        rooted_by: what the attestation key may be rooted in: ``enrolment``, ``pinned-key``.
        attributes: ``true``: the key's public area must have come along, so that its attributes were checked.
        attestation_keys: SHA-256 of the keys (SPKI) that are accepted.
        endorsement_keys: SHA-256 of the EKs (SPKI) that are accepted; only of a TPM that has activated a credential.
        manufacturers: as the EK certificate spells them, such as ``id:49465800``; likewise.
        firmware_versions: of the TPM, 64-bit numbers in hexadecimal.

    Raises:
        PolicyFormatError: an empty list, or an entry that cannot be.
    """

    PROFILE: ClassVar[str] = tpm.PROFILE

    quote: QuotePolicy
    rooted_by: tuple[str, ...]
    attributes: bool | Unchecked
    attestation_keys: tuple[str, ...] | Unchecked
    endorsement_keys: tuple[str, ...] | Unchecked
    manufacturers: tuple[str, ...] | Unchecked
    firmware_versions: tuple[str, ...] | Unchecked

    def __post_init__(self) -> None:
        _require_known("rooted_by", self.rooted_by, _ROOTS)
        require_true("attributes", self.attributes)
        require_allow_list("attestation_keys", self.attestation_keys, sizes=(_KEY_BYTES,))
        require_allow_list("endorsement_keys", self.endorsement_keys, sizes=(_KEY_BYTES,))
        require_text_list("manufacturers", self.manufacturers)
        require_allow_list("firmware_versions", self.firmware_versions, sizes=(_VERSION_BYTES,))


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpTpmPolicy:
    """What an owner accepts of a vTPM of Google Compute Engine.

    Attributes:
        quote: which quotes.
        projects, zones: by their names; instances: by their numbers in decimal, as text.
        technologies: how memory may be protected (``amd-sev``, ``amd-sev-snp``, ``intel-tdx``, …), as the firmware has
            measured it into PCR0; needs the event log.
        least_firmware: the least version of Google's firmware; needs the event log.
        least_security_version: the least security version of Google's host.
        production: ``true``: the host must be one of Google's production.
        revocation: ``true``: every certificate must have been looked up in its issuer's revocation list.

    Raises:
        PolicyFormatError: an empty list, or an entry that cannot be.
    """

    PROFILE: ClassVar[str] = gcp_tpm.PROFILE

    quote: QuotePolicy
    projects: tuple[str, ...] | Unchecked
    zones: tuple[str, ...] | Unchecked
    instances: tuple[str, ...] | Unchecked
    technologies: tuple[str, ...] | Unchecked
    least_firmware: int | Unchecked
    least_security_version: int | Unchecked
    production: bool | Unchecked
    revocation: bool | Unchecked

    def __post_init__(self) -> None:
        for name in ("projects", "zones", "instances"):
            allowed: Allowed = getattr(self, name)
            require_text_list(name, allowed)
        if not isinstance(self.technologies, Unchecked):
            _require_known("technologies", self.technologies, TECHNOLOGIES)
        for name in ("least_firmware", "least_security_version"):
            least: int | Unchecked = getattr(self, name)
            if not isinstance(least, Unchecked) and least < 0:
                raise PolicyFormatError(name, expected="0 or more", got=least)
        require_true("production", self.production)
        require_true("revocation", self.revocation)


def require_floors(claims: TpmClaims | GcpTpmClaims) -> None:
    """Refuse what no policy can accept.

    Raises:
        RegisterSelectionError: a quote over nothing that proves anything.
    """
    require_quote_floors(claims.tpm if isinstance(claims, GcpTpmClaims) else claims)


def require_defaults(claims: TpmClaims | GcpTpmClaims) -> None:
    """Check what holds where nobody gave a policy.

    Raises:
        RegisterSelectionError: see ``require_floors``.
        LifecycleError: a host that is none of Google's production.
    """
    require_floors(claims)
    if (
        isinstance(claims, GcpTpmClaims)
        and claims.instance.security
        and claims.instance.security.is_production is False
    ):
        raise LifecycleError("host", expected="one of Google's production", got="another")


def appraise(claims: TpmClaims | GcpTpmClaims, policy: TpmPolicy | GcpTpmPolicy, *, now: datetime.datetime) -> None:
    """Accept a TPM, or refuse it with the class that says why.

    Raises:
        PolicyFormatError: a policy of the other kind of TPM.
        AppraisalError: of the class that ``appraise_quote`` or one of the choices gives.
    """
    del now  # a quote has no date of its own; reference values expire with the document that holds them
    require_floors(claims)
    match claims, policy:
        case TpmClaims(), TpmPolicy():
            _appraise_tpm(claims, policy)
        case GcpTpmClaims(), GcpTpmPolicy():
            _appraise_gcp(claims, policy)
        case _:
            raise PolicyFormatError("policy", expected=f"one for {type(claims).__name__}", got=type(policy).__name__)


def _appraise_tpm(claims: TpmClaims, policy: TpmPolicy) -> None:
    appraise_quote(claims, policy.quote)
    require_allowed("attestation key's root", claims.rooted_by, policy.rooted_by, SecurityModuleError)
    if not isinstance(policy.attributes, Unchecked) and not claims.attributes:
        raise AttributesError("attestation key attributes", expected="checked", got="no public area came along")
    require_allowed("attestation key", claims.attestation_key, policy.attestation_keys, PlatformError)
    # An EK certificate says something of this quote only where its TPM has shown that it holds both keys.
    found = claims.endorsement_key if claims.endorsement_key and claims.endorsement_key.activated else None
    require_allowed("endorsement key", found.key if found else None, policy.endorsement_keys, PlatformError)
    require_allowed("manufacturer", found.manufacturer if found else None, policy.manufacturers, SecurityModuleError)
    require_allowed("TPM firmware", claims.firmware_version, policy.firmware_versions, FirmwareError)


def _appraise_gcp(claims: GcpTpmClaims, policy: GcpTpmPolicy) -> None:
    appraise_quote(claims.tpm, policy.quote)
    instance, security = claims.instance, claims.instance.security
    require_allowed("project", instance.project_id, policy.projects, PlatformError)
    require_allowed("zone", instance.zone, policy.zones, PlatformError)
    require_allowed("instance", instance.instance_id, policy.instances, PlatformError)
    require_allowed("memory protection", claims.technology or None, policy.technologies, PlatformInfoError)
    firmware = int(claims.firmware) if claims.firmware else None
    _require_least("Google's firmware", firmware, policy.least_firmware, FirmwareError)
    version = security.security_version if security else None
    _require_least("security version of the host", version, policy.least_security_version, TcbError)
    if not isinstance(policy.production, Unchecked) and not (security and security.is_production):
        raise LifecycleError("host", expected="one of Google's production", got="not said to be")
    if not isinstance(policy.revocation, Unchecked) and not claims.revocation_checked:
        raise RevocationStatusError("AK certificate", expected="looked up in revocation lists", got="not")


def _require_least(
    field: str, found: int | None, least: int | Unchecked, error: type[FirmwareError | TcbError]
) -> None:
    if not isinstance(least, Unchecked) and (found is None or found < least):
        raise error(field, expected=f"at least {least}", got="not known" if found is None else found)


def _require_known(field: str, entries: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not entries or not set(entries) <= set(known):
        raise PolicyFormatError(field, expected=f"some of {', '.join(known)}", got=", ".join(entries) or "none")
