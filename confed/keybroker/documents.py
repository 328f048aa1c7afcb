"""Approved manifests as brokers keep them: small ones in the store, large ones in files that owners of a home share.

A manifest of a thousand sites has a third of a megabyte, and each of its thousand owners approves it. Where they live
in one home it is written once and linked into each owner's folder, which stays whole by itself: copying it copies
the manifest. A process that serves many brokers decodes it once.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from confed import canonical
from confed.errors import NotApprovedError
from confed.files import sync_folder, write_whole
from confed.manifest import Manifest

_SMALL_BYTES = 64 * 1024
_KEPT = 8
_FOLDER = "manifests"
_SHARED = ".manifests"
_known: OrderedDict[str, Manifest] = OrderedDict()
_lock = threading.Lock()


def keep_document(owner: Path, document: bytes, *, digest: str) -> bytes:
    """Keep an approved manifest for an owner, durably, and return what goes into the owner's store for it.

    Raises:
        OSError: the disk is full or fails.
    """
    if len(document) <= _SMALL_BYTES:
        return document
    shared = owner.parent / _SHARED / digest
    if not shared.is_file():
        shared.parent.mkdir(exist_ok=True, mode=0o700)
        write_whole(shared, document)
    own = owner / _FOLDER / digest
    own.parent.mkdir(exist_ok=True, mode=0o700)
    try:
        os.link(shared, own)
    except FileExistsError:
        pass
    except OSError:  # A file system without hard links: a copy then.
        write_whole(own, document)
    sync_folder(own.parent)
    return b""


def approved_manifest(owner: Path, digest: str, stored: Callable[[], bytes]) -> Manifest:
    """Return an approved manifest; of one digest, one object for all brokers of this process.

    Args:
        owner: the owner's folder.
        digest: as it was approved.
        stored: reads what ``keep_document`` returned from the store.

    Raises:
        NotApprovedError: what is kept is not the manifest of this digest.
    """
    with _lock:
        known = _known.get(digest)
    if known is not None:
        return known
    document = stored() or _read(owner / _FOLDER / digest)
    if canonical.digest(document) != digest:
        raise NotApprovedError("kept manifest", expected=digest[:16], got=canonical.digest(document)[:16])
    manifest = Manifest.decode(document)
    with _lock:
        manifest = _known.setdefault(digest, manifest)
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotApprovedError("kept manifest", expected="a file beside the store", got="none") from error
