"""A broker's nonces: single-use, each for one manifest and two minutes, whether asked for or come with a grant."""

from __future__ import annotations

import os

from confed.errors import ChallengeError
from confed.keybroker.decision import Decision
from confed.keybroker.statements import ReleaseRequest
from confed.keybroker.store import Transaction

NONCE_BYTES = 32
NONCE_LIFE_MS = 120_000
MOST_NONCES = 4096


def issue(tx: Transaction, manifest: str, *, now: int) -> tuple[bytes, int]:
    """Put a fresh nonce among those that are outstanding; return it and until when it serves.

    Raises:
        ChallengeError: too many are.
    """
    return _issue(tx, manifest, now=now, most=MOST_NONCES)


def issue_spare(decision: Decision) -> tuple[bytes, int]:
    """Return a nonce for a later request, and until when it serves.

    Returns:
        Nothing (no bytes, 0) where so many are outstanding that whoever asks for one needs it.
    """
    try:
        return _issue(decision.tx, decision.terms.digest, now=decision.now, most=MOST_NONCES // 2)
    except ChallengeError:
        return b"", 0


def burn(decision: Decision, asked: ReleaseRequest) -> None:
    """Use up the nonce of a request, which holds whatever becomes of the request.

    Raises:
        ChallengeError: not one of this broker's for this manifest, used before, or expired.
    """
    row = decision.tx.one(
        "UPDATE nonces SET used = 1 WHERE nonce = ? AND used = 0 RETURNING manifest, expires_at", (asked.nonce,)
    )
    if row is None:
        raise ChallengeError("nonce", expected="one of this broker, unused", got=asked.nonce.hex()[:16])
    if row[0] != asked.manifest:
        raise ChallengeError("nonce manifest", expected="the one it was issued for", got=asked.manifest[:16])
    if decision.now > row[1]:
        raise ChallengeError("nonce", expected="one that has not expired", got=asked.nonce.hex()[:16])


def _issue(tx: Transaction, manifest: str, *, now: int, most: int) -> tuple[bytes, int]:
    tx.execute("DELETE FROM nonces WHERE expires_at < ?", (now,))
    row = tx.one("SELECT COUNT(*) FROM nonces WHERE used = 0")
    if row is not None and row[0] >= most:
        raise ChallengeError("outstanding nonces", expected=f"below {most}", got=row[0])
    nonce, expires_at = os.urandom(NONCE_BYTES), now + NONCE_LIFE_MS
    tx.execute("INSERT INTO nonces (nonce, manifest, expires_at) VALUES (?, ?, ?)", (nonce, manifest, expires_at))
    return nonce, expires_at
