"""NVIDIA's services: reference integrity manifests by their id, and the revocation status of certificates (OCSP).

OCSP is asked without a nonce, so that an answer can be kept and carried; how fresh it is rests on the time of its
next update, as for a revocation list.

Source: NVIDIA RIM service API (docs.nvidia.com/attestation, RIM), version 1; RFC 6960 and its appendix A for HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any, ClassVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from confed.attestation.endorsements import Endorsement, Need, NvidiaOcsp, NvidiaRim
from confed.attestation.endorsing.accepting import accepted
from confed.attestation.endorsing.fetching import Answer, Fetcher
from confed.errors import EndorsementFetchError

RIM_HOST = "rim.attestation.nvidia.com"
"""NVIDIA's manifests."""

OCSP_HOST = "ocsp.ndis.nvidia.com"
"""NVIDIA's revocation status."""

_RIM_LIMIT_BYTES = 2 * 1024 * 1024
_OCSP_LIMIT_BYTES = 64 * 1024


class Nvidia:
    """NVIDIA's RIM and OCSP services, or mirrors with the same paths."""

    NEEDS: ClassVar[tuple[type[Need], ...]] = (NvidiaRim, NvidiaOcsp)

    def __init__(self, fetcher: Fetcher, *, rim_host: str = RIM_HOST, ocsp_host: str = OCSP_HOST) -> None:
        self._fetcher = fetcher
        self._rim_host = rim_host
        self._ocsp_host = ocsp_host

    def fetch(self, need: Need, *, now_ms: int) -> Endorsement:
        """Return the manifest in XML, or the OCSP response in DER.

        Raises:
            EndorsementFetchError: no plausible answer.
        """
        match need:
            case NvidiaRim():
                answer = self._fetcher.get(f"https://{self._rim_host}/v1/rim/{need.id}", limit_bytes=_RIM_LIMIT_BYTES)
                data = _manifest(need, answer)
            case NvidiaOcsp():
                answer = self._fetcher.post(
                    f"https://{self._ocsp_host}/",
                    _question(need),
                    content_type="application/ocsp-request",
                    limit_bytes=_OCSP_LIMIT_BYTES,
                )
                data = answer.body
            case _:
                raise TypeError(need)
        return accepted(need, data, host=answer.host, now_ms=now_ms)


def _question(need: NvidiaOcsp) -> bytes:
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        bytes.fromhex(need.issuer_name), bytes.fromhex(need.issuer_key), int(need.serial, 16), hashes.SHA384()
    )
    return builder.build().public_bytes(Encoding.DER)


def _manifest(need: NvidiaRim, answer: Answer) -> bytes:
    """Return the manifest inside the service's JSON, if it is the one asked for and its digest holds."""
    try:
        fields: Any = json.loads(answer.body)
        text, digest = fields["rim"], fields["sha256"]
        manifest = base64.b64decode(text, validate=True)
        same = fields["id"] == need.id and digest.lower() == hashlib.sha256(manifest).hexdigest()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise EndorsementFetchError(answer.host, expected="a manifest in JSON", got="something else") from error
    if not same:
        raise EndorsementFetchError(answer.host, expected=f"the manifest {need.id}", got="another")
    return manifest
