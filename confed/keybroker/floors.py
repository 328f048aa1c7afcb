"""What a key itself demands, whatever manifest its owner approved: floors, and a budget of rounds over all of them."""

from __future__ import annotations

from confed.errors import BudgetError, CohortError, FloorError, MeasurementError, PurposeError
from confed.journey import Purpose, Use, base_version
from confed.keybroker.decision import Decision
from confed.keybroker.key_budget import charge_release, require_privacy
from confed.keybroker.statements import Candidate, KeyName, ReleaseRequest
from confed.keybroker.vault import KeyFloors
from confed.manifest import Manifest, Unchecked


def require_key_floors(decision: Decision, request: ReleaseRequest, *, measurement: str) -> None:
    """Refuse a request for a key that its own floors do not permit, and charge the model key's round.

    The round is charged to whoever makes the next version: the aggregator, or a client that asks for its key.

    Raises:
        FloorError, PurposeError, MeasurementError, BudgetError, PrivacyBudgetError: the floor that refuses.
    """
    makes = request.purpose is Purpose.AGGREGATE or any(_is_next(request, name) for name in request.keys)
    for key_id, use in {(name.key_id, name.use) for name in request.keys}:
        floors = decision.vault.floors(decision.tx, key_id)
        require_manifest_floors(decision, floors, is_data=use is Use.DATA)
        if request.purpose not in floors.purposes:
            raise PurposeError("key purpose", expected=", ".join(floors.purposes), got=request.purpose)
        if not isinstance(floors.measurements, Unchecked) and measurement not in floors.measurements:
            raise MeasurementError("key measurement", expected="one of the key's own", got=measurement[:16])
        if request.purpose is Purpose.AGGREGATE:
            _require_strategy_code(decision.terms.manifest, floors)
        if request.purpose in (Purpose.TRAIN, Purpose.AGGREGATE):
            charge_round(decision, key_id, floors, request.round, spend=makes and use is not Use.DATA)
        if use is Use.DATA and request.purpose is Purpose.TRAIN:
            step = {"round_number": request.round, "attempt": request.attempt}
            charge_release(decision, key_id, floors, **step, spend=False)


def _is_next(request: ReleaseRequest, name: KeyName) -> bool:
    ahead = name.version - base_version(purpose=request.purpose, round_number=request.round)
    return name.use is Use.VERSION and ahead == 1


def require_manifest_floors(decision: Decision, floors: KeyFloors, *, is_data: bool) -> None:
    """Refuse a manifest below what a key itself carries.

    Raises:
        FloorError: another environment or kind of run, a longer lease, too small a cohort, or too few organisations
            that count; in a result of a strategy that selects, too few even if it leaves out those that count.
    """
    manifest = decision.terms.manifest
    if is_data:
        require_privacy(manifest, floors)
    if floors.environment != manifest.environment:
        raise FloorError("key environment", expected=floors.environment, got=manifest.environment)
    if manifest.scenario not in floors.scenarios:
        raise FloorError("key scenario", expected=", ".join(floors.scenarios), got=manifest.scenario)
    lease = None if manifest.serving is None else manifest.serving.lease
    if lease is not None and lease.seconds > floors.lease_s:
        raise FloorError("key lease in seconds", expected=f"at most {floors.lease_s}", got=lease.seconds)
    if manifest.scenario.trains:  # else no result is made of anybody's data
        _require_cohort(manifest, floors, is_data=is_data)


def _require_cohort(manifest: Manifest, floors: KeyFloors, *, is_data: bool) -> None:
    mixed = _mixed(manifest, floors)
    if floors.least_cohort > manifest.cohort.least:
        raise FloorError("cohort.least", expected=f"at least {floors.least_cohort}", got=manifest.cohort.least)
    if floors.least_cohort > mixed:
        what = f"identities in a result of {manifest.strategy.name}"
        raise FloorError(what, expected=f"at least {floors.least_cohort}", got=mixed)
    if is_data and mixed == 1 and not floors.discloses_to_model_owner:
        raise FloorError("cohort of one", expected="discloses_to_model_owner on the data key", got="nothing")
    if not isinstance(floors.counted_identities, Unchecked):
        count = len({site.owner.identity for site in manifest.sites} & set(floors.counted_identities))
        if mixed < manifest.cohort.least:
            count = min(count, mixed - (len(manifest.sites) - count))
        if count < floors.least_cohort:
            raise FloorError("sites that count", expected=f"at least {floors.least_cohort}", got=count)


def _mixed(manifest: Manifest, floors: KeyFloors) -> int:
    """Return how many updates are in a result: of a class of one's own one, unless the key's owner read its code."""
    code = manifest.code.strategy
    if code is not None and code.digest in floors.strategies:
        return manifest.cohort.least
    return manifest.strategy.mixed(manifest.cohort.least)


def _require_strategy_code(manifest: Manifest, floors: KeyFloors) -> None:
    """Where a key pins the code that may have it, a strategy's own code is pinned too: it runs in the same enclave."""
    code = manifest.code.strategy
    if code is None or isinstance(floors.measurements, Unchecked) or code.digest in floors.strategies:
        return
    raise MeasurementError("strategy code", expected="one of the key's own", got=code.digest[:16])


def charge_round(decision: Decision, key_id: str, floors: KeyFloors, round_number: int, *, spend: bool) -> None:
    """Check a key's budget of rounds over all manifests for one more round and, with ``spend``, charge it.

    Raises:
        BudgetError: it is spent; a round that was charged before is free.
    """
    where = (key_id, decision.terms.run, round_number)
    if decision.tx.one("SELECT 1 FROM charges WHERE key_id = ? AND run = ? AND round = ?", where) is not None:
        return
    row = decision.tx.one("SELECT COUNT(*) FROM charges WHERE key_id = ?", (key_id,))
    spent = row[0] if row is not None else 0
    if spent >= floors.total_rounds:
        raise BudgetError("rounds of the key", expected=f"at most {floors.total_rounds}", got=spent + 1)
    if spend:
        decision.tx.execute("INSERT INTO charges VALUES (?, ?, ?)", where)


def require_counted_cohort(decision: Decision, candidate: Candidate) -> None:
    """Refuse a result in which this owner's data meets too few organisations that its key counts.

    Raises:
        CohortError: fewer than the data key's least cohort.
    """
    own, cohort = decision.data_floors(), decision.terms.lineage.places(candidate)
    if own is None or decision.party.identity not in cohort:
        return
    floors = own[1]
    counted = len(cohort)
    if not isinstance(floors.counted_identities, Unchecked):
        counted = sum(identity in cohort for identity in set(floors.counted_identities))
    if counted < floors.least_cohort:
        raise CohortError("identities that count", expected=f"at least {floors.least_cohort}", got=counted)
