"""The last step of every source: an answer that is not plausible, or has expired already, is a failed fetch."""

from __future__ import annotations

from confed.attestation.endorsements import Endorsement, Need
from confed.attestation.endorsing.plausibility import examined, require_current
from confed.errors import AttestationError, EndorsementFetchError


def accepted(need: Need, data: bytes, *, host: str, now_ms: int) -> Endorsement:
    """Return the endorsement that a host's answer is.

    Raises:
        EndorsementFetchError: not of the kind that was asked for, of something else, or expired; the host and the
            reason, never what it sent.
    """
    try:
        endorsement = examined(need, data, fetched_at=now_ms)
        require_current(endorsement, now_ms=now_ms)
    except AttestationError as error:
        raise wrong_answer(need, host=host, error=error) from error
    return endorsement


def wrong_answer(need: Need, *, host: str, error: AttestationError) -> EndorsementFetchError:
    """Return the refusal of an answer by what is wrong with it, without what it says."""
    return EndorsementFetchError(host, expected=f"an answer to {need.KIND}", got=f"{error.code} ({error.field[:80]})")
