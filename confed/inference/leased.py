"""A model that is open for as long as the lease lasts: dropped when it ends, opened again when the broker is back.

1. Nothing is answered once the lease is over: an answer on its way ends with the code of ``LeaseError``.
2. When it ends, the model and the epochs' keys are dropped. (Freed, that is: Python does not overwrite memory.)
3. The broker is asked for a new lease from the first quarter of the old one on, with fresh evidence each time. Where
   it does not answer, or refuses, the old lease runs on to its end. An engine that fails to open is tried again.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Self

from confed.errors import ConfedError, LeaseError
from confed.inference.apis import Door
from confed.inference.engine import Answer
from confed.inference.messages import Request
from confed.inference.replica import Replica
from confed.serving import LeaseTerms

_LONGEST_WAIT_S = 60.0


class Leased:
    """Answers with a model while there is a lease; use it as a context, in which leases are renewed.

    Args:
        replica: whose lease it is; its model has not been opened yet.
        terms: of the lease.
        open_door: opens the model with the key that the broker releases, and returns what answers with it.
    """

    def __init__(self, replica: Replica, *, terms: LeaseTerms, open_door: Callable[[], Door]) -> None:
        self._replica = replica
        self._open_door = open_door
        self._wait_s = min(terms.seconds / 4, _LONGEST_WAIT_S)
        self._door: Door | None = open_door()
        self.paths = self._door.paths
        self._ended = threading.Event()
        self._renewed = threading.Event()
        threads = {"lease-renewal": self._renew_on, "lease-end": self._drop_in_time}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in threads.items()]

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request, which ends when the lease does.

        Raises:
            LeaseError: it is over.
        """
        self._replica.lease.require()
        door = self._door
        if door is None:
            raise LeaseError("lease", expected="one whose time is now", got="none")
        answer = door.answer(request)
        return replace(answer, body=self._while_leased(answer))

    @property
    def is_open(self) -> bool:
        """Whether the model is there."""
        return self._door is not None

    def renew(self) -> None:
        """Get a new lease from the broker, and open the model again where it was dropped.

        Raises:
            ConfedError: the broker does not answer, or refuses.
        """
        if self._door is not None:
            self._replica.renew()
        if self._door is None:  # dropped before, or meanwhile
            self._door = self._open_door()
        self._renewed.set()

    def drop_if_over(self) -> bool:
        """Drop model and keys where the lease is over, and return whether it is."""
        if self._replica.lease.left_s() > 0:
            return False
        door, self._door = self._door, None
        if door is not None:
            self._replica.epochs.drop_all()
            door.close()
            _report("the lease is over: model and keys are dropped")
        return True

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewed.set()
        for thread in self._threads:
            thread.join(1)

    def _while_leased(self, answer: Answer) -> Iterator[bytes | memoryview]:
        for piece in answer.body:
            self._replica.lease.require()
            yield piece
        self._replica.lease.require()

    def _renew_on(self) -> None:
        while not self._ended.wait(self._wait_s):
            try:
                self.renew()
            except ConfedError as error:
                _report(f"the lease was not renewed: {error.code}")
            except Exception as error:  # noqa: BLE001 (the thread's edge: an engine that failed once may open later)
                _report(f"the model was not opened: {type(error).__name__}")

    def _drop_in_time(self) -> None:
        while not self._ended.is_set():
            self._renewed.clear()
            if self.drop_if_over():
                self._renewed.wait()
            else:
                self._renewed.wait(max(self._replica.lease.left_s(), 0.001))


def _report(what: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"inference: {what}\n")
        sys.stderr.flush()
