"""The replica's end of a request: opened as it comes in, and taken once, when all of it is there and authentic."""

from __future__ import annotations

from collections.abc import Callable

from confed.errors import EncodingError, ManifestMismatchError, SizeError, StaleEpochError
from confed.inference.epochs import Epochs, OpenEpoch
from confed.inference.exchange import BODY, HEAD, SECRET_BYTES, Answering
from confed.inference.frames import Frame, FrameOpener
from confed.inference.header import ExchangeHeader, HeaderReader, SealedHeader
from confed.inference.messages import TENANT_BYTES, Commitment, Request, RequestHead
from confed.sealing.derivation import exchange_request_key, receipt_salt


class Opening:
    """The replica's end of one exchange: opens the request as its bytes come in.

    Args:
        epochs: the instance's.
        manifest: digest of its manifest.
        largest_bytes: of head and body together.
        admit: is called once the header is there, before anything is opened; what it raises refuses the request.
    """

    def __init__(self, *, epochs: Epochs, manifest: str, largest_bytes: int, admit: Callable[[], None]) -> None:
        self._epochs = epochs
        self._manifest = manifest
        self._largest = largest_bytes
        self._admit = admit
        self._reader = HeaderReader()
        self.header: SealedHeader | None = None
        """Which request it is, once that is known."""
        self._frames: FrameOpener | None = None
        self._head: RequestHead | None = None
        self._tenant = b""
        self._body = bytearray()
        self._opened: tuple[OpenEpoch, int, bytes, bytes] | None = None
        self._salt = b""
        self._commitment: Commitment | None = None

    def feed(self, data: bytes) -> None:
        """Go on with further bytes of the request.

        Raises:
            StaleEpochError: sealed to none of the keys that are held.
            WrongKeyError, RecipientError: a secret that was not wrapped to them for this request.
            ManifestMismatchError: sealed for another manifest.
            TamperedError, SizeError, EncodingError: not a request of its one form, or too large.
            ConfedError: it is not admitted.
        """
        frames = self._frames
        if frames is None:
            read = self._reader.feed(data)
            if read is None:
                return
            self.header, data = read
            frames = self._begin(self.header)
        for frame in frames.feed(data):
            self._read(frame)

    @property
    def has_ended(self) -> bool:
        """Whether the request's last frame has come."""
        return self._frames is not None and self._frames.ended

    def finish(self) -> tuple[Request, Answering]:
        """Return the whole request, taken as used, and what seals its answer.

        Raises:
            TruncatedError: its last frame did not come.
            ReplayedError: it was taken before, or refused.
            StaleEpochError, BusyError: its epoch's key has gone meanwhile, or its list is full.
        """
        if self._frames is None or self._opened is None:
            raise EncodingError("request", expected="a request", got="its end before it began")
        self._frames.close()
        if self._head is None or self._commitment is None:
            raise EncodingError("request", expected="a head", got="none")
        epoch, index, secret, transcript = self._opened
        epoch.take(transcript)
        request = Request(head=self._head, body=self._body, tenant=self._tenant)
        answering = Answering(
            epoch=epoch.name,
            index=index,
            secret=secret,
            transcript=transcript,
            salt=self._salt,
            request_commitment=self._commitment.digest,
        )
        return request, answering

    def _begin(self, sealed: SealedHeader) -> FrameOpener:
        """Open the secret and return what opens the frames."""
        header = sealed.header
        if header.manifest != self._manifest:
            raise ManifestMismatchError("exchange manifest", expected=self._manifest[:16], got=header.manifest[:16])
        self._admit()
        epoch, index = self._epoch_of(header)
        secret = epoch.unwrap(header.replicas[index].wrapped, info=sealed.info(epoch.name))
        if len(secret) != SECRET_BYTES:
            raise SizeError("exchange secret in bytes", expected=SECRET_BYTES, got=len(secret))
        self._opened = (epoch, index, secret, sealed.transcript)
        self._salt = receipt_salt(secret, transcript=sealed.transcript)
        key = exchange_request_key(secret, transcript=sealed.transcript, epoch=epoch.name)
        self._frames = FrameOpener(key, what="request", largest_bytes=self._largest)
        return self._frames

    def _epoch_of(self, header: ExchangeHeader) -> tuple[OpenEpoch, int]:
        for index, entry in enumerate(header.replicas):
            epoch = self._epochs.named(entry.epoch)
            if epoch is not None:
                return epoch, index
        raise StaleEpochError("epoch", expected="one whose key is held", got="another")

    def _read(self, frame: Frame) -> None:
        if frame.kind != (HEAD if self._head is None else BODY):
            raise EncodingError("request frame", expected="a head and then the body", got="another")
        if self._commitment is None:
            self._tenant, head = frame.content[:TENANT_BYTES], frame.content[TENANT_BYTES:]
            self._head = RequestHead.decode(head)
            self._commitment = Commitment(self._salt, head)
        else:
            self._commitment.add(frame.content)
            self._body += frame.content
