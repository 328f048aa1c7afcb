"""Options by which a requester's command is told of TLS before a replica: whom to take for it, and what to show it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated

import typer

from confed.errors import ConfigError, MissingFileError

Authorities = Annotated[
    Path | None,
    typer.Option(
        "--ca", metavar="FILE", help="With https: its certificate authorities, PEM (default: the public ones)."
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="FILE", help="With https: a certificate to show, PEM; needs --key."),
]
Key = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The private key of --certificate, PEM.")]


def tls_context(
    url: list[str], authorities: Path | None, certificate: Path | None, key: Path | None
) -> ssl.SSLContext | None:
    """Return what speaks TLS as the options say; ``None`` where they say nothing.

    Raises:
        ConfigError: a certificate without its key or the other way, files that hold none, or no address with https.
        MissingFileError: a file that cannot be read.
    """
    if authorities is None and certificate is None and key is None:
        return None
    if (certificate is None) != (key is None):
        raise ConfigError("--certificate", expected="with --key", got="one of the two")
    if not any(entry.startswith("https:") for entry in url):
        raise ConfigError("url", expected="https://… where TLS is spoken of", got=url[0])
    try:
        context = ssl.create_default_context(cafile=authorities)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError("--ca, --certificate, --key", expected="PEM that belongs together", got="others") from error
    except OSError as error:
        raise MissingFileError("--ca, --certificate, --key", expected="files to read", got=error.strerror) from error
    return context
