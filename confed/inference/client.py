"""The requester's client: verifies replicas by its own policy, seals whole requests to them, opens their answers.

1. A replica is verified before anything is sealed to it, and again when the policy says its evidence has aged.
2. A request is sent to one replica. It goes to the next one, or to the same one once more, only where it has certainly
   not run: its last frame was never handed over, or the replica has signed that it will not run it, since it is too
   busy, has no lease, or no longer holds the key (``confed.inference.refusals``). Whatever anybody else says, or where
   nothing is said, it may have run: that is an error, and nothing is sent again.
3. An answer counts when its last frame and its receipt have come and hold; otherwise reading it raises.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from confed import canonical
from confed.attestation.endorsements import EndorsementProvider
from confed.attestation.evidence import from_base64
from confed.errors import (
    AnswerError,
    ConfigError,
    MayHaveRunError,
    RefusedError,
    SignatureError,
    StaleEpochError,
    TruncatedError,
    UnreachableError,
)
from confed.inference.attempts import (
    ELSEWHERE,
    LARGEST_REPLY_BYTES,
    NotRunError,
    body_of_refusal,
    claimed,
    field,
    limited,
    lost,
    refused,
    unreachable,
)
from confed.inference.connections import Connections, tls_for
from confed.inference.duplex import BROKEN, Duplex
from confed.inference.edge import EPOCH_PATH, EVIDENCE_PATH, EXCHANGE_PATH, EXCHANGE_TYPE
from confed.inference.epochs import EPOCH_MS, EpochKey
from confed.inference.exchange import Sealing
from confed.inference.live import Exchange, WindowStream
from confed.inference.messages import TENANT_BYTES, Headers, Request, RequestHead
from confed.inference.refusals import REFUSAL_LIMIT_BYTES
from confed.inference.replica import NONCE_BYTES
from confed.inference.reply import Reply
from confed.inference.requester import Attestation, RequesterPolicy, VerifiedReplica, verify_replica
from confed.inference.tensors import Array, read_tensors, require_answer, write_tensors
from confed.inference.windows import STREAM_HEAD, STREAM_PATH
from confed.statement import Signed

_OK = 200
_AT_ONCE_BYTES = 64 * 1024
"""Up to this size a sealed request goes out as one piece; a larger one is opened while the rest of it is sealed."""
_WAITS_S = 600.0
_IDLE_S = 3.0
"""How long a connection is kept for the next request: less than the 5 s after which a replica closes it. A request that
is sent just then may have run, as far as anybody could say."""
_QUIET_MS = 30_000
"""After how long a replica is asked whether it is still the instance that was verified."""
_WAITS = httpx.Timeout(10.0, read=_WAITS_S)
_Begun = TypeVar("_Begun")
CARRIED = frozenset({"accept", "content-type", "inference-header-content-length", "confed-output", "confed-recipients"})
"""Headers of a caller that go into the sealed request; no other means anything to a replica."""


def wall_clock() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class _Place:
    """One replica's address, and what was verified there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.lock = threading.Lock()
        self.replica: VerifiedReplica | None = None
        self.epoch: tuple[str, EpochKey] | None = None
        self.heard_at = 0

    @property
    def exchange(self) -> httpx.URL:
        """Where sealed requests go."""
        return httpx.URL(self.url + EXCHANGE_PATH)

    def forget(self, replica: VerifiedReplica) -> None:
        """Verify afresh before the next request, unless another replica has been verified meanwhile."""
        with self.lock:
            if self.replica is replica:
                self.replica = self.epoch = None


class ConfidentialClient:
    """Talks to one or several replicas of one manifest; safe for several threads.

    Args:
        url: a replica's address, or several replicas'.
        policy: the requester's own.
        endorsements: the requester's own provider of endorsements, if evidence needs more than comes along.
        now: the requester's clock, Unix milliseconds.
        tenant: what replicas may keep of this client's requests (a prompt's beginning, say) serves this tenant alone.
            32 secret bytes (``messages.Request``); ``None``: drawn here, so that no other client is the same tenant.
        tls: for ``https``, where something before a replica speaks it; ``None``: the public authorities.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        policy: RequesterPolicy,
        endorsements: EndorsementProvider | None = None,
        now: Callable[[], int] = wall_clock,
        tenant: bytes | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tenant = os.urandom(TENANT_BYTES) if tenant is None else tenant
        urls = (url,) if isinstance(url, str) else tuple(url)
        if not urls:
            raise ConfigError("url", expected="at least one replica", got="none")
        self._places = [_Place(entry.rstrip("/")) for entry in urls]
        self._policy = policy
        self._endorsements = endorsements
        self._now = now
        limits = httpx.Limits(max_connections=1024, max_keepalive_connections=64, keepalive_expiry=_IDLE_S)
        self._tls = tls_for(urls, given=tls)
        # Exchanges use the connections alone: an HTTP client's cookies and redirects are nothing to them, and slow.
        self._wire: httpx.BaseTransport = Connections(tls=self._tls, limits=limits)
        self._http = httpx.Client(timeout=_WAITS, transport=self._wire, trust_env=False)
        self._http = httpx.Client(timeout=_WAITS, transport=self._wire, trust_env=False)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self) -> VerifiedReplica:
        """Verify the first replica that can be reached and that serves now, afresh, and return it.

        Raises:
            UnreachableError, BusyError, LeaseError, StaleEpochError: there is none.
            RefusedError: evidence, manifest or key that the policy does not accept.
        """
        failure: RefusedError | None = None
        for place in self._places:
            try:
                with place.lock:
                    return self._verify(place)
            except ELSEWHERE as error:
                failure = error
        raise failure or UnreachableError("replicas", expected="one that answers", got="none")

    def send(self, request: Request) -> Reply:
        """Send a request, sealed, and return its answer as it begins to come.

        Raises:
            UnreachableError, BusyError, LeaseError, StaleEpochError: no replica took it; it has not run.
            SizeError: larger than the manifest permits; it has not run.
            MayHaveRunError: neither an answer nor a refusal that holds came: it may have run, and is not sent again.
            RefusedError: a replica that the policy does not accept; or no answer to this request, which may have run.
        """

        def begun(place: _Place, sealing: Sealing, replica: VerifiedReplica) -> Reply:
            response = self._post(place, sealing, replica, request)
            lost = functools.partial(place.forget, replica)
            return Reply(response, request=request, sealing=sealing, replica=replica, lost=lost)

        return self._anywhere(begun)

    def stream(self) -> WindowStream:
        """Return a stream of windows (live data, say): each sealed, answered, and sent once, over one exchange.

        Raises:
            RefusedError: see ``verify``.
        """
        place: _Place | None = None

        def begun(at: _Place, sealing: Sealing, replica: VerifiedReplica) -> Exchange:
            nonlocal place
            place = at
            return self._streamed(at, sealing, replica)

        return WindowStream(
            lambda: self._anywhere(begun),
            is_current=lambda exchange: self._is_current(place, exchange),
            model=self._name(),
        )

    def request(self, method: str, path: str, *, body: bytes | bytearray = b"", headers: Headers = ()) -> Reply:
        """Send a request of the given parts; headers that mean nothing to a replica are left out.

        Raises:
            EncodingError: a method, path or header that is none.
            RefusedError: see ``send``.
        """
        carried = tuple((name.lower(), value) for name, value in headers if name.lower() in CARRIED)
        head = RequestHead(method=method, path=path, headers=carried)
        return self.send(Request(head=head, body=body, tenant=self._tenant))

    def predict(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the model for tensors, which travel as raw bytes (Open Inference Protocol, version 2).

        Raises:
            AnswerError: the model refused them.
            RefusedError: see ``send``.
        """
        body, headers = write_tensors(tensors)
        reply = self.request("POST", f"/v2/models/{self._name()}/infer", body=body, headers=headers)
        answer = bytearray().join(reply)
        require_answer(reply.head)
        return read_tensors(reply.head, answer)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row for each text.

        Raises:
            AnswerError: the model refused them.
            RefusedError: see ``send``.
        """
        value = self._asked("/v1/embeddings", {"input": list(texts), "encoding_format": "base64"})
        rows = [np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in value["data"]]
        return np.stack(rows).astype(np.float32)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """Return the model's answer to messages (``role`` and ``content``), whole.

        Args:
            messages: of the chat so far.
            options: of the interface: ``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``.

        Raises:
            AnswerError: the model refused them.
            RefusedError: see ``send``.
        """
        value = self._asked("/v1/chat/completions", {**options, "messages": list(messages)})
        return str(value["choices"][0]["message"]["content"])

    def _asked(self, path: str, value: Mapping[str, Any]) -> Any:
        body = json.dumps({**value, "model": self._name()}).encode()
        reply = self.request("POST", path, body=body, headers=(("content-type", "application/json"),))
        answer = reply.read()
        require_answer(reply.head)
        found = json.loads(answer)
        if reply.head.status != _OK:
            raise AnswerError(str(found["error"]["message"])[:500], expected="status 200", got=reply.head.status)
        return found

    def _name(self) -> str:
        known = self._places[0].replica or self.verify()
        return known.manifest.name

    def _anywhere(self, begin: Callable[[_Place, Sealing, VerifiedReplica], _Begun]) -> _Begun:
        """Begin an exchange with the first replica that takes it (rule 2)."""
        failure: RefusedError | None = None
        for place in self._places:
            try:
                return self._at(place, begin)
            except NotRunError as error:
                failure = error.reason
            if not isinstance(failure, ELSEWHERE):
                break
        raise failure or UnreachableError("replicas", expected="one that answers", got="none")

    def _at(self, place: _Place, begin: Callable[[_Place, Sealing, VerifiedReplica], _Begun]) -> _Begun:
        for last in (False, True):
            try:
                replica, epoch = self._ready(place)
            except ELSEWHERE as error:
                raise NotRunError(error) from error
            sealing = Sealing(manifest=replica.digest, replicas=[epoch], padding=replica.serving.padding)
            try:
                begun = begin(place, sealing, replica)
            except NotRunError as error:
                if isinstance(error.reason, UnreachableError):
                    place.forget(replica)
                if last or not isinstance(error.reason, StaleEpochError):
                    raise
            except MayHaveRunError:
                place.forget(replica)  # perhaps another instance is there now
                raise
            else:
                place.heard_at = self._now()
                return begun
            place.forget(replica)  # its key is gone: verify again, and send once more
        raise AssertionError  # the second turn returns or raises

    def _post(self, place: _Place, sealing: Sealing, replica: VerifiedReplica, request: Request) -> httpx.Response:
        size = sealing.request_bytes(request)
        outer = httpx.Request(
            "POST", place.exchange, content=_sealed(sealing, request, at_once=size <= _AT_ONCE_BYTES),
            headers={"content-type": EXCHANGE_TYPE, "content-length": str(size)},
            extensions={"timeout": _WAITS.as_dict()},
        )  # fmt: skip
        try:
            response = self._wire.handle_request(outer)
        except httpx.HTTPError as error:
            raise lost(place.url, error, sealing=sealing) from error
        if response.status_code != _OK:
            raise refused(place.url, response, sealing=sealing, replica=replica)
        return response

    def _streamed(self, place: _Place, sealing: Sealing, replica: VerifiedReplica) -> Exchange:
        """Open a stream; nothing runs by that, so wherever it fails the next replica may be asked."""
        (epoch,) = sealing.epochs
        try:
            connection = Duplex(place.url, STREAM_PATH, content_type=EXCHANGE_TYPE, wait_s=_WAITS_S, tls=self._tls)
        except BROKEN as error:
            raise NotRunError(unreachable(place.url, error)) from error
        try:
            connection.send(b"".join(sealing.request(Request(head=STREAM_HEAD, body=b"", tenant=self._tenant))))
            if connection.status() != _OK:
                reason = claimed(limited(iter(connection.read, b""), limit_bytes=REFUSAL_LIMIT_BYTES))
                raise NotRunError(reason)
            return Exchange(connection, sealing=sealing, replica=replica, epoch=epoch)
        except BaseException as error:
            connection.close()
            if isinstance(error, (*BROKEN, TruncatedError)):
                raise NotRunError(unreachable(place.url, error)) from error
            raise

    def _is_current(self, place: _Place | None, exchange: Exchange) -> bool:
        """Whether a replica's evidence and key are still those that an exchange with it was begun under."""
        if place is None:
            return False
        place.heard_at = self._now()  # it answers windows
        replica, (epoch, _) = self._ready(place)
        return replica is exchange.replica and epoch == exchange.epoch

    def _ready(self, place: _Place) -> tuple[VerifiedReplica, tuple[str, EpochKey]]:
        """Return the replica and a key of it whose time is now, verified as far as need be."""
        with place.lock:
            now = self._now()
            replica, epoch = place.replica, place.epoch
            if replica is None or now - replica.verified_at >= self._policy.tee.reattest_s * 1000:
                replica = self._verify(place)
                epoch = place.epoch
            # Of what is sealed to an instance that was started again nobody can prove that it has not run.
            is_quiet = now - place.heard_at >= _QUIET_MS
            if epoch is None or now >= epoch[1].not_before + EPOCH_MS or is_quiet:
                replica, epoch = self._next_epoch(place, replica)
            return replica, epoch

    def _next_epoch(self, place: _Place, replica: VerifiedReplica) -> tuple[VerifiedReplica, tuple[str, EpochKey]]:
        """Return the key of now; where another instance answers by now, that one, verified as any is."""
        value = self._get(place, "GET", EPOCH_PATH, b"")
        try:
            place.epoch = replica.epoch(Signed.from_json(field(value, "epoch")), now_ms=self._now())
        except SignatureError:
            replica = self._verify(place)
        place.heard_at = self._now()
        if place.epoch is None:
            raise AssertionError  # both ways set it, or raise
        return replica, place.epoch

    def _verify(self, place: _Place) -> VerifiedReplica:
        nonce = os.urandom(NONCE_BYTES)
        value = self._get(place, "POST", EVIDENCE_PATH, nonce)
        attestation = Attestation(
            nonce=nonce,
            envelope=from_base64("envelope", field(value, "envelope")),
            manifest=from_base64("manifest", field(value, "manifest")),
        )
        now = self._now()
        replica = verify_replica(attestation, policy=self._policy, now_ms=now, endorsements=self._endorsements)
        place.epoch = replica.epoch(Signed.from_json(field(value, "epoch")), now_ms=now)
        place.replica, place.heard_at = replica, now
        return replica

    def _get(self, place: _Place, method: str, path: str, body: bytes) -> Any:
        try:
            with self._http.stream(method, place.url + path, content=body) as response:
                if response.status_code != _OK:
                    raise claimed(body_of_refusal(response))
                return canonical.decode(limited(response.iter_raw()), limit_bytes=LARGEST_REPLY_BYTES)
        except httpx.HTTPError as error:
            raise unreachable(place.url, error) from error


def _sealed(sealing: Sealing, request: Request, *, at_once: bool) -> Iterator[bytes]:
    """Yield a sealed request, made once it is asked for: so it is known that nothing was handed over before."""
    frames = sealing.request(request)
    if at_once:
        yield b"".join(frames)
    else:
        yield from frames
