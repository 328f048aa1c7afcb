"""Clients that nobody here wrote, in process: HTTP libraries through the transport."""

from __future__ import annotations

from pathlib import Path

import httpx
import httpx2
import pytest
from inference_road import Deployment

from confed.errors import UnreachableError
from confed.inference.transport import confidential_transport

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_http_client_reaches_the_replica_whatever_address_it_names(quick_disk: Path, library: object) -> None:
    folder = quick_disk / f"transport-{library.__name__}"  # type: ignore[attr-defined]
    folder.mkdir()
    with Deployment(folder=folder) as deployment, deployment.served() as served:
        with (
            deployment.client(served.url) as client,
            library.Client(transport=confidential_transport(client, library=library)) as http,  # type: ignore[attr-defined]
        ):
            found = http.post("http://confed.invalid/v2/models/linear/infer", json=BODY)
            assert (found.status_code, found.json()["outputs"][0]["shape"]) == (200, [1, 3])
            assert http.get("http://confed.invalid/v2/models/other").status_code == 404
        with (
            deployment.client("http://127.0.0.1:9") as client,
            library.Client(transport=confidential_transport(client, library=library)) as http,  # type: ignore[attr-defined]
            pytest.raises(UnreachableError),
        ):
            http.get("http://confed.invalid/v2")
