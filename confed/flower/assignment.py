"""One message that waits for an answer, and the state that apps keep between messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from flwr.app import RecordDict

if TYPE_CHECKING:
    from flwr.app import Context, Message

_Kept = TypeVar("_Kept")

_REMEMBERED_RUNS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One message that waits for an answer from this node.

    Args:
        message: what Flower delivered, unverified.
        context: node id, node config and run config as Flower gave them, and the state that this process kept.
        started_at: a monotonic clock reading, in seconds.
    """

    message: Message
    context: Context
    started_at: float


class KeptStates:
    """The apps' state, run by run, for the last few runs.

    ``Context.state`` stays in this process: it is never sent to Flower. It is lost when the host stops.
    """

    def __init__(self) -> None:
        self._kept: dict[int, RecordDict] = {}

    def restore(self, context: Context) -> Context:
        """Put the state of the context's run into it, empty for a new run."""
        context.state = self._kept.get(context.run_id, RecordDict())
        return context

    def keep(self, context: Context) -> None:
        """Keep the state of the context's run."""
        self._kept.pop(context.run_id, None)
        self._kept[context.run_id] = context.state
        forget_oldest(self._kept)


def forget_oldest(by_run: dict[int, _Kept]) -> None:
    """Forget the runs that were entered first, but for a few.

    Raises:
        Nothing.
    """
    while len(by_run) > _REMEMBERED_RUNS:
        del by_run[next(iter(by_run))]
