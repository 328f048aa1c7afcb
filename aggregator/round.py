"""The rules of a run's rounds: who may send what, when, and what counts. No input or output, no keys.

A run (``Rounds``):

- begins at the manifest's start (version 0) or at one committed version, and moves only when a commit is noted;
- opens a training round only as the successor of its version, an evaluation only of its version;
- opens an attempt only if it is later than every attempt at that round and purpose, and below ``max_attempts``;
- has one round open: opening another voids what was open, and what was sent to it;
- never opens a training round or an evaluation again that it has committed;
- remembers every ticket that counted, so that none counts twice.

A round (``Round``) accepts an update only if:

- it is open, and its site is in the cohort that the manifest draws;
- its site is in the batch that is open, where the manifest cuts the cohort into batches;
- its site has no update in it yet: an identity counts once;
- fewer than the manifest takes are in it: where more are drawn than taken, the first that come are the cohort;
- it is of the purpose's kind, and every field of its signed header is this run, manifest, round, attempt, purpose,
  base, aggregator instance and site;
- (FedBuff) or its header is that of a step that this instance committed, at most ``max_staleness`` rounds ago; then all
  of the following is about that step, which its own base belongs to;
- its signer has a credential from the site's own broker for exactly this step;
- it shows a ticket from the site's own broker for exactly this step, base, aggregator and signer, not used before;
- it is sealed to this aggregator and nobody else, and has exactly the model's size (none, for evaluations);
- once opened, it declares a weight within the cap, a loss within the cap where the strategy reads one, a norm within
  the bound, finite metrics and the site's dataset.

Batches are open one after another, in their order; one that is over never opens again. A round closes once. It yields
a cohort only if at least ``cohort.least`` accepted sites remain; every other site that was drawn is named with a code,
the enclave's own reason before what the governor reports.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from confed.compression import name_of
from confed.errors import (
    BatchError,
    CohortError,
    CompressionError,
    ConfedError,
    CredentialError,
    DuplicateUpdateError,
    EncodingError,
    LossError,
    ManifestMismatchError,
    NormError,
    NotFiniteError,
    PurposeError,
    RecipientError,
    RoundError,
    RoundFullError,
    ShapeError,
    ShortCohortError,
    SignatureError,
    SizeError,
    StaleUpdateError,
    TicketError,
    WeightError,
)
from confed.journey import Kind, Purpose, base_version
from confed.keybroker.statements import ClientCredential, Ticket
from confed.model.update import Declaration, UpdateDetail
from confed.sealing.header import CHUNK_BYTES, Header
from confed.sealing.recipients import Method
from confed.statement import Signed, verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confed.manifest import Manifest, Site

PURPOSES = (Purpose.TRAIN, Purpose.EVALUATE)
ABSENT = "no-answer"
"""The code of a drawn site of which nothing was heard."""

_OTHER_FORM: Mapping[str, type[ConfedError]] = {"layout": ShapeError, "compression": CompressionError}
_CODE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One attempt at one round, what it starts from, and who combines it."""

    run: str
    manifest: str
    round: int
    attempt: int
    purpose: Purpose
    base: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSize:
    """How long the plaintext in every update is, and its chunks."""

    plaintext_bytes: int
    chunk_bytes: int = CHUNK_BYTES


NOTHING = UpdateSize(plaintext_bytes=0)
"""What is in metrics, which are a declaration alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What came for a site: a container's header and signer, and the documents that go with it; nothing believed."""

    site: str
    digest: str
    header: Header
    signer: bytes
    credential: Signed
    ticket: Signed


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """An arrival that kept every rule."""

    site: Site
    digest: str
    ticket: Signed
    step: Step


class Round:
    """One attempt at one round: open, then closed for good.

    Args:
        key_id: SHA-256 of this aggregator's HPKE public key.
        size: of an update.
        used: tickets that counted.
        earlier: committed steps whose late updates still count (FedBuff).

    Raises:
        CohortError: the manifest draws nobody for this purpose.
    """

    def __init__(
        self,
        manifest: Manifest,
        step: Step,
        *,
        key_id: str,
        size: UpdateSize,
        used: frozenset[bytes],
        earlier: tuple[Step, ...] = (),
    ) -> None:
        self._manifest = manifest
        self.step = step
        self._key_id = key_id
        self._size = size if step.purpose is Purpose.TRAIN else NOTHING
        self._used = used
        self._steps = {(known.round, known.attempt): known for known in (*earlier, step)}
        self._open = True
        self._accepted: dict[str, Accepted] = {}
        self._refused: dict[str, str] = {}
        taken = manifest.cohort.taken(len(manifest.sites), purpose=step.purpose)
        self._taken = manifest.strategy.buffer or taken
        self.cohort = manifest.draw(purpose=step.purpose, round_number=step.round)
        self._drawn = {site.owner.name: site for site in self.cohort}
        names = tuple(self._drawn)
        batches = manifest.aggregation.cut(names) if step.purpose is Purpose.TRAIN else (names,)
        self._batches = [frozenset(batch) for batch in batches]
        self._batch = 0
        if not self.cohort:
            raise CohortError("cohort", expected=f"sites drawn to {step.purpose}", got="none")

    @property
    def accepted(self) -> tuple[Accepted, ...]:
        """The updates that count so far, in identity order."""
        return tuple(self._accepted[name] for name in sorted(self._accepted))

    @property
    def size(self) -> UpdateSize:
        """Size of what is in every update."""
        return self._size

    @property
    def untouched(self) -> bool:
        """True while nothing was accepted or refused."""
        return self._open and not self._accepted and not self._refused and not self._batch

    def step_of(self, header: Header) -> Step:
        """Return the step that an update's header names, or this round's own, which it then differs from."""
        named = (header.detail.get("round"), header.detail.get("attempt"))
        return next((step for key, step in self._steps.items() if key == named), self.step)

    def step_from(self, site: str) -> Step:
        """Return the step that an accepted site's update is of."""
        return self._accepted[site].step

    def drawn(self, name: str) -> Site:
        """Return the drawn site of this name, while the round is open.

        Raises:
            RoundError: the round is closed.
            CohortError: not drawn.
        """
        self._require_open()
        site = self._drawn.get(name)
        if site is None:
            raise CohortError("site", expected="one that was drawn for this round", got=name[:60])
        return site

    def accept(self, arrival: Arrival, *, now_ms: int) -> None:
        """Count an update, or refuse it; a refusal changes nothing but the site's code.

        Args:
            arrival: what came, nothing of it believed.
            now_ms: the time by the site's own broker.

        Raises:
            RoundError: the round is closed.
            CohortError: a site that was not drawn.
            DuplicateUpdateError: a second update of the site, or a ticket that was used.
            BatchError: a site of another batch than the open one.
            RoundFullError: as many as the round takes are there.
            StaleUpdateError: another kind, run, manifest, round, attempt, purpose, base, aggregator or site.
            CredentialError, TicketError: a document that is not for exactly this.
            RecipientError: not sealed to this aggregator alone.
            ShapeError, SizeError, CompressionError: not the model's tensors or size, or not the manifest's compression.
        """
        site = self.drawn(arrival.site)
        if arrival.site in self._accepted:
            raise DuplicateUpdateError(f"{arrival.site} update", expected="one in a round", got="a second")
        if arrival.site not in self._batches[self._batch]:
            raise BatchError(f"{arrival.site} update", expected=f"one of batch {self._batch}", got="another batch's")
        if len(self._accepted) >= self._taken:
            raise RoundFullError(
                f"{arrival.site} update", expected=f"one of the first {self._taken}", got="a later one"
            )
        step = self.step_of(arrival.header)
        self._check_header(arrival, site, step)
        self._check_credential(arrival, site, step, now_ms)
        ticket = self._check_ticket(arrival, site, step, now_ms)
        if ticket.ticket_id in self._used:
            raise DuplicateUpdateError(f"{arrival.site} ticket", expected="one not used", got="a used one")
        self._check_seal(arrival)
        self._accepted[arrival.site] = Accepted(site=site, digest=arrival.digest, ticket=arrival.ticket, step=step)
        self._refused.pop(arrival.site, None)

    def note_refused(self, site: str, error: ConfedError) -> None:
        """Remember why a drawn site's update did not count, unless one did."""
        if self._open and site not in self._accepted and site in self._drawn:
            self._refused[site] = error.code

    def end_batch(self, number: int) -> tuple[Accepted, ...]:
        """Open the next batch and return what counts of the one before it, in identity order.

        Raises:
            RoundError: the round is closed, or this is not the open batch, or the last one, which the round ends with.
        """
        self._require_open()
        if number != self._batch or number + 1 >= len(self._batches):
            raise RoundError("batch", expected=f"{self._batch}, before the last", got=number)
        self._batch += 1
        return tuple(entry for entry in self.accepted if entry.site.owner.name in self._batches[number])

    def void(self) -> None:
        """Accept nothing more: what came so far cannot be combined."""
        self._open = False

    def close(self) -> tuple[Accepted, ...]:
        """Accept nothing more and return what counts, in identity order.

        Raises:
            RoundError: closed before.
            CohortError: fewer than ``cohort.least``.
        """
        self._require_open()
        self._open = False
        require_cohort(self._manifest, len(self._accepted))
        return self.accepted

    def excluded(self, *, absent: Mapping[str, str], failed: Mapping[str, ConfedError]) -> dict[str, str]:
        """Return why each drawn site that is not in the result is not: name -> code.

        Args:
            absent: what the governor reports; believed only where the enclave knows nothing itself.
            failed: what opening and folding found.

        Raises:
            EncodingError: a reported code that is not one.
        """
        codes: dict[str, str] = {}
        for site in self.cohort:
            name = site.owner.name
            if name in failed:
                codes[name] = failed[name].code
            elif name not in self._accepted:
                codes[name] = self._refused.get(name) or _checked_code(absent.get(name, ABSENT))
        return codes

    def _require_open(self) -> None:
        if not self._open:
            raise RoundError("round", expected="an open one", got="a closed one")

    def _check_header(self, arrival: Arrival, site: Site, step: Step) -> None:
        header = arrival.header
        kind = Kind.UPDATE if step.purpose is Purpose.TRAIN else Kind.METRICS
        detail = UpdateDetail(
            run=step.run,
            manifest=step.manifest,
            round=step.round,
            attempt=step.attempt,
            purpose=step.purpose,
            base=step.base,
            aggregator=step.instance,
            site=site.owner.name,
            credential=arrival.credential.digest,
            ticket=arrival.ticket.digest,
            layout=self._manifest.model.layout,
            compression=name_of(self._manifest.compression),
        ).to_detail()
        _require_same("kind", kind, header.kind, StaleUpdateError)
        _require_same("detail", sorted(detail), sorted(header.detail), StaleUpdateError)
        for name, expected in detail.items():
            _require_same(name, expected, header.detail[name], _OTHER_FORM.get(name, StaleUpdateError))
        _require_same("header manifest", step.manifest, header.manifest, StaleUpdateError)
        _require_same("header parents", (step.base,), header.parents, StaleUpdateError)
        _require_same("header owner", site.owner.identity, header.owner, StaleUpdateError)

    def _check_credential(self, arrival: Arrival, site: Site, step: Step, now_ms: int) -> None:
        try:
            credential = verify(arrival.credential, ClientCredential, signer=site.owner.broker)
        except (SignatureError, EncodingError) as error:
            raise CredentialError("credential", expected=f"one of {site.owner.name}'s broker", got="another") from error
        expected: dict[str, Any] = {**_common(site, step), "signing_public": arrival.signer}
        for name, value in expected.items():
            _require_same(f"credential {name}", value, getattr(credential, name), CredentialError)
        _require_current("credential", credential.expires_at, now_ms, CredentialError)

    def _check_ticket(self, arrival: Arrival, site: Site, step: Step, now_ms: int) -> Ticket:
        try:
            ticket = verify(arrival.ticket, Ticket, signer=site.owner.broker)
        except (SignatureError, EncodingError) as error:
            raise TicketError("ticket", expected=f"one of {site.owner.name}'s broker", got="another") from error
        expected: dict[str, Any] = {
            **_common(site, step),
            "base": step.base,
            "aggregator": step.instance,
            "credential": arrival.credential.digest,
            "signing_public": arrival.signer,
        }
        for name, value in expected.items():
            _require_same(f"ticket {name}", value, getattr(ticket, name), TicketError)
        _require_current("ticket", ticket.expires_at, now_ms, TicketError)
        return ticket

    def _check_seal(self, arrival: Arrival) -> None:
        header = arrival.header
        recipients = [(entry.method, entry.key_id) for entry in header.recipients]
        if recipients != [(Method.HPKE, self._key_id)]:
            raise RecipientError("recipients", expected="this aggregator alone", got=f"{len(recipients)} entries")
        _require_same("plaintext size", self._size.plaintext_bytes, header.plaintext_bytes, SizeError)
        _require_same("chunk size", self._size.chunk_bytes, header.chunk_bytes, SizeError)


class Rounds:
    """The rounds of one run, in order.

    Args:
        version, base: the version that the run is at, and its file digest.
    """

    def __init__(self, manifest: Manifest, *, instance: str, key_id: str) -> None:
        self._manifest = manifest
        self._digest = manifest.digest
        self._instance = instance
        self._key_id = key_id
        self.version = 0
        self.base = manifest.model.start.digest
        self.current: Round | None = None
        self._attempts: dict[tuple[int, Purpose], int] = {}
        self._evaluated: set[int] = set()
        self._used: set[bytes] = set()
        self._committed: list[Step] = []

    def begin_at(self, *, version: int, base: str) -> None:
        """Go on from a committed version, which the caller has verified.

        Raises:
            RoundError: rounds were opened already.
        """
        if self._attempts:
            raise RoundError("first round", expected="to be said before any round", got=version + 1)
        self.version, self.base = version, base

    def reopened(self, *, round_number: int, attempt: int, purpose: str) -> Round | None:
        """Return the current round if it is this one and nothing was sent to it, so that asking twice does no harm."""
        current = self.current
        if current is None or not current.untouched:
            return None
        step = current.step
        return current if (step.round, step.attempt, step.purpose) == (round_number, attempt, purpose) else None

    def open(self, *, round_number: int, attempt: int, purpose: Purpose, size: UpdateSize) -> Round:
        """Open a round; what was open is void.

        Args:
            round_number: of a training round the successor of the version, of an evaluation the version.
            attempt: from 0, later than every one before.
            purpose: train or evaluate.
            size: of an update.

        Raises:
            RoundError: not the next round, or not a later attempt.
            CohortError: nobody is drawn.
        """
        self.require_next(round_number=round_number, attempt=attempt, purpose=purpose)
        step = Step(
            run=self._manifest.run,
            manifest=self._digest,
            round=round_number,
            attempt=attempt,
            purpose=purpose,
            base=self.base,
            instance=self._instance,
        )
        earlier = tuple(self._committed) if purpose is Purpose.TRAIN else ()
        used = frozenset(self._used)
        opened = Round(self._manifest, step, key_id=self._key_id, size=size, used=used, earlier=earlier)
        self._attempts[round_number, purpose] = attempt
        self.current = opened
        return opened

    def require_next(self, *, round_number: int, attempt: int, purpose: Purpose) -> None:
        """Refuse a step that may not come now.

        Raises:
            RoundError: not the next round, or not a later attempt.
        """
        if not 1 <= round_number <= self._manifest.rounds:
            raise RoundError("round", expected=f"from 1 to {self._manifest.rounds}", got=round_number)
        if base_version(purpose=purpose, round_number=round_number) != self.version:
            raise RoundError(f"round to {purpose}", expected=f"one on version {self.version}", got=round_number)
        if purpose is Purpose.EVALUATE and round_number in self._evaluated:
            raise RoundError("evaluation", expected="one not committed", got=round_number)
        earliest = self._attempts.get((round_number, purpose), -1) + 1
        if not earliest <= attempt < self._manifest.max_attempts:
            raise RoundError("attempt", expected=f"from {earliest} to {self._manifest.max_attempts - 1}", got=attempt)

    def commit(self, finished: Round, *, digest: str, tickets: tuple[bytes, ...]) -> None:
        """Note that the current round's result is committed.

        Raises:
            RoundError: another round than the current one.
        """
        if finished is not self.current:
            raise RoundError("committed round", expected="the current one", got="another")
        self._used.update(tickets)
        self.current = None
        if finished.step.purpose is Purpose.TRAIN:
            self.version, self.base = finished.step.round, digest
            late = self._manifest.strategy.staleness
            self._committed = [*self._committed, finished.step][-late:] if late else []
        else:
            self._evaluated.add(finished.step.round)


def _common(site: Site, step: Step) -> dict[str, Any]:
    return {
        "broker": site.owner.broker,
        "identity": site.owner.identity,
        "manifest": step.manifest,
        "run": step.run,
        "round": step.round,
        "attempt": step.attempt,
        "purpose": step.purpose,
    }


def purpose_named(purpose: str) -> Purpose:
    """Return the purpose that a round can have.

    Raises:
        PurposeError: neither train nor evaluate.
    """
    if purpose not in PURPOSES:
        raise PurposeError("purpose", expected="train or evaluate", got=purpose[:60])
    return Purpose(purpose)


def check_declaration(declaration: Declaration, *, manifest: Manifest, site: Site, purpose: Purpose) -> None:
    """Check what a sender declares against the manifest, before its weights are opened.

    Raises:
        NotFiniteError: a weight, norm or metric that is NaN or infinite.
        WeightError: a weight that is not above 0 and at most ``update.weight_cap``.
        LossError: training without the loss that the strategy reads, or one that is not from 0 to ``update.loss_cap``.
        NormError: a norm below 0 or above ``update.norm_bound``.
        ManifestMismatchError: another dataset than the site's.
    """
    for name, value in (("weight", declaration.weight), ("norm", declaration.norm), *declaration.metrics.items()):
        if not math.isfinite(value):
            raise NotFiniteError(f"{site.owner.name} {name}", expected="a finite number", got="NaN or infinity")
    if not 0 < declaration.weight <= manifest.update.weight_cap:
        raise WeightError(f"{site.owner.name} weight", expected=f"up to {manifest.update.weight_cap}", got="another")
    if not 0 <= declaration.norm <= manifest.update.norm_bound:
        raise NormError(f"{site.owner.name} norm", expected=f"up to {manifest.update.norm_bound}", got="another")
    if purpose is Purpose.TRAIN:
        _check_loss(declaration, manifest=manifest, site=site)
    dataset = site.dataset.digest if site.dataset else ""
    _require_same(f"{site.owner.name} dataset", dataset, declaration.dataset, ManifestMismatchError)


def _check_loss(declaration: Declaration, *, manifest: Manifest, site: Site) -> None:
    key, cap = manifest.strategy.loss_key, manifest.update.loss_cap
    if key is None or cap is None:
        return
    loss = declaration.metrics.get(key)
    if loss is None or not 0 <= loss <= cap:
        raise LossError(
            f"{site.owner.name} {key}", expected=f"from 0 to {cap}", got="none" if loss is None else "another"
        )


def require_cohort(manifest: Manifest, count: int) -> None:
    """Check the cohort rule.

    Raises:
        ShortCohortError: fewer distinct identities than the manifest asks for.
    """
    if count < manifest.cohort.least:
        raise ShortCohortError("cohort", expected=f"at least {manifest.cohort.least}", got=count)


def _checked_code(code: str) -> str:
    if not _CODE.fullmatch(code):
        raise EncodingError("reported code", expected="lower-case words and hyphens", got=repr(code)[:60])
    return code


def _require_same(field: str, expected: object, got: object, error: type[ConfedError]) -> None:
    if expected != got:
        raise error(field, expected=str(expected)[:80], got=str(got)[:80])


def _require_current(field: str, expires_at: int, now_ms: int, error: type[ConfedError]) -> None:
    if now_ms > expires_at:
        raise error(f"{field} time", expected=f"before {expires_at}", got=now_ms)
