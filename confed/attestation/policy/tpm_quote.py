"""Which quotes an owner accepts, whatever roots their key: freshness, selection, and reference values by number.

The selection is named in full: a quote that signs fewer registers, other ones or more is another selection. A reference
value belongs to a register's number. PCR16 and PCR23 can stand in a selection, since some verifiers' evidence signs all
registers, but have no reference values: anybody can reset them.

Source: TCG PC Client Platform TPM Profile 1.05, section 4.6.2 (which registers can be reset).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confed.attestation.policy.allow_lists import Allowed, require_allow_list, require_allowed
from confed.attestation.tee.tpm_claims import RESETTABLE, TpmClaims
from confed.attestation.tee.tpm_structures import LAST_REGISTER
from confed.errors import FreshnessError, PolicyFormatError, RegisterError, RegisterSelectionError
from confed.manifest import Unchecked

_BANKS = {"sha256": 32, "sha384": 48, "sha512": 64}
# TCG PC Client Platform Firmware Profile 1.06, section 3.3.4: firmware extends each of these at least once.
_ALWAYS_EXTENDED = range(8)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotePolicy:
    """What an owner accepts of a quote.

    Attributes:
        nonce: ``true``: it must have been compared with a nonce of the verifier's.
        banks: ``sha256``, ``sha384``, ``sha512``.
        selection: the registers that must be signed, no more and no fewer; ascending.
        registers: accepted values by number (``"7"``), in hexadecimal.
        replayed: registers that the event log must explain; ascending.

    Raises:
        PolicyFormatError: an empty list, a bank or a register that there is not, a reference value of a register that
            is not selected or that anybody can reset, zeros for one that firmware always extends, ``nonce = false``.
    """

    nonce: bool | Unchecked
    banks: tuple[str, ...]
    selection: tuple[int, ...]
    registers: Mapping[str, tuple[str, ...]] | Unchecked
    replayed: tuple[int, ...] | Unchecked

    def __post_init__(self) -> None:
        require_true("quote.nonce", self.nonce)
        if not self.banks or not set(self.banks) <= set(_BANKS):
            raise PolicyFormatError("quote.banks", expected=", ".join(_BANKS), got=", ".join(self.banks) or "none")
        _require_numbers("quote.selection", self.selection)
        if not set(self.selection) - set(RESETTABLE):
            raise PolicyFormatError("quote.selection", expected="a register that proves something", got=self.selection)
        if not isinstance(self.registers, Unchecked):
            _require_registers(self.registers, selection=self.selection, banks=self.banks)
        if not isinstance(self.replayed, Unchecked):
            _require_numbers("quote.replayed", self.replayed)
            _require_usable("quote.replayed", self.replayed, self.selection)


def require_quote_floors(claims: TpmClaims) -> None:
    """Refuse a quote over nothing, or over nothing but registers that anybody can reset.

    Raises:
        RegisterSelectionError: see above.
    """
    if all(register.number in RESETTABLE for register in claims.registers):
        shown = ", ".join(str(register.number) for register in claims.registers)
        raise RegisterSelectionError("signed registers", expected="one that not anybody can reset", got=shown or "none")


def appraise_quote(claims: TpmClaims, policy: QuotePolicy) -> None:
    """Accept a quote, or refuse it with the class that says why.

    Raises:
        FreshnessError: no nonce was compared.
        RegisterSelectionError: another bank or other registers than the policy's.
        RegisterError: a value that the policy does not name, or that the event log does not explain.
    """
    if not isinstance(policy.nonce, Unchecked) and not claims.nonce_checked:
        raise FreshnessError("nonce", expected="one of the verifier's", got="none compared")
    if claims.bank not in policy.banks:
        raise RegisterSelectionError("bank", expected=", ".join(policy.banks), got=claims.bank)
    signed = tuple(register.number for register in claims.registers)
    if signed != policy.selection:
        raise RegisterSelectionError("signed registers", expected=policy.selection, got=signed)
    if not isinstance(policy.registers, Unchecked):
        for number, allowed in policy.registers.items():
            require_allowed(f"PCR{number}", claims.register(int(number)), allowed, RegisterError)
    missing = [number for number in _listed(policy.replayed) if number not in claims.replayed]
    if missing:
        raise RegisterError(f"PCR{missing[0]}", expected="explained by the event log", got="not")


def require_true(field: str, value: bool | Unchecked) -> None:  # noqa: FBT001
    """Refuse ``false``: what is not demanded is left unchecked, with a reason.

    Raises:
        PolicyFormatError: ``false``.
    """
    if value is False:
        raise PolicyFormatError(field, expected="true, or unchecked with a reason", got="false")


def _listed(numbers: tuple[int, ...] | Unchecked) -> tuple[int, ...]:
    return () if isinstance(numbers, Unchecked) else numbers


def _require_numbers(field: str, numbers: tuple[int, ...]) -> None:
    known = all(0 <= number <= LAST_REGISTER for number in numbers)
    if not numbers or not known or list(numbers) != sorted(set(numbers)):
        raise PolicyFormatError(field, expected=f"registers from 0 to {LAST_REGISTER}, ascending", got=numbers)


def _require_usable(field: str, numbers: tuple[int, ...], selection: tuple[int, ...]) -> None:
    for number in numbers:
        if number in RESETTABLE:
            raise PolicyFormatError(field, expected="registers that not anybody can reset", got=number)
        if number not in selection:
            raise PolicyFormatError(field, expected="registers of the selection", got=number)


def _require_registers(registers: Mapping[str, Allowed], *, selection: tuple[int, ...], banks: tuple[str, ...]) -> None:
    if not registers:
        raise PolicyFormatError("quote.registers", expected="at least one, or unchecked", got="none")
    sizes = [_BANKS[bank] for bank in banks]
    for text, allowed in registers.items():
        # The one spelling of a number: two spellings would be two rules for one register.
        if text not in map(str, range(LAST_REGISTER + 1)):
            raise PolicyFormatError(f"quote.registers.{text[:20]}", expected="a register's number", got="another key")
        number = int(text)
        _require_usable(f"quote.registers.{text}", (number,), selection)
        require_allow_list(f"quote.registers.{text}", allowed, sizes=sizes, zeros=number not in _ALWAYS_EXTENDED)
