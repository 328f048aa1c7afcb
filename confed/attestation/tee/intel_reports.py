"""What Intel's hardware reports: the REPORT of an SGX enclave and the TD report, field by field.

Reserved bytes are not looked at: the hardware writes them, and the signature covers them. Bits that mean something are
looked at in the policies, where an unknown one is refused.

Source: Intel SDM volume 3D, section 38.15 (REPORT) and 38.7 (ATTRIBUTES, MISCSELECT); Intel TDX DCAP Quoting Library
API, A.3.3 and A.3.4 (TD report 1.0 and 1.5); Intel TDX Module Base Architecture Specification (ATTRIBUTES, XFAM).
"""

from __future__ import annotations

from dataclasses import dataclass

from confed.attestation.tee.intel_quote import TD_REPORT_15_BYTES, Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """The REPORT of an SGX enclave, without MAC.

    Attributes:
        cpu_svn: security version of the processor, 16 bytes, of no fixed meaning.
        misc_select: MISCSELECT, as 4 bytes in the report's order.
        attributes: the flags of ATTRIBUTES, as 8 bytes in the report's order.
        xfrm: which processor state the enclave may use, likewise.
        mr_enclave, mr_signer: SHA-256 of the enclave as built, and of the key that signed it.
        isv_prod_id, isv_svn, config_svn: numbers that the signer, or whoever started the enclave, has given.
        isv_ext_prod_id, isv_family_id, config_id: the same with key separation and sharing (KSS); zeros without.
        report_data: the enclave's own 64 bytes.
    """

    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    xfrm: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_ext_prod_id: bytes
    isv_family_id: bytes
    config_id: bytes
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The report of a trust domain.

    Attributes:
        tee_tcb_svn: security versions of the TDX module (first two bytes: its SVN and major version) and of its loader.
        mr_seam, mr_signer_seam, seam_attributes: the TDX module, who signed it (zeros: Intel) and its attributes.
        td_attributes, xfam: of the TD, 8 bytes each in the report's order.
        mr_td: the TD as built.
        mr_config_id, mr_owner, mr_owner_config: given by whoever started the TD, 48 bytes each.
        rtmr: the four runtime measurement registers.
        report_data: the TD's own 64 bytes.
        tee_tcb_svn2, mr_service_td: what runs now, and the service TDs that are bound (zeros: none); both empty in a
            report 1.0, which does not say.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, ...]
    report_data: bytes
    tee_tcb_svn2: bytes
    mr_service_td: bytes


def read_enclave_report(body: bytes) -> EnclaveReport:
    """Return the fields of the 384 bytes of a REPORT.

    Raises:
        EvidenceFormatError: fewer bytes. TrailingBytesError: more.
    """
    reader = Reader(body, "enclave report")
    cpu_svn, misc_select = reader.take(16), reader.take(4)
    reader.take(12)
    isv_ext_prod_id, attributes, xfrm, mr_enclave = (reader.take(size) for size in (16, 8, 8, 32))
    reader.take(32)
    mr_signer = reader.take(32)
    reader.take(32)
    config_id = reader.take(64)
    isv_prod_id, isv_svn, config_svn = (reader.number(2) for _ in range(3))
    reader.take(42)
    isv_family_id, report_data = reader.take(16), reader.take(64)
    reader.require_end()
    return EnclaveReport(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        attributes=attributes,
        xfrm=xfrm,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_ext_prod_id=isv_ext_prod_id,
        isv_family_id=isv_family_id,
        config_id=config_id,
        report_data=report_data,
    )


def read_td_report(body: bytes) -> TdReport:
    """Return the fields of the 584 (1.0) or 648 (1.5) bytes of a TD report.

    Raises:
        EvidenceFormatError: fewer bytes. TrailingBytesError: more.
    """
    reader = Reader(body, "TD report")
    tee_tcb_svn, mr_seam, mr_signer_seam = (reader.take(size) for size in (16, 48, 48))
    seam_attributes, td_attributes, xfam = (reader.take(8) for _ in range(3))
    mr_td, mr_config_id, mr_owner, mr_owner_config = (reader.take(48) for _ in range(4))
    rtmr = tuple(reader.take(48) for _ in range(4))
    report_data = reader.take(64)
    newer = len(body) >= TD_REPORT_15_BYTES
    tee_tcb_svn2, mr_service_td = (reader.take(16), reader.take(48)) if newer else (b"", b"")
    reader.require_end()
    return TdReport(
        tee_tcb_svn=tee_tcb_svn,
        mr_seam=mr_seam,
        mr_signer_seam=mr_signer_seam,
        seam_attributes=seam_attributes,
        td_attributes=td_attributes,
        xfam=xfam,
        mr_td=mr_td,
        mr_config_id=mr_config_id,
        mr_owner=mr_owner,
        mr_owner_config=mr_owner_config,
        rtmr=rtmr,
        report_data=report_data,
        tee_tcb_svn2=tee_tcb_svn2,
        mr_service_td=mr_service_td,
    )
