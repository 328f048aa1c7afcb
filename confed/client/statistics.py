"""What leaves a site as statistics: asked for once, permitted by the site's own broker, answered with noise, signed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.client.datasets import Datasets
from confed.client.step import Grants
from confed.errors import BrokerError, ConfedError, UnreachableError
from confed.journey import Purpose
from confed.keybroker.client import BrokerClient
from confed.keybroker.statistics import StatisticsRelease, StatisticsRequest
from confed.manifest import Manifest, Site
from confed.statement import sign
from confed.wire.courier_client import CourierClient

_log = logging.getLogger(__name__)


class Statistics:
    """The statistics of one TEE's sites: each site's leave once in a run, or not at all.

    A broker that refuses (its budget is spent, or a former TEE of this run has had the permit) ends nothing else: the
    site trains on, and nothing leaves.
    """

    def __init__(
        self, manifest: Manifest, *, datasets: Datasets, courier: CourierClient, signing_key: Ed25519PrivateKey
    ) -> None:
        self._manifest = manifest
        self._datasets = datasets
        self._courier = courier
        self._signing = signing_key
        self._asked: set[str] = set()

    def release(
        self,
        sites: Mapping[str, Site],
        grants: Mapping[str, Grants | ConfedError],
        *,
        round_number: int,
        attempt: int,
        purpose: Purpose,
        broker_of: Callable[[bytes], BrokerClient],
    ) -> None:
        """Let the manifest's statistics of these sites leave, each with its broker's permit.

        Raises:
            ConfedError: the courier is down.
        """
        if self._manifest.preparation is None or self._manifest.preparation.statistics is None:
            return
        for name, granted in grants.items():
            if isinstance(granted, ConfedError) or name in self._asked:
                continue
            site = sites[name]
            request = StatisticsRequest(
                request_id=os.urandom(16),
                broker=site.owner.broker,
                identity=site.owner.identity,
                manifest=self._manifest.digest,
                run=self._manifest.run,
                round=round_number,
                attempt=attempt,
                purpose=purpose,
                credential=granted.credential.digest,
            )
            try:
                self._release(site, granted, request, broker_of(site.owner.broker))
            except (BrokerError, UnreachableError) as error:
                # Nobody knows whether a permit was given whose answer was lost, so this TEE asks no second time.
                _log.warning("no statistics of %s leave (%s)", name, error.code)
            self._asked.add(name)
            self._datasets.forget_checked(site)

    def _release(self, site: Site, granted: Grants, request: StatisticsRequest, broker: BrokerClient) -> None:
        from confed.data.statistics import answer  # noqa: PLC0415 (the extra ``data``)

        assert self._manifest.preparation is not None  # noqa: S101 (the caller has checked it)
        terms = self._manifest.preparation.statistics
        assert terms is not None  # noqa: S101
        permit = broker.permit_statistics(sign(request, self._signing), epsilon=terms.epsilon)
        release = StatisticsRelease(
            run=self._manifest.run,
            manifest=self._manifest.digest,
            identity=site.owner.identity,
            permit=permit.digest,
            answers=answer(self._datasets.checked(site), terms),
        )
        documents = {
            "credential": granted.credential.to_json(),
            "permit": permit.to_json(),
            "release": sign(release, self._signing).to_json(),
        }
        self._courier.post(f"{self._manifest.run}/statistics/{site.owner.name}", canonical.encode(documents))
