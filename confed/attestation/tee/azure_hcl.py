"""The report that Azure's paravisor (HCL) keeps in its virtual TPM: its layout, and the runtime data in it.

A report is a header, the hardware's report, and runtime data: JSON that the paravisor has written and whose hash it put
into the hardware's REPORT_DATA. The header is not measured and only says how to read the rest, so it has to have its
one form. Nothing is verified here, and a caller believes nothing of the runtime data before that hash is compared.

1. The header says that this is a report, how long it is, and of which TEE; what follows its length is zeros.
2. The runtime data is bounded JSON in which no key stands twice.
3. It holds exactly one attestation key (``HCLAkPub``), an RSA key that signs.
4. It says how the virtual machine is configured. Settings that are not known here are told by name: what they allow is
   not known either.

All numbers are little-endian.

Source: Microsoft Learn, "Azure confidential VMs guest attestation design", sections "Attestation report format" and
"Runtime data"; github.com/microsoft/openvmm, openhcl_attestation_protocol, igvm_attest/get.rs.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from confed.errors import (
    AlgorithmError,
    EvidenceFormatError,
    EvidenceSizeError,
    EvidenceVersionError,
    KeyBindingError,
    MissingClaimError,
    TrailingBytesError,
)

HARDWARE_REPORT_BYTES = 1184
"""Size of the hardware's report; a TD report (1024 bytes) is padded."""

REPORT_LIMIT_BYTES = 16 * 1024
"""Largest report; the virtual TPM's index has 2600 bytes."""

USER_DATA_BYTES = 64
"""Size of the guest's own data, where there is some."""

# Signature, version, report size, request type, status, reserved (12 bytes).
_HEADER = struct.Struct("<4sIIII12s")
# Data size, version, report type, hash type, size of the runtime data.
_REQUEST = struct.Struct("<IIIII")
_SIGNATURE, _VERSIONS, _REQUEST_TYPE, _REQUEST_VERSION = b"HCLA", (1, 2), 2, 1
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}
_RUNTIME_LIMIT_BYTES = 8 * 1024
_KEY_NAME = "HCLAkPub"
_KEY_LIMIT = 16
_RSA_BITS = (2048, 3072, 4096)
_EXPONENT = b"\x01\x00\x01"
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+\Z")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*\Z")
_TEXT_LIMIT = 256
_SECTIONS = frozenset({"keys", "vm-configuration", "user-data"})
_DEMANDED = frozenset({"secure-boot", "tpm-enabled"})
_SWITCHES = frozenset(
    {
        "console-enabled",
        "filtered-vpci-devices-allowed",
        "interactive-console-enabled",
        "secure-boot",
        "tpm-enabled",
        "tpm-persisted",
    }
)
_TEXTS = frozenset({"root-cert-thumbprint", "vmUniqueId"})


class Isolation(StrEnum):
    """Whose hardware report a paravisor's report holds."""

    SNP = "SNP"
    TDX = "TDX"


# openvmm, IgvmAttestReportType.
_REPORT_TYPES = {2: Isolation.SNP, 4: Isolation.TDX}


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureRuntimeClaims:
    """What the paravisor says of the virtual machine.

    Attributes:
        secure_boot, tpm_enabled: the machine's settings.
        console_enabled, interactive_console_enabled: the host has a serial console, and may type into it.
        tpm_persisted: the virtual TPM's state outlives the machine.
        filtered_devices_allowed: some of the host's devices may be given to the machine.
        root_certificate_thumbprint: of the authority for key release; empty where there is none.
        vm_id: the machine's identifier.
        unknown: settings and sections that are not known here, by name, ascending.
        user_data: 64 bytes that the guest has written; empty where the paravisor keeps none.

    The four in the middle are ``None`` where the paravisor does not say.
    """

    secure_boot: bool
    tpm_enabled: bool
    console_enabled: bool | None
    interactive_console_enabled: bool | None
    tpm_persisted: bool | None
    filtered_devices_allowed: bool | None
    root_certificate_thumbprint: str
    vm_id: str
    unknown: tuple[str, ...]
    user_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """A paravisor's report, apart.

    Attributes:
        isolation: whose hardware report it is.
        hardware_report: 1184 bytes.
        hash: with which REPORT_DATA is made from ``runtime_data``.
        runtime_data: the JSON, as it was hashed.
        attestation_key: the key that it names.
        runtime: what else it says.
    """

    isolation: Isolation
    hardware_report: bytes
    hash: str
    runtime_data: bytes
    attestation_key: rsa.RSAPublicKey
    runtime: AzureRuntimeClaims


def parse_report(data: bytes) -> HclReport:
    """Return the parts of a paravisor's report.

    Raises:
        EvidenceFormatError, EvidenceSizeError, EvidenceVersionError, TrailingBytesError, MissingClaimError: not of the
            one form.
        AlgorithmError: a hash or a key that is not known.
        KeyBindingError: no attestation key, or several.
    """
    # 1.
    if len(data) > REPORT_LIMIT_BYTES:
        raise EvidenceSizeError("HCL report in bytes", expected=f"at most {REPORT_LIMIT_BYTES}", got=len(data))
    start = _HEADER.size + HARDWARE_REPORT_BYTES
    if len(data) < start + _REQUEST.size:
        raise EvidenceFormatError("HCL report in bytes", expected=f"at least {start + _REQUEST.size}", got=len(data))
    signature, version, report_bytes, request_type, status, reserved = _HEADER.unpack_from(data)
    if (signature, request_type, status) != (_SIGNATURE, _REQUEST_TYPE, 0) or any(reserved):
        raise EvidenceFormatError("HCL header", expected="that of a report", got=data[: _HEADER.size].hex())
    data_bytes, request_version, report_type, hash_type, runtime_bytes = _REQUEST.unpack_from(data, start)
    if version not in _VERSIONS or request_version != _REQUEST_VERSION:
        raise EvidenceVersionError("HCL version", expected="1 or 2, and 1", got=f"{version}, and {request_version}")
    if report_type not in _REPORT_TYPES:
        raise EvidenceVersionError("HCL report type", expected="2 (SNP) or 4 (TDX)", got=report_type)
    if hash_type not in _HASHES:
        raise AlgorithmError("HCL hash type", expected=", ".join(_HASHES.values()), got=hash_type)
    end = start + data_bytes
    if data_bytes != _REQUEST.size + runtime_bytes or report_bytes != end or end > len(data):
        raise EvidenceFormatError("HCL sizes", expected="sizes that agree", got=f"{report_bytes} and {data_bytes}")
    if any(data[end:]):
        raise TrailingBytesError("HCL report", expected="zeros after its end", got="something else")
    runtime_data = data[start + _REQUEST.size : end]
    key, runtime = _parse_runtime(runtime_data)
    return HclReport(
        isolation=_REPORT_TYPES[report_type],
        hardware_report=data[_HEADER.size : start],
        hash=_HASHES[hash_type],
        runtime_data=runtime_data,
        attestation_key=key,
        runtime=runtime,
    )


def parse_object(data: bytes, *, limit_bytes: int, what: str) -> dict[str, Any]:
    """Return a JSON object within a bound in which no key stands twice.

    Raises:
        EvidenceSizeError, EvidenceFormatError: anything else.
    """
    if len(data) > limit_bytes:
        raise EvidenceSizeError(f"{what} in bytes", expected=f"at most {limit_bytes}", got=len(data))
    try:
        value: object = json.loads(
            data.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant
        )
        # Half of a surrogate pair can be written as an escape, and cannot be shown or hashed.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise EvidenceFormatError(what, expected="JSON, each key once", got="something else") from error
    return _object(value, what)


def from_base64url(value: Any, *, limit: int, what: str) -> bytes:
    """Return the bytes of base64url text, padded or not.

    Raises:
        EvidenceFormatError: anything else, another spelling of the same bytes included.
    """
    text = value.removesuffix("=").removesuffix("=") if isinstance(value, str) else ""
    if len(text) > limit or not _BASE64URL.match(text):
        raise EvidenceFormatError(what, expected="base64url text", got="something else")
    padded = text + "=" * (-len(text) % 4)
    if value not in {text, padded}:
        raise EvidenceFormatError(what, expected="the padding that belongs to it", got="another")
    try:
        decoded = base64.urlsafe_b64decode(padded)
    except ValueError as error:
        raise EvidenceFormatError(what, expected="base64url text", got="something else") from error
    if base64.urlsafe_b64encode(decoded).decode() != padded:
        raise EvidenceFormatError(what, expected="the one base64url spelling", got="another")
    return decoded


def _parse_runtime(data: bytes) -> tuple[rsa.RSAPublicKey, AzureRuntimeClaims]:
    # 2.
    value = parse_object(data, limit_bytes=_RUNTIME_LIMIT_BYTES, what="runtime data")
    for name in ("keys", "vm-configuration"):
        if name not in value:
            raise MissingClaimError(f"runtime data: {name}", expected="a value", got="nothing")
    # 3.
    key = _attestation_key(value["keys"])
    # 4.
    settings = _object(value["vm-configuration"], "vm-configuration")
    for name in _DEMANDED - settings.keys():
        raise MissingClaimError(f"vm-configuration: {name}", expected="a value", got="nothing")
    switches = {name: _switch(settings, name) for name in _SWITCHES}
    texts = {name: _text(name, settings.get(name, "")) for name in _TEXTS}
    unknown = {*(value.keys() - _SECTIONS), *(settings.keys() - _SWITCHES - _TEXTS)}
    return key, AzureRuntimeClaims(
        secure_boot=bool(switches["secure-boot"]),
        tpm_enabled=bool(switches["tpm-enabled"]),
        console_enabled=switches["console-enabled"],
        interactive_console_enabled=switches["interactive-console-enabled"],
        tpm_persisted=switches["tpm-persisted"],
        filtered_devices_allowed=switches["filtered-vpci-devices-allowed"],
        root_certificate_thumbprint=texts["root-cert-thumbprint"],
        vm_id=texts["vmUniqueId"],
        unknown=tuple(sorted(unknown)),
        user_data=_user_data(value.get("user-data", "")),
    )


def _attestation_key(value: Any) -> rsa.RSAPublicKey:
    if not isinstance(value, list) or not 1 <= len(value) <= _KEY_LIMIT:  # pyright: ignore[reportUnknownArgumentType]
        raise EvidenceFormatError("runtime data: keys", expected=f"1 to {_KEY_LIMIT} keys", got="something else")
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    found = [key for key in (_object(item, "runtime data: key") for item in items) if key.get("kid") == _KEY_NAME]
    if len(found) != 1:
        raise KeyBindingError(f"runtime data: {_KEY_NAME}", expected="one key", got=len(found))
    (key,) = found
    if key.get("kty") != "RSA" or key.get("key_ops") != ["sign"]:
        raise KeyBindingError(f"runtime data: {_KEY_NAME}", expected="an RSA key that signs", got="another use")
    modulus = from_base64url(key.get("n"), limit=1024, what=f"{_KEY_NAME}: n")
    exponent = from_base64url(key.get("e"), limit=8, what=f"{_KEY_NAME}: e")
    number = int.from_bytes(modulus, "big")
    if exponent != _EXPONENT or number.bit_length() not in _RSA_BITS or len(modulus) * 8 != number.bit_length():
        raise AlgorithmError(_KEY_NAME, expected=f"RSA of {_RSA_BITS} bits", got=f"{number.bit_length()} bits")
    try:
        return rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), number).public_key()
    except ValueError as error:
        raise EvidenceFormatError(_KEY_NAME, expected="a public key", got="other numbers") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EvidenceFormatError(what, expected="an object", got="another type")
    return value  # pyright: ignore[reportUnknownVariableType]


def _switch(settings: Mapping[str, Any], name: str) -> bool | None:
    if name not in settings:
        return None
    if not isinstance(settings[name], bool):
        raise EvidenceFormatError(f"vm-configuration: {name}", expected="true or false", got="another type")
    return settings[name]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_LIMIT:
        raise EvidenceFormatError(f"vm-configuration: {name}", expected=f"{_TEXT_LIMIT} characters", got="others")
    return value


def _user_data(value: Any) -> bytes:
    if not isinstance(value, str) or len(value) not in {0, 2 * USER_DATA_BYTES} or not _HEX.match(value):
        raise EvidenceFormatError("user-data", expected=f"{USER_DATA_BYTES} bytes in hexadecimal", got="others")
    return bytes.fromhex(value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
