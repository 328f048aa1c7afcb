"""What kind of run a manifest describes: who trains, who combines, and what comes back.

``federated``: many sites; sealed updates are combined in an aggregator enclave.
``training``: one site; one TEE trains and commits each version itself, sealed under the key that opened the first.
``tuning``: the same, of a low-rank adapter alone: every other tensor of a version is the start's, bit for bit.
``inference``: no site; each replica is a TEE that opens the model and answers requests that are sealed to it.

What follows from it is data elsewhere: ``confed.journey`` says which steps a scenario permits, which brokers enforce,
and a key's floors say for which scenarios it may be released at all.
"""

from __future__ import annotations

from enum import StrEnum

from confed.errors import ConfigError


class Scenario(StrEnum):
    """A kind of run."""

    FEDERATED = "federated"
    TRAINING = "training"
    TUNING = "tuning"
    INFERENCE = "inference"

    @property
    def combines(self) -> bool:
        """Whether updates of several clients are combined by an aggregator; else one client TEE makes the versions."""
        return self is Scenario.FEDERATED

    @property
    def told(self) -> str:
        """The scenario in words."""
        return {
            "federated": "federated training",
            "training": "confidential training in one TEE",
            "tuning": "confidential tuning in one TEE",
            "inference": "confidential inference",
        }[self]

    @property
    def trains(self) -> bool:
        """Whether versions are made of data; else a model is only opened and used."""
        return self is not Scenario.INFERENCE

    def require_adapter(self, *, named: bool) -> None:
        """Check what one TEE trains against the scenario's name: an adapter in ``tuning``, tensors in ``training``.

        So a key whose owner permits tuning is never released to a run that changes the base, nor the other way round.

        Raises:
            ConfigError: an adapter where none belongs, or none where one does.
        """
        if self is Scenario.TUNING and not named:
            raise ConfigError("adapter", expected="terms in the scenario tuning", got="none")
        if self is Scenario.TRAINING and named:
            raise ConfigError("scenario", expected="tuning, where one TEE trains an adapter", got=self)
