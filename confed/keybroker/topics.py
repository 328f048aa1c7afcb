"""Where a run's public documents are posted with the courier."""

from __future__ import annotations

from confed.journey import Purpose


def commit_topic(run: str, purpose: Purpose, round_number: int) -> str:
    """Return where a round's commit record is posted."""
    return f"{run}/commit/{purpose}/{round_number}"


def checkpoint_topic(run: str, round_number: int) -> str:
    """Return where brokers' words about the newest checkpoint of a round are posted."""
    return f"{run}/checkpoint/{round_number}"


def closing_topic(run: str) -> str:
    """Return where the run's closing is posted."""
    return f"{run}/closing"
