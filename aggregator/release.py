"""What leaves the enclave, and in which order: sealed, then countersigned, then committed, only then published.

1. The strategy's state and the next version are sealed under the keys that the model owner's broker released. The
   model owner can derive these keys, so the ciphertext stays in the enclave; where it is too large for memory, its
   chunks lie in a folder without the header, whose salt every chunk's key is derived from.
2. The candidate names both, the cohort, its tickets and the digest of the metrics; the enclave signs it.
3. Every site's broker is asked to countersign it; more than half must. From here on they remember this cohort.
4. The ciphertext goes to the courier, so that a committed version is never lost: where the courier has a folder for it
   on this machine, the chunks were written there, and get their header and their name now.
5. The model owner's broker commits it.
6. The record is verified as any client would, and posted. Before that, no metric and no digest is told to the
   governor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aggregator.combine.flower_strategy import STATE_FORMAT
from aggregator.combine.fold import factors
from aggregator.combine.weights import Weights
from aggregator.inbox import SMALL_BYTES, Store
from confed.errors import SessionError
from confed.files import begin_writing, forget_pages
from confed.journey import Kind
from confed.keybroker.committing import Proposed, hidden, version_draft
from confed.keybroker.statements import Candidate
from confed.model.weights import pack
from confed.sealing.container import Draft, seal, seal_to_bytes
from confed.statement import sign
from confed.wire.addresses import handed_folder, object_path

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from numpy.typing import NDArray

    from aggregator.enclave import Enclave, RoundKeys
    from aggregator.round import Accepted, Step
    from confed.model.update import Declaration
    from confed.privacy.terms import PrivacyState

Timed = Callable[[str], AbstractContextManager[None]]

_AHEAD_BYTES = 8 * 1024 * 1024
"""After how many bytes the disk is given what was written, so that the courier's fsync waits for the last of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedVersion:
    """The next version: file digests of the model and of its strategy state (empty without one), and the files."""

    digest: str
    state: str
    withheld: tuple[Withheld, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """A sealed container that has not left: the whole of it, or its front, which the file lacks.

    ``handed``: the file lies where the courier takes files over.
    """

    digest: str
    front: bytes = field(repr=False)
    path: Path | None
    handed: bool = False

    def send(self, store: Store) -> None:
        """Store the container; done again, it changes nothing."""
        if self.path is None:
            store.put(self.front, digest=self.digest)
            return
        if not self.handed or self.path.exists():
            with self.path.open("r+b") as file:
                file.write(self.front)
        if not self.handed:
            store.put(self.path, digest=self.digest)
            return
        if self.path.exists():
            self.path.rename(self.path.with_name(self.digest))
        store.hand_over(self.digest)


class _WithoutFront:
    """A sink that keeps a container's front in memory, and writes the chunks behind its place, on their way to disk.

    ``old`` is a file that nobody needs in memory any more: what the kernel holds of it makes room, piece by piece. New
    memory costs seconds a gigabyte on a virtual machine whose host takes back what is free.
    """

    def __init__(self, file: FileIO, old: FileIO | None) -> None:
        self._file, self._old = file, old
        self._begun = self._written = 0
        self.front = b""

    def write(self, data: memoryview, /) -> int | None:
        if not self.front:
            self.front = bytes(data)
            self._begun = self._written = self._file.seek(len(self.front))
            return self._written
        if self._old is not None:
            forget_pages(self._old.fileno(), offset=self._written, size_bytes=len(data))
        count = self._file.write(data)
        self._written += count
        if self._written - self._begun >= _AHEAD_BYTES:
            begin_writing(self._file, offset=self._begun, size_bytes=self._written - self._begun)
            self._begun = self._written
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal(Proposed):
    """What is proposed, the step that it is of, and the ciphertext that is withheld until it is countersigned."""

    step: Step
    withheld: tuple[Withheld, ...] = ()


def clear_metrics(names: Sequence[str], decimals: int, declarations: Sequence[Declaration]) -> dict[str, float]:
    """Return the weighted means that may leave in clear, rounded, in the manifest's order.

    Guarantees: only names that the manifest lists, and only those that every member of the cohort declares: a mean
    over fewer would be of a smaller cohort than was promised. Computed as Flower does.

    Source: flwr 1.41, ``serverapp/strategy/strategy_utils.py``, ``aggregate_metricrecords``.
    """
    shares = factors([declaration.weight for declaration in declarations])
    found: dict[str, float] = {}
    for name in names:
        if all(name in declaration.metrics for declaration in declarations):
            total = 0.0
            for at, (declaration, share) in enumerate(zip(declarations, shares, strict=True)):
                value = declaration.metrics[name] * share
                total = value if at == 0 else total + value
            found[name] = round(total, decimals)
    return found


class Releaser:
    """Seals, countersigns, commits and publishes for one enclave.

    Args:
        folder: where large ciphertext is written before it is sent.
        threads: how many seal.
        beside: the courier's directory, where it is on this machine: large ones are written to its folder for files to
            be taken over, where there is one, and not sent.
    """

    def __init__(
        self, enclave: Enclave, store: Store, *, folder: Path, threads: int = 1, beside: Path | None = None
    ) -> None:
        self._enclave = enclave
        self._store = store
        self._beside = beside if beside is not None and handed_folder(beside).is_dir() else None
        self._folder = folder if self._beside is None else handed_folder(self._beside)
        self._threads = threads

    def seal_version(
        self,
        step: Step,
        weights: Weights,
        state: Mapping[str, NDArray[Any]],
        *,
        keys: RoundKeys,
        cohort_size: int,
        timed: Timed,
    ) -> SealedVersion:
        """Seal the next version and its state, and keep the ciphertext (step 1).

        Args:
            step: the attempt that made it.
            weights: the next version.
            state: the strategy's state, empty without one.
            keys: of this attempt.
            cohort_size: identities in it, public in its header.
            timed: counts the block under a stage's name.

        Raises:
            SessionError: a state without a key for it.
        """
        withheld: list[Withheld] = []
        if state:
            if keys.following_state is None:
                raise SessionError("state key", expected="one for this attempt", got="none")
            draft = self._draft(Kind.STRATEGY_STATE, step, {"format": STATE_FORMAT})
            with timed("seal"):
                withheld.append(self._seal(pack(state), draft, keys.following_state, base=""))
        state_digest = withheld[0].digest if withheld else ""
        detail = {"layout": weights.layout.digest, "state": state_digest, "cohort": cohort_size}
        draft = self._draft(Kind.MODEL, step, detail)
        with timed("seal"):
            parts = pack(weights.arrays(), like=weights.layout)
            withheld.append(self._seal(parts, draft, keys.following, base=step.base))
        return SealedVersion(digest=withheld[-1].digest, state=state_digest, withheld=tuple(withheld))

    def propose(
        self,
        step: Step,
        *,
        sealed: SealedVersion,
        cohort: Sequence[Accepted],
        excluded: Mapping[str, str],
        metrics: Mapping[str, float],
        base_record: bytes,
        privacy: PrivacyState | None,
    ) -> Proposal:
        """Return the signed candidate (step 2), in which the privacy that the release costs is charged."""
        clear = hidden(metrics)
        candidate = Candidate(
            run=step.run,
            manifest=step.manifest,
            round=step.round,
            attempt=step.attempt,
            purpose=step.purpose,
            base=step.base,
            version=step.round,
            digest=sealed.digest,
            state=sealed.state,
            instance=step.instance,
            cohort=tuple(entry.site.owner.identity for entry in cohort),
            tickets=tuple(entry.ticket.digest for entry in cohort),
            excluded=excluded,
            metrics=clear.digest,
            privacy=privacy,
        )
        return Proposal(
            step=step,
            candidate=sign(candidate, self._enclave.signing_key),
            tickets=tuple(entry.ticket for entry in cohort),
            base_record=base_record,
            metrics=clear,
            withheld=sealed.withheld,
        )

    def commit(self, proposal: Proposal, *, timed: Timed) -> bytes:
        """Have a proposal countersigned and committed, publish the record and return it (steps 3 to 6).

        Raises:
            QuorumError: too few brokers countersigned; nothing has left the enclave.
            ConfedError: the model owner's broker refused, or a service is down; the proposal may be tried again.
        """
        committer = self._enclave.committer
        # 3.
        with timed("commit"):
            countersignatures = committer.countersigned(proposal)
        # 4.
        with timed("send"):
            for container in proposal.withheld:
                container.send(self._store)
        # 5. and 6.
        with timed("commit"):
            return committer.committed(proposal, countersignatures).to_bytes()

    def _draft(self, kind: Kind, step: Step, detail: Mapping[str, Any]) -> Draft:
        return version_draft(
            self._enclave.manifest,
            digest=step.manifest,
            kind=kind,
            version=step.round,
            attempt=step.attempt,
            base=step.base,
            detail=detail,
        )

    def _seal(self, parts: Sequence[memoryview], draft: Draft, data_key: bytes, *, base: str) -> Withheld:
        """Seal to memory if small, else to a file that lacks its front.

        A file of the last version, which is published, or of one that never was, is written over: its pages are there.
        One that is handed over is a new file each time: it gets the memory of the base, which every client has by now.
        """
        signing_key = self._enclave.signing_key
        if sum(len(part) for part in parts) <= SMALL_BYTES:
            data, sealed = seal_to_bytes(parts, draft, data_key=data_key, signing_key=signing_key)
            return Withheld(digest=sealed.digest, front=data, path=None)
        own = f"{self._enclave.instance[:16]}." if self._beside is not None else ""
        path = self._folder / f"{own}{draft.kind}.sealed"
        with path.open("r+b" if path.exists() else "wb", buffering=0) as file, self._stored(base) as old:
            sink = _WithoutFront(file, old)
            sealed = seal(parts, draft, data_key=data_key, signing_key=signing_key, sink=sink, threads=self._threads)
            file.truncate(sealed.size_bytes)
        return Withheld(digest=sealed.digest, front=sink.front, path=path, handed=self._beside is not None)

    def _stored(self, digest: str) -> AbstractContextManager[FileIO | None]:
        """Return the courier's file of a version, where it is on this machine and has one."""
        path = object_path(self._beside, digest) if self._beside is not None and digest else None
        return path.open("rb", buffering=0) if path is not None and path.is_file() else nullcontext()
