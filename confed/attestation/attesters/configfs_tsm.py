"""SEV-SNP reports and TDX quotes through Linux's one interface for them, configfs-tsm.

An entry under ``report/`` is a request: options and data are written into it, and reading ``outblob`` makes the
evidence. Anyone who may write there can write into another's entry, so the kernel counts writes (``generation``).

1. the entry is ours: made now, under a name that nobody else knows, and still unwritten (generation 0);
2. its provider is the one that the caller named; nothing else is tried;
3. options and REPORT_DATA are written, each of which adds one to the generation;
4. the generation is the number of our writes, so what will be signed is what we wrote;
5. evidence and certificates are read within bounds; a busy provider is asked again, a few times;
6. generation and provider are still the same;
7. the evidence carries our REPORT_DATA, and the privilege level that was asked for;
8. the entry is removed, whatever happened.

Whether the evidence is genuine is the verifier's question.

Source: Linux 6.18 Documentation/ABI/testing/configfs-tsm-report and drivers/virt/coco/guest/report.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import struct
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from confed.attestation.attesters.certificate_table import LIMIT_BYTES, certificates_of
from confed.attestation.attesters.device_files import DeviceFiles, SystemFiles, require_size, unavailable
from confed.attestation.attesters.draft import DeviceEvidence, draft
from confed.attestation.evidence import Binding, Envelope
from confed.errors import ConfigError, EvidenceUnavailableError

ROOT = Path("/sys/kernel/config/tsm")
"""Where configfs-tsm is mounted."""

# The module names of the two drivers: Linux drivers/virt/coco/{sev-guest,tdx-guest}.
SEV_GUEST, TDX_GUEST = "sev_guest", "tdx_guest"
SNP_PROFILE, TDX_PROFILE = "sev-snp/1", "tdx/1"

# AMD 56860, SEV Secure Nested Paging Firmware ABI, section 7.3: ATTESTATION_REPORT.
_SNP_REPORT_BYTES = 1184
_SNP_VMPL = 0x30
_SNP_REPORT_DATA = slice(0x50, 0x90)
# The same: VMPL in MSG_REPORT_REQ.
_PRIVILEGE_LEVELS = range(4)

# Intel TDX DCAP Quoting Library API, appendix A.3: header, body descriptor of version 5, and TD report body.
_TDX_HEADER = struct.Struct("<HHI40x")
_TDX_BODY = struct.Struct("<HI")
_TDX_TEE_TYPE = 0x81
_TDX_VERSIONS, _TDX_NEWEST_VERSION = (4, 5), 5
_TDX_BODY_BYTES = 584
_TDX_BODY_SIZES = {2: _TDX_BODY_BYTES, 3: 648}
_TDX_REPORT_DATA_IN_BODY = 520
_REPORT_DATA_BYTES = 64

# include/linux/tsm.h: TSM_REPORT_OUTBLOB_MAX, as it was when only these two providers were there.
_OUTBLOB_LIMIT_BYTES = 32 * 1024
_TEXT_LIMIT_BYTES = 64
_EVENT_LOG_LIMIT_BYTES = 256 * 1024
_BUSY = (errno.EBUSY, errno.EAGAIN)
_TRIES = 10
_PAUSE_S = 0.5


class ConfigfsTsmAttester:
    """Makes SEV-SNP or TDX evidence; use ``sev_snp`` or ``tdx``.

    Every call of ``attest`` has an entry of its own, so threads do not meet.

    Args:
        provider: the provider that must be there.
        profile: of the evidence that it makes.
        privilege_level: SEV-SNP's VMPL that the report must be of; ``None`` for TDX, which has none.
        event_logs: files whose content goes along (TDX: the CCEL table's data).
        devices: evidence of devices that goes along.
        root: where configfs-tsm is.
        files: makes the system calls.
        pause: waits for some seconds.

    Raises:
        ConfigError: a privilege level that SEV-SNP does not have.
    """

    def __init__(
        self,
        *,
        provider: str,
        profile: str,
        privilege_level: int | None,
        event_logs: Sequence[Path] = (),
        devices: DeviceEvidence | None = None,
        root: Path = ROOT,
        files: DeviceFiles | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if privilege_level is not None and privilege_level not in _PRIVILEGE_LEVELS:
            raise ConfigError("privilege level", expected="VMPL 0 to 3", got=privilege_level)
        self._provider = provider
        self._profile = profile
        self._privilege_level = privilege_level
        self._event_logs = tuple(event_logs)
        self._devices = devices
        self._reports = root / "report"
        self._files = files or SystemFiles()
        self._pause = pause

    @classmethod
    def sev_snp(cls, *, privilege_level: int, **options: Any) -> ConfigfsTsmAttester:
        """Return the attester of an SEV-SNP guest whose reports are of VMPL ``privilege_level``.

        Raises:
            ConfigError: not a VMPL.
        """
        return cls(provider=SEV_GUEST, profile=SNP_PROFILE, privilege_level=privilege_level, **options)

    @classmethod
    def tdx(cls, **options: Any) -> ConfigfsTsmAttester:
        """Return the attester of a trust domain."""
        return cls(provider=TDX_GUEST, profile=TDX_PROFILE, privilege_level=None, **options)

    @property
    def profile(self) -> str:
        """``sev-snp/1`` or ``tdx/1``."""
        return self._profile

    def attest(self, binding: Binding) -> Envelope:
        """Return evidence whose REPORT_DATA is that of ``binding`` and of the devices' evidence.

        Raises:
            EvidenceFormatError: a binding for another profile.
            EvidenceUnavailableError: no configfs-tsm, another provider, a busy or failing one, evidence that is not
                for this request, or another writer in our entry.
        """
        request = draft(binding, profile=self._profile, devices=self._devices)
        event_logs = tuple(self._read(path, _EVENT_LOG_LIMIT_BYTES) for path in self._event_logs)
        evidence, table = self._report(request.report_data)
        return request.completed(evidence, endorsements=certificates_of(table), event_logs=event_logs)

    def provider(self) -> str:
        """Return the provider that is there, without making evidence.

        Raises:
            EvidenceUnavailableError: no configfs-tsm, or no provider.
        """
        with self._entry() as entry:
            return self._text(entry / "provider")

    def _report(self, report_data: bytes) -> tuple[bytes, bytes]:
        with self._entry() as entry:
            # 1.
            self._require_generation(entry, 0)
            # 2.
            self._require_provider(entry)
            # 3.
            writes = self._write_request(entry, report_data)
            # 4.
            self._require_generation(entry, writes)
            # 5.
            evidence = self._read_patiently(entry / "outblob", _OUTBLOB_LIMIT_BYTES)
            table = self._table(entry)
            # 6.
            self._require_generation(entry, writes)
            self._require_provider(entry)
        # 7.
        self._require_ours(evidence, report_data)
        return evidence, table

    @contextlib.contextmanager
    def _entry(self) -> Generator[Path]:
        # 1.
        entry = self._reports / f"confed-{os.getpid()}-{secrets.token_hex(16)}"
        try:
            self._files.make(entry)
        except OSError as error:
            raise unavailable(self._reports, error, expected="a place to ask for evidence") from error
        # 8.
        try:
            yield entry
        except BaseException:
            with contextlib.suppress(OSError):  # What went wrong before is what is told.
                self._files.remove(entry)
            raise
        try:
            self._files.remove(entry)
        except OSError as error:
            raise unavailable(entry, error, expected="an entry that can be removed") from error

    def _write_request(self, entry: Path, report_data: bytes) -> int:
        writes = [("inblob", report_data)]
        if self._privilege_level is not None:
            writes.insert(0, ("privlevel", str(self._privilege_level).encode()))
        for name, data in writes:
            try:
                self._files.write(entry / name, data)
            except OSError as error:
                raise unavailable(entry / name, error, expected="a request that is taken") from error
        return len(writes)

    def _require_generation(self, entry: Path, writes: int) -> None:
        found = self._text(entry / "generation")
        if found != str(writes):
            raise EvidenceUnavailableError(
                "generation of our entry", expected=f"{writes}, our own writes", got=f"{found[:20]}: somebody else's"
            )

    def _require_provider(self, entry: Path) -> None:
        found = self._text(entry / "provider")
        if found != self._provider:
            raise EvidenceUnavailableError("configfs-tsm provider", expected=self._provider, got=found)

    def _table(self, entry: Path) -> bytes:
        if self._provider != SEV_GUEST:
            return b""
        try:
            return self._files.read(entry / "auxblob", limit_bytes=LIMIT_BYTES)
        except FileNotFoundError:
            return b""  # The interface makes it optional: a verifier then takes certificates from elsewhere.
        except OSError as error:
            raise unavailable(entry / "auxblob", error, expected="a certificate table") from error

    def _require_ours(self, evidence: bytes, report_data: bytes) -> None:
        if self._provider == SEV_GUEST:
            found = _snp_report_data(evidence, self._privilege_level)
        else:
            found = _tdx_report_data(evidence)
        if found != report_data:
            raise EvidenceUnavailableError("REPORT_DATA of the evidence", expected="ours", got="another's")

    def _text(self, file: Path) -> str:
        data = self._read(file, _TEXT_LIMIT_BYTES)
        if not data.isascii():
            raise EvidenceUnavailableError(str(file), expected="text", got="something else")
        return data.decode().strip()

    def _read(self, file: Path, limit_bytes: int) -> bytes:
        try:
            data = self._files.read(file, limit_bytes=limit_bytes)
        except OSError as error:
            raise unavailable(file, error, expected="something to read") from error
        return require_size(data, limit_bytes=limit_bytes, what=str(file))

    def _read_patiently(self, file: Path, limit_bytes: int) -> bytes:
        tries = 0
        while True:
            tries += 1
            try:
                data = self._files.read(file, limit_bytes=limit_bytes)
            except OSError as error:
                if error.errno not in _BUSY or tries == _TRIES:
                    raise unavailable(file, error, expected="evidence") from error
                self._pause(_PAUSE_S)
            else:
                return require_size(data, limit_bytes=limit_bytes, what=str(file))


def _snp_report_data(report: bytes, privilege_level: int | None) -> bytes:
    if len(report) != _SNP_REPORT_BYTES:
        raise EvidenceUnavailableError("SEV-SNP report in bytes", expected=_SNP_REPORT_BYTES, got=len(report))
    level = int.from_bytes(report[_SNP_VMPL : _SNP_VMPL + 4], "little")
    if level != privilege_level:
        raise EvidenceUnavailableError("VMPL of the report", expected=privilege_level, got=level)
    return report[_SNP_REPORT_DATA]


def _tdx_report_data(quote: bytes) -> bytes:
    start = _tdx_body(quote) + _TDX_REPORT_DATA_IN_BODY
    return quote[start : start + _REPORT_DATA_BYTES]


def _tdx_body(quote: bytes) -> int:
    """Return where the TD report body begins, having seen that there is all of one and something after it."""
    start = _TDX_HEADER.size
    if len(quote) >= start + _TDX_BODY.size:
        version, _, tee_type = _TDX_HEADER.unpack_from(quote)
        size = _TDX_BODY_BYTES
        if version == _TDX_NEWEST_VERSION:
            kind, size = _TDX_BODY.unpack_from(quote, start)
            start += _TDX_BODY.size
            tee_type = tee_type if _TDX_BODY_SIZES.get(kind) == size else None
        if version in _TDX_VERSIONS and tee_type == _TDX_TEE_TYPE and len(quote) > start + size:
            return start
    raise EvidenceUnavailableError("TDX quote", expected="a quote of version 4 or 5 of a TD", got="something else")
