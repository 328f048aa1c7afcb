"""SGX quotes of an enclave that Gramine runs, through its ``/dev/attestation``.

The files belong to the whole process, and so does what was written into them:

1. one thread at a time asks;
2. the attestation type is ``dcap``: with ``none`` there is no quote, and nothing else is tried;
3. REPORT_DATA is written, and the quote is read within bounds;
4. the quote carries our REPORT_DATA.

Whether the quote is genuine is the verifier's question.

Source: Gramine 1.8 Documentation/attestation.rst, "Low-level /dev/attestation interface".
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path

from confed.attestation.attesters.device_files import DeviceFiles, SystemFiles, require_size, unavailable
from confed.attestation.attesters.draft import DeviceEvidence, draft
from confed.attestation.evidence import Binding, Envelope
from confed.errors import EvidenceUnavailableError

DIRECTORY = Path("/dev/attestation")
PROFILE = "sgx/1"

_DCAP = "dcap"
_TYPE_LIMIT_BYTES = 32
# Twice Gramine's own SGX_QUOTE_MAX_SIZE.
_QUOTE_LIMIT_BYTES = 16 * 1024

# Intel SGX DCAP Quoting Library API, appendix A.4: quote header and enclave report body.
_HEADER = struct.Struct("<HHI40x")
_VERSION = 3
_BODY_BYTES = 384
_REPORT_DATA = slice(_HEADER.size + 320, _HEADER.size + _BODY_BYTES)

_ONE_AT_A_TIME = threading.Lock()


class GramineAttester:
    """Makes SGX quotes of the enclave that this process runs in.

    Args:
        directory: where Gramine has its pseudo-files.
        devices: evidence of devices that goes along.
        files: makes the system calls.
    """

    def __init__(
        self,
        *,
        directory: Path = DIRECTORY,
        devices: DeviceEvidence | None = None,
        files: DeviceFiles | None = None,
    ) -> None:
        self._directory = directory
        self._devices = devices
        self._files = files or SystemFiles()

    @property
    def profile(self) -> str:
        """``sgx/1``."""
        return PROFILE

    def attest(self, binding: Binding) -> Envelope:
        """Return a quote whose REPORT_DATA is that of ``binding`` and of the devices' evidence.

        Raises:
            EvidenceFormatError: a binding for another profile.
            EvidenceUnavailableError: no Gramine, another attestation type, or a quote that is not for this request.
        """
        request = draft(binding, profile=PROFILE, devices=self._devices)
        # 1.
        with _ONE_AT_A_TIME:
            # 2.
            self.require_type()
            # 3.
            self._write("user_report_data", request.report_data)
            quote = self._read("quote", _QUOTE_LIMIT_BYTES)
        # 4.
        _require_ours(quote, request.report_data)
        return request.completed(quote)

    def require_type(self) -> None:
        """Check that this enclave can make quotes that anybody verifies without Intel's old service.

        Raises:
            EvidenceUnavailableError: no Gramine, or another attestation type than ``dcap``.
        """
        found = self._read("attestation_type", _TYPE_LIMIT_BYTES)
        if found.strip() != _DCAP.encode():
            raise EvidenceUnavailableError("Gramine attestation type", expected=_DCAP, got=repr(found)[:40])

    def _read(self, name: str, limit_bytes: int) -> bytes:
        try:
            data = self._files.read(self._directory / name, limit_bytes=limit_bytes)
        except OSError as error:
            raise unavailable(self._directory / name, error, expected="a file of Gramine's") from error
        return require_size(data, limit_bytes=limit_bytes, what=str(self._directory / name))

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._files.write(self._directory / name, data)
        except OSError as error:
            raise unavailable(self._directory / name, error, expected="a file of Gramine's") from error


def _require_ours(quote: bytes, report_data: bytes) -> None:
    if len(quote) <= _HEADER.size + _BODY_BYTES or _HEADER.unpack_from(quote)[0] != _VERSION:
        raise EvidenceUnavailableError("SGX quote", expected=f"a quote of version {_VERSION}", got="something else")
    if quote[_REPORT_DATA] != report_data:
        raise EvidenceUnavailableError("REPORT_DATA of the quote", expected="ours", got="another's")
