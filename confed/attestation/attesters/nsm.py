"""Nitro enclaves: attestation documents from the Nitro Security Module, ``/dev/nsm``.

The module answers CBOR over one ioctl. PCR0 to PCR2 measure the enclave's image; the manifest is not in the image, so
its digest goes into PCR16, once and for good:

1. ``configure``: PCR16 is read; unlocked and zero, it is extended with the manifest's digest (SHA-384 of the old value
   and the digest), and the answer must be the value expected;
2. PCR16 is locked, so nothing in the enclave can extend it again;
3. PCR16 is read again: locked, and of that value. An enclave that was configured so before passes 1. and 2. unchanged;
   one with any other value is refused.

``attest`` asks for a document with REPORT_DATA as ``user_data`` and the binding's nonce as ``nonce``, and checks that
the document carries both. It changes no register. Whether the document is genuine is the verifier's question.

Source: github.com/aws/aws-nitro-enclaves-nsm-api, src/api/mod.rs and docs/attestation_process.md; Linux
drivers/misc/nsm.c.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2

from confed.attestation.attesters.device_files import unavailable
from confed.attestation.attesters.draft import DeviceEvidence, draft
from confed.attestation.evidence import Binding, Envelope, require_digest
from confed.attestation.tee.cose import ES384, decode_cbor, load_sign1
from confed.attestation.tee.nitro import CONFIGURATION_PCR, PROFILE, configuration_pcr
from confed.attestation.tee.nitro_document import PCR_BYTES, parse_document
from confed.errors import AttestationError, EvidenceUnavailableError, SessionError

PATH = Path("/dev/nsm")
# Linux drivers/misc/nsm.c: NSM_REQUEST_MAX_SIZE, NSM_RESPONSE_MAX_SIZE.
_REQUEST_LIMIT_BYTES = 0x1000
_RESPONSE_LIMIT_BYTES = 0x3000
# include/uapi/linux/nsm.h: NSM_IOCTL_RAW = _IOWR(0x0A, 0, struct nsm_raw), 32 bytes.
_IOCTL_RAW = 0xC0200A00

Ioctl = Callable[[int, int, Any], Any]
"""``ioctl(descriptor, request, message)``; raises OSError."""


class _Span(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Message(ctypes.Structure):
    _fields_ = (("request", _Span), ("response", _Span))


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """A platform configuration register: its value, and whether it is locked against extension."""

    value: bytes
    locked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDescription:
    """What the module says of itself; ``version`` as ``major.minor.patch``."""

    version: str
    module_id: str
    digest: str
    registers: int
    locked: tuple[int, ...]


class NitroSecurityModule:
    """The module's requests, each one ioctl.

    Args:
        path: the device.
        ioctl: makes the call; a test's may play the device.
    """

    def __init__(self, path: Path = PATH, *, ioctl: Ioctl = fcntl.ioctl) -> None:
        self.path = path
        self._ioctl = ioctl

    def describe(self) -> ModuleDescription:
        """Return what the module says of itself.

        Raises:
            EvidenceUnavailableError: no module, or no answer of the form expected.
        """
        answer = self._ask("DescribeNSM")
        numbers = [_typed(answer, f"version_{part}", int) for part in ("major", "minor", "patch")]
        locked = _typed(answer, "locked_pcrs", list)
        if not all(type(number) is int for number in locked):
            raise EvidenceUnavailableError("NSM locked_pcrs", expected="numbers", got="something else")
        return ModuleDescription(
            version=".".join(map(str, numbers)),
            module_id=_typed(answer, "module_id", str),
            digest=_typed(answer, "digest", str),
            registers=_typed(answer, "max_pcrs", int),
            locked=tuple(sorted(locked)),
        )

    def register(self, index: int) -> Register:
        """Return a register.

        Raises:
            EvidenceUnavailableError: no module, no such register, or no answer of the form expected.
        """
        answer = self._ask("DescribePCR", {"index": index})
        return Register(value=_register_value(answer), locked=_typed(answer, "lock", bool))

    def extend(self, index: int, data: bytes) -> bytes:
        """Extend a register and return its new value.

        Raises:
            EvidenceUnavailableError: see ``register``; a locked one too.
        """
        return _register_value(self._ask("ExtendPCR", {"index": index, "data": data}))

    def lock(self, index: int) -> None:
        """Lock a register against extension until the enclave ends.

        Raises:
            EvidenceUnavailableError: see ``register``.
        """
        self._ask("LockPCR", {"index": index})

    def attestation(self, *, user_data: bytes, nonce: bytes) -> bytes:
        """Return a signed attestation document.

        Raises:
            EvidenceUnavailableError: no module, or no answer of the form expected.
        """
        request = {"user_data": user_data, "nonce": nonce, "public_key": None}
        return _typed(self._ask("Attestation", request), "document", bytes)

    def _ask(self, name: str, arguments: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return the answer of this name; a name that comes alone is an answer without fields."""
        response = decode_response(self._call(encode_request(name, arguments)))
        if response == name:
            return {}
        if isinstance(response, dict) and list(response) == ["Error"]:
            raise EvidenceUnavailableError(f"NSM {name}", expected="success", got=str(response["Error"])[:40])
        if not isinstance(response, dict) or list(response) != [name] or not isinstance(response[name], dict):
            raise EvidenceUnavailableError(f"NSM {name}", expected=f"an answer to {name}", got="another")
        return response[name]

    def _call(self, request: bytes) -> bytes:
        asked = ctypes.create_string_buffer(request, len(request))
        answered = ctypes.create_string_buffer(_RESPONSE_LIMIT_BYTES)
        message = _Message(
            _Span(ctypes.addressof(asked), len(request)), _Span(ctypes.addressof(answered), _RESPONSE_LIMIT_BYTES)
        )
        try:
            descriptor = os.open(self.path, os.O_RDWR)
            try:
                self._ioctl(descriptor, _IOCTL_RAW, message)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unavailable(self.path, error, expected="a Nitro Security Module") from error
        length = message.response.length
        if not 0 < length <= _RESPONSE_LIMIT_BYTES:
            raise EvidenceUnavailableError(
                "NSM response in bytes", expected=f"1 to {_RESPONSE_LIMIT_BYTES}", got=length
            )
        return answered.raw[:length]


class NsmAttester:
    """Makes attestation documents of the Nitro enclave that this process runs in.

    Args:
        module: the security module.
        devices: evidence of devices that goes along.
    """

    def __init__(self, module: NitroSecurityModule, *, devices: DeviceEvidence | None = None) -> None:
        self._module = module
        self._devices = devices
        self._configured: str | None = None

    @property
    def profile(self) -> str:
        """``aws-nitro/1``."""
        return PROFILE

    def configure(self, manifest_digest: str) -> None:
        """Put the manifest's digest into PCR16 and lock it: once, when the enclave starts.

        Raises:
            EvidenceFormatError: not a digest.
            EvidenceUnavailableError: no module, or PCR16 with another value.
        """
        require_digest("manifest digest", manifest_digest)
        expected = configuration_pcr(bytes.fromhex(manifest_digest))
        # 1.
        found = self._module.register(CONFIGURATION_PCR)
        if found == Register(value=bytes(PCR_BYTES), locked=False):
            extended = self._module.extend(CONFIGURATION_PCR, bytes.fromhex(manifest_digest))
            found = Register(value=extended, locked=False)
        _require_register(found.value, expected)
        # 2.
        if not found.locked:
            self._module.lock(CONFIGURATION_PCR)
        # 3.
        found = self._module.register(CONFIGURATION_PCR)
        _require_register(found.value, expected)
        if not found.locked:
            raise EvidenceUnavailableError("PCR16", expected="locked", got="open to extension")
        self._configured = manifest_digest

    def attest(self, binding: Binding) -> Envelope:
        """Return a document whose ``user_data`` is REPORT_DATA and whose ``nonce`` is the binding's.

        Without ``configure`` the document's PCR16 does not name the manifest, which a verifier refuses.

        Raises:
            EvidenceFormatError: a binding for another profile.
            SessionError: a binding for another manifest than the enclave was configured with.
            EvidenceUnavailableError: no module, an error of it, or a document that is not for this request.
        """
        if self._configured not in {None, binding.manifest}:
            raise SessionError("binding.manifest", expected=self._configured, got=binding.manifest)
        request = draft(binding, profile=PROFILE, devices=self._devices)
        document = self._module.attestation(user_data=request.report_data, nonce=binding.nonce)
        _require_ours(document, user_data=request.report_data, nonce=binding.nonce)
        return request.completed(document)


def encode_request(name: str, arguments: Mapping[str, Any] | None) -> bytes:
    """Return a request as the module reads it: its name, or a map from its name to the arguments.

    Raises:
        EvidenceUnavailableError: larger than the module takes.
    """
    encoded = cbor2.dumps(name if arguments is None else {name: dict(arguments)})
    if len(encoded) > _REQUEST_LIMIT_BYTES:
        raise EvidenceUnavailableError(
            f"NSM {name} in bytes", expected=f"at most {_REQUEST_LIMIT_BYTES}", got=len(encoded)
        )
    return encoded


def decode_response(data: bytes) -> Any:
    """Return the value of a response.

    Raises:
        EvidenceUnavailableError: not one CBOR item within bounds.
    """
    try:
        return decode_cbor(data, limit_bytes=_RESPONSE_LIMIT_BYTES, what="NSM response", indefinite=True)
    except AttestationError as error:
        raise EvidenceUnavailableError("NSM response", expected="one CBOR item", got=error.code) from error


def _require_register(found: bytes, expected: bytes) -> None:
    if found != expected:
        raise EvidenceUnavailableError(
            "PCR16", expected=f"that of the manifest ({expected.hex()[:16]})", got=found.hex()[:16]
        )


def _require_ours(document: bytes, *, user_data: bytes, nonce: bytes) -> None:
    try:
        message = load_sign1(document, algorithms=(ES384,), limit_bytes=_RESPONSE_LIMIT_BYTES, what="NSM document")
        fields = parse_document(message.payload)
    except AttestationError as error:
        raise EvidenceUnavailableError("NSM document", expected="an attestation document", got=error.code) from error
    for name, found, wanted in (("user_data", fields.user_data, user_data), ("nonce", fields.nonce, nonce)):
        if found != wanted:
            raise EvidenceUnavailableError(f"{name} of the NSM document", expected="ours", got="another's")


def _register_value(answer: Mapping[str, Any]) -> bytes:
    value = _typed(answer, "data", bytes)
    if len(value) != PCR_BYTES:
        raise EvidenceUnavailableError("NSM register in bytes", expected=PCR_BYTES, got=len(value))
    return value


def _typed(answer: Mapping[str, Any], name: str, kind: type) -> Any:
    value = answer.get(name)
    if type(value) is not kind:
        raise EvidenceUnavailableError(f"NSM {name}", expected=kind.__name__, got=type(value).__name__)
    return value
