"""A data key's privacy budget over all manifests: what its tickets have charged, and whether one more fits.

1. A key with a budget serves no manifest without privacy.
2. One ticket to train is one release that may have this data in it: charged when it is issued, never given back,
   whether or not its round, attempt or run came to anything.
3. What is charged lies in the owner's store, by key and not by manifest: neither another manifest, an enclave that
   starts anew nor a broker that does takes anything off it. The same ticket again costs nothing.
4. All of it and one more is composed before a key goes out and again before the ticket does; above the budget neither
   does. Where dp-accounting is not installed nothing can be composed, and nothing goes out.

Not promised: that the same data sealed under two keys share a budget; that a store which its own owner puts back from
an earlier copy remembers what came after.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from confed.errors import FloorError, PrivacyBudgetError
from confed.keybroker.decision import Decision
from confed.keybroker.identity import OwnerHome
from confed.keybroker.store import Transaction
from confed.keybroker.vault import KeyFloors
from confed.manifest import Manifest
from confed.privacy.accounting import composed
from confed.privacy.floor import Release


def require_privacy(manifest: Manifest, floors: KeyFloors) -> None:
    """Refuse a manifest without privacy for a key that has a budget (rule 1).

    Raises:
        FloorError: as it says.
    """
    if floors.privacy is not None and manifest.privacy is None:
        raise FloorError("manifest privacy", expected=f"some: the key has {floors.privacy.told}", got="none")


def charged(tx: Transaction, key_id: str) -> Counter[Release]:
    """Return the releases that a key's tickets have charged, and how many of each."""
    rows = tx.rows("SELECT multiplier, rate, COUNT(*) FROM releases WHERE key_id = ? GROUP BY 1, 2", (key_id,))
    return Counter({Release(multiplier=multiplier, rate=rate): count for multiplier, rate, count in rows})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What one key has spent over all manifests.

    ``epsilon_budget`` and ``delta`` are the key's own, or ``None`` where it has none; ``epsilon`` is spent of it.
    """

    key_id: str
    rounds: int
    total_rounds: int
    releases: int
    epsilon: float | None
    epsilon_budget: float | None
    delta: float | None

    @property
    def told(self) -> str:
        """It in words."""
        said = f"{self.key_id}  {self.rounds} of {self.total_rounds} rounds"
        if self.epsilon is None:
            return f"{said}, no privacy budget"
        return f"{said}, epsilon {self.epsilon:.4g} of {self.epsilon_budget:g} at delta {self.delta:g}"


def spendings(home: OwnerHome) -> list[Spending]:
    """Return what each key of an owner has spent, in the order of key ids.

    Raises:
        DeploymentError: a key has a budget, and dp-accounting is not installed.
    """
    with home.store.transaction() as tx:
        return [_spending(home, tx, key_id) for (key_id,) in tx.rows("SELECT key_id FROM keys ORDER BY key_id")]


def _spending(home: OwnerHome, tx: Transaction, key_id: str) -> Spending:
    floors, releases = home.vault.floors(tx, key_id), charged(tx, key_id)
    rounds = tx.rows("SELECT COUNT(*) FROM charges WHERE key_id = ?", (key_id,))[0][0]
    floor = floors.privacy
    return Spending(
        key_id=key_id,
        rounds=rounds,
        total_rounds=floors.total_rounds,
        releases=releases.total(),
        epsilon=None if floor is None else composed(releases, delta=floor.delta),
        epsilon_budget=None if floor is None else floor.epsilon,
        delta=None if floor is None else floor.delta,
    )


def charge_release(
    decision: Decision, key_id: str, floors: KeyFloors, *, round_number: int, attempt: int, spend: bool
) -> None:
    """Check a key's privacy budget for the release of one more attempt to train and, with ``spend``, charge it.

    Raises:
        FloorError: a manifest without privacy.
        PrivacyBudgetError: it has no room; what was charged before is free.
        DeploymentError: dp-accounting is not installed.
    """
    floor, terms = floors.privacy, decision.terms.manifest.privacy
    if floor is None:
        return
    require_privacy(decision.terms.manifest, floors)
    where = (key_id, decision.terms.run, round_number, attempt)
    known = decision.tx.one("SELECT 1 FROM releases WHERE key_id = ? AND run = ? AND round = ? AND attempt = ?", where)
    if known is not None or terms is None:
        return
    one, before = floor.release(terms), charged(decision.tx, key_id)
    needed = composed(before + Counter((one,)), delta=floor.delta)
    if not needed <= floor.epsilon:
        raise PrivacyBudgetError(
            "privacy epsilon of the key",
            expected=f"at most {floor.epsilon:g} at delta {floor.delta:g} over all manifests",
            got=f"{needed:.6g} with one more release after {before.total()}",
        )
    if spend:
        decision.tx.execute("INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?)", (*where, one.multiplier, one.rate))
