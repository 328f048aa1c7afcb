"""What endorsements does this evidence need? Read from evidence and hints that nobody has verified yet.

Names that begin with ``unverified`` say so. What is read here decides only what a vendor is asked for, in addresses of
one form; whoever lies here gets endorsements that do not fit their evidence, and a refusal.

- Hints (the envelope's endorsements) spare a need only where what they hold never changes: the certificate of a chip's
  key at one TCB. Whatever speaks of revocation, of a TCB's standing or of golden values is the relying party's own to
  fetch, since an attester would choose the kindest that is still valid.
- A VLEK has no public address. Its certificate comes with the evidence or not at all.
- Evidence without endorsements (Nitro's document, TPMs under pinned authorities, Arm's tokens, the simulated TEE's)
  needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import dcap_qvl
from cryptography.x509.oid import NameOID

from confed.attestation.certificates import Certificate, load_certificates
from confed.attestation.endorsements import AmdChain, AmdCrl, AmdVcek, Endorsement, IntelCollateral, Need, NvidiaRim
from confed.attestation.endorsing.devices import device_needs, signer_needs
from confed.attestation.endorsing.plausibility import PCK_ISSUERS, rim_signers
from confed.attestation.evidence import Envelope
from confed.attestation.tee.azure_evidence import AzureEvidence
from confed.attestation.tee.azure_hcl import Isolation, parse_report
from confed.attestation.tee.intel_quote import parse_quote
from confed.attestation.tee.nvidia_evidence import DEVICE_LIMIT, decode_record
from confed.attestation.tee.sev_snp_report import (
    Product,
    SigningKey,
    SnpReport,
    read_frame,
    read_report,
    reported_tcb_of,
)
from confed.attestation.tee.sev_snp_vek import Vek, kind_of, read_vek
from confed.errors import (
    AlgorithmError,
    EndorsementFormatError,
    EvidenceSizeError,
    MissingEndorsementError,
    UnknownProfileError,
)

_TURIN_CHIP_ID_BYTES = 8

Reader = Callable[[bytes, Sequence[bytes]], tuple[Need, ...]]


def needs_of(envelope: Envelope) -> tuple[Need, ...]:
    """Return what an envelope's evidence needs, devices' included, each need once.

    Raises:
        AttestationError: as ``needs``.
    """
    return needs(
        envelope.profile,
        envelope.evidence,
        device_evidence=envelope.device_evidence,
        hints=envelope.endorsements,
    )


def needs(
    profile: str, evidence: bytes, *, device_evidence: Sequence[bytes] = (), hints: Sequence[bytes] = ()
) -> tuple[Need, ...]:
    """Return what evidence of a profile needs, each need once.

    Raises:
        UnknownProfileError: no such profile.
        MissingEndorsementError: evidence that lacks what no vendor can be asked for.
        AttestationError: evidence that cannot be read, by the class that says why.
    """
    reader = _READERS.get(profile)
    if reader is None:
        raise UnknownProfileError("profile", expected=", ".join(_READERS), got=profile[:80])
    found = list(reader(evidence, hints))
    if len(device_evidence) > DEVICE_LIMIT:
        raise EvidenceSizeError("devices", expected=f"at most {DEVICE_LIMIT}", got=len(device_evidence))
    for entry in device_evidence:
        found.extend(device_needs(decode_record(entry)))
    return tuple(dict.fromkeys(found))


def further_needs(endorsement: Endorsement) -> tuple[Need, ...]:
    """Return what an endorsement needs in turn: a manifest, the status of its signer and of those above it.

    Raises:
        AttestationError: a manifest that cannot be read.
    """
    return signer_needs(rim_signers(endorsement.data)) if isinstance(endorsement.need, NvidiaRim) else ()


def _none(evidence: bytes, hints: Sequence[bytes]) -> tuple[Need, ...]:
    del evidence, hints
    return ()


def _sev_snp(evidence: bytes, hints: Sequence[bytes]) -> tuple[Need, ...]:
    frame = read_frame(evidence)
    unverified_veks = [vek for vek in _veks(hints) if vek.kind is frame.signing_key]
    product = frame.product or next((vek.product for vek in unverified_veks), None)
    if product is None:
        raise MissingEndorsementError(
            "product of a report of version 2", expected=f"a {frame.signing_key} certificate beside it", got="none"
        )
    key, line = frame.signing_key.lower(), product.value
    above: tuple[Need, ...] = (AmdChain(product=line, key=key), AmdCrl(product=line, key=key))
    if frame.signing_key is SigningKey.VLEK:
        return above
    unverified = read_report(evidence, product=product)
    tcb = reported_tcb_of(evidence)
    if any(_fits(vek, product=product, tcb=tcb, chip_id=unverified.chip_id) for vek in unverified_veks):
        return above
    return (_vcek(unverified, product), *above)


def _vcek(unverified: SnpReport, product: Product) -> AmdVcek:
    if not any(unverified.chip_id):
        raise MissingEndorsementError("VCEK of a masked chip", expected="its certificate beside it", got="none")
    turin = product is Product.TURIN
    levels = unverified.reported_tcb
    return AmdVcek(
        product=product.value,
        hwid=(unverified.chip_id[:_TURIN_CHIP_ID_BYTES] if turin else unverified.chip_id).hex(),
        bootloader=levels.bootloader,
        tee=levels.tee,
        snp=levels.snp,
        microcode=levels.microcode,
        fmc=levels.fmc if turin else None,
    )


def _fits(vek: Vek, *, product: Product, tcb: bytes, chip_id: bytes) -> bool:
    same_chip = not any(chip_id) or vek.chip_id == chip_id
    return vek.product is product and vek.tcb == tcb and same_chip


def _veks(hints: Sequence[bytes]) -> list[Vek]:
    """Return the chip keys' certificates among hints; what is something else is left to the verifier."""
    found: list[Vek] = []
    for certificate in _certificates(hints):
        if kind_of(certificate) is not None:
            try:
                found.append(read_vek(certificate))
            except (EndorsementFormatError, AlgorithmError):
                continue
    return found


def _certificates(hints: Sequence[bytes]) -> list[Certificate]:
    found: list[Certificate] = []
    for hint in hints:
        try:
            found.extend(load_certificates(hint, what="hint"))
        except EndorsementFormatError:
            continue
    return found


def _intel(tee: str) -> Reader:
    def read(evidence: bytes, hints: Sequence[bytes]) -> tuple[Need, ...]:
        del hints
        chain = parse_quote(evidence).pck_chain
        issuer = load_certificates(chain, what="PCK chain")[0].parsed.issuer
        names = [name.value for name in issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
        ca = next((ca for ca, name in PCK_ISSUERS.items() if [name] == names), None)
        if ca is None:
            raise EndorsementFormatError("PCK certificate's issuer", expected=" or ".join(PCK_ISSUERS), got="another")
        try:
            unverified_fmspc = dcap_qvl.parse_pck_extension_from_pem(chain).fmspc
        except ValueError as error:
            raise EndorsementFormatError("PCK certificate", expected="Intel's", got="something else") from error
        return (IntelCollateral(tee=tee, fmspc=unverified_fmspc.hex().upper(), ca=ca),)

    return read


_tdx = _intel("tdx")


def _azure_snp(evidence: bytes, hints: Sequence[bytes]) -> tuple[Need, ...]:
    return azure_needs(AzureEvidence.decode(evidence, isolation=Isolation.SNP), isolation=Isolation.SNP, hints=hints)


def _azure_tdx(evidence: bytes, hints: Sequence[bytes]) -> tuple[Need, ...]:
    return azure_needs(AzureEvidence.decode(evidence, isolation=Isolation.TDX), isolation=Isolation.TDX, hints=hints)


def azure_needs(unverified: AzureEvidence, *, isolation: Isolation, hints: Sequence[bytes]) -> tuple[Need, ...]:
    """Return what the hardware's part of a confidential VM's evidence needs.

    Raises:
        AttestationError: as ``needs``.
    """
    if isolation is Isolation.TDX:
        return _tdx(unverified.td_quote, hints)
    brought = (unverified.vcek,) if unverified.vcek else ()
    return _sev_snp(parse_report(unverified.hcl_report).hardware_report, (*hints, *brought))


_READERS: Mapping[str, Reader] = {
    "sev-snp/1": _sev_snp,
    "tdx/1": _tdx,
    "sgx/1": _intel("sgx"),
    "azure-snp/1": _azure_snp,
    "azure-tdx/1": _azure_tdx,
    "aws-nitro/1": _none,
    "tpm/1": _none,
    "gcp-tpm/1": _none,
    "arm-cca/1": _none,
    "simulated/1": _none,
}
