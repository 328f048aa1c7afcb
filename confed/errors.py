"""Every error of confed, as one tree.

    ConfedError
    ├── UsageError                  a user's mistake: one clear line, exit code 2
    │   ├── ConfigError             a key of an experiment file is unknown, missing, contradictory or of the wrong type
    │   ├── MissingFileError        a file that was named is not there
    │   ├── PortInUseError          a server cannot listen where it was told to
    │   ├── EmptyDatasetError       a dataset holds no rows
    │   └── DeploymentError         a process that a run needs did not start or died
    └── RefusedError                a check refused: exit code 3
        ├── EncodingError           bytes that are not the one canonical form of what they claim to be
        ├── SizeError               something is larger than its bound
        ├── SignatureError          a signature does not verify, or the signer is not the expected one
        ├── SealError               a sealed container that cannot be opened
        │   ├── ContainerFormatError, TruncatedError, TamperedError, WrongKeyError, RecipientError
        ├── AttestationError        evidence that is not genuine, or not bound to what was expected
        │   ├── EvidenceFormatError, EvidenceSignatureError, TrustAnchorError, BindingMismatchError,
        │   │   StaleEvidenceError, UnknownProfileError
        ├── AppraisalError          genuine evidence that policy does not accept
        │   ├── MeasurementError, ConfigurationError, DebugError, SimulatedInProductionError,
        │   │   EmptyAllowListError, ProfileNotAllowedError, SharedInstanceError
        ├── BrokerError             a key broker refused
        │   ├── ChallengeError, NotApprovedError, PurposeError, RoundError, RollbackError, FloorError,
        │   │   UnknownKeyError, CredentialError, TicketError, ForkError, CohortError, QuorumError, BudgetError,
        │   │   RequestReplayError, InstanceError
        ├── UpdateError             the aggregator refused an update
        │   ├── DuplicateUpdateError, NotFiniteError, ShapeError, NormError, WeightError, StaleUpdateError,
        │   │   DeclarationError
        ├── AggregatorError         the aggregator failed, for a reason that it does not tell
        ├── ManifestMismatchError   something differs from what the manifest says
        ├── LineageError            a model version without the commit and countersignatures that it needs
        ├── LedgerError             a ledger whose chain, signatures or order do not hold
        ├── UnreachableError        a service that must answer did not: fails closed
        ├── MissingObjectError      the courier holds no complete object of this digest
        ├── StorageError            a disk that is full, or that failed while something was stored
        └── SessionError            confidential code used outside an attested session

A class's ``code`` is stable: it alone crosses a trust boundary, never the message.
"""

from __future__ import annotations

from typing import ClassVar


class ConfedError(Exception):
    """Base of all errors that confed raises.

    Args:
        field: what was checked.
        expected: what would have been accepted.
        got: what was found; never a secret.
    """

    code: ClassVar[str] = "confed"
    exit_code: ClassVar[int] = 3

    def __init__(self, field: str, *, expected: object = None, got: object = None) -> None:
        self.field = field
        self.expected = expected
        self.got = got
        super().__init__(self._message())

    def _message(self) -> str:
        if self.expected is None and self.got is None:
            return self.field
        return f"{self.field}: expected {self.expected}, got {self.got}"

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes with the parts, not only the text."""
        return (_rebuild, (type(self), self.field, self.expected, self.got))


def _rebuild(kind: type[ConfedError], field: str, expected: object, got: object) -> ConfedError:
    return kind(field, expected=expected, got=got)


class UsageError(ConfedError):
    """A user's mistake."""

    code = "usage"
    exit_code = 2


class ConfigError(UsageError):
    """A key of an experiment file is unknown, missing, contradictory or of the wrong type."""

    code = "config"


class MissingFileError(UsageError):
    """A file that was named is not there."""

    code = "missing-file"


class PortInUseError(UsageError):
    """A server cannot listen where it was told to."""

    code = "port-in-use"


class EmptyDatasetError(UsageError):
    """A dataset holds no rows."""

    code = "empty-dataset"


class DeploymentError(UsageError):
    """A process that a run needs did not start or died."""

    code = "deployment"


class RefusedError(ConfedError):
    """A check refused."""

    code = "refused"


class EncodingError(RefusedError):
    """Bytes that are not the one canonical form of what they claim to be."""

    code = "encoding"


class SizeError(RefusedError):
    """Something is larger than its bound."""

    code = "size"


class SignatureError(RefusedError):
    """A signature does not verify, or its signer is not the expected one."""

    code = "signature"


class SealError(RefusedError):
    """A sealed container that cannot be opened."""

    code = "seal"


class ContainerFormatError(SealError):
    """Not a container, or one with a header that is not allowed."""

    code = "container-format"


class TruncatedError(SealError):
    """A container that ends before its header says."""

    code = "truncated"


class TamperedError(SealError):
    """A chunk, header or declaration whose authentication tag does not match."""

    code = "tampered"


class WrongKeyError(SealError):
    """A data key that is not the one the container commits to."""

    code = "wrong-key"


class RecipientError(SealError):
    """A container that names no recipient whose identity was given."""

    code = "recipient"


class AttestationError(RefusedError):
    """Evidence that is not genuine, or not bound to what was expected."""

    code = "attestation"


class EvidenceFormatError(AttestationError):
    """Evidence or an envelope that does not parse as its one allowed form."""

    code = "evidence-format"


class EvidenceSignatureError(AttestationError):
    """Evidence whose signature does not verify."""

    code = "evidence-signature"


class TrustAnchorError(AttestationError):
    """A chain that does not end at a trust anchor, or outside its validity."""

    code = "trust-anchor"


class BindingMismatchError(AttestationError):
    """Evidence bound to another nonce, audience, manifest, role, run or key."""

    code = "binding"


class StaleEvidenceError(AttestationError):
    """Evidence older than the policy allows, or from the future."""

    code = "stale-evidence"


class UnknownProfileError(AttestationError):
    """An evidence profile that no registered verifier knows."""

    code = "unknown-profile"


class AppraisalError(RefusedError):
    """Genuine evidence that policy does not accept."""

    code = "appraisal"


class MeasurementError(AppraisalError):
    """Code whose measurement is not in the policy."""

    code = "measurement"


class ConfigurationError(AppraisalError):
    """A measured configuration that is not the manifest's digest."""

    code = "configuration"


class DebugError(AppraisalError):
    """A TEE that can be debugged."""

    code = "debug"


class SimulatedInProductionError(AppraisalError):
    """A simulated TEE where the environment is production."""

    code = "simulated-in-production"


class EmptyAllowListError(AppraisalError):
    """A policy that would accept nothing or anything."""

    code = "empty-allow-list"


class ProfileNotAllowedError(AppraisalError):
    """A TEE of a kind that the policy does not name."""

    code = "profile-not-allowed"


class SharedInstanceError(AppraisalError):
    """A TEE that hosts several identities where the environment is not simulation."""

    code = "shared-instance"


class BrokerError(RefusedError):
    """A key broker refused."""

    code = "broker"


class ChallengeError(BrokerError):
    """A nonce that this broker did not issue, that was used, or that expired."""

    code = "challenge"


class NotApprovedError(BrokerError):
    """A manifest that the owner did not approve."""

    code = "not-approved"


class PurposeError(BrokerError):
    """A step that the journey or the key does not permit."""

    code = "purpose"


class RoundError(BrokerError):
    """A round or attempt that is not the next one."""

    code = "round"


class RollbackError(BrokerError):
    """A base version that is not the head which this owner has witnessed."""

    code = "rollback"


class FloorError(BrokerError):
    """A manifest below a floor that the key itself carries."""

    code = "floor"


class UnknownKeyError(BrokerError):
    """A key that this broker does not hold."""

    code = "unknown-key"


class CredentialError(BrokerError):
    """A credential that is absent, not from the owner's own broker, or for something else."""

    code = "credential"


class TicketError(BrokerError):
    """A ticket that is absent, used, or for something else."""

    code = "ticket"


class ForkError(BrokerError):
    """A second successor of one base and attempt, or one older than an issued ticket."""

    code = "fork"


class CohortError(BrokerError):
    """Too few distinct identities that count, or a difference that would single somebody out."""

    code = "cohort"


class QuorumError(BrokerError):
    """Too few countersignatures."""

    code = "quorum"


class BudgetError(BrokerError):
    """A budget of rounds, attempts or privacy that is spent."""

    code = "budget"


class RequestReplayError(BrokerError):
    """A request id used again for something else."""

    code = "request-replay"


class InstanceError(BrokerError):
    """A TEE instance that has not attested to this broker, or whose evidence has aged out."""

    code = "instance"


class UpdateError(RefusedError):
    """The aggregator refused an update."""

    code = "update"


class DuplicateUpdateError(UpdateError):
    """A second update of one identity or one ticket."""

    code = "duplicate-update"


class NotFiniteError(UpdateError):
    """An update with NaN or infinity."""

    code = "not-finite"


class ShapeError(UpdateError):
    """An update whose tensors are not the model's."""

    code = "shape"


class NormError(UpdateError):
    """An update above the norm bound, or whose declared norm is false."""

    code = "norm"


class WeightError(UpdateError):
    """An update whose weight is not in the permitted range."""

    code = "weight"


class StaleUpdateError(UpdateError):
    """An update for another run, round, attempt, base or aggregator."""

    code = "stale-update"


class DeclarationError(UpdateError):
    """A sealed declaration (weight, norm, metrics) that is not well-formed."""

    code = "declaration"


class AggregatorError(RefusedError):
    """The aggregator failed, for a reason that it does not tell."""

    code = "aggregator"


class ManifestMismatchError(RefusedError):
    """Something differs from what the manifest says."""

    code = "manifest-mismatch"


class LineageError(RefusedError):
    """A model version without the commit and countersignatures that it needs."""

    code = "lineage"


class LedgerError(RefusedError):
    """A ledger whose chain, signatures or order do not hold."""

    code = "ledger"


class UnreachableError(RefusedError):
    """A service that must answer did not."""

    code = "unreachable"


class MissingObjectError(RefusedError):
    """The courier holds no complete object of this digest."""

    code = "missing-object"


class StorageError(RefusedError):
    """A disk that is full, or that failed while something was stored."""

    code = "storage"


class SessionError(RefusedError):
    """Confidential code used outside an attested session."""

    code = "session"


def error_for(code: str, field: str) -> ConfedError:
    """Return the error of the class that ``code`` names, for a refusal that crossed a trust boundary.

    A code that no class has gives a plain ``RefusedError`` that names it.
    """
    kind = _by_code().get(code)
    if kind is None:
        return RefusedError(f"{field} refused with unknown code {code[:40]!r}")
    meaning = (kind.__doc__ or "").splitlines()[0].rstrip(".")
    return kind(f"{field} refused ({code}): {meaning[:1].lower()}{meaning[1:]}")


def _by_code() -> dict[str, type[ConfedError]]:
    found: dict[str, type[ConfedError]] = {}
    pending: list[type[ConfedError]] = [ConfedError]
    while pending:
        kind = pending.pop()
        found[kind.code] = kind
        pending.extend(kind.__subclasses__())
    return found
