"""The one session of this process, and the site that it acts for at the moment."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from confed.adapter import AdapterTerms
from confed.client.keeping import Checkpoints, MemoryCheckpoints
from confed.client.step import Arrays, Step
from confed.client.tree import Tree
from confed.errors import SessionError
from confed.manifest import Site

if TYPE_CHECKING:
    import pyarrow as pa
    from flwr.app import Context

    from confed.client.session import ClientSession

_session: ClientSession | None = None
_site: ContextVar[Site | None] = ContextVar("confed_site", default=None)
_step: ContextVar[Step | None] = ContextVar("confed_step", default=None)
_in_memory: dict[str, dict[str, Tree]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAdapter:
    """The run's adapter as this site trains it: the manifest's terms, and the rank of the site's own."""

    terms: AdapterTerms
    rank: int


def install(session: ClientSession) -> None:
    """Make ``session`` the one of this process: a client TEE has exactly one.

    Raises:
        SessionError: there is one already.
    """
    global _session  # noqa: PLW0603 (a process is one TEE)
    if _session is not None:
        raise SessionError("session", expected="none yet in this process", got="one")
    _session = session


def installed() -> ClientSession | None:
    """Return this process's session, if it has one."""
    return _session


@contextmanager
def acting_for(site: Site, step: Step) -> Generator[None]:
    """Let ``site_data``, ``opened_model``, ``site_adapter`` and ``checkpoints`` answer for a site and its step."""
    tokens = _site.set(site), _step.set(step)
    try:
        yield
    finally:
        _site.reset(tokens[0])
        _step.reset(tokens[1])


def site_data(context: Context) -> Arrays:
    """Return the arrays of this site's sealed dataset, opened in this TEE: name -> array; of a table, its columns.

    Raises:
        SessionError: called outside a confidential train or evaluate, or the manifest names no dataset.
    """
    del context
    session, site = _acting("site_data")
    return session.datasets.arrays(site)


def site_table(context: Context) -> pa.Table:
    """Return this site's table as a ``pyarrow.Table``: it kept its contract, and is cleaned and labelled.

    Raises:
        SessionError: called outside a confidential train or evaluate, or the data are not a table.
    """
    del context
    session, site = _acting("site_table")
    return session.datasets.table(site)


def site_has_table(context: Context) -> bool:
    """Return whether this site's data are a table (``site_table``), and not arrays (``site_data``).

    Raises:
        SessionError: called outside a confidential train or evaluate.
    """
    del context
    session, site = _acting("site_has_table")
    return session.datasets.has_table(site)


def _acting(what: str) -> tuple[ClientSession, Site]:
    site = _site.get()
    if _session is None or site is None:
        raise SessionError(what, expected="a call inside a confidential train or evaluate", got="none")
    return _session, site


def checkpoints(context: Context) -> Checkpoints:
    """Return where a training loop keeps its state, for this round and for the next; see ``confed.client.keeping``.

    How often is for the experiment's settings: ``checkpoint-every-steps``, ``checkpoint-every-s``. Where one TEE trains
    they are kept sealed and survive it; anywhere else they are in the process's memory.

    Raises:
        SessionError: called to evaluate, which keeps nothing.
    """
    step, site = _step.get(), _site.get()
    if _session is None or step is None or site is None:
        return MemoryCheckpoints(context, _in_memory.setdefault(f"{context.run_id}/{context.node_id}", {}))
    if _session.alone is None:
        return MemoryCheckpoints(context, _in_memory.setdefault(site.owner.name, {}))
    return _session.alone.checkpoints(step, context)


def opened_model(context: Context) -> Arrays:
    """Return the opened base version, every tensor of it, as it lies in this TEE's memory: not to be written to.

    A run with an adapter puts the adapter alone into the message: what is large is here, not copied. bfloat16 comes as
    16-bit integers of the dtype ``confed.model.weights.BFLOAT16``.

    Raises:
        SessionError: called outside a confidential train or evaluate.
    """
    del context
    step = _step.get()
    if step is None:
        raise SessionError("opened_model", expected="a call inside a confidential train or evaluate", got="none")
    return step.arrays


def site_adapter(context: Context) -> SiteAdapter | None:
    """Return the adapter that this site trains, or ``None`` where the manifest has none.

    Raises:
        SessionError: called outside a confidential train or evaluate.
    """
    del context
    site = _site.get()
    if _session is None or site is None:
        raise SessionError("site_adapter", expected="a call inside a confidential train or evaluate", got="none")
    terms = _session.manifest.adapter
    return None if terms is None else SiteAdapter(terms=terms, rank=terms.rank_of(site.owner.name))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and (if the app imported it) torch, single-threaded, so that every engine sees one run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (apps use the global generator)
    torch = sys.modules.get("torch")
    if torch is not None:
        if torch.accelerator.is_available():
            torch.manual_seed(seed)
        else:
            # The same seed for the only device there is: ``manual_seed`` would note a millisecond of stack traces for
            # devices that are not there.
            torch.default_generator.manual_seed(seed)
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
