"""Every error of confed, as one tree.

    ConfedError
    ├── UsageError                  a user's mistake: one clear line, exit code 2
    │   ├── ConfigError             a key of an experiment file is unknown, missing, contradictory or of the wrong type
    │   │   ├── PolicyFormatError   the same in an appraisal policy
    │   │   └── SettingError        a setting of an app that is missing, or has a value that it does not take
    │   ├── MissingFileError        a file that was named is not there
    │   ├── MissingPackageError     a package that an extra brings is not installed
    │   ├── PortInUseError          a server cannot listen where it was told to
    │   ├── DatasetError            a dataset that cannot be sealed or used
    │   │   ├── EmptyDatasetError       it holds no rows
    │   │   ├── ContractError           it breaks its contract
    │   │   ├── ColumnError             a column is not there, or of a type that does not fit
    │   │   ├── UnreadableDataError     a file that cannot be read as what it says it is
    │   │   ├── UnsafeDataError         a format that may hold code, or objects that are no values
    │   │   └── ClassCountError         more classes than the model has
    │   └── DeploymentError         a process that a run needs did not start or died
    └── RefusedError                a check refused: exit code 3
        ├── EncodingError           bytes that are not the one canonical form of what they claim to be
        ├── SizeError               something is larger than its bound
        │   └── QuotaError              a store, or one site's share of it, is spent
        ├── SignatureError          a signature does not verify, or the signer is not the expected one
        ├── SealError               a sealed container that cannot be opened
        │   ├── ContainerFormatError, TruncatedError, TamperedError, WrongKeyError, RecipientError
        ├── AttestationError        evidence that is not genuine, or not bound to what was expected
        │   ├── EvidenceFormatError, EvidenceSignatureError, TrustAnchorError, BindingMismatchError,
        │   │   StaleEvidenceError, UnknownProfileError
        │   ├── EvidenceSizeError, TrailingBytesError, EvidenceVersionError, MissingClaimError, AlgorithmError,
        │   │   CertificateChainError, CertificateValidityError, RevokedError, RevocationUnknownError,
        │   │   EndorsementFormatError, MissingEndorsementError, EndorsementMismatchError, StaleEndorsementError,
        │   │   NonceError, KeyBindingError, PcrDigestError, EventLogError, ReferenceManifestError,
        │   │   DuplicateDeviceError
        ├── AppraisalError          genuine evidence that policy does not accept
        │   ├── MeasurementError, ConfigurationError, DebugError, SimulatedInProductionError,
        │   │   EmptyAllowListError, ProfileNotAllowedError, SharedInstanceError
        │   ├── ReportVersionError, MigrationError, GuestPolicyError, PrivilegeLevelError, TcbError, TcbStatusError,
        │   │   AdvisoryError, EvaluationNumberError, AliasCheckError, PlatformInfoError, MitigationError,
        │   │   PlatformError, ProductError, SignerError, AttributesError, SecurityModuleError, RegisterError,
        │   │   RegisterSelectionError, LifecycleError, DeviceModeError, DeviceCountError, GoldenValueError,
        │   │   FirmwareError, FreshnessError, RevocationStatusError, ExperimentalError, PolicyMissingError,
        │   │   PolicyExpiredError
        ├── BrokerError             a key broker refused
        │   ├── ChallengeError, NotApprovedError, PurposeError, RoundError, RollbackError, FloorError,
        │   │   UnknownKeyError, CredentialError, TicketError, ForkError, CohortError, QuorumError, BudgetError,
        │   │   RequestReplayError, InstanceError
        │   │   ├── RunEndedError       under RoundError: a stop rule of the manifest has fired
        │   │   ├── ShortCohortError    under CohortError: a run that fell short of its least cohort: exit code 5
        │   │   └── PrivacyBudgetError  under BudgetError: one more release would spend more epsilon than there is
        ├── UpdateError             the aggregator refused an update
        │   ├── DuplicateUpdateError, RoundFullError, BatchError, NotFiniteError, ShapeError, NormError, WeightError,
        │   │   LossError, StaleUpdateError, DeclarationError, CompressionError, AdapterError
        ├── AggregatorError         the aggregator failed, for a reason that it does not tell
        │   └── StrategyError           a strategy class of one's own failed, or gave no model
        ├── ManifestMismatchError   something differs from what the manifest says
        ├── LineageError            a model version without the commit and countersignatures that it needs
        ├── LedgerError             a ledger whose chain, signatures or order do not hold
        ├── UnreachableError        a service that must answer did not: fails closed
        │   └── EnclaveLostError        the aggregator enclave itself: the round is taken up by its next instance
        ├── MissingObjectError      the courier holds no complete object of this digest
        │   └── LostCheckpointError     the newest checkpoint of a training TEE: none older takes its place
        ├── StorageError            a disk that failed while something was stored
        │   └── DiskFullError           a disk that is full
        ├── EvidenceUnavailableError  a TEE, TPM or device that gives no evidence here
        ├── EndorsementFetchError   an endorsement that could not be fetched
        ├── LanguageModelError      a language model that cannot be tuned here as it was sealed, or on this device
        │   └── SequenceLengthError     a sequence that is longer than the model's context
        ├── ExchangeError           a sealed request that the inference TEE did not take
        │   ├── StaleEpochError         sealed to a key whose time is over: verify again
        │   ├── ReplayedError           a request that was taken before
        │   ├── BusyError               more at once than it answers
        │   ├── MayHaveRunError         sent, and neither answered nor refused by signature: not sent again
        │   ├── AnswerError             the served model refused what was asked of it
        │   ├── LeaseError              a replica whose time without its owner's broker is over, or a lease not for it
        │   └── DeliveryError           an answer, or what leaves of it in clear, that did not get where it must
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


class PolicyFormatError(ConfigError):
    """An appraisal policy with a key that is unknown, missing, empty or of the wrong type."""

    code = "policy-format"


class SettingError(ConfigError):
    """A setting of an app that is missing, or has a value that it does not take."""

    code = "setting"


class MissingFileError(UsageError):
    """A file that was named is not there."""

    code = "missing-file"


class MissingPackageError(UsageError):
    """A package that an extra brings is not installed."""

    code = "missing-package"


class PortInUseError(UsageError):
    """A server cannot listen where it was told to."""

    code = "port-in-use"


class DatasetError(UsageError):
    """A dataset that cannot be sealed or used."""

    code = "dataset"


class EmptyDatasetError(DatasetError):
    """A dataset holds no rows."""

    code = "empty-dataset"


class ContractError(DatasetError):
    """A dataset that breaks its contract.

    ``findings`` (``confed.data.checking.Finding``) are in no message and do not travel with the error.
    """

    code = "contract"
    findings: tuple[object, ...] = ()


class ColumnError(DatasetError):
    """A column that is not there, or of a type that does not fit."""

    code = "column"


class UnreadableDataError(DatasetError):
    """A file that cannot be read as what it says it is."""

    code = "unreadable-data"


class UnsafeDataError(DatasetError):
    """A file of a format that may hold code, or a column of objects that are no values."""

    code = "unsafe-data"


class ClassCountError(DatasetError):
    """A dataset with more classes than the model has."""

    code = "class-count"


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


class QuotaError(SizeError):
    """The courier's quota, or the caller's share of it, is spent."""

    code = "quota"


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


class EvidenceSizeError(EvidenceFormatError):
    """Evidence larger, deeper or more numerous than its bound."""

    code = "evidence-size"


class TrailingBytesError(EvidenceFormatError):
    """Evidence with bytes after its end."""

    code = "trailing-bytes"


class EvidenceVersionError(EvidenceFormatError):
    """Evidence of a format version that the verifier does not know."""

    code = "evidence-version"


class MissingClaimError(EvidenceFormatError):
    """Evidence that lacks a claim which it must make."""

    code = "missing-claim"


class AlgorithmError(AttestationError):
    """A signature or hash algorithm that is weak or not the one that this evidence must use."""

    code = "algorithm"


class CertificateChainError(AttestationError):
    """A certificate that its issuer did not sign, or that may not be where it stands in the chain."""

    code = "certificate-chain"


class CertificateValidityError(AttestationError):
    """A certificate before or after its validity."""

    code = "certificate-validity"


class RevokedError(AttestationError):
    """A certificate that its issuer has revoked or put on hold."""

    code = "revoked"


class RevocationUnknownError(AttestationError):
    """A certificate whose revocation status is required and not known now."""

    code = "revocation-unknown"


class EndorsementFormatError(AttestationError):
    """An endorsement that does not parse."""

    code = "endorsement-format"


class MissingEndorsementError(AttestationError):
    """Evidence without an endorsement that is needed to verify it."""

    code = "missing-endorsement"


class EndorsementMismatchError(AttestationError):
    """An endorsement of another chip, product or firmware than the evidence speaks of."""

    code = "endorsement-mismatch"


class StaleEndorsementError(AttestationError):
    """An endorsement outside the time in which its issuer vouches for it."""

    code = "stale-endorsement"


class NonceError(AttestationError):
    """Evidence with another nonce than the verifier's."""

    code = "nonce"


class KeyBindingError(AttestationError):
    """An attestation key that the evidence above it does not vouch for, or that is not restricted to attesting."""

    code = "key-binding"


class PcrDigestError(AttestationError):
    """Register values that are not those whose digest was signed."""

    code = "pcr-digest"


class EventLogError(AttestationError):
    """An event log that does not replay to the registers that were signed."""

    code = "event-log"


class ReferenceManifestError(AttestationError):
    """A reference integrity manifest whose signature, chain or form does not hold."""

    code = "reference-manifest"


class DuplicateDeviceError(AttestationError):
    """The same device or the same report presented as several."""

    code = "duplicate-device"


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


class ReportVersionError(AppraisalError):
    """Evidence of an older format than the policy allows."""

    code = "report-version"


class MigrationError(AppraisalError):
    """A TEE that a migration agent or another TEE can take over."""

    code = "migration"


class GuestPolicyError(AppraisalError):
    """A guest policy with bits that are unknown or not accepted."""

    code = "guest-policy"


class PrivilegeLevelError(AppraisalError):
    """Evidence requested from a privilege level that the policy does not name."""

    code = "privilege-level"


class TcbError(AppraisalError):
    """A TCB below the least that is accepted, or inconsistent with itself."""

    code = "tcb"


class TcbStatusError(AppraisalError):
    """A TCB status that the policy does not accept."""

    code = "tcb-status"


class AdvisoryError(AppraisalError):
    """A security advisory that the policy does not accept, or no longer."""

    code = "advisory"


class EvaluationNumberError(AppraisalError):
    """TCB data of an older evaluation than the policy demands."""

    code = "evaluation-number"


class AliasCheckError(AppraisalError):
    """A platform that has not completed the memory alias check."""

    code = "alias-check"


class PlatformInfoError(AppraisalError):
    """A platform whose settings the policy does not accept."""

    code = "platform-info"


class MitigationError(AppraisalError):
    """A mitigation that is demanded and not active."""

    code = "mitigation"


class PlatformError(AppraisalError):
    """A chip or platform that the policy does not name."""

    code = "platform"


class ProductError(AppraisalError):
    """A product that the policy does not name, or denies."""

    code = "product"


class SignerError(AppraisalError):
    """Code signed by a key, product or version that the policy does not name."""

    code = "signer"


class AttributesError(AppraisalError):
    """Attributes of a TEE that the policy does not accept."""

    code = "attributes"


class SecurityModuleError(AppraisalError):
    """A security module or service TD that the policy does not accept."""

    code = "security-module"


class RegisterError(AppraisalError):
    """A measured register whose value the policy does not name."""

    code = "register"


class RegisterSelectionError(AppraisalError):
    """A signed selection of registers that is not the policy's, or that anybody can reset."""

    code = "register-selection"


class FreshnessError(AppraisalError):
    """Evidence that is older than the policy allows, or not known to be fresh where it demands that."""

    code = "freshness"


class LifecycleError(AppraisalError):
    """A platform in a life-cycle state in which it cannot vouch for anything."""

    code = "lifecycle"


class DeviceModeError(AppraisalError):
    """A device outside its confidential mode, or in a mode for development."""

    code = "device-mode"


class DeviceCountError(AppraisalError):
    """Fewer or more devices than the policy demands."""

    code = "device-count"


class GoldenValueError(AppraisalError):
    """A measurement that is not its golden value, or a golden value of zeros."""

    code = "golden-value"


class FirmwareError(AppraisalError):
    """A firmware, driver or VBIOS version that the policy does not accept."""

    code = "firmware"


class RevocationStatusError(AppraisalError):
    """A device or manifest whose certificates are on hold, or not known to be good, where the policy demands it."""

    code = "revocation-status"


class ExperimentalError(AppraisalError):
    """A kind of evidence that is experimental, where the policy does not say so."""

    code = "experimental"


class PolicyMissingError(AppraisalError):
    """A TEE of a kind for which there is no appraisal policy."""

    code = "policy-missing"


class PolicyExpiredError(AppraisalError):
    """An appraisal policy, or the data in it, past its date."""

    code = "policy-expired"


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


class RunEndedError(RoundError):
    """A further round of a run that a stop rule of its manifest has ended."""

    code = "run-ended"


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


class ShortCohortError(CohortError):
    """A run fell short: fewer sites remained than its manifest asks for."""

    code = "cohort-short"
    exit_code = 5


class QuorumError(BrokerError):
    """Too few countersignatures."""

    code = "quorum"


class BudgetError(BrokerError):
    """A budget of rounds, attempts or privacy that is spent."""

    code = "budget"


class PrivacyBudgetError(BudgetError):
    """A release that would spend more epsilon than the privacy budget has."""

    code = "privacy-budget"


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


class RoundFullError(UpdateError):
    """An update that comes when the round has as many as it takes: nothing is wrong with it."""

    code = "round-full"


class BatchError(UpdateError):
    """An update of a site whose batch is over, or not open yet."""

    code = "other-batch"


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


class LossError(UpdateError):
    """An update whose training loss, which the strategy weighs it by, is absent or not in the permitted range."""

    code = "loss"


class StaleUpdateError(UpdateError):
    """An update for another run, round, attempt, base or aggregator."""

    code = "stale-update"


class DeclarationError(UpdateError):
    """A sealed declaration (weight, norm, metrics) that is not well-formed."""

    code = "declaration"


class CompressionError(UpdateError):
    """A compressed update that is not in the one form that its manifest names."""

    code = "compression"


class AdapterError(UpdateError):
    """An adapter that does not fit the base, has more than its site's rank, or changed what is not its own."""

    code = "adapter"


class AggregatorError(RefusedError):
    """The aggregator failed, for a reason that it does not tell."""

    code = "aggregator"


class StrategyError(AggregatorError):
    """A strategy class of one's own that failed, or whose result or state is not one."""

    code = "strategy"


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


class EnclaveLostError(UnreachableError):
    """The aggregator enclave ended, or cannot be reached, while a round was open."""

    code = "enclave-lost"


class MissingObjectError(RefusedError):
    """The courier holds no complete object of this digest."""

    code = "missing-object"


class LostCheckpointError(MissingObjectError):
    """The newest checkpoint is lost and none older takes its place: start another run from the last version."""

    code = "lost-checkpoint"


class StorageError(RefusedError):
    """A disk that failed while something was stored."""

    code = "storage"


class DiskFullError(StorageError):
    """The courier's disk is full."""

    code = "disk-full"


class SessionError(RefusedError):
    """Confidential code used outside an attested session."""

    code = "session"


class LanguageModelError(RefusedError):
    """A language model that cannot be tuned here: a file is missing or asks for code, or a device is not there."""

    code = "language-model"


class SequenceLengthError(LanguageModelError):
    """A sequence that is longer than the model's context, or than the run's terms permit."""

    code = "sequence-length"


class EvidenceUnavailableError(RefusedError):
    """A TEE, TPM or device that gives no evidence here, or gave some that is not for this request."""

    code = "evidence-unavailable"


class EndorsementFetchError(RefusedError):
    """An endorsement that could not be fetched: host not allowed, time-out, size, or a wrong answer."""

    code = "endorsement-fetch"


class ExchangeError(RefusedError):
    """A sealed request that the inference TEE did not take."""

    code = "exchange"


class StaleEpochError(ExchangeError):
    """A request sealed to a key that the inference TEE does not hold (any more)."""

    code = "stale-epoch"


class ReplayedError(ExchangeError):
    """A sealed request that was taken before: none runs twice."""

    code = "replayed"


class BusyError(ExchangeError):
    """More requests at once than the inference TEE takes; this one was not run."""

    code = "busy"


class MayHaveRunError(ExchangeError):
    """A request that was sent, and neither answered nor refused by its replica's signature: it may have run."""

    code = "may-have-run"


class DeliveryError(ExchangeError):
    """An answer, or what leaves of it in clear, did not get to where its owner's policy sends it."""

    code = "delivery"


class LeaseError(ExchangeError):
    """A replica whose time without its owner's broker is over, or a lease that is not for it."""

    code = "lease"


class AnswerError(ExchangeError):
    """The served model refused what was asked of it."""

    code = "answer"


def error_for(code: str, field: str) -> ConfedError:
    """Return the error of the class that ``code`` names, for a refusal that crossed a trust boundary.

    A code that no class has gives a plain ``RefusedError`` that names it.
    """
    kind = _by_code().get(code)
    if kind is None and code.startswith(f"{SettingError.code}-"):
        kind = SettingError  # with the setting's name (``confed.client.settings``)
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
