"""The seam through which an enclave asks its TEE for evidence."""

from __future__ import annotations

from typing import Protocol

from confed.attestation.evidence import Binding, Envelope


class Attester(Protocol):
    """Makes evidence of the TEE that it runs in."""

    @property
    def profile(self) -> str:
        """The profile of the evidence that it makes; a binding must name it."""
        ...

    def attest(self, binding: Binding) -> Envelope:
        """Return evidence whose REPORT_DATA is that of ``binding``.

        Raises:
            AttestationError: a binding for another profile, or a TEE that gives no evidence.
        """
        ...
