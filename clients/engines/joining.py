"""Joins calls that come at the same time into one: a call that finds the model at work waits, and goes with the others.

Nobody waits for company: a call that comes alone runs alone, at once. Whoever runs takes along those that wait, in the
order they came, as many rows as may be; then the next of those that still wait runs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


class _Call:
    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = arrays
        self.turn = threading.Event()
        """Set when it has been answered, or is the next to run."""
        self.answer: list[Array] | None = None
        self.failure: Exception | None = None

    @property
    def rows(self) -> int:
        return len(self.arrays[0])

    def fits(self, other: _Call) -> bool:
        """Whether the other's rows are of the same shapes."""
        return all(mine.shape[1:] == its.shape[1:] for mine, its in zip(self.arrays, other.arrays, strict=True))


class Joined:
    """The call, for several threads.

    Args:
        run: takes arrays whose first axis counts rows, and returns such arrays.
        most_rows: of a joined call; a call of more rows by itself runs by itself.
    """

    def __init__(self, run: Run, *, most_rows: int) -> None:
        self._run = run
        self._most = most_rows
        self._lock = threading.Lock()
        self._waiting: deque[_Call] = deque()
        self._busy = False
        self.largest = 0
        """Calls in the largest joined one so far."""

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Return what ``run`` returns for these rows.

        Raises:
            Exception: what it raises for them.
        """
        call = _Call(arrays)
        with self._lock:
            self._waiting.append(call)
            first = not self._busy
            self._busy = True
        if not first:
            call.turn.wait()
        if call.answer is None and call.failure is None:
            self._lead(call)
        if call.failure is not None:
            raise call.failure
        assert call.answer is not None  # noqa: S101 (one of the two is there after a turn)
        return call.answer

    def _lead(self, call: _Call) -> None:
        """Run with those that wait and fit, answer them, and let the next one lead."""
        with self._lock:
            together, rows = [], 0
            for waiting in tuple(self._waiting):
                if waiting is call or (call.fits(waiting) and rows + call.rows + waiting.rows <= self._most):
                    together.append(waiting)
                    rows += 0 if waiting is call else waiting.rows
                    self._waiting.remove(waiting)
        self._answer(together)
        with self._lock:
            self.largest = max(self.largest, len(together))
            following = self._waiting[0] if self._waiting else None
            self._busy = following is not None
        for each in (*together, following):
            if each is not None:
                each.turn.set()

    def _answer(self, together: Sequence[_Call]) -> None:
        """Run, and where that fails run each alone: one call's rows are no reason to fail another's."""
        try:
            if len(together) == 1:
                together[0].answer = self._run(together[0].arrays)
                return
            columns = zip(*(call.arrays for call in together), strict=True)
            found = self._run([np.concatenate(column) for column in columns])
            ends = np.cumsum([call.rows for call in together])[:-1]
            parts = [np.split(array, ends) for array in found]
            for number, call in enumerate(together):
                call.answer = [part[number] for part in parts]
        except Exception as error:  # noqa: BLE001 (raised again by the thread whose call it is)
            if len(together) == 1:
                together[0].failure = error
                return
            for call in together:
                self._answer([call])
