"""The vendors' services together: which hosts they are, and who is asked for which need."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from confed.attestation.endorsements import Endorsement, EndorsementSource, Need
from confed.attestation.endorsing import amd_kds, intel_pcs, nvidia
from confed.attestation.endorsing.fetching import Fetcher, Patience, tls_context
from confed.errors import ConfigError, EndorsementFetchError

VENDOR_HOSTS = (amd_kds.HOST, intel_pcs.HOST, intel_pcs.CRL_HOST, nvidia.RIM_HOST, nvidia.OCSP_HOST)
"""The only hosts that are asked unless a PCCS is named."""

# RFC 1035, section 2.3.4: labels of at most 63 characters, names of at most 253.
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=[^:]{{1,253}}(:|\Z)){_LABEL}(\.{_LABEL})*(:(?P<port>[1-9][0-9]{{0,4}}))?\Z")
_LAST_PORT = 65_535


class Sources:
    """Several services; a need is asked of the first one that knows its kind."""

    def __init__(self, sources: Iterable[EndorsementSource]) -> None:
        self._sources: dict[type[Need], EndorsementSource] = {}
        for source in sources:
            for kind in type(source).NEEDS:
                self._sources.setdefault(kind, source)

    def fetch(self, need: Need, *, now_ms: int) -> Endorsement:
        """Return a plausible answer to a need.

        Raises:
            EndorsementFetchError: nobody knows its kind, or no plausible answer.
        """
        source = self._sources.get(type(need))
        if source is None:
            raise EndorsementFetchError(need.KIND, expected="a source for it", got="none")
        return source.fetch(need, now_ms=now_ms)


def vendor_fetcher(
    *,
    hosts: Collection[str] = VENDOR_HOSTS,
    pccs: str | None = None,
    pccs_authorities: Path | None = None,
    patience: Patience | None = None,
) -> Fetcher:
    """Return a fetcher from vendors' hosts and from a PCCS where one is named.

    Args:
        hosts: which hosts may be asked.
        pccs: a caching service for Intel's, as ``host`` or ``host:port``.
        pccs_authorities: certificate authorities (PEM) by which its TLS is believed, instead of the system's.
        patience: how long a fetch may take.

    Raises:
        ConfigError: a host that is not the name of one.
        MissingFileError: no file of authorities.
    """
    allowed = [*hosts, *([] if pccs is None else [pccs])]
    for host in allowed:
        name = _NAME.match(host)
        if name is None or int(name["port"] or 1) > _LAST_PORT:
            raise ConfigError("host of endorsements", expected="NAME or NAME:PORT in lower case", got=host[:100])
    tls = {} if pccs is None or pccs_authorities is None else {pccs: tls_context(pccs_authorities)}
    return Fetcher(allowed, tls=tls, patience=patience)


def vendor_sources(fetcher: Fetcher, *, pccs: str | None = None) -> tuple[EndorsementSource, ...]:
    """Return AMD's, Intel's and NVIDIA's services; a PCCS is asked in place of Intel."""
    return (amd_kds.AmdKds(fetcher), intel_pcs.IntelPcs(fetcher, pccs=pccs), nvidia.Nvidia(fetcher))
