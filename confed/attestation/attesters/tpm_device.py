"""A TPM 2.0 behind a TCTI: the few commands that attesting takes, one connection for each, nothing left loaded.

The TCTI is named in full (``device:/dev/tpmrm0``, ``swtpm:host=127.0.0.1,port=2321``), never guessed. Keys are primary
keys of the endorsement hierarchy, which a TPM derives from its seed: the same template gives the same key after a
restart, and nothing is stored. The endorsement hierarchy's password is the empty one that confidential VMs have.

``tpm2-pytss`` is an extra, and is imported here alone.

Source: TPM 2.0 Library Specification 1.59, part 3 (commands); TCG EK Credential Profile 2.6, sections 2.2.1.4 and
B.3 (where EK certificates are, how an EK authorizes).
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from confed.attestation.tee.credential import Credential
from confed.errors import ConfigError, EvidenceUnavailableError

_TCTI = re.compile(r"(?:device|swtpm|mssim|tabrmd):[!-~]+\Z")
_BANK = "sha256"
_EK_TEMPLATE = "EK-RSA2048"
# An ECC P-256 key that signs with ECDSA and SHA-256 what the TPM itself has made; always the same for one TPM.
_AK_ALGORITHM = "ecc256:ecdsa-sha256:null"
_AK_ATTRIBUTES = (
    "FIXEDTPM",
    "FIXEDPARENT",
    "SENSITIVEDATAORIGIN",
    "USERWITHAUTH",
    "NODA",
    "RESTRICTED",
    "SIGN_ENCRYPT",
)
_NV_LIMIT_BYTES = 16 * 1024
# TPM 2.0 Library, part 2, section 7.4 (NV_INDEX_FIRST); more indices than a TPM has room for.
_NV_FIRST, _NV_COUNT = 0x01000000, 254


class TpmDevice:
    """A TPM's commands.

    Args:
        tcti: how to reach it: ``device:``, ``swtpm:``, ``mssim:`` or ``tabrmd:`` with its configuration.
        ak_template: NV index that holds the attestation key's template (TPMT_PUBLIC), where a cloud has certified that
            key; ``None`` for confed's own.

    Raises:
        ConfigError: a TCTI that is not named in full.
    """

    def __init__(self, tcti: str, *, ak_template: int | None = None) -> None:
        if not _TCTI.match(tcti):
            raise ConfigError("TCTI", expected="such as device:/dev/tpmrm0", got=repr(tcti)[:60])
        self.tcti = tcti
        self._ak_template = ak_template

    def attestation_key(self) -> bytes:
        """Return the attestation key's public area (TPM2B_PUBLIC).

        Raises:
            EvidenceUnavailableError: no TPM, or one that refuses.
        """
        with self._context() as tpm, self._attestation_key(tpm) as (_, public):
            return public.marshal()

    def endorsement_key(self) -> bytes:
        """Return the endorsement key's public area (TPM2B_PUBLIC).

        Raises:
            EvidenceUnavailableError: no TPM, or one that refuses.
        """
        with self._context() as tpm, self._endorsement_key(tpm) as (_, public):
            return public.marshal()

    def endorsement_certificate(self) -> bytes:
        """Return the endorsement key's certificate in DER.

        Raises:
            EvidenceUnavailableError: no TPM, or none with a certificate.
        """
        with self._context() as tpm:
            certificate, _ = self._endorsement_template(tpm)
        if certificate is None:
            raise EvidenceUnavailableError("EK certificate", expected="one in the TPM", got="none")
        return certificate_in(certificate)

    def stored(self, index: int) -> bytes:
        """Return what a public NV index holds.

        Raises:
            EvidenceUnavailableError: no TPM, or nothing there.
        """
        with self._context() as tpm:
            return _read_nv(tpm, index)

    def registers(self, numbers: Sequence[int]) -> Mapping[int, bytes]:
        """Return registers of the SHA-256 bank by number.

        Raises:
            EvidenceUnavailableError: no TPM, or one without these registers.
        """
        found: dict[int, bytes] = {}
        with self._context() as tpm:
            # A TPM returns at most eight values at once.
            for number in numbers:
                _, _, values = tpm.pcr_read(f"{_BANK}:{number}")
                if len(values) != 1:
                    raise EvidenceUnavailableError(f"PCR{number}", expected=f"a value of {_BANK}", got="none")
                found[number] = bytes(values[0])
        return found

    def extend(self, number: int, digest: bytes) -> None:
        """Extend a register of the SHA-256 bank.

        Raises:
            EvidenceUnavailableError: no TPM, or one that refuses.
        """
        library = _library()
        with self._context() as tpm:
            values = library.TPML_DIGEST_VALUES(
                [library.TPMT_HA(hashAlg=library.TPM2_ALG.SHA256, digest=library.TPMU_HA(sha256=digest))]
            )
            tpm.pcr_extend(library.ESYS_TR(number), values)

    def quote(self, numbers: Sequence[int], nonce: bytes) -> tuple[bytes, bytes]:
        """Return a quote over registers of the SHA-256 bank: TPMS_ATTEST and TPMT_SIGNATURE.

        Raises:
            EvidenceUnavailableError: no TPM, or one that refuses.
        """
        selection = f"{_BANK}:{','.join(map(str, numbers))}"
        with self._context() as tpm, self._attestation_key(tpm) as (handle, _):
            quoted, signature = tpm.quote(handle, selection, nonce)
            return bytes(quoted), signature.marshal()

    def activate(self, credential: Credential) -> bytes:
        """Return the secret of a credential that was made for this TPM's two keys.

        Raises:
            EvidenceUnavailableError: no TPM, or one with other keys.
        """
        library = _library()
        with (
            self._context() as tpm,
            self._attestation_key(tpm) as (attestation_key, _),
            self._endorsement_key(tpm) as (endorsement_key, _),
        ):
            blob, _ = library.TPM2B_ID_OBJECT.unmarshal(credential.blob)
            seed, _ = library.TPM2B_ENCRYPTED_SECRET.unmarshal(credential.seed)
            with _endorsement_session(tpm) as session:
                return bytes(tpm.activate_credential(attestation_key, endorsement_key, blob, seed, session2=session))

    @contextlib.contextmanager
    def _context(self) -> Generator[Any]:
        library = _library()
        try:
            with library.ESAPI(self.tcti) as tpm:
                yield tpm
        except library.TSS2_Exception as error:
            raise EvidenceUnavailableError(f"TPM {self.tcti}", expected="an answer", got=str(error)[:100]) from error

    @contextlib.contextmanager
    def _attestation_key(self, tpm: Any) -> Generator[tuple[Any, Any]]:
        library = _library()
        if self._ak_template is None:
            attributes = library.TPMA_OBJECT(0)
            for name in _AK_ATTRIBUTES:
                attributes |= getattr(library.TPMA_OBJECT, name)
            template = library.TPM2B_PUBLIC.parse(_AK_ALGORITHM, objectAttributes=attributes)
        else:
            area, _ = library.TPMT_PUBLIC.unmarshal(_read_nv(tpm, self._ak_template))
            template = library.TPM2B_PUBLIC(publicArea=area)
        with _primary(tpm, template) as created:
            yield created

    @contextlib.contextmanager
    def _endorsement_key(self, tpm: Any) -> Generator[tuple[Any, Any]]:
        _, template = self._endorsement_template(tpm)
        with _primary(tpm, template) as created:
            yield created

    @staticmethod
    def _endorsement_template(tpm: Any) -> tuple[bytes | None, Any]:
        utils = importlib.import_module("tpm2_pytss.utils")
        defined = _defined_nv(tpm)

        def read(index: int) -> bytes:
            if int(index) not in defined:
                raise utils.NoSuchIndex(index)
            return _read_nv(tpm, int(index))

        return utils.create_ek_template(_EK_TEMPLATE, read)


def certificate_in(stored: bytes) -> bytes:
    """Return the DER certificate at the start of an NV area, which may be larger.

    Raises:
        EvidenceUnavailableError: something else.
    """
    if stored[:2] == b"\x30\x82" and len(stored) >= 4:
        size = 4 + int.from_bytes(stored[2:4], "big")
        if size <= len(stored):
            return stored[:size]
    raise EvidenceUnavailableError("NV area", expected="a certificate", got=stored[:4].hex())


@contextlib.contextmanager
def _primary(tpm: Any, template: Any) -> Generator[tuple[Any, Any]]:
    """Create a primary key of the endorsement hierarchy, and flush it afterwards."""
    handle, public, *_ = tpm.create_primary(None, template, _library().ESYS_TR.ENDORSEMENT)
    try:
        yield handle, public
    finally:
        tpm.flush_context(handle)


@contextlib.contextmanager
def _endorsement_session(tpm: Any) -> Generator[Any]:
    """Authorize the use of the EK as its policy asks: by the endorsement hierarchy's password."""
    library = _library()
    none, plain = library.ESYS_TR.NONE, library.TPMT_SYM_DEF(algorithm=library.TPM2_ALG.NULL)
    session = tpm.start_auth_session(none, none, library.TPM2_SE.POLICY, plain, _BANK)
    try:
        tpm.trsess_set_attributes(session, library.TPMA_SESSION.CONTINUESESSION)
        tpm.policy_secret(library.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
        yield session
    finally:
        tpm.flush_context(session)


def _defined_nv(tpm: Any) -> frozenset[int]:
    """Return the NV indices that are defined; asking for another one makes the TSS print errors."""
    library = _library()
    _, found = tpm.get_capability(library.TPM2_CAP.HANDLES, _NV_FIRST, _NV_COUNT)
    return frozenset(int(handle) for handle in found.data.handles)


def _read_nv(tpm: Any, index: int) -> bytes:
    library = _library()
    if index not in _defined_nv(tpm):
        raise EvidenceUnavailableError(f"NV index {index:#010x}", expected="defined", got="not")
    handle = tpm.tr_from_tpmpublic(index)
    try:
        public, _ = tpm.nv_read_public(handle)
        size = min(int(public.nvPublic.dataSize), _NV_LIMIT_BYTES)
        data = b""
        while len(data) < size:
            # A TPM returns at most 1 KiB at once; many less.
            data += bytes(tpm.nv_read(handle, min(512, size - len(data)), len(data), auth_handle=library.ESYS_TR.OWNER))
        return data
    finally:
        tpm.tr_close(handle)


def _library() -> Any:
    try:
        return importlib.import_module("tpm2_pytss")
    except (ImportError, OSError, NotImplementedError) as error:
        raise EvidenceUnavailableError("tpm2-pytss", expected="the extra confed[tpm]", got="not installed") from error
