"""A sealed result and the two documents that its header names: they came as letters, or in a bundle with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aggregator.round import Arrival
from confed import canonical
from confed.errors import ConfedError, CredentialError, StaleUpdateError, TicketError
from confed.statement import Signed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aggregator.inbox import Parcel

Documents = tuple[Signed, Signed]
"""A credential and a ticket; nothing is verified."""


def arrived(site: str, digest: str, parcel: Parcel, found: Sequence[Documents]) -> Arrival:
    """Return what ``Round.accept`` looks at: a site's container with those of the documents that its header names.

    Raises:
        StaleUpdateError: a container of another site.
        CredentialError, TicketError: the one that the header names is not there.
    """
    header = parcel.container.header
    if header.detail.get("site") != site:
        raise StaleUpdateError("site", expected=site[:60], got=str(header.detail.get("site"))[:60])
    wanted = (header.detail.get("credential"), header.detail.get("ticket"))
    for credential, ticket in found:
        if (credential.digest, ticket.digest) == wanted:
            return Arrival(
                site=site,
                digest=digest,
                header=header,
                signer=parcel.container.signer,
                credential=credential,
                ticket=ticket,
            )
    if any(ticket.digest == wanted[1] for _, ticket in found):
        raise CredentialError(f"{site} credential", expected="the one that the header names", got="none")
    raise TicketError(f"{site} ticket", expected="the one that the header names", got="none")


def documents(letters: Iterable[bytes]) -> list[Documents]:
    """Return the credentials and tickets in letters, passing over what is neither: anybody may post there."""
    found: list[Documents] = []
    for body in letters:
        try:
            found.append(_documents(body))
        except ConfedError:
            continue
    return found


def _documents(body: bytes) -> Documents:
    value = canonical.decode(body)
    if not isinstance(value, dict) or sorted(value) != ["credential", "ticket"]:  # pyright: ignore[reportUnknownArgumentType]
        raise CredentialError("letter", expected="credential and ticket", got="something else")
    return Signed.from_json(value["credential"]), Signed.from_json(value["ticket"])
