"""Intel's Provisioning Certification Service, or a caching service (PCCS) of one's own with the same paths.

Four answers make one collateral: the revocation list of the authority that certified the platform, the TCB info of
its family, the identity of the quoting enclave, and the root's revocation list. Issuers' chains come in headers.

What Intel signed is the text of ``tcbInfo`` and ``enclaveIdentity`` as it was sent, so that text is cut out of the
answer and never written anew.

Source: Intel PCS API, version 4 (api.portal.trustedservices.intel.com); the form of a collateral: dcap-qvl 0.7.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar
from urllib.parse import unquote

from confed.attestation.certificates import BUNDLE_LIMIT_BYTES
from confed.attestation.endorsements import Endorsement, IntelCollateral, Need
from confed.attestation.endorsing.accepting import accepted
from confed.attestation.endorsing.fetching import Answer, Fetcher
from confed.attestation.revocation import CRL_LIMIT_BYTES
from confed.errors import EndorsementFetchError

HOST = "api.trustedservices.intel.com"
"""Intel's own."""

CRL_HOST = "certificates.trustedservices.intel.com"
"""Where Intel's root says that its revocation list lies."""

_JSON_LIMIT_BYTES = 1024 * 1024
_SIGNED = r'\s*\{{\s*"{}"\s*:\s*(\{{.*\}})\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{{128}})"\s*\}}\s*'
_TCB_INFO = re.compile(_SIGNED.format("tcbInfo"), re.DOTALL)
_QE_IDENTITY = re.compile(_SIGNED.format("enclaveIdentity"), re.DOTALL)


class IntelPcs:
    """Intel's PCS, or the PCCS of a host.

    Args:
        pccs: the host (and port) of a PCCS, which then answers everything in place of Intel.
    """

    NEEDS: ClassVar[tuple[type[Need], ...]] = (IntelCollateral,)

    def __init__(self, fetcher: Fetcher, *, pccs: str | None = None) -> None:
        self._fetcher = fetcher
        self._host = pccs or HOST
        # Only a PCCS serves the root's list itself, in hexadecimal.
        self._root_list = (
            f"https://{pccs}/sgx/certification/v4/rootcacrl" if pccs else f"https://{CRL_HOST}/IntelSGXRootCA.der"
        )

    def fetch(self, need: Need, *, now_ms: int) -> Endorsement:
        """Return the collateral of a platform's family, in JSON.

        Raises:
            EndorsementFetchError: an answer that is missing, too large, or not plausible.
        """
        if not isinstance(need, IntelCollateral):
            raise TypeError(need)
        pck = self._get(f"sgx/certification/v4/pckcrl?ca={need.ca}&encoding=der", CRL_LIMIT_BYTES)
        tcb = self._get(f"{need.tee}/certification/v4/tcb?fmspc={need.fmspc}", _JSON_LIMIT_BYTES)
        identity = self._get(f"{need.tee}/certification/v4/qe/identity", _JSON_LIMIT_BYTES)
        root = self._fetcher.get(self._root_list, limit_bytes=CRL_LIMIT_BYTES)
        tcb_info, tcb_signature = _signed(tcb, _TCB_INFO)
        qe_identity, qe_signature = _signed(identity, _QE_IDENTITY)
        collateral = {
            "pck_crl_issuer_chain": _chain(pck, "SGX-PCK-CRL-Issuer-Chain"),
            "root_ca_crl": _der(root).hex(),
            "pck_crl": _der(pck).hex(),
            "tcb_info_issuer_chain": _chain(tcb, "TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"),
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_signature.lower(),
            "qe_identity_issuer_chain": _chain(identity, "SGX-Enclave-Identity-Issuer-Chain"),
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_signature.lower(),
        }
        return accepted(need, json.dumps(collateral).encode(), host=self._host, now_ms=now_ms)

    def _get(self, path: str, limit_bytes: int) -> Answer:
        return self._fetcher.get(f"https://{self._host}/{path}", limit_bytes=limit_bytes)


def _signed(answer: Answer, form: re.Pattern[str]) -> tuple[str, str]:
    """Return the text that was signed and its signature in hexadecimal."""
    try:
        found = form.fullmatch(answer.body.decode())
    except UnicodeDecodeError as error:
        raise EndorsementFetchError(answer.host, expected="signed JSON", got="something else") from error
    if found is None:
        raise EndorsementFetchError(answer.host, expected="signed JSON", got="something else")
    return found[1], found[2]


def _chain(answer: Answer, *names: str) -> str:
    for name in names:
        text = unquote(answer.headers.get(name.lower(), ""), errors="replace")
        if 0 < len(text) <= BUNDLE_LIMIT_BYTES:
            return text
    raise EndorsementFetchError(answer.host, expected=f"the header {names[0]}", got="none")


def _der(answer: Answer) -> bytes:
    """Return a list in DER, which a PCCS may send in hexadecimal."""
    if answer.body.startswith(b"\x30"):
        return answer.body
    try:
        return bytes.fromhex(answer.body.decode("ascii"))
    except ValueError as error:
        raise EndorsementFetchError(answer.host, expected="a revocation list", got="something else") from error
