"""Offline, a ticket counts in one version only, and says what its owner's ledger says of its base."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.errors import TicketError
from confed.journey import Purpose
from confed.keybroker.statements import Ticket
from confed.records import witnesses
from confed.statement import public_bytes, sign

KEY = Ed25519PrivateKey.generate()


def ticket(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "ticket_id": b"t" * 16, "broker": public_bytes(KEY), "identity": b"i" * 32, "manifest": "0" * 64, "run": "run-1",
        "round": 2, "attempt": 0, "purpose": Purpose.TRAIN, "base": "b" * 64, "aggregator": "a" * 64,
        "credential": "c" * 64, "signing_public": b"s" * 32, "issued_at": 1, "expires_at": 2,
    }  # fmt: skip
    return sign(Ticket(**{**values, **changes}), KEY)


def books(signed: Any, **body: Any) -> Any:
    found = {"ticket": signed.digest, "credential": "c" * 64, "round": 2, "base": "b" * 64, **body}
    client = SimpleNamespace(claims=SimpleNamespace(binding=SimpleNamespace(signing_public=b"s" * 32)))
    book = SimpleNamespace(
        witness=SimpleNamespace(party=SimpleNamespace(name="north")),
        tickets={signed.digest: SimpleNamespace(body=found)},
        credentials={"c" * 64: SimpleNamespace(body={"evidence": "e"})},
        instances=SimpleNamespace(found={"e": client}),
    )
    return {public_bytes(KEY): book}


def record(*signed: Any) -> Any:
    return SimpleNamespace(record=SimpleNamespace(tickets=signed))


def test_a_ticket_is_in_one_version() -> None:
    signed, counted = ticket(), set[str]()
    witnesses._check_tickets(books(signed), record(signed), counted)
    with pytest.raises(TicketError, match="two"):
        witnesses._check_tickets(books(signed), record(signed), counted)


@pytest.mark.parametrize("body", [{"base": "f" * 64}, {"round": 3}], ids=str)
def test_a_ticket_is_of_the_step_and_base_in_its_owners_ledger(body: dict[str, Any]) -> None:
    signed = ticket()
    with pytest.raises(TicketError):
        witnesses._check_tickets(books(signed, **body), record(signed), set())
