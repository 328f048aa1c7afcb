"""Receipts: an attested replica says which model answered what, and signs it.

A receipt holds digests only. Request and answer are committed to under a salt that requester and replica alone know
(``confed.inference.messages.Commitment``): who is shown a receipt learns nothing of them until its holder shows the
salt and the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from confed.errors import LineageError
from confed.statement import Signed, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a replica signs at the end of an answer, with the key that its evidence vouches for.

    Attributes:
        manifest: digest of the manifest, and so of everything that the model's owner agreed to.
        model: file digest of the sealed model that answered.
        instance: the replica.
        evidence: digest of the evidence with which it got the model's key; it is in the owner's ledger.
        epoch: digest of the epoch key that the request was sealed to.
        request, answer: commitments; an acknowledgement is what ``answer`` stands for where the answer went elsewhere.
        output: digest of the manifest's output terms: who may read the answer.
        delivered: digest of the sealed answer that went to recipients; ``None`` where none did, and where the exchange
            had several answers: each acknowledgement names its own.
        time: Unix milliseconds of the enclave's clock, when the answer ended.
    """

    TYPE: ClassVar[str] = "confed/v1/inference-receipt"
    manifest: str
    model: str
    instance: str
    evidence: str
    epoch: str
    request: str
    answer: str
    output: str
    delivered: str | None
    time: int


def verify_receipt(signed: Signed, *, signing_public: bytes, expected: dict[str, str]) -> Receipt:
    """Return a receipt that the replica with this signing key signed, and that says what is expected of it.

    Args:
        signed: as it came.
        signing_public: of the replica, from its verified evidence.
        expected: fields of the receipt by name.

    Raises:
        SignatureError, EncodingError: signed by another, or no receipt.
        LineageError: it is for something else: another model, request, answer or replica.
    """
    receipt = verify(signed, Receipt, signer=signing_public)
    for name, value in expected.items():
        found = getattr(receipt, name)
        if found != value:
            raise LineageError(f"receipt.{name}", expected=value[:16], got=found[:16])
    return receipt
