"""Whom an answer goes to, as the manifest says and no request changes: what stands between an engine and the edge.

1. A request that names an output of its own is refused, by the name that it used.
2. Mode ``requester``: the answer goes on as it is. Where fields leave in clear, they are read as it passes, and their
   record is handed over before the answer ends; also where its reader goes away before.
3. Mode ``recipients``: the whole answer is sealed to them and handed over; who asked gets an acknowledgement.
4. Mode ``clear``: only the record leaves; who asked gets an acknowledgement.

What is no output of the model (metadata, which is asked for with GET, and refusals) always goes to who asked. An answer
whose other output could not be handed over does not end: its reader sees an error.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Generator
from dataclasses import replace
from typing import Protocol
from urllib.parse import parse_qsl

from confed.errors import ConfigError, DeliveryError, SizeError
from confed.inference.apis import refusal, report_failure
from confed.inference.clear import ClearRecord, Reading, line_of
from confed.inference.engine import Answer, json_answer
from confed.inference.messages import Request
from confed.inference.outlet import Leaving, Outlet
from confed.inference.replica import NONCE_BYTES, Replica
from confed.inference.requester import Attestation
from confed.inference.sealed_answers import AnswerMaker, seal_answer
from confed.serving import OutputMode

OUTPUT_HEADER, RECIPIENTS_HEADER = "confed-output", "confed-recipients"
"""Headers by which a caller could ask for an output: the first may say which one it counts on, and is refused else."""
_ASKED = frozenset({OUTPUT_HEADER, RECIPIENTS_HEADER, "output", "recipients"})
ACKNOWLEDGED = 202
"""Status of an answer that went elsewhere."""
_LARGEST_BYTES = 1024**3


class Answers(Protocol):
    """Whatever answers opened requests."""

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request."""
        ...


class Directed:
    """Answers requests with a door, and sends what it answers where the manifest says.

    Args:
        door: what answers.
        replica: with its model opened; its keys sign what leaves.
        outlet: where anything but answers to requesters goes.

    Raises:
        ConfigError: the manifest lets something out, and there is nowhere to put it.
    """

    def __init__(self, door: Answers, *, replica: Replica, outlet: Outlet | None) -> None:
        self._door = door
        self._replica = replica
        self._terms = replica.serving.output
        if outlet is None and not self._terms.plain:
            raise ConfigError("outlet", expected=f"one, since {self._terms.told}", got="none")
        self._outlet = outlet
        self._numbers = itertools.count(1)
        self._numbering = threading.Lock()
        self._shown: tuple[int, Attestation] | None = None

    def answer(self, request: Request) -> Answer:
        """Return what goes to who asked.

        Raises:
            DeliveryError: what goes elsewhere did not get there.
        """
        asked = _asked_for(request, mode=self._terms.mode)
        if asked:
            return refusal(request, 403, f"{asked}: where answers go is the policy of the model's owner")
        answer = self._door.answer(request)
        if self._terms.plain or request.head.method == "GET" or answer.head.status >= 400:
            return answer
        if self._terms.mode is OutputMode.REQUESTER:
            return replace(answer, body=self._watched(answer))
        return self._elsewhere(answer)

    def _watched(self, answer: Answer) -> Generator[bytes | memoryview]:
        """Yield an answer's body, and let its record out before it ends, also where nobody reads on."""
        reading, whole = self._reading(answer), False
        try:
            for piece in answer.body:
                reading.feed(piece)
                yield piece
            whole = True
        finally:
            if not whole:
                self._let_out_cut(reading, answer)
        self._let_out(reading, answer, whole=True)

    def _let_out_cut(self, reading: Reading, answer: Answer) -> None:
        try:
            self._let_out(reading, answer, whole=False)
        except DeliveryError as error:
            report_failure(error)  # nobody reads the answer any more: there is nobody else to tell

    def _elsewhere(self, answer: Answer) -> Answer:
        body = _whole(answer)
        told: dict[str, object] = {"output": str(self._terms.mode)}
        delivered = None
        if self._terms.recipients is not None:
            delivered, sealed = self._sealed(answer, body)
            self._hand_over(Leaving.ANSWER, delivered, sealed)
            told |= {"delivered": delivered, "recipients": [entry.name for entry in self._terms.recipients]}
        if self._terms.clear is not None:
            reading = self._reading(answer)
            reading.feed(body)
            self._let_out(reading, answer, whole=True)
        return replace(json_answer(told, status=ACKNOWLEDGED), delivered=delivered)

    def _sealed(self, answer: Answer, body: bytes) -> tuple[str, bytes]:
        replica = self._replica
        attestation = self._attestation(replica.now())
        maker = AnswerMaker(
            manifest=replica.digest,
            model=replica.manifest.model.start.digest,
            instance=replica.instance,
            time=replica.now(),
            signing_key=replica.signing_key,
        )
        return seal_answer(
            answer.head,
            body,
            recipients=self._terms.recipients or (),
            maker=maker,
            attestation=attestation,
            padding=replica.serving.padding,
        )

    def _attestation(self, now: int) -> Attestation:
        """Return evidence that serves for now, made anew before half of its time is over."""
        shown, replica = self._shown, self._replica
        if shown is None or now - shown[0] >= replica.manifest.client_tee.reattest_s * 500:
            nonce = os.urandom(NONCE_BYTES)
            attestation = Attestation(nonce=nonce, envelope=replica.attest(nonce), manifest=replica.manifest.encoded)
            shown = self._shown = (now, attestation)
        return shown[1]

    def _reading(self, answer: Answer) -> Reading:
        clear = self._terms.clear
        return Reading(() if clear is None else clear.fields, answer.head)

    def _let_out(self, reading: Reading, answer: Answer, *, whole: bool) -> None:
        replica = self._replica
        with self._numbering:  # in the order of their numbers, so that a gap is a loss
            record = ClearRecord(
                manifest=replica.digest,
                model=replica.manifest.model.start.digest,
                instance=replica.instance,
                number=next(self._numbers),
                time=replica.now(),
                status=answer.head.status,
                whole=whole,
                fields=reading.fields(),
            )
            self._hand_over(Leaving.CLEAR, "", line_of(replica.sign(record)))

    def _hand_over(self, kind: Leaving, name: str, content: bytes) -> None:
        if self._outlet is None:
            raise DeliveryError("outlet", expected="one", got="none")
        self._outlet.send(kind, name, content)


def _asked_for(request: Request, *, mode: OutputMode) -> str:
    """Return the name by which a request asks for an output that is not the manifest's; empty if it does not."""
    head = request.head
    counted_on = head.header(OUTPUT_HEADER)
    if counted_on not in ("", mode):
        return f"{OUTPUT_HEADER} {counted_on[:64]}"
    if head.header(RECIPIENTS_HEADER):
        return RECIPIENTS_HEADER
    named = {key for key, _ in parse_qsl(head.path.partition("?")[2], keep_blank_values=True)}
    return min(named & _ASKED, default="")


def _whole(answer: Answer) -> bytes:
    body = bytearray()
    for piece in answer.body:
        body += piece
        if len(body) > _LARGEST_BYTES:
            raise SizeError("answer size in bytes", expected=f"at most {_LARGEST_BYTES}", got="more")
    return bytes(body)
