"""Small public documents by topic, on disk: ``letters/<sha256 of topic>/<sequence>-<digest of body>``."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from confed.errors import SizeError
from confed.files import sync_folder
from confed.governor.quota import Quota
from confed.wire.addresses import LETTERS_PER_TOPIC, check_letter, check_topic


@dataclass(slots=True)
class _Topic:
    """What lies under one topic: file names by digest of body, in order of arrival."""

    names: dict[str, str] = field(default_factory=dict[str, str])
    size_bytes: int = 0


class LetterBox:
    """Letters under topics, in order of arrival, each body once.

    Guarantees: a topic is hashed before it names a folder; a letter is there whole or not at all; posting the same
    body again changes nothing; ``collect`` always fits one message. Safe between threads, not between processes.
    """

    def __init__(self, directory: Path, *, topics: int, topic_bytes: int, quota: Quota, durable: bool) -> None:
        self._directory = directory / "letters"
        self._topics_limit, self._topic_bytes, self._quota, self._durable = topics, topic_bytes, quota, durable
        self._lock = threading.Lock()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._topics = {folder.name: self._load(folder) for folder in self._directory.iterdir()}

    def post(self, topic: str, body: bytes) -> None:
        """Add a letter.

        Raises:
            EncodingError: not a topic.
            SizeError: the letter, the topic, the number of topics or the whole store would be too large.
            OSError: the disk is full or fails.
        """
        check_topic(topic)
        check_letter(body)
        folder, digest = hashlib.sha256(topic.encode()).hexdigest(), hashlib.sha256(body).hexdigest()
        with self._lock:
            found = self._topics.get(folder, _Topic())
            if digest in found.names:
                return
            self._check_room(folder, found, len(body))
            self._quota.take(len(body))
            name = f"{len(found.names):05d}-{digest}"
            try:
                self._write(self._directory / folder, name, body)
            except BaseException:
                self._quota.count(-len(body))
                raise
            found.names[digest] = name
            found.size_bytes += len(body)
            self._topics[folder] = found

    def collect(self, topic: str) -> list[bytes]:
        """Return the letters under a topic, oldest first; none for a topic that nobody has written to.

        Raises:
            EncodingError: not a topic.
        """
        check_topic(topic)
        folder = hashlib.sha256(topic.encode()).hexdigest()
        with self._lock:
            names = list(self._topics.get(folder, _Topic()).names.values())
        return [(self._directory / folder / name).read_bytes() for name in names]

    def remove(self, topics: Iterable[str]) -> None:
        """Delete what is under these topics; for the operator's rules only, nobody can ask for it over the network.

        Raises:
            OSError: the disk fails.
        """
        for topic in topics:
            folder = hashlib.sha256(topic.encode()).hexdigest()
            with self._lock:
                found = self._topics.pop(folder, None)
                if found is not None:
                    shutil.rmtree(self._directory / folder)
                    self._quota.count(-found.size_bytes)

    def _check_room(self, folder: str, found: _Topic, size_bytes: int) -> None:
        if folder not in self._topics and len(self._topics) >= self._topics_limit:
            raise SizeError("topics", expected=f"at most {self._topics_limit}", got="one more")
        if len(found.names) >= LETTERS_PER_TOPIC:
            raise SizeError("letters under a topic", expected=f"at most {LETTERS_PER_TOPIC}", got="one more")
        if found.size_bytes + size_bytes > self._topic_bytes:
            total = found.size_bytes + size_bytes
            raise SizeError("bytes under a topic", expected=f"at most {self._topic_bytes}", got=total)

    def _write(self, folder: Path, name: str, body: bytes) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        temporary = folder / f".{name}"
        try:
            with temporary.open("wb") as file:
                file.write(body)
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
            temporary.rename(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        if self._durable:
            sync_folder(folder)
            sync_folder(self._directory)

    def _load(self, folder: Path) -> _Topic:
        found = _Topic()
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                path.unlink()  # A crash left it before it was whole.
                continue
            found.names[path.name.partition("-")[2]] = path.name
            found.size_bytes += path.stat().st_size
        self._quota.count(found.size_bytes)
        return found
