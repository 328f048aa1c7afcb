"""AMD's Key Distribution Service: chip certificates, the chains above them and revocation lists.

A VLEK has no address here: only the cloud that loads it can ask for it, so it comes with the evidence.

Source: AMD 57230 (VCEK certificate and KDS interface), section 4.
"""

from __future__ import annotations

from typing import ClassVar

from confed.attestation.certificates import BUNDLE_LIMIT_BYTES, CERTIFICATE_LIMIT_BYTES
from confed.attestation.endorsements import AmdChain, AmdCrl, AmdVcek, Endorsement, Need
from confed.attestation.endorsing.accepting import accepted
from confed.attestation.endorsing.fetching import Fetcher

HOST = "kdsintf.amd.com"
"""AMD's own."""

# As much as a verifier takes (tee.sev_snp): it names authorities only.
_CRL_LIMIT_BYTES = 64 * 1024


class AmdKds:
    """AMD's Key Distribution Service, or a mirror with the same paths."""

    NEEDS: ClassVar[tuple[type[Need], ...]] = (AmdVcek, AmdChain, AmdCrl)

    def __init__(self, fetcher: Fetcher, *, host: str = HOST) -> None:
        self._fetcher = fetcher
        self._host = host

    def fetch(self, need: Need, *, now_ms: int) -> Endorsement:
        """Return the answer to a need of AMD's.

        Raises:
            EndorsementFetchError: no plausible answer.
        """
        path, limit_bytes = _asked(need)
        answer = self._fetcher.get(f"https://{self._host}{path}", limit_bytes=limit_bytes)
        return accepted(need, answer.body, host=answer.host, now_ms=now_ms)


def _asked(need: Need) -> tuple[str, int]:
    match need:
        case AmdVcek():
            levels = {
                "blSPL": need.bootloader,
                "teeSPL": need.tee,
                "snpSPL": need.snp,
                "ucodeSPL": need.microcode,
            }
            if need.fmc is not None:
                levels = {"fmcSPL": need.fmc, **levels}
            query = "&".join(f"{name}={level}" for name, level in levels.items())
            return f"/vcek/v1/{need.product}/{need.hwid}?{query}", CERTIFICATE_LIMIT_BYTES
        case AmdChain():
            return f"/{need.key}/v1/{need.product}/cert_chain", BUNDLE_LIMIT_BYTES
        case AmdCrl():
            return f"/{need.key}/v1/{need.product}/crl", _CRL_LIMIT_BYTES
        case _:
            raise TypeError(need)
