from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("payload", "signer", "signature")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    signer: bytes
    signature: bytes
    def __init__(self, payload: _Optional[bytes] = ..., signer: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code",)
    CODE_FIELD_NUMBER: _ClassVar[int]
    code: str
    def __init__(self, code: _Optional[str] = ...) -> None: ...

class ChallengeBatch(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("broker", "manifest")
        BROKER_FIELD_NUMBER: _ClassVar[int]
        MANIFEST_FIELD_NUMBER: _ClassVar[int]
        broker: bytes
        manifest: str
        def __init__(self, broker: _Optional[bytes] = ..., manifest: _Optional[str] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ChallengeBatch.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[ChallengeBatch.Item, _Mapping]]] = ...) -> None: ...

class ChallengeReplies(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("challenge", "refusal")
        CHALLENGE_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        challenge: Signed
        refusal: Refusal
        def __init__(self, challenge: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ChallengeReplies.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[ChallengeReplies.Item, _Mapping]]] = ...) -> None: ...

class ReleaseBatch(_message.Message):
    __slots__ = ("items", "base_records")
    class Item(_message.Message):
        __slots__ = ("request", "envelope", "base_record")
        REQUEST_FIELD_NUMBER: _ClassVar[int]
        ENVELOPE_FIELD_NUMBER: _ClassVar[int]
        BASE_RECORD_FIELD_NUMBER: _ClassVar[int]
        request: Signed
        envelope: bytes
        base_record: int
        def __init__(self, request: _Optional[_Union[Signed, _Mapping]] = ..., envelope: _Optional[bytes] = ..., base_record: _Optional[int] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    BASE_RECORDS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ReleaseBatch.Item]
    base_records: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, items: _Optional[_Iterable[_Union[ReleaseBatch.Item, _Mapping]]] = ..., base_records: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ReleaseReplies(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("released", "refusal")
        RELEASED_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        released: ReleaseReplies.Released
        refusal: Refusal
        def __init__(self, released: _Optional[_Union[ReleaseReplies.Released, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    class Released(_message.Message):
        __slots__ = ("grant", "wrapped_keys", "credential", "ticket")
        GRANT_FIELD_NUMBER: _ClassVar[int]
        WRAPPED_KEYS_FIELD_NUMBER: _ClassVar[int]
        CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
        TICKET_FIELD_NUMBER: _ClassVar[int]
        grant: Signed
        wrapped_keys: _containers.RepeatedScalarFieldContainer[bytes]
        credential: Signed
        ticket: Signed
        def __init__(self, grant: _Optional[_Union[Signed, _Mapping]] = ..., wrapped_keys: _Optional[_Iterable[bytes]] = ..., credential: _Optional[_Union[Signed, _Mapping]] = ..., ticket: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ReleaseReplies.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[ReleaseReplies.Item, _Mapping]]] = ...) -> None: ...

class TicketBatch(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("request",)
        REQUEST_FIELD_NUMBER: _ClassVar[int]
        request: Signed
        def __init__(self, request: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[TicketBatch.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[TicketBatch.Item, _Mapping]]] = ...) -> None: ...

class TicketReplies(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("ticket", "refusal")
        TICKET_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        ticket: Signed
        refusal: Refusal
        def __init__(self, ticket: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[TicketReplies.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[TicketReplies.Item, _Mapping]]] = ...) -> None: ...

class CountersignBatch(_message.Message):
    __slots__ = ("brokers", "candidate", "tickets", "base_record")
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    BASE_RECORD_FIELD_NUMBER: _ClassVar[int]
    brokers: _containers.RepeatedScalarFieldContainer[bytes]
    candidate: Signed
    tickets: _containers.RepeatedCompositeFieldContainer[Signed]
    base_record: bytes
    def __init__(self, brokers: _Optional[_Iterable[bytes]] = ..., candidate: _Optional[_Union[Signed, _Mapping]] = ..., tickets: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., base_record: _Optional[bytes] = ...) -> None: ...

class CountersignReplies(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("countersignature", "refusal")
        COUNTERSIGNATURE_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        countersignature: Signed
        refusal: Refusal
        def __init__(self, countersignature: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[CountersignReplies.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[CountersignReplies.Item, _Mapping]]] = ...) -> None: ...

class CommitCall(_message.Message):
    __slots__ = ("broker", "candidate", "tickets", "countersignatures", "base_record")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    COUNTERSIGNATURES_FIELD_NUMBER: _ClassVar[int]
    BASE_RECORD_FIELD_NUMBER: _ClassVar[int]
    broker: bytes
    candidate: Signed
    tickets: _containers.RepeatedCompositeFieldContainer[Signed]
    countersignatures: _containers.RepeatedCompositeFieldContainer[Signed]
    base_record: bytes
    def __init__(self, broker: _Optional[bytes] = ..., candidate: _Optional[_Union[Signed, _Mapping]] = ..., tickets: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., countersignatures: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., base_record: _Optional[bytes] = ...) -> None: ...

class CommitReply(_message.Message):
    __slots__ = ("commit", "refusal")
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    commit: Signed
    refusal: Refusal
    def __init__(self, commit: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class ObserveBatch(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("broker", "run", "nonce", "record")
        BROKER_FIELD_NUMBER: _ClassVar[int]
        RUN_FIELD_NUMBER: _ClassVar[int]
        NONCE_FIELD_NUMBER: _ClassVar[int]
        RECORD_FIELD_NUMBER: _ClassVar[int]
        broker: bytes
        run: str
        nonce: bytes
        record: bytes
        def __init__(self, broker: _Optional[bytes] = ..., run: _Optional[str] = ..., nonce: _Optional[bytes] = ..., record: _Optional[bytes] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ObserveBatch.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[ObserveBatch.Item, _Mapping]]] = ...) -> None: ...

class ObserveReplies(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("head", "refusal")
        HEAD_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        head: Signed
        refusal: Refusal
        def __init__(self, head: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ObserveReplies.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[ObserveReplies.Item, _Mapping]]] = ...) -> None: ...

class CloseCall(_message.Message):
    __slots__ = ("brokers", "run", "manifest", "final_record", "closing", "history")
    BROKERS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    FINAL_RECORD_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    brokers: _containers.RepeatedScalarFieldContainer[bytes]
    run: str
    manifest: str
    final_record: bytes
    closing: Signed
    history: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, brokers: _Optional[_Iterable[bytes]] = ..., run: _Optional[str] = ..., manifest: _Optional[str] = ..., final_record: _Optional[bytes] = ..., closing: _Optional[_Union[Signed, _Mapping]] = ..., history: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("signed", "refusal")
        SIGNED_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        signed: Signed
        refusal: Refusal
        def __init__(self, signed: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[CloseReply.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[CloseReply.Item, _Mapping]]] = ...) -> None: ...

class CheckpointBatch(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("note",)
        NOTE_FIELD_NUMBER: _ClassVar[int]
        note: Signed
        def __init__(self, note: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[CheckpointBatch.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[CheckpointBatch.Item, _Mapping]]] = ...) -> None: ...

class CheckpointReplies(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("newest", "refusal")
        NEWEST_FIELD_NUMBER: _ClassVar[int]
        REFUSAL_FIELD_NUMBER: _ClassVar[int]
        newest: Signed
        refusal: Refusal
        def __init__(self, newest: _Optional[_Union[Signed, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[CheckpointReplies.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[CheckpointReplies.Item, _Mapping]]] = ...) -> None: ...

class RecordsCall(_message.Message):
    __slots__ = ("broker", "first")
    BROKER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    broker: bytes
    first: int
    def __init__(self, broker: _Optional[bytes] = ..., first: _Optional[int] = ...) -> None: ...

class RecordItem(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: Signed
    def __init__(self, entry: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...

class PutPart(_message.Message):
    __slots__ = ("digest", "size_bytes", "offset", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    offset: int
    data: bytes
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutReply(_message.Message):
    __slots__ = ("stored_bytes", "refusal")
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    refusal: Refusal
    def __init__(self, stored_bytes: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class ProgressCall(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class HandOverCall(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class ProgressReply(_message.Message):
    __slots__ = ("stored_bytes", "complete")
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    complete: bool
    def __init__(self, stored_bytes: _Optional[int] = ..., complete: _Optional[bool] = ...) -> None: ...

class GetCall(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class GetPart(_message.Message):
    __slots__ = ("size_bytes", "data", "refusal")
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    data: bytes
    refusal: Refusal
    def __init__(self, size_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Letter(_message.Message):
    __slots__ = ("topic", "body")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    topic: str
    body: bytes
    def __init__(self, topic: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class PostReply(_message.Message):
    __slots__ = ("refusal",)
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class CollectCall(_message.Message):
    __slots__ = ("topic",)
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    topic: str
    def __init__(self, topic: _Optional[str] = ...) -> None: ...

class CollectReply(_message.Message):
    __slots__ = ("bodies",)
    BODIES_FIELD_NUMBER: _ClassVar[int]
    bodies: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, bodies: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LeaveCall(_message.Message):
    __slots__ = ("box", "name", "body")
    BOX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    box: str
    name: str
    body: bytes
    def __init__(self, box: _Optional[str] = ..., name: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ("refusal",)
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class AwaitCall(_message.Message):
    __slots__ = ("box", "after", "wait_ms")
    BOX_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    box: str
    after: int
    wait_ms: int
    def __init__(self, box: _Optional[str] = ..., after: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class AwaitReply(_message.Message):
    __slots__ = ("items", "place", "refusal")
    class Item(_message.Message):
        __slots__ = ("name", "body", "sender")
        NAME_FIELD_NUMBER: _ClassVar[int]
        BODY_FIELD_NUMBER: _ClassVar[int]
        SENDER_FIELD_NUMBER: _ClassVar[int]
        name: str
        body: bytes
        sender: str
        def __init__(self, name: _Optional[str] = ..., body: _Optional[bytes] = ..., sender: _Optional[str] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[AwaitReply.Item]
    place: int
    refusal: Refusal
    def __init__(self, items: _Optional[_Iterable[_Union[AwaitReply.Item, _Mapping]]] = ..., place: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class AttestCall(_message.Message):
    __slots__ = ("first_round", "attempt")
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    first_round: int
    attempt: int
    def __init__(self, first_round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class AttestReply(_message.Message):
    __slots__ = ("instance", "refusal")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    instance: str
    refusal: Refusal
    def __init__(self, instance: _Optional[str] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class OpenRoundCall(_message.Message):
    __slots__ = ("round", "attempt", "purpose")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    purpose: str
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., purpose: _Optional[str] = ...) -> None: ...

class OpenRoundReply(_message.Message):
    __slots__ = ("base", "version", "instance", "cohort", "refusal")
    BASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    base: str
    version: int
    instance: str
    cohort: _containers.RepeatedScalarFieldContainer[str]
    refusal: Refusal
    def __init__(self, base: _Optional[str] = ..., version: _Optional[int] = ..., instance: _Optional[str] = ..., cohort: _Optional[_Iterable[str]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class SubmitCall(_message.Message):
    __slots__ = ("site", "digest")
    SITE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    site: str
    digest: str
    def __init__(self, site: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("refusal",)
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class SubmitBundleCall(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class SubmitBundleReply(_message.Message):
    __slots__ = ("codes", "refusal")
    class CodesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODES_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    codes: _containers.ScalarMap[str, str]
    refusal: Refusal
    def __init__(self, codes: _Optional[_Mapping[str, str]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class FoldBatchCall(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: int
    def __init__(self, batch: _Optional[int] = ...) -> None: ...

class FoldBatchReply(_message.Message):
    __slots__ = ("refusal",)
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    refusal: Refusal
    def __init__(self, refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class CloseRoundCall(_message.Message):
    __slots__ = ("absent",)
    class AbsentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    absent: _containers.ScalarMap[str, str]
    def __init__(self, absent: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CloseRoundReply(_message.Message):
    __slots__ = ("record", "metrics", "excluded", "seconds", "cohort_size", "refusal")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ExcludedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SecondsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RECORD_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    COHORT_SIZE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    metrics: _containers.ScalarMap[str, float]
    excluded: _containers.ScalarMap[str, str]
    seconds: _containers.ScalarMap[str, float]
    cohort_size: int
    refusal: Refusal
    def __init__(self, record: _Optional[bytes] = ..., metrics: _Optional[_Mapping[str, float]] = ..., excluded: _Optional[_Mapping[str, str]] = ..., seconds: _Optional[_Mapping[str, float]] = ..., cohort_size: _Optional[int] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class CloseRunCall(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseRunReply(_message.Message):
    __slots__ = ("closing", "refusal")
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    closing: bytes
    refusal: Refusal
    def __init__(self, closing: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...
