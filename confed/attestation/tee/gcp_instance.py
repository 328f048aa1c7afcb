"""Which Google Compute Engine instance a certificate is of: Google's extension 1.3.6.1.4.1.11129.2.1.21.

    SEQUENCE {
        zone UTF8String, projectNumber INTEGER, projectId UTF8String, instanceId INTEGER, instanceName UTF8String,
        [0] SEQUENCE { [0] securityVersion INTEGER, [1] isProduction BOOLEAN, [2] tpmDataAlwaysEncrypted BOOLEAN,
                       [3] suspendResumeAlwaysDisabled BOOLEAN, [4] vmtdAlwaysDisabled BOOLEAN,
                       [5] alwaysInYarn BOOLEAN } OPTIONAL
    }

Read as DER: one spelling, nothing after the end. The parts of the last sequence are each optional, in this order.

Source: github.com/google/go-attestation and go-tpm-tools (CloudComputeInstanceIdentifier); Google Cloud, Shielded VM
documentation, "Retrieving the endorsement key".
"""

from __future__ import annotations

from dataclasses import dataclass

from confed.errors import EndorsementFormatError

INSTANCE_EXTENSION = "1.3.6.1.4.1.11129.2.1.21"

_SEQUENCE, _INTEGER, _BOOLEAN, _UTF8, _CONTEXT = 0x30, 0x02, 0x01, 0x0C, 0xA0
_LIMIT_BYTES = 1024
_TEXT_LIMIT_BYTES = 255
_NUMBER_LIMIT_BYTES = 9
_FLAGS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpSecurity:
    """What Google says of the host's software; ``None`` where it does not.

    Attributes:
        security_version: of Google's virtualization stack.
        is_production: a production environment of Google's.
        tpm_data_always_encrypted, suspend_resume_always_disabled, vmtd_always_disabled, always_in_yarn: as named.
    """

    security_version: int | None
    is_production: bool | None
    tpm_data_always_encrypted: bool | None
    suspend_resume_always_disabled: bool | None
    vmtd_always_disabled: bool | None
    always_in_yarn: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GcpInstance:
    """An instance; its 64-bit numbers in decimal. ``security`` is ``None`` in certificates from before it was there."""

    zone: str
    project_number: str
    project_id: str
    instance_id: str
    instance_name: str
    security: GcpSecurity | None


def parse_instance(extension: bytes) -> GcpInstance:
    """Return the instance of the extension's value.

    Raises:
        EndorsementFormatError: anything but the one form.
    """
    if len(extension) > _LIMIT_BYTES:
        raise EndorsementFormatError(
            "instance extension in bytes", expected=f"at most {_LIMIT_BYTES}", got=len(extension)
        )
    outer = _Der(extension)
    body = _Der(outer.value(_SEQUENCE))
    outer.end()
    zone, project_number = _text(body.value(_UTF8)), _number(body.value(_INTEGER))
    project_id, instance_id = _text(body.value(_UTF8)), _number(body.value(_INTEGER))
    instance_name = _text(body.value(_UTF8))
    security = _security(body.value(_CONTEXT)) if body.begins(_CONTEXT) else None
    body.end()
    return GcpInstance(
        zone=zone,
        project_number=str(project_number),
        project_id=project_id,
        instance_id=str(instance_id),
        instance_name=instance_name,
        security=security,
    )


def _security(data: bytes) -> GcpSecurity:
    outer = _Der(data)
    body = _Der(outer.value(_SEQUENCE))
    outer.end()
    version = _number(body.tagged(0, _INTEGER)) if body.begins(_CONTEXT) else None
    flags = [
        _flag(body.tagged(number, _BOOLEAN)) if body.begins(_CONTEXT + number) else None
        for number in range(1, _FLAGS + 1)
    ]
    body.end()
    return GcpSecurity(
        security_version=version,
        is_production=flags[0],
        tpm_data_always_encrypted=flags[1],
        suspend_resume_always_disabled=flags[2],
        vmtd_always_disabled=flags[3],
        always_in_yarn=flags[4],
    )


class _Der:
    """Reads DER elements with short identifiers and lengths below 64 KiB, forward."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def begins(self, identifier: int) -> bool:
        return self._data[self._position : self._position + 1] == bytes([identifier])

    def value(self, identifier: int) -> bytes:
        """Return the contents of the next element, which has to be of this identifier."""
        if not self.begins(identifier):
            raise EndorsementFormatError("instance extension", expected=f"an element {identifier:#04x}", got="another")
        size = int.from_bytes(self._take(1, at=self._position + 1), "big")
        start = self._position + 2
        if size >= 0x80:
            count = size & 0x7F
            size = int.from_bytes(self._take(count, at=start), "big")
            if not 1 <= count <= 2 or size < (0x80 if count == 1 else 0x100):
                raise EndorsementFormatError("instance extension: a length", expected="the short way", got="another")
            start += count
        found = self._take(size, at=start)
        self._position = start + size
        return found

    def tagged(self, number: int, identifier: int) -> bytes:
        """Return the contents of an element inside an explicit tag."""
        inner = _Der(self.value(_CONTEXT + number))
        found = inner.value(identifier)
        inner.end()
        return found

    def end(self) -> None:
        if self._position != len(self._data):
            raise EndorsementFormatError("instance extension", expected="its end", got="more")

    def _take(self, count: int, *, at: int) -> bytes:
        if at + count > len(self._data):
            raise EndorsementFormatError("instance extension", expected=f"{count} bytes", got="its end")
        return self._data[at : at + count]


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise EndorsementFormatError("instance extension: text", expected="UTF-8", got="other bytes") from error
    if not text or len(data) > _TEXT_LIMIT_BYTES or not text.isprintable():
        raise EndorsementFormatError("instance extension: text", expected="printable text", got="another")
    return text


def _number(data: bytes) -> int:
    spelled = len(data) > 1 and data[0] == 0 and data[1] < 0x80
    if not 1 <= len(data) <= _NUMBER_LIMIT_BYTES or data[0] >= 0x80 or spelled:
        raise EndorsementFormatError("instance extension: number", expected="0 or more, the short way", got="another")
    return int.from_bytes(data, "big")


def _flag(data: bytes) -> bool:
    if data not in (b"\x00", b"\xff"):
        raise EndorsementFormatError("instance extension: flag", expected="true or false", got=data.hex()[:8])
    return data == b"\xff"
