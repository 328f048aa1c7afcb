"""Whose word it takes that a batch of updates is folded, and its ciphertext needed no more.

The aggregator says so, signed, in a letter. It counts where more than half of the sites' own brokers have credentialed
that aggregator for the round: what the courier holds of a run goes by the owners' brokers' word and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from confed import canonical
from confed.errors import ConfedError, CredentialError, EncodingError, StaleUpdateError
from confed.keybroker.statements import AggregatorCredential
from confed.manifest import Manifest, Site
from confed.statement import Signed, unverified, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedBatch:
    """An aggregator says: of this batch of this attempt, these objects of the courier are in my sum, or excluded."""

    TYPE: ClassVar[str] = "confed/v1/folded-batch"
    run: str
    manifest: str
    round: int
    attempt: int
    batch: int
    instance: str
    updates: tuple[str, ...]


def topic_of(run: str, *, round_number: int, attempt: int) -> str:
    """Return where an aggregator posts its folded batches."""
    return f"{run}/folded/{round_number}/{attempt}"


class FoldedBatches:
    """Verifies such letters for one run; an aggregator that was found credentialed is not looked up again.

    Args:
        collect: returns the letters under a topic.
    """

    def __init__(self, manifest: Manifest, collect: Callable[[str], Iterable[bytes]]) -> None:
        self._manifest = manifest
        self._digest = manifest.digest
        self._collect = collect
        self._known: set[tuple[bytes, str, int]] = set()

    def verify(self, body: bytes) -> FoldedBatch:
        """Return what a letter says.

        Raises:
            EncodingError: something else.
            SignatureError: not signed by whom it names.
            StaleUpdateError: of another run or manifest.
            CredentialError: of an aggregator that not enough brokers credentialed for this round.
        """
        signed = Signed.from_json(canonical.decode(body))
        said = verify(signed, FoldedBatch, signer=signed.signer)
        if (said.run, said.manifest) != (self._manifest.run, self._digest):
            raise StaleUpdateError("folded batch", expected="one of this run", got="another's")
        who = (signed.signer, said.instance, said.round)
        if who not in self._known:
            found = sum(self._credentialed(site, who) for site in self._manifest.sites)
            if found < self._manifest.quorum:
                raise CredentialError("aggregator", expected=f"{self._manifest.quorum} credentials", got=found)
            self._known.add(who)
        return said

    def _credentialed(self, site: Site, who: tuple[bytes, str, int]) -> bool:
        return any(
            self._is_of(body, site, who) for body in self._collect(f"{self._manifest.run}/aggregator/{site.owner.name}")
        )

    def _is_of(self, body: bytes, site: Site, who: tuple[bytes, str, int]) -> bool:
        signer, instance, round_number = who
        try:
            signed = _credential_in(body)
            if unverified(signed, AggregatorCredential).signing_public != signer:
                return False
            found = verify(signed, AggregatorCredential, signer=site.owner.broker)
        except ConfedError:  # anybody may post there
            return False
        here = (self._manifest.run, self._digest, instance) == (found.run, found.manifest, found.instance)
        return here and found.first_round <= round_number <= found.last_round


def _credential_in(body: bytes) -> Signed:
    mail = canonical.decode(body)
    if not isinstance(mail, dict) or "credential" not in mail:
        raise EncodingError("aggregator mail", expected="a credential", got="something else")
    return Signed.from_json(mail["credential"])  # pyright: ignore[reportUnknownArgumentType]
