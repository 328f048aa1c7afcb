"""One SQLite file per owner: the broker's durable memory. A commit is the moment from which something has happened.

WAL with ``synchronous=FULL``: what a transaction wrote is on disk before ``transaction`` returns, so nothing is
answered that a crash could undo. Transactions begin IMMEDIATE, so two of them, in two threads or two processes,
see each other's decisions one after the other. The rows hold no secret in the clear: see ``vault``.

Stores of several owners in one process may wait for the disk once, ``written_together``: no answer leaves before that
block has ended, and who reads in a store meanwhile what is not on disk yet waits for the disk itself.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confed.errors import LedgerError, MissingFileError
from confed.files import can_sync_file_systems, sync_file_system, sync_folder

_BUSY_MS = 10_000
_VERSION = 6
_SCHEMA = """
CREATE TABLE ledger (sequence INTEGER PRIMARY KEY, digest TEXT NOT NULL, time INTEGER NOT NULL,
    payload BLOB NOT NULL, signature BLOB NOT NULL);
CREATE TABLE keys (key_id TEXT PRIMARY KEY, sealed_key BLOB NOT NULL, sealed_floors BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE approvals (manifest TEXT PRIMARY KEY, run TEXT NOT NULL UNIQUE, document BLOB NOT NULL,
    payload BLOB NOT NULL, signer BLOB NOT NULL, signature BLOB NOT NULL);
CREATE TABLE nonces (nonce BLOB PRIMARY KEY, manifest TEXT NOT NULL, expires_at INTEGER NOT NULL,
    used INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX nonces_by_expiry ON nonces (expires_at);
CREATE TABLE replies (request_id BLOB PRIMARY KEY, request TEXT NOT NULL, signer BLOB NOT NULL,
    sealed BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (manifest TEXT NOT NULL, role TEXT NOT NULL, instance TEXT NOT NULL, signing_public BLOB NOT NULL,
    hpke_public BLOB NOT NULL, nonce BLOB NOT NULL, binding TEXT NOT NULL, evidence TEXT NOT NULL, claims TEXT NOT NULL,
    measurement TEXT NOT NULL, appraised_at INTEGER NOT NULL, first_round INTEGER NOT NULL,
    PRIMARY KEY (manifest, role, instance)) WITHOUT ROWID;
CREATE TABLE aggregators (manifest TEXT NOT NULL, instance TEXT NOT NULL, first_round INTEGER NOT NULL,
    last_round INTEGER NOT NULL, signing_public BLOB NOT NULL, expires_at INTEGER NOT NULL,
    PRIMARY KEY (manifest, instance, first_round)) WITHOUT ROWID;
CREATE TABLE seats (manifest TEXT NOT NULL, purpose TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    instance TEXT NOT NULL, PRIMARY KEY (manifest, purpose, round, attempt)) WITHOUT ROWID;
CREATE TABLE issued (manifest TEXT NOT NULL, kind TEXT NOT NULL, purpose TEXT NOT NULL, round INTEGER NOT NULL,
    attempt INTEGER NOT NULL, about TEXT NOT NULL, detail BLOB NOT NULL, payload BLOB NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (manifest, kind, purpose, round, attempt)) WITHOUT ROWID;
CREATE TABLE ticket_requests (request_id BLOB PRIMARY KEY, request TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE charges (key_id TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    PRIMARY KEY (key_id, run, round)) WITHOUT ROWID;
CREATE TABLE versions (manifest TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, attempt INTEGER NOT NULL,
    PRIMARY KEY (manifest, version)) WITHOUT ROWID;
"""
# Version 2: which endorsements of a provider the ledger already holds.
_ENDORSED = """
CREATE TABLE endorsed (manifest TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (manifest, digest)) WITHOUT ROWID;
"""
# Version 3: what a version's release has spent of the privacy budget, as its candidate says; nothing without privacy.
_PRIVACY = "ALTER TABLE versions ADD COLUMN privacy TEXT NOT NULL DEFAULT '';"
# Version 4: the newest checkpoint of a round that one TEE trains.
_CHECKPOINTS = """
CREATE TABLE checkpoints (manifest TEXT NOT NULL, round INTEGER NOT NULL, counter INTEGER NOT NULL,
    digest TEXT NOT NULL, PRIMARY KEY (manifest, round)) WITHOUT ROWID;
"""
# Version 5: the releases that a data key's tickets have charged, over all manifests.
_RELEASES = """
CREATE TABLE releases (key_id TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    multiplier REAL NOT NULL, rate REAL NOT NULL, PRIMARY KEY (key_id, run, round, attempt)) WITHOUT ROWID;
"""
# Version 6: what statistics of a data key have spent, by run.
_STATISTICS = """
CREATE TABLE statistics (key_id TEXT NOT NULL, run TEXT NOT NULL, epsilon REAL NOT NULL,
    PRIMARY KEY (key_id, run)) WITHOUT ROWID;
"""
_STEPS = {
    1: _ENDORSED + _PRIVACY + _CHECKPOINTS + _RELEASES + _STATISTICS,
    2: _PRIVACY + _CHECKPOINTS + _RELEASES + _STATISTICS,
    3: _CHECKPOINTS + _RELEASES + _STATISTICS,
    4: _RELEASES + _STATISTICS,
    5: _STATISTICS,
}
"""What brings the store of an earlier version to this one."""


class Transaction:
    """An open transaction; what it wrote happens when the block around it ends.

    ``last_entry`` is where the ledger notes its newest entry for as long as nobody else can add one.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.last_entry: tuple[int, str, int] | None = None

    def execute(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        return self._connection.execute(sql, values).rowcount

    def one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Return the first row of a query, if there is one."""
        return self._connection.execute(sql, values).fetchone()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def savepoint(self) -> Generator[None]:
        """Undo what the block wrote if it raises; the transaction around it goes on."""
        self._connection.execute("SAVEPOINT decision")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO decision")
            self.last_entry = None
            raise
        finally:
            self._connection.execute("RELEASE decision")


class Store:
    """An owner's store, usable from several threads (one at a time) and beside other processes.

    Raises:
        MissingFileError: no file at ``path``; ``Store.create`` makes one.
        LedgerError: a file of another schema.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise MissingFileError("broker store", expected="a file", got=str(path))
        self.folder = path.parent
        self._log = path.with_name(f"{path.name}-wal")
        self._lock = threading.RLock()
        self._committed = self._on_disk = 0
        """How many transactions were committed together with others, and how many of those are on disk."""
        # isolation_level=None: transactions are begun and ended here, never by the module behind our back.
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._level = ""
        self._wait_at_commit(wait=True)
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found in _STEPS:
            self._connection.executescript(f"BEGIN; {_STEPS[found]} PRAGMA user_version={_VERSION}; COMMIT;")
            found = _VERSION
        if found != _VERSION:
            self._connection.close()
            raise LedgerError("broker store schema", expected=_VERSION, got=found)

    @classmethod
    def create(cls, path: Path) -> Store:
        """Make a new, empty store with mode 0600 and open it; it is on the disk once, when all of it is written.

        Raises:
            FileExistsError: there is one already.
        """
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous=OFF")  # nobody has anything in it before this returns
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(f"BEGIN; {_SCHEMA} {_STEPS[1]} PRAGMA user_version={_VERSION}; COMMIT;")
        connection.close()
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return cls(path)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Generator[Transaction]:
        """Open a transaction: on disk when the block ends, undone when it raises.

        ``durable=False`` leaves out the wait for the disk, for rows whose loss in a power failure only makes the
        broker refuse (fresh nonces); losing the process loses nothing. Inside ``written_together`` it is on disk when
        that block ends.
        """
        together = _together.now
        with self._lock:
            if durable and together is not None:
                together.begin(self)
            self._wait_at_commit(wait=durable and together is None)
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            if durable and together is not None:
                self._committed += 1
            self._settle()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query outside any transaction."""
        with self._lock:
            found = self._connection.execute(sql, values).fetchall()
            self._settle()
            return found

    def sync(self) -> None:
        """Put what was committed on disk.

        Raises:
            OSError: the disk fails.
        """
        with self._lock:
            committed = self._committed
            descriptor = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(self.folder)
            self.note_on_disk(committed)

    @property
    def committed(self) -> int:
        """How many transactions were committed together with others."""
        return self._committed

    def note_on_disk(self, committed: int) -> None:
        """Note that as many transactions that were committed with others are on disk."""
        with self._lock:
            self._on_disk = max(self._on_disk, committed)

    def _settle(self) -> None:
        """Where something read or written may not be on disk yet: have it there before anybody is answered."""
        if self._on_disk == self._committed:
            return
        if _together.now is not None:
            _together.now.begin(self)
        else:
            self.sync()

    def _wait_at_commit(self, *, wait: bool) -> None:
        level = "FULL" if wait else "NORMAL"
        if level != self._level:
            self._connection.execute(f"PRAGMA synchronous={level}")
            self._level = level

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()


class _Together(threading.local):
    """The stores that this thread writes together at the moment."""

    now: _Group | None = None


class _Group:
    """Stores that wait for the disk once, by the file system that they are on."""

    def __init__(self) -> None:
        self._stores: set[Store] = set()
        self._file_systems: dict[int, int] = {}

    def begin(self, store: Store) -> None:
        """Take a store in, before its first transaction: errors are told from then on."""
        if store in self._stores:
            return
        place = store.folder.stat().st_dev
        if place not in self._file_systems:
            self._file_systems[place] = os.open(store.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stores.add(store)

    def sync(self) -> None:
        """Put everything on disk.

        Raises:
            OSError: a disk fails; no store believes then that it is on disk.
        """
        committed = {store: store.committed for store in self._stores}
        for descriptor in self._file_systems.values():
            sync_file_system(descriptor)
        for store, count in committed.items():
            store.note_on_disk(count)

    def end(self) -> None:
        """Let go of the file systems."""
        for descriptor in self._file_systems.values():
            os.close(descriptor)


_together = _Together()


@contextmanager
def written_together() -> Generator[None]:
    """Let this thread's durable transactions wait for the disk once, when the block ends, whatever stores they are in.

    Nothing that was read or written in the block may be told to anybody before it has ended. A block that raises has
    its transactions on disk too: a refusal is one. Where the system cannot do it, each transaction waits for itself.

    Raises:
        OSError: a disk fails; no store takes what was written for durable then.
    """
    if _together.now is not None or not can_sync_file_systems():
        yield
        return
    group = _together.now = _Group()
    try:
        try:
            yield
        finally:
            _together.now = None
            group.sync()
    finally:
        group.end()
