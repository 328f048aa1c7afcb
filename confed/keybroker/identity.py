"""The private half of an owner, on disk: identity key, broker key, HPKE identity, TLS, vault and broker store.

A directory ``HOME/owners/NAME`` of mode 0700. One file in it, ``kek``, is a secret in the clear (mode 0600): the
key-encryption key under which everything else is sealed. An HSM or a cloud's KMS goes there: it would hold that one
key and do ``Vault``'s two operations. Whoever can read the directory is the owner.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical
from confed.errors import ConfigError, EncodingError, FloorError, MissingFileError, NotApprovedError
from confed.files import sync_folder, write_whole
from confed.keybroker.decision import Terms
from confed.keybroker.documents import keep_document
from confed.keybroker.ledger import Ledger
from confed.keybroker.statements import Approval
from confed.keybroker.store import Store, Transaction
from confed.keybroker.vault import KeyFloors, Vault
from confed.manifest import PRODUCTION, SIMULATION, Manifest, Party
from confed.sealing.identities import HpkeIdentity
from confed.statement import Signed, public_bytes, sign
from confed.wire.channel import TlsIdentity

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_FORMAT = "confed-owner/1"
_STORE = "broker.sqlite"
_KEK_BYTES = 32
_NAMED = 20
"""How many owners a message names."""
_TLS_REMAINDER = datetime.timedelta(days=30)


def confed_home(home: Path | None = None) -> Path:
    """Return the directory of this user's owners: ``home``, or CONFED_HOME, or ~/.confed."""
    if home is not None:
        return home
    return Path(os.environ.get("CONFED_HOME") or Path.home() / ".confed")


class OwnerHome:
    """One owner with all its secrets; its ``repr`` shows only the name, and it cannot be pickled."""

    def __init__(self, path: Path) -> None:
        public = _read_public(path)
        self.path = path
        self.name: str = public["name"]
        self.environment: str = public["environment"]
        self._kek = _read(path / "kek")
        self.vault = Vault(self._kek)
        self.identity_key = Ed25519PrivateKey.from_private_bytes(self._opened("identity"))
        self.broker_key = Ed25519PrivateKey.from_private_bytes(self._opened("broker"))
        self.hpke_identity = HpkeIdentity.from_private_bytes(self._opened("hpke"))
        tls = json.loads(self._opened("tls"))
        self.tls = TlsIdentity(certificate=tls["certificate"], private_key=tls["private_key"])
        self.party = Party(
            name=self.name, identity=public_bytes(self.identity_key), broker=public_bytes(self.broker_key)
        )
        self._store: Store | None = None
        if (self.party.identity.hex(), self.party.broker.hex()) != (public["identity"], public["broker"]):
            raise EncodingError("owner file", expected="the keys beside it", got="others")

    def __repr__(self) -> str:
        return f"OwnerHome({self.name})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an OwnerHome holds private keys and is not pickled")

    @classmethod
    def create(cls, name: str, *, home: Path | None = None, environment: str, now_ms: int) -> OwnerHome:
        """Make an owner with fresh keys; the directory appears whole or not at all.

        Raises:
            ConfigError: a name that is taken or no name, or an unknown environment.
        """
        if not _NAME.match(name):
            raise ConfigError("owner name", expected="letters, digits, dots, dashes", got=repr(name)[:80])
        if environment not in (PRODUCTION, SIMULATION):
            raise ConfigError("owner environment", expected=f"{PRODUCTION} or {SIMULATION}", got=environment)
        owners = confed_home(home) / "owners"
        owners.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (owners / name).exists():
            raise ConfigError("owner name", expected="a new one", got=name)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=owners))
        try:
            _fill(draft, name=name, environment=environment, now_ms=now_ms)
            draft.rename(owners / name)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if (owners / name).exists():
                raise ConfigError("owner name", expected="a new one", got=name) from error
            raise
        sync_folder(owners)
        return cls(owners / name)

    @classmethod
    def load(cls, name: str, *, home: Path | None = None) -> OwnerHome:
        """Return an owner of this machine.

        Raises:
            MissingFileError: none of this name, or a part of it is gone.
            TamperedError: a part that was not sealed under its key-encryption key.
        """
        path = confed_home(home) / "owners" / name
        if not cls.exists(name, home=home):
            names = cls.names(home)
            known = ", ".join(names[:_NAMED]) or "none yet"
            if len(names) > _NAMED:
                known += f" and {len(names) - _NAMED} more"
            raise MissingFileError("owner", expected=f"one of {confed_home(home) / 'owners'} ({known})", got=name)
        return cls(path)

    @classmethod
    def exists(cls, name: str, *, home: Path | None = None) -> bool:
        """Whether there is an owner of this name, without a look at any other."""
        return bool(_NAME.match(name)) and (confed_home(home) / "owners" / name).is_dir()

    @classmethod
    def names(cls, home: Path | None = None) -> tuple[str, ...]:
        """Return the names of the owners of this machine, in order."""
        path = confed_home(home) / "owners"
        if not path.is_dir():
            return ()
        names = (entry.name for entry in path.iterdir() if (entry / "owner.json").is_file())
        return tuple(sorted(name for name in names if _NAME.match(name)))

    @classmethod
    def owners(cls, home: Path | None = None) -> tuple[OwnerHome, ...]:
        """Return the owners of this machine, in order of their names.

        Raises:
            MissingFileError, TamperedError: see ``load``.
        """
        return tuple(cls.load(name, home=home) for name in cls.names(home))

    @property
    def kek(self) -> bytes:
        """The key-encryption key, 32 bytes."""
        return self._kek

    @property
    def store(self) -> Store:
        """The broker's store, opened when first used."""
        if self._store is None:
            self._store = Store(self.path / _STORE)
        return self._store

    def close(self) -> None:
        """Close the store, if it is open."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def renew_tls(self, *, now_ms: int) -> TlsIdentity:
        """Return the TLS identity to serve with, made anew first if its certificate ends within 30 days.

        Those who pinned the old certificate must be told of the new one; nothing that confed promises rests on it.
        """
        ends = x509.load_pem_x509_certificate(self.tls.certificate.encode()).not_valid_after_utc
        now = _moment(now_ms)
        if ends - now < _TLS_REMAINDER:
            self.tls = TlsIdentity.generate(now=now)
            write_whole(self.path / "tls.sealed", self.vault.seal(_tls_bytes(self.tls), kind="owner", name="tls"))
        return self.tls

    def new_key(self, *, floors: KeyFloors) -> tuple[str, bytes]:
        """Make a key in the vault and return its id and the key itself.

        Raises:
            FloorError: floors of another environment than this owner's.
        """
        if floors.environment != self.environment:
            raise FloorError("key environment", expected=self.environment, got=floors.environment)
        with self.store.transaction() as tx:
            return self.vault.new_key(tx, floors=floors)

    def key(self, key_id: str) -> bytes:
        """Return a key of the vault.

        Raises:
            UnknownKeyError: none of this id.
        """
        with self.store.transaction() as tx:
            return self.vault.key(tx, key_id)

    def floors(self, key_id: str) -> KeyFloors:
        """Return the floors of a key of the vault.

        Raises:
            UnknownKeyError: none of this id.
        """
        with self.store.transaction() as tx:
            return self.vault.floors(tx, key_id)

    def approve(self, manifest: Manifest, *, now_ms: int | None = None) -> Signed:
        """Approve a manifest: sign its digest with the identity key and let the broker act on it.

        Approving the same manifest again returns the first approval.

        Raises:
            ManifestMismatchError: the manifest does not list this owner with these keys.
            NotApprovedError: another manifest with the same run is approved; a run's name is used once.
        """
        Terms.of(manifest, self.party)
        digest = manifest.digest
        document = keep_document(self.path, manifest.encoded, digest=digest)
        with self.store.transaction() as tx:
            known = self._approval(tx, manifest.run)
            if known is not None:
                if known[0] != digest:
                    raise NotApprovedError("run", expected="a name not approved before", got=manifest.run)
                return known[1]
            time_ms = max(_now_ms() if now_ms is None else now_ms, Ledger.time(tx))
            signed = sign(Approval(manifest=digest, owner=self.party.identity, time=time_ms), self.identity_key)
            values = (digest, manifest.run, document, signed.payload, signed.signer, signed.signature)
            tx.execute("INSERT INTO approvals VALUES (?, ?, ?, ?, ?, ?)", values)
            body = {"manifest": digest, "run": manifest.run, "approval": signed.digest, "rounds": manifest.rounds}
            Ledger(self.broker_key).append(tx, event="approved", body=body, time=time_ms)
        return signed

    def approved_at(self, manifest: Manifest) -> int:
        """Return the sequence number of the ledger entry that approves a manifest: a run's records begin there.

        Raises:
            NotApprovedError: this owner did not approve it.
        """
        sought, below = manifest.digest, 2**62
        # From the newest back: a run's approval is as far away as its own entries are many.
        while rows := self.store.rows(
            "SELECT sequence, payload FROM ledger WHERE sequence < ? ORDER BY sequence DESC LIMIT 256", (below,)
        ):
            for below, payload in rows:
                entry = canonical.decode(payload)
                if entry["event"] == "approved" and entry["body"]["manifest"] == sought:
                    return below
        raise NotApprovedError("manifest", expected="one that this owner approved", got=sought[:16])

    def approve_simulation(self, manifest: Manifest, *, now_ms: int | None = None) -> Signed:
        """Approve without asking anybody: only a simulation, and only with keys that were born in simulation.

        Raises:
            FloorError: the manifest, the owner or one of its keys is not of simulation.
            UnknownKeyError: a key of this owner that the manifest names and the vault does not hold.
        """
        terms = Terms.of(manifest, self.party)
        names = [terms.site.dataset.key_id] if terms.site is not None and terms.site.dataset is not None else []
        if terms.is_model_owner:
            names.append(manifest.model.start.key_id)
        births = [self.floors(key_id).environment for key_id in names]
        for what, found in (
            ("manifest environment", manifest.environment),
            ("owner environment", self.environment),
            *(("key environment", birth) for birth in births),
        ):
            if found != SIMULATION:
                raise FloorError(f"automatic approval: {what}", expected=SIMULATION, got=found)
        return self.approve(manifest, now_ms=now_ms)

    def _approval(self, tx: Transaction, run: str) -> tuple[str, Signed] | None:
        row = tx.one("SELECT manifest, payload, signer, signature FROM approvals WHERE run = ?", (run,))
        return None if row is None else (row[0], Signed(payload=row[1], signer=row[2], signature=row[3]))

    def _opened(self, name: str) -> bytes:
        return self.vault.open(_read(self.path / f"{name}.sealed"), kind="owner", name=name)


def _fill(draft: Path, *, name: str, environment: str, now_ms: int) -> None:
    kek = os.urandom(_KEK_BYTES)
    vault = Vault(kek)
    identity, broker = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    secrets = {
        "identity": identity.private_bytes_raw(),
        "broker": broker.private_bytes_raw(),
        "hpke": HpkeIdentity.generate().to_private_bytes(),
        "tls": _tls_bytes(TlsIdentity.generate(now=_moment(now_ms))),
    }
    public = {
        "format": _FORMAT,
        "name": name,
        "environment": environment,
        "identity": public_bytes(identity).hex(),
        "broker": public_bytes(broker).hex(),
    }
    _write(draft / "kek", kek)
    for part, secret in secrets.items():
        _write(draft / f"{part}.sealed", vault.seal(secret, kind="owner", name=part))
    store = Store.create(draft / _STORE)
    with store.transaction() as tx:
        body = {"identity": public["identity"], "environment": environment, "owner": name}
        Ledger(broker).append(tx, event="created", body=body, time=now_ms)
    store.close()
    _write(draft / "owner.json", canonical.encode(public))
    sync_folder(draft)


def _tls_bytes(tls: TlsIdentity) -> bytes:
    return json.dumps({"certificate": tls.certificate, "private_key": tls.private_key}).encode()


def _moment(now_ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC)


def _read_public(path: Path) -> dict[str, str]:
    public = canonical.decode(_read(path / "owner.json"))
    names = ["broker", "environment", "format", "identity", "name"]
    if not isinstance(public, dict) or sorted(public) != names or public["format"] != _FORMAT:  # pyright: ignore[reportUnknownArgumentType]
        raise EncodingError("owner file", expected=_FORMAT, got="something else")
    return public  # pyright: ignore[reportUnknownVariableType]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError("owner file", expected="a file", got=str(path)) from error


def _write(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600 to disk; the directory around it is renamed into place later."""
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
