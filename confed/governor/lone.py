"""A run without an aggregator, as the governor sees it: one client TEE makes the versions, and posts what came of it.

In place of an enclave that is called, there is a TEE that gets Flower's messages. It answers with the digest of what it
has had committed already; so a round is over when its commit record is published, and nothing else counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from confed.errors import EnclaveLostError, InstanceError, RoundError, error_for
from confed.governor.enclave_client import ClosedRound, OpenedRound
from confed.governor.taking_up import Letters, published
from confed.journey import Purpose, base_version
from confed.keybroker.topics import closing_topic
from confed.manifest import Manifest

_LOST = frozenset({"client-died", "no-answer", InstanceError.code})
"""Why another attempt may help: the TEE is gone; or one that was started in its place was given its message, and found
that this attempt's keys are the other's. Anything else is what the TEE says of itself."""


class LoneTee:
    """The port of ``EnclaveClient`` where there is no enclave to call.

    Args:
        letters: where the TEE posts commit records and the closing.
        ask: reaches the TEE by a Flower message, and returns the code of why it refused, or nothing.
    """

    def __init__(self, manifest: Manifest, letters: Letters, *, ask: Callable[[Mapping[str, str | int]], str]) -> None:
        self._manifest = manifest
        self._letters = letters
        self._ask = ask
        self._open: tuple[int, Purpose] | None = None
        self._version = 0

    def attest(self, *, first_round: int, attempt: int) -> str:
        """Do nothing: the TEE attests when its message comes. There is no instance to name before."""
        del first_round, attempt
        return ""

    def open_round(self, *, round_number: int, attempt: int, purpose: str) -> OpenedRound:
        """Note which round's record is waited for; the manifest draws its one site."""
        del attempt
        self._open = (round_number, Purpose(purpose))
        cohort = tuple(site.owner.name for site in self._manifest.sites)
        version = base_version(purpose=Purpose(purpose), round_number=round_number)
        return OpenedRound(base="", version=version, instance="", cohort=cohort)

    def submit(self, *, site: str, digest: str) -> None:
        """Do nothing: what the TEE answers with is committed, or it is not and counts for nothing."""

    def submit_bundle(self, *, digest: str) -> dict[str, str]:
        """Refuse: one site sends no bundles.

        Raises:
            RoundError: always.
        """
        raise RoundError("bundle", expected="none from one site", got=digest[:16])

    def fold_batch(self, batch: int) -> None:
        """Refuse: one site comes in no batches.

        Raises:
            RoundError: always.
        """
        raise RoundError("batch", expected="none of one site", got=batch)

    def close_round(self, *, absent: Mapping[str, str]) -> ClosedRound:
        """Return the round as its published record shows it.

        Raises:
            EnclaveLostError: the TEE is gone; another attempt may go on from its last checkpoint.
            ConfedError: the TEE refused, of the class that its code names.
            RoundError: no round is open, or nothing was published.
        """
        if self._open is None:
            raise RoundError("round", expected="an open one", got="none")
        number, purpose = self._open
        closed = published(self._manifest, self._letters, round_number=number, purpose=purpose)
        if closed is not None:
            self._open, self._version = None, number
            return closed
        code = next(iter(absent.values()), "")
        if code in _LOST:
            raise EnclaveLostError("training TEE", expected="an answer", got=code)
        if code:
            raise error_for(code, "the training TEE")
        raise RoundError("round", expected="a published commit record that holds", got="none")

    def close_run(self) -> bytes:
        """Let the TEE close the run; return the closing entry with its countersignatures, canonical JSON.

        Raises:
            ConfedError: the TEE or a broker refused, of the class that its code names.
        """
        code = self._ask({"ask": "close", "version": self._version})
        documents = self._letters.collect(closing_topic(self._manifest.run))
        if not documents:
            raise error_for(code, "the training TEE") if code else RoundError("closing", expected="one", got="none")
        return documents[-1]
